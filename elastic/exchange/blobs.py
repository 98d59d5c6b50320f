"""The blobs we serve: in memory or as files, the oldest dropped when there are too many bytes."""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from elastic.messages import Digest
from elastic.wire.tree import Table, blob_digest

BLOB_FOLDER = "blobs"
"""Its name in a peer's state directory."""
MEMORY_BYTES = 256 * 1024 * 1024
"""Blobs held in memory."""
DISK_BYTES = 8 * 1024 * 1024 * 1024
"""Blobs held in the blob directory; files of others' (`add_file`) do not count."""
_OURS = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16}\.tmp)?")


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes, or a file of that size."""

    source: bytes | Path
    size: int


class BlobStore:
    """Digest → blob. Thread-safe: the event loop adds, serving threads read.

    Args:
        directory: where added bytes are kept as files, also from one life to the next; None: in memory.
        max_bytes: the oldest added blobs are dropped beyond this.
    """

    def __init__(self, directory: Path | None = None, max_bytes: int | None = None) -> None:
        self._directory = directory
        self._max_bytes = max_bytes or (MEMORY_BYTES if directory is None else DISK_BYTES)
        self._added: OrderedDict[Digest, Blob] = OrderedDict()
        self._files: dict[Digest, Path] = {}
        self._lock = threading.Lock()
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._find(directory)

    def add(self, data: bytes) -> Digest:
        """Serve these bytes until newer ones need the room.

        Raises:
            OSError: the blob directory cannot be written.
        """
        digest = blob_digest(data)
        source = data if self._directory is None else _write(self._directory, digest, data)
        with self._lock:
            self._added[digest] = Blob(source, len(data))
            self._added.move_to_end(digest)
            self._make_room()
        return digest

    def add_file(self, digest: Digest, path: Path) -> None:
        """Serve a file that somebody else keeps; a later file of the same digest takes its place."""
        with self._lock:
            self._files[digest] = path

    def get(self, digest: Digest) -> Blob | None:
        """What is served under that digest; None if nothing is, or the file is gone."""
        with self._lock:
            blob, path = self._added.get(digest), self._files.get(digest)
        if blob is not None or path is None:
            return blob
        try:
            return Blob(path, path.stat().st_size)
        except OSError:
            return None

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
        return data if blob_digest(data) == digest else None

    def _find(self, directory: Path) -> None:
        """Serve what an earlier life left: whoever fetches a blob checks its digest, and so does `read`."""
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
