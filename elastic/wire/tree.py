"""The digest of a blob, made so that every chunk can be checked as it arrives: a hash over the hashes of its chunks.

    table   SHA-256 of every chunk of CHUNK_BYTES, the last one shorter, in order
    digest  SHA-256(domain · size u64 · table)

Whoever knows digest and size checks a table, and then any chunk, whoever sent it. This is for payloads and anchors; a
message or a setting has the plain hash of its bytes (`messages.digest_of`). Chunks are hashed by several threads
(`wire.threads`), and by several processes if each takes a part of a file (`part_of`, `chunk_hashes`, `Table.joined`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

from elastic.messages import Digest, digest_of
from elastic.wire.files import read_at
from elastic.wire.threads import in_threads, num_threads

CHUNK_BYTES = 256 * 1024
"""The unit that is asked for, checked and passed on: 0.02 s at 110 Mb/s, and its hash is 1/8192 of it."""
HASH_BYTES = 32
WORTH_THREADS = 4
"""Chunks from which on several threads share them: waking one costs about as much as a tenth of a chunk."""
_DOMAIN = b"elastic blob 1\0"


@dataclass(frozen=True, slots=True)
class Table:
    """The size of a blob in bytes, and the hashes of its chunks, 32 bytes each."""

    size: int
    hashes: bytes

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Table:
        """Of bytes in memory."""
        view = memoryview(data)
        return cls(len(view), _in_runs(partial(_hashes_in, view), 0, num_chunks(len(view))))

    @classmethod
    def of_file(cls, path: Path | str) -> Table:
        """Of a file's bytes; each thread has one chunk in memory at a time.

        Raises:
            OSError: it cannot be read.
        """
        size = os.stat(path).st_size
        return cls(size, chunk_hashes(path, 0, num_chunks(size)))

    @classmethod
    def joined(cls, size: int, parts: Sequence[bytes]) -> Table:
        """Of a blob whose chunks were hashed in parts.

        Args:
            size: of the blob, in bytes.
            parts: `chunk_hashes` of all `part_of`, in order.
        """
        hashes = b"".join(parts)
        assert len(hashes) == HASH_BYTES * num_chunks(size), "the parts are not the whole"
        return cls(size, hashes)

    def __len__(self) -> int:
        """How many chunks."""
        return num_chunks(self.size)

    @property
    def digest(self) -> Digest:
        """The blob's digest."""
        return digest_of(b"".join([_DOMAIN, struct.pack("!Q", self.size), self.hashes]))

    def fits(self, index: int, chunk: bytes | bytearray | memoryview) -> bool:
        """Whether these are the bytes of that chunk."""
        expected = self.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]
        return sha256(chunk).digest() == expected and len(chunk) == chunk_size(self.size, index)


def blob_digest(data: bytes | bytearray | memoryview) -> Digest:
    """The digest of a payload or an anchor."""
    return Table.of(data).digest


def num_chunks(size: int) -> int:
    """Chunks of a blob of that many bytes."""
    return -(-size // CHUNK_BYTES)


def chunk_size(size: int, index: int) -> int:
    """Bytes of that chunk of a blob of `size` bytes."""
    return min(CHUNK_BYTES, size - index * CHUNK_BYTES)


def part_of(size: int, part: int, parts: int) -> tuple[int, int]:
    """The chunks, [first, last), that one of `parts` processes hashes of a blob of `size` bytes."""
    chunks = num_chunks(size)
    return chunks * part // parts, chunks * (part + 1) // parts


def chunk_hashes(path: Path | str, first: int, last: int) -> bytes:
    """Hashes of a file's chunks from `first` to before `last`, as they stand in its table.

    Raises:
        OSError: it cannot be read, is shorter than that, or became so meanwhile.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if last > num_chunks(size):
            raise OSError("it is shorter than it should be")
        return _in_runs(partial(_hashes_at, descriptor, size), first, last)
    finally:
        os.close(descriptor)


def _in_runs(hash_run: Callable[[tuple[int, int]], bytes], first: int, last: int) -> bytes:
    """Chunks [first, last) in as many runs as there are threads, one after another in the table."""
    threads = num_threads() if last - first >= WORTH_THREADS else 1
    ends = [first + (last - first) * thread // threads for thread in range(threads + 1)]
    return b"".join(in_threads(hash_run, pairwise(ends)))


def _hashes_in(view: memoryview, run: tuple[int, int]) -> bytes:
    starts = range(run[0] * CHUNK_BYTES, run[1] * CHUNK_BYTES, CHUNK_BYTES)
    return b"".join(sha256(view[start : start + CHUNK_BYTES]).digest() for start in starts)


def _hashes_at(descriptor: int, size: int, run: tuple[int, int]) -> bytes:
    hashes, room = bytearray(), memoryview(bytearray(CHUNK_BYTES))
    for index in range(*run):
        chunk = room[: chunk_size(size, index)]
        if read_at(descriptor, chunk, index * CHUNK_BYTES) != len(chunk):
            raise OSError("it became shorter while it was read")
        hashes += sha256(chunk).digest()
    return bytes(hashes)
