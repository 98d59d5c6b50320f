"""`elastic bench sim`: many simulated swarms, what they violate (nothing, it is hoped), and how fast they are."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from elastic.sim.world import Outcome, simulate

Say = Callable[[str], None]
PROGRESS_SECONDS = 10.0


@dataclass(slots=True)
class Figures:
    """What came of it."""

    schedules: int = 0
    seconds: float = 0.0
    virtual_seconds: float = 0.0
    lives: int = 0
    violations: list[Outcome] = field(default_factory=list)


def measure_sim(first: int, seeds: int, processes: int, say: Say) -> Figures:
    """Simulate so many schedules, each from its seed.

    Args:
        first: the first seed; the others follow.
        seeds: how many.
        processes: at a time; 0: one per core.
        say: told the progress.
    """
    figures, begin, told = Figures(), time.monotonic(), time.monotonic()
    with ProcessPoolExecutor(processes or os.cpu_count(), initializer=_quiet) as pool:
        for outcome in pool.map(simulate, range(first, first + seeds), chunksize=4):
            figures.schedules += 1
            figures.virtual_seconds += outcome.seconds
            figures.lives += outcome.lives
            if outcome.violation:
                figures.violations.append(outcome)
                say(f"seed {outcome.seed}: {outcome.violation}")
            if time.monotonic() > told + PROGRESS_SECONDS:
                told = time.monotonic()
                say(f"{figures.schedules} of {seeds} schedules, {len(figures.violations)} violations")
    figures.seconds = time.monotonic() - begin
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


def _quiet() -> None:
    logging.getLogger("elastic").setLevel(logging.CRITICAL)
