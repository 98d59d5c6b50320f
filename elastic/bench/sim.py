"""`elastic bench sim`: many simulated swarms, what they violate (nothing, it is hoped), and how fast they are."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from elastic.sim.world import Outcome, simulate

Say = Callable[[str], None]
PROGRESS_SECONDS = 10.0


@dataclass(slots=True)
class Figures:
    """What came of it."""

    wanted: int
    schedules: int = 0
    seconds: float = 0.0
    virtual_seconds: float = 0.0
    lives: int = 0
    violations: list[Outcome] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Schedules a second."""
        return self.schedules / max(self.seconds, 1e-9)

    def add(self, outcome: Outcome) -> None:
        """One more schedule."""
        self.schedules += 1
        self.virtual_seconds += outcome.seconds
        self.lives += outcome.lives
        if outcome.violation:
            self.violations.append(outcome)

    def progress(self) -> str:
        """A line for who waits."""
        left = (self.wanted - self.schedules) / max(self.rate, 1e-9)
        to_go = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
        return (
            f"{self.schedules:,} of {self.wanted:,} schedules, {len(self.violations)} violations, "
            f"{self.rate:.1f} schedules/s, {to_go} to go"
        )


def measure_sim(first: int, seeds: int, processes: int, say: Say) -> Figures:
    """Simulate so many schedules, each from its seed; on Ctrl-C, those until then.

    Args:
        first: the first seed; the others follow.
        seeds: how many.
        processes: at a time; 0: one per core.
        say: told the progress, and each violation as soon as it is known.
    """
    with ProcessPoolExecutor(processes or os.cpu_count(), initializer=_prepare) as pool:
        return collect(pool.map(simulate, range(first, first + seeds), chunksize=2), seeds, say)


def collect(outcomes: Iterable[Outcome], wanted: int, say: Say, now: Callable[[], float] = time.monotonic) -> Figures:
    """Figures of outcomes as they come, until there are no more or Ctrl-C is pressed."""
    figures, begin = Figures(wanted), now()
    told = begin
    try:
        for outcome in outcomes:
            figures.add(outcome)
            figures.seconds = now() - begin
            if outcome.violation:
                say(f"seed {outcome.seed}: {outcome.violation}")
            if now() > told + PROGRESS_SECONDS:
                told = now()
                say(figures.progress())
    except KeyboardInterrupt:
        say(f"stopped: {wanted - figures.schedules:,} of {wanted:,} schedules were not simulated")
    return figures


def tell_story(seed: int, say: Say) -> Outcome:
    """One schedule again, with what its peers log, each line at its virtual second."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_AtSecond())
    root = logging.getLogger("elastic")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        outcome = simulate(seed)
    finally:
        root.removeHandler(handler)
    say(f"seed {seed}: {outcome.violation or 'no violation'} after {outcome.seconds:.0f} s, {outcome.lives} lives, "
        f"trace {outcome.trace[:16]}")  # fmt: skip
    return outcome


class _AtSecond(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        try:
            now = asyncio.get_running_loop().time()
        except RuntimeError:
            now = 0.0
        return f"{now:8.2f} s  {record.name.removeprefix('elastic.')}: {record.getMessage()}"


def _prepare() -> None:
    """In each process: Ctrl-C is the parent's to answer, and what peers log is of no use to anyone here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("elastic").setLevel(logging.CRITICAL)
