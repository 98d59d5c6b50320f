"""Blobs on their way: the chunks that have come, kept when a fetch breaks off, so that the next goes on from there."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from elastic.exchange.blobs.selection import Bits
from elastic.messages import Digest
from elastic.wire.tree import CHUNK_BYTES, Table, chunk_size

logger = logging.getLogger(__name__)

SUFFIX = ".partial"
_STALE_SECONDS = 86_400.0
"""What a start finds that nobody has touched for so long is of no use to anyone."""


class Partial:
    """A blob of which only checked chunks are held, in memory or in a file with holes. Thread-safe.

    A file that an earlier life left says nothing of which chunks it has: all of it is checked against the table.
    """

    def __init__(self, table: Table, path: Path | None = None) -> None:
        self.table = table
        self._path = path
        self._chunks: dict[int, bytes] = {}
        self._holds = np.zeros(len(table), np.bool_)
        self._discarded = False
        self._lock = threading.Lock()
        if path is not None and path.exists():
            for index in range(min(len(table), -(-path.stat().st_size // CHUNK_BYTES))):
                self._holds[index] = table.fits(index, self._read(path, index))

    @property
    def holds(self) -> Bits:
        """A copy."""
        return self._holds.copy()

    @property
    def held_bytes(self) -> int:
        """About as much room as it takes."""
        return int(self._holds.sum()) * CHUNK_BYTES

    def add(self, index: int, chunk: bytes | bytearray) -> bool:
        """Keep a chunk if it is right; gives whether it is.

        Raises:
            OSError: it cannot be written.
        """
        if not self.table.fits(index, chunk):
            return False
        with self._lock:
            if self._discarded:  # what comes after the end of a fetch makes no new file
                return True
            if self._path is None:
                self._chunks[index] = bytes(chunk)
            else:
                file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
                try:
                    os.pwrite(file, chunk, index * CHUNK_BYTES)
                finally:
                    os.close(file)
            self._holds[index] = True
        return True

    def read(self, index: int) -> bytes:
        """A chunk that it holds.

        Raises:
            OSError: it is gone.
        """
        if self._path is not None:
            return self._read(self._path, index)
        try:
            return self._chunks[index]
        except KeyError as error:
            raise OSError(f"chunk {index} is gone") from error

    def data(self) -> bytes:
        """The whole blob, once all of it is there.

        Raises:
            OSError: it is gone, or has changed on the disk.
        """
        data = b"".join(self.read(index) for index in range(len(self.table)))
        if self._path is not None and Table.of(data) != self.table:
            raise OSError(f"{self._path}: its bytes have changed")
        return data

    def discard(self) -> None:
        """Free its room."""
        with self._lock:
            self._discarded = True
            self._holds[:] = False
            self._chunks.clear()
            if self._path is not None:
                self._path.unlink(missing_ok=True)

    def _read(self, path: Path, index: int) -> bytes:
        with path.open("rb") as file:
            file.seek(index * CHUNK_BYTES)
            return file.read(chunk_size(self.table.size, index))


class Partials:
    """All of a peer's unfinished blobs. Thread-safe.

    Args:
        directory: where they are files, which the next life finds; None: in memory.
        max_bytes: those that nobody fetches just now are dropped beyond this, the oldest first.
    """

    def __init__(self, directory: Path | None, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._held: OrderedDict[Digest, Partial] = OrderedDict()
        self._left: OrderedDict[Digest, int] = OrderedDict()
        """Files of earlier lives that nobody has asked for in this one, and their bytes."""
        self._active: Counter[Digest] = Counter()
        self._lock = threading.RLock()
        if directory is not None:
            self._find(directory)

    def get(self, digest: Digest) -> Partial | None:
        """What has come of that blob in this life."""
        with self._lock:
            return self._held.get(digest)

    @contextmanager
    def receiving(self, table: Table) -> Iterator[Partial]:
        """The unfinished blob of this table, new or as it was left; safe from being dropped meanwhile."""
        digest = table.digest
        with self._lock:
            self._active[digest] += 1
            partial = self._held.get(digest)
        try:
            if partial is None:
                partial = Partial(table, self._path(digest))  # unlocked: all of an earlier life's file is read
            with self._lock:
                self._left.pop(digest, None)
                partial = self._held.setdefault(digest, partial)
                self._held.move_to_end(digest)
            yield partial
        finally:
            with self._lock:
                self._active[digest] -= 1
                self._active += Counter()
                self._make_room()

    def drop(self, digest: Digest) -> None:
        """The whole blob is kept elsewhere, or what is here is spoilt. Who still fetches it may finish."""
        with self._lock:
            if self._active[digest]:
                return
            partial = self._held.pop(digest, None)
            left = self._left.pop(digest, None)
        path = self._path(digest)
        if partial is not None:
            partial.discard()
        elif left is not None and path is not None:
            path.unlink(missing_ok=True)

    def _find(self, directory: Path) -> None:
        found = [(path, path.stat()) for path in directory.glob(f"*{SUFFIX}")]
        for path, status in sorted(found, key=lambda each: each[1].st_mtime):
            if time.time() - status.st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)
            else:
                self._left[Digest(path.name.removesuffix(SUFFIX))] = status.st_blocks * 512
        self._make_room()

    def _make_room(self) -> None:
        held = sum(self._left.values()) + sum(partial.held_bytes for partial in self._held.values())
        for digest in [*self._left, *self._held]:
            if held > self._max_bytes and not self._active[digest]:
                held -= self._left[digest] if digest in self._left else self._held[digest].held_bytes
                self.drop(digest)

    def _path(self, digest: Digest) -> Path | None:
        return None if self._directory is None else self._directory / f"{digest}{SUFFIX}"
