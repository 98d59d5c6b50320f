"""The digest of a blob, made so that every chunk can be checked as it arrives: a hash over the hashes of its chunks.

    table   SHA-256 of every chunk of CHUNK_BYTES, the last one shorter, in order
    digest  SHA-256(domain · size u64 · table)

Whoever knows digest and size checks a table, and then any chunk, whoever sent it. This is for payloads and anchors; a
message or a setting has the plain hash of its bytes (`messages.digest_of`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from elastic.messages import Digest, digest_of

CHUNK_BYTES = 256 * 1024
"""The unit that is asked for, checked and passed on: 0.02 s at 110 Mb/s, and its hash is 1/8192 of it."""
HASH_BYTES = 32
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
        return cls._of(view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))

    @classmethod
    def of_file(cls, path: Path) -> Table:
        """Of a file's bytes, one chunk in memory at a time.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            return cls._of(iter(lambda: file.read(CHUNK_BYTES), b""))

    @classmethod
    def _of(cls, chunks: Iterable[bytes | memoryview]) -> Table:
        size, hashes = 0, bytearray()
        for chunk in chunks:
            size += len(chunk)
            hashes += sha256(chunk).digest()
        return cls(size, bytes(hashes))

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
