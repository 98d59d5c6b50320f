"""`elastic bench attack`: all cells of the table, on all cores, kept as they finish; and the table."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from elastic.bench.attack.measure import Cell, Outcome, measure
from elastic.bench.attack.swarm import DEFENCES, USUAL, Setting
from elastic.bench.attack.zoo import ABSENT, CONTROL, QUICK, ZOO
from elastic.errors import ConfigError

Say = Callable[[str], None]
Keep = dict[str, Outcome]
"""Key of a cell → what came of it."""

VERSION = 2
"""Raised when a cell's outcome no longer compares with one from before."""


def cells(kinds: Sequence[str], defences: Sequence[str], setting: Setting, seeds: Iterable[int]) -> list[Cell]:
    """Seed by seed, so that a run that is cut short has every kind."""
    wanted = dict.fromkeys((ABSENT, CONTROL, *kinds))
    return [Cell(kind, name, seed, setting) for seed in seeds for kind in wanted for name in defences]


def defended(names: Sequence[str]) -> list[str]:
    """Names of defences as asked for.

    Raises:
        ConfigError: one that there is not.
    """
    if unknown := set(names) - set(DEFENCES):
        raise ConfigError(f"--defences {min(unknown)}: expected some of {', '.join(DEFENCES)}")
    return list(names) or list(USUAL)


def chosen(kinds: Sequence[str], quick: bool) -> list[str]:
    """Names of kinds as asked for.

    Raises:
        ConfigError: one that is not in the zoo.
    """
    if unknown := set(kinds) - set(ZOO):
        raise ConfigError(f"--kinds {min(unknown)}: expected some of {', '.join(ZOO)}")
    return list(kinds) or list(QUICK if quick else ZOO)


def run(todo: Sequence[Cell], processes: int, kept: Path | None, say: Say) -> list[Outcome]:
    """Measure what is not in the file yet; Ctrl-C ends it with what there is.

    Args:
        todo: cells, in the order of the table.
        processes: at a time; 0: one per core.
        kept: where outcomes are kept as they come.
        say: told the progress.
    """
    found = read(kept)
    missing = [cell for cell in todo if key(cell) not in found]
    say(f"{len(todo)} cells, {len(todo) - len(missing)} kept from before")
    spawn = multiprocessing.get_context("spawn")  # torch does not like to be forked
    if missing:
        with spawn.Pool(processes or os.cpu_count(), initializer=_prepare) as pool:
            try:
                collect(zip(missing, pool.imap(measure, missing), strict=True), found, len(missing), kept, say)
            except KeyboardInterrupt:
                say("stopped: this is what there is")
    return [found[key(cell)] for cell in todo if key(cell) in found]


def collect(pairs: Iterable[tuple[Cell, Outcome]], found: Keep, wanted: int, kept: Path | None, say: Say) -> None:
    """Take outcomes as they come: say so, and keep them."""
    begin = time.monotonic()
    for number, (cell, outcome) in enumerate(pairs, 1):
        found[key(cell)] = outcome
        if kept is not None:
            kept.write_bytes(orjson.dumps({each: asdict(value) for each, value in found.items()}))
        left = (time.monotonic() - begin) / number * (wanted - number)
        to_go = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
        say(
            f"{number:3d}/{wanted} {cell.kind}, {cell.defence}, seed {cell.seed}: loss {outcome.held_out:.3f}, "
            f"{outcome.detected} of {outcome.bad} detected, {outcome.slashed} honest shut out; {to_go} to go"
        )


def key(cell: Cell) -> str:
    """Digest of everything that a cell's outcome follows from, but for the code."""
    return hashlib.sha256(orjson.dumps([VERSION, asdict(cell)], option=orjson.OPT_SORT_KEYS)).hexdigest()[:24]


def read(kept: Path | None) -> Keep:
    """What is in that file.

    Raises:
        ConfigError: something else than outcomes.
    """
    if kept is None or not kept.exists():
        return {}
    try:
        return {each: Outcome(**fields) for each, fields in orjson.loads(kept.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{kept}: not a file of this benchmark ({error}); choose another") from error


def _prepare() -> None:
    """In each process: Ctrl-C is the parent's to answer, and what peers log is of no use to anyone here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("elastic").setLevel(logging.CRITICAL)
