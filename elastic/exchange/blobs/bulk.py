"""The protocol of blobs over libp2p streams: content-addressed, in chunks, from any peer that has them.

    request    kind u8 · digest (32 bytes) · most u16 · copies u8 · count u16 · `count` chunk numbers u32
    response   status u8 · size of the blob u64; if the status is OK, one bit per chunk: what the holder has, and
      TABLE    the hashes of all chunks, 32 bytes each
      CHUNKS   count u16 · the numbers of the chunks that follow, u32 each · their bytes
    ack        one byte from the receiver; the sender closes only then

Who traces its round asks under another protocol, TRACED, with the same messages and in front of the request what it is
busy with, 26 bytes (`elastic.trace_ids.pack_context`); holders that do not speak it are asked as ever.

Of the chunks in a request the holder sends at most `most`, those it has handed out least and at most `copies` times.
p2pd hands each stream to a blocking unix socket. A stream that was cut looks like one that ended, so nothing is taken
for complete but the right number of bytes with the right hash.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from elastic.exchange.blobs.selection import Bits
from elastic.messages import Digest, PeerId

PROTOCOL = "/elastic/bulk/2"
TRACED = "/elastic/bulk/2/traced"
ACK = b"A"
SERVED_TABLES = 256
MAX_PARTNERS = 256
"""Of so many peers it is known how much went to them and came from them."""
"""Blobs of which it is remembered how often each chunk was handed out."""
_REQUEST = struct.Struct("!B32sHBH")
REQUEST_BYTES = _REQUEST.size
RESPONSE = struct.Struct("!BQ")
COUNT = struct.Struct("!H")
NUMBER_BYTES = 4


class Kind(IntEnum):
    """What is asked for."""

    TABLE = 0
    CHUNKS = 1


class Status(IntEnum):
    """What a holder answers."""

    OK = 0
    UNKNOWN = 1
    BUSY = 2
    BAD_REQUEST = 3


@dataclass(frozen=True, slots=True)
class Head:
    """The fixed part of a request."""

    kind: int
    digest: Digest
    most: int
    copies: int
    count: int

    def pack(self) -> bytes:
        """Its bytes."""
        return _REQUEST.pack(self.kind, bytes.fromhex(self.digest), self.most, self.copies, self.count)

    @classmethod
    def unpack(cls, data: bytes) -> Head:
        """Of REQUEST_BYTES bytes."""
        kind, digest, most, copies, count = _REQUEST.unpack(data)
        return cls(kind, Digest(digest.hex()), most, copies, count)


@dataclass(frozen=True, slots=True)
class Holder:
    """A peer that may have a blob, and where it says it listens."""

    peer: PeerId
    addresses: tuple[str, ...] = ()


@dataclass
class Traffic:
    """Bytes out and in, counted from several threads."""

    out: int = 0
    received: int = 0
    _by_peer: dict[PeerId, tuple[int, int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, out: int = 0, received: int = 0, peer: PeerId | None = None) -> None:
        """Count these too, also as that peer's; when too many are known who came first is forgotten."""
        with self._lock:
            self.out += out
            self.received += received
            if peer is not None:
                before = self._by_peer.pop(peer, (0, 0))
                self._by_peer[peer] = (before[0] + out, before[1] + received)
                if len(self._by_peer) > MAX_PARTNERS:
                    self._by_peer.pop(next(iter(self._by_peer)))

    def by_peer(self) -> dict[PeerId, tuple[int, int]]:
        """Bytes out and in with whom we exchanged any of late."""
        with self._lock:
            return dict(self._by_peer)


def pack_numbers(chunks: list[int] | tuple[int, ...]) -> bytes:
    """Chunk numbers, four bytes each."""
    return np.array(chunks, ">u4").tobytes()


def unpack_numbers(data: bytes) -> list[int]:
    """Strict inverse of `pack_numbers`."""
    return [int(number) for number in np.frombuffer(data, ">u4")]


def pack_bits(holds: Bits) -> bytes:
    """One bit per chunk, the last byte filled with zeros."""
    return np.packbits(holds).tobytes()


def unpack_bits(data: bytes, count: int) -> Bits:
    """Of `ceil(count / 8)` bytes."""
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count).astype(np.bool_)
