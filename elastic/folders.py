"""Folders of peers: those that a path means, and of several runs the one that wrote last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

Run = tuple[Path, str]
"""The folder in which a run's peers lie side by side, and its name, if that is known."""


def peers_in(folder: Path, signs: Sequence[str]) -> list[Path]:
    """Folders with one of these files: this one itself, or else those in it, and those in these."""
    if any((folder / sign).is_file() for sign in signs):
        return [folder]
    return sorted({file.parent for sign in signs for depth in ("*", "*/*") for file in folder.glob(f"{depth}/{sign}")})


def by_run(folders: Iterable[Path], name: Callable[[Path], str] = lambda folder: "") -> dict[Run, list[Path]]:
    """Sorted into runs; those of one run lie side by side, and say the same name."""
    found: dict[Run, list[Path]] = {}
    for each in folders:
        found.setdefault((each.parent, name(each)), []).append(each)
    return found


def last_active(runs: Mapping[Run, Sequence[Path]], signs: Sequence[str]) -> Run:
    """The one in which one of these files was written last."""
    return max(runs, key=lambda run: max(_touched(each, signs) for each in runs[run]))


def stat(path: Path) -> os.stat_result | None:
    """None: there is no such file, or not any more."""
    try:
        return path.stat()
    except OSError:
        return None


def _touched(folder: Path, signs: Sequence[str]) -> float:
    """When something was last written there, in Unix time."""
    found = [state.st_mtime for sign in signs if (state := stat(folder / sign)) is not None]
    return max(found, default=0.0)
