"""The manifests of a run on disk, one line each: what a restarted peer knows to be final."""

import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from elastic import trace
from elastic.errors import MalformedError, StateError, state_error
from elastic.messages import Manifest, RoundIndex
from elastic.state.files import sync_directory

CHAIN_FILE = "chain.jsonl"
"""Its name in a peer's state directory."""
REMEMBERED = 256
"""Manifests kept in memory, some 32 kB each at most: the newest."""


class Chain:
    """Append-only. Rounds may be missing (a peer that was away jumps ahead); what is there fits together.

    Signatures are checked where manifests come from strangers, not here: this is our own disk.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; a last line that a crash left torn is cut off.

        Raises:
            StateError: the file cannot be read, holds something else, or its manifests contradict each other.
        """
        self._path = path
        self._by_round: dict[RoundIndex, Manifest] = {}
        self._amendments: dict[RoundIndex, Manifest] = {}
        self._size = 0
        """Bytes of whole lines; what lies behind was never acknowledged and is overwritten."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise state_error(path, error) from error
        for manifest, end in _manifests_in(path, data):
            self._admit(manifest)
            self._size = end
        self._cut(len(data))

    def head(self) -> Manifest | None:
        """The manifest of the highest round."""
        return self._by_round[max(self._by_round)] if self._by_round else None

    def get(self, round_: RoundIndex) -> Manifest | None:
        """The manifest of that round, if it is among the newest that we have."""
        return self._by_round.get(round_)

    def amendments(self) -> list[Manifest]:
        """Manifests that changed the terms of the run, in order: all that we have, however old."""
        return [self._amendments[round_] for round_ in sorted(self._amendments)]

    def append(self, manifest: Manifest) -> None:
        """Keep a final manifest; on disk when this returns. One that is kept already is not written twice.

        Raises:
            StateError: it contradicts one that we keep, or cannot be written; the chain is as before.
        """
        if not self._admit(manifest):
            return
        try:
            self._write(manifest.canonical() + b"\n")
        except OSError as error:
            self._by_round.pop(manifest.round, None)
            self._amendments.pop(manifest.round, None)
            raise state_error(self._path, error) from error

    def _admit(self, manifest: Manifest) -> bool:
        """Take it into memory; False if it is there already."""
        known = self._by_round.get(manifest.round) or self._amendments.get(manifest.round)
        if known is not None and known.digest() == manifest.digest():
            return False
        if known is not None:
            raise StateError(f"{self._path}: two different manifests for round {manifest.round}")
        near = [self._by_round.get(RoundIndex(manifest.round + step)) for step in (-1, 1)]
        for before, after in pairwise((near[0], manifest, near[1])):
            if before is not None and after is not None and after.previous != before.digest():
                raise StateError(f"{self._path}: manifest {after.round} does not continue manifest {before.round}")
        self._by_round[manifest.round] = manifest
        if manifest.amendment is not None:
            self._amendments[manifest.round] = manifest
        if len(self._by_round) > REMEMBERED:
            del self._by_round[min(self._by_round)]
        return True

    def _cut(self, size: int) -> None:
        if size == self._size:
            return
        try:
            os.truncate(self._path, self._size)
        except OSError as error:
            raise state_error(self._path, error) from error

    def _write(self, line: bytes) -> None:
        new, begin = not self._path.exists(), time.perf_counter()
        with self._path.open("wb" if new else "r+b", buffering=0) as file:
            file.truncate(self._size)
            file.seek(self._size)
            written = 0
            while written < len(line):
                written += file.write(line[written:])
            os.fsync(file.fileno())
        if new:
            sync_directory(self._path.parent)
        self._size += len(line)
        trace.tally(disk_s=time.perf_counter() - begin, disk_bytes=len(line))


def manifests_in(path: Path) -> list[Manifest]:
    """A chain that its peer may be writing to, in order of rounds; none, if it has none yet.

    Raises:
        StateError: the file cannot be read, or holds something else.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise state_error(path, error) from error
    found = {each.round: each for each, _ in _manifests_in(path, data)}
    return [found[round_] for round_ in sorted(found)]


def amendments_in(path: Path) -> list[Manifest]:
    """Those of its manifests that changed the terms.

    Raises:
        StateError: see `manifests_in`.
    """
    return [each for each in manifests_in(path) if each.amendment is not None]


def _manifests_in(path: Path, data: bytes) -> Iterator[tuple[Manifest, int]]:
    """(manifest, where its line ends) for every line that is whole."""
    start = 0
    while (newline := data.find(b"\n", start)) >= 0:
        end = newline + 1
        try:
            yield Manifest.from_bytes(data[start:newline]), end
        except MalformedError as error:
            if end == len(data):
                return  # the last one: the crash came between its blocks
            raise StateError(f"{path}: line at byte {start} is no manifest: {error}") from error
        start = end
