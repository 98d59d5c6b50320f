"""The blobs we serve: in memory or as files, whole or in part; the oldest dropped when there are too many bytes."""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np

from elastic.exchange.blobs.partial import Partials
from elastic.exchange.blobs.selection import Bits
from elastic.exchange.limits import Limits
from elastic.messages import Digest
from elastic.wire.tree import CHUNK_BYTES, Table, chunk_size

BLOB_FOLDER = "blobs"
"""Its name in a peer's state directory."""
_OURS = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16}\.tmp)?")
_MAX_TABLES = 256


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes, or a file of that size."""

    source: bytes | Path
    size: int

    def read(self, index: int) -> bytes:
        """One chunk of it.

        Raises:
            OSError: the file is gone or has become shorter.
        """
        start, length = index * CHUNK_BYTES, chunk_size(self.size, index)
        if isinstance(self.source, bytes):
            return self.source[start : start + length]
        with self.source.open("rb") as file:
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise OSError(f"{self.source} has become shorter")
        return data

    def table(self) -> Table:
        """Of its bytes as they are now.

        Raises:
            OSError: the file cannot be read.
        """
        return Table.of(self.source) if isinstance(self.source, bytes) else Table.of_file(self.source)


@dataclass(frozen=True, slots=True)
class Offer:
    """What we can send of a blob."""

    table: Table
    holds: Bits
    read: Callable[[int], bytes]
    """Chunk → its bytes, or OSError."""


class BlobStore:
    """Digest → blob. Thread-safe: the event loop adds, serving and fetching threads read and write.

    Args:
        directory: where added bytes are kept as files, also from one life to the next; None: in memory.
        max_bytes: the oldest added blobs are dropped beyond this; None: as `limits` say.
    """

    def __init__(
        self, directory: Path | None = None, max_bytes: int | None = None, limits: Limits | None = None
    ) -> None:
        limits = limits or Limits()
        in_memory = directory is None
        self._directory = directory
        self._max_bytes = max_bytes or (limits.memory_bytes if in_memory else limits.disk_bytes)
        self._added: OrderedDict[Digest, Blob] = OrderedDict()
        self._files: dict[Digest, Path] = {}
        self._tables: OrderedDict[Digest, Table] = OrderedDict()
        self.withheld: set[Digest] = set()
        """Offered to nobody for the time being: they are on another way to everyone."""
        self._lock = threading.Lock()
        self._hashing: WeakValueDictionary[Digest, threading.Lock] = WeakValueDictionary()
        """Of whom a table is being computed: for an anchor of many gigabytes that takes half a minute."""
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._find(directory)
        self.partials = Partials(directory, limits.partial_memory_bytes if in_memory else limits.partial_disk_bytes)

    def add(self, data: bytes) -> Digest:
        """Serve these bytes until newer ones need the room.

        Raises:
            OSError: the blob directory cannot be written.
        """
        table = Table.of(data)
        digest = table.digest
        source = data if self._directory is None else _write(self._directory, digest, data)
        with self._lock:
            self._added[digest] = Blob(source, len(data))
            self._added.move_to_end(digest)
            self._make_room()
        self._remember(digest, table)
        self.partials.drop(digest)
        return digest

    def add_file(self, digest: Digest, path: Path) -> None:
        """Serve a file that somebody else keeps; a later file of the same digest takes its place."""
        with self._lock:
            self._files[digest] = path
        self.partials.drop(digest)

    def get(self, digest: Digest) -> Blob | None:
        """The whole blob of that digest; None if we have none, or the file is gone."""
        with self._lock:
            blob, path = self._added.get(digest), self._files.get(digest)
        if blob is not None or path is None:
            return blob
        try:
            return Blob(path, path.stat().st_size)
        except OSError:
            return None

    def offer(self, digest: Digest) -> Offer | None:
        """What can be sent of that blob, be it whole or still on its way."""
        if digest in self.withheld:
            return None
        blob = self.get(digest)
        table = None if blob is None else self._table(digest, blob)
        if blob is not None and table is not None:
            return Offer(table, np.ones(len(table), np.bool_), blob.read)
        partial = self.partials.get(digest)
        return None if partial is None else Offer(partial.table, partial.holds, partial.read)

    def read(self, digest: Digest) -> bytes | None:
        """The bytes themselves if we have them and they are right."""
        blob = self.get(digest)
        if blob is None:
            return None
        if isinstance(blob.source, bytes):
            return blob.source
        try:
            data = blob.source.read_bytes()
        except OSError:
            return None
        return data if Table.of(data).digest == digest else None

    def _table(self, digest: Digest, blob: Blob) -> Table | None:
        """Read once, when somebody asks for it; a file that is not what its digest says is served no longer."""
        with self._lock:
            hashing = self._hashing.setdefault(digest, threading.Lock())
        with hashing:  # once, however many ask
            with self._lock:
                known = self._tables.get(digest)
            if known is not None and known.size == blob.size:
                return known
            if self.get(digest) is None:
                return None  # found to be wrong while we waited
            try:
                table = blob.table()
            except OSError:
                return None
            if table.digest == digest:
                self._remember(digest, table)
                return table
            with self._lock:
                self._added.pop(digest, None)
                self._files.pop(digest, None)
        return None

    def _remember(self, digest: Digest, table: Table) -> None:
        with self._lock:
            self._tables[digest] = table
            self._tables.move_to_end(digest)
            if len(self._tables) > _MAX_TABLES:
                self._tables.popitem(last=False)

    def _find(self, directory: Path) -> None:
        """Serve what an earlier life left: it is checked when somebody asks for it, and by `read`."""
        found = [path for path in directory.iterdir() if _OURS.fullmatch(path.name)]
        for path in sorted(found, key=lambda path: path.stat().st_mtime):
            if path.suffix == ".tmp":
                path.unlink(missing_ok=True)
            else:
                self._added[Digest(path.name)] = Blob(path, path.stat().st_size)
        self._make_room()

    def _make_room(self) -> None:
        held = sum(blob.size for blob in self._added.values())
        while held > self._max_bytes and len(self._added) > 1:
            _, oldest = self._added.popitem(last=False)
            held -= oldest.size
            if isinstance(oldest.source, Path):
                oldest.source.unlink(missing_ok=True)


def _write(directory: Path, digest: Digest, data: bytes) -> Path:
    path = directory / digest
    if not path.exists() or Table.of_file(path).digest != digest:  # a crash may have spoilt it
        # Not synced: a blob that a crash of the machine spoils has the wrong digest, and other holders.
        temporary = directory / f"{digest}.{secrets.token_hex(8)}.tmp"
        temporary.write_bytes(data)
        temporary.rename(path)
    return path
