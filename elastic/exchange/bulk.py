"""Blobs over libp2p streams: content-addressed, in parts, checked, from whichever holder works.

p2pd hands each stream to a blocking unix socket, and a thread copies bytes; no event loop is in the way. A
stream that was cut looks like one that ended, so nothing is taken for complete but the right number of bytes
with the right hash.

    request    digest (32 bytes), offset (u64), length (u32)
    response   status (u8), size of the whole blob (u64)
    bytes      `length` of them, if the status is OK
    ack        one byte from the receiver; the sender closes only then
"""

from __future__ import annotations

import logging
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import base58
from google.protobuf.message import DecodeError
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from elastic.errors import FetchError
from elastic.exchange.blobs import Blob, BlobStore
from elastic.exchange.leftovers import OURS
from elastic.exchange.streams import ask_daemon, read_delimited, read_exactly, shut
from elastic.messages import Digest, PeerId
from elastic.wire.tree import blob_digest

logger = logging.getLogger(__name__)

PROTOCOL = "/elastic/bulk/1"
PART_BYTES = 4 * 1024 * 1024
"""Longest range of one request. What a broken stream loses at most; larger parts win nothing measurable."""
_REQUEST = struct.Struct("!32sQI")
_RESPONSE = struct.Struct("!BQ")
_ACK = b"A"
_CHUNK_BYTES = 256 * 1024
_TRANSIENT_TRIES = 2
_RETRY_SECONDS = 0.2


class Status(IntEnum):
    """What a holder answers."""

    OK = 0
    UNKNOWN = 1
    BUSY = 2
    BAD_RANGE = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """What both ends put up with."""

    idle_seconds: float = 10.0
    """A stream on which nothing moves for this long is dead."""
    open_seconds: float = 10.0
    """For reaching a holder and opening a stream to it."""
    min_bytes_per_second: float = 20_000.0
    """A holder slower than this, after `grace_seconds`, is given up for the next one."""
    grace_seconds: float = 10.0
    max_streams: int = 64
    """Streams served at a time."""
    max_streams_per_peer: int = 8
    """Of these, to one peer."""


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
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, out: int = 0, received: int = 0) -> None:
        with self._lock:
            self.out += out
            self.received += received


class _HolderError(Exception):
    """This holder did not give what was asked for; the message says how."""


class _HolderUselessError(_HolderError):
    """And it will not the next time either."""


class BulkServer:
    """Serves a store's blobs to any peer, one thread per stream."""

    def __init__(self, store: BlobStore, control_path: str, traffic: Traffic, limits: Limits | None = None) -> None:
        self._store = store
        self._control_path = control_path
        self._traffic = traffic
        self._limits = limits or Limits()
        self._callers: Counter[PeerId] = Counter()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self._limits.max_streams)
        # A directory of our own, because nobody else on this machine may connect.
        self._directory = Path(tempfile.mkdtemp(prefix=OURS))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def start(self) -> None:
        """Listen, and tell p2pd to hand streams of our protocol over.

        Raises:
            OSError: p2pd refuses or is gone.
        """
        path = self._directory / "bulk.sock"
        self._listener.bind(str(path))
        self._listener.listen(self._limits.max_streams)
        threading.Thread(target=self._accept, name="bulk-accept", daemon=True).start()
        handler = p2pd_pb2.StreamHandlerRequest(
            addr=Multiaddr(f"/unix{path}").to_bytes(), proto=[PROTOCOL], balanced=False
        )
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_HANDLER, streamHandler=handler)
        ask_daemon(self._control_path, request, self._limits.open_seconds).close()

    def close(self) -> None:
        """Stop serving; streams in progress break off."""
        with self._lock:
            connections = [self._listener, *self._connections]
        for connection in connections:
            shut(connection)
        self._listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="bulk-serve", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(self._limits.idle_seconds)
            info = p2pd_pb2.StreamInfo()
            info.ParseFromString(read_delimited(connection))
            caller = PeerId(base58.b58encode(info.peer).decode())
            self._answer(connection, caller)
        except (OSError, EOFError, DecodeError) as error:
            logger.debug("a bulk stream ended early: %s", error)
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()
            self._slots.release()

    def _answer(self, connection: socket.socket, caller: PeerId) -> None:
        raw, offset, length = _REQUEST.unpack(read_exactly(connection, _REQUEST.size))
        with self._lock:
            self._callers[caller] += 1
            crowded = self._callers[caller] > self._limits.max_streams_per_peer
        try:
            blob = self._store.get(Digest(raw.hex()))
            status = Status.BUSY if crowded else _check_range(blob, offset, length)
            connection.sendall(_RESPONSE.pack(status, blob.size if blob else 0))
            if status is Status.OK and blob is not None:
                self._traffic.add(out=_send(connection, blob, offset, length))
            read_exactly(connection, len(_ACK))
        finally:
            with self._lock:
                self._callers[caller] -= 1
                self._callers += Counter()


class BulkClient:
    """Fetches blobs through the local p2pd. Blocking: call it in a thread."""

    def __init__(self, control_path: str, traffic: Traffic, limits: Limits | None = None) -> None:
        self._control_path = control_path
        self._traffic = traffic
        self._limits = limits or Limits()

    def fetch_blob(self, holders: Sequence[Holder], digest: Digest, size_bytes: int, stop: threading.Event) -> bytes:
        """Get a blob, part after part, going on with the next holder where one fails.

        A whole blob whose hash is wrong and that came from several holders proves nobody guilty: these are
        then asked again, each for all of it.

        Raises:
            FetchError: no holder gave it, or `stop` was set; the message says what each holder did.
        """
        partial = _Partial(size_bytes)
        plan = deque((holder, False) for holder in holders)
        tries: Counter[PeerId] = Counter()
        story: dict[PeerId, str] = {}
        while plan and not stop.is_set():
            holder, alone = plan.popleft()
            if alone:
                partial.restart()
            if tries[holder.peer]:
                stop.wait(_RETRY_SECONDS)
            tries[holder.peer] += 1
            try:
                self._complete(partial, holder, digest, stop)
            except _HolderError as error:
                story[holder.peer] = str(error)
                again = not alone and tries[holder.peer] < _TRANSIENT_TRIES
                if again and not isinstance(error, _HolderUselessError):
                    plan.append((holder, False))
                continue
            if blob_digest(partial.data) == digest:
                return bytes(partial.data)
            story.update({source.peer: "gave wrong bytes" for source in partial.sources})
            if len(partial.sources) > 1:
                plan.extend((source, True) for source in partial.sources)
            partial.restart()
        told = "; ".join(f"{peer}: {problem}" for peer, problem in story.items())
        raise FetchError(f"nobody gave {digest}: {told or 'no holder is known'}")

    def _complete(self, partial: _Partial, holder: Holder, digest: Digest, stop: threading.Event) -> None:
        try:
            self._dial(holder)
            while partial.missing and not stop.is_set():
                length = min(PART_BYTES, partial.missing)
                partial.add(self._fetch_part(holder, digest, partial, length), holder)
        except TimeoutError as error:
            raise _HolderError(str(error) or "timed out") from error
        except (OSError, EOFError) as error:
            raise _HolderError(str(error) or type(error).__name__) from error
        except (DecodeError, ValueError) as error:
            raise _HolderUselessError(str(error)) from error
        if partial.missing:
            raise _HolderUselessError("the fetch was given up")

    def _dial(self, holder: Holder) -> None:
        """Let p2pd connect to the addresses on the holder's card; without them it asks its own routing."""
        addresses = [raw for address in holder.addresses for raw in _transport_of(address, holder.peer)]
        if not addresses:
            return
        connect = p2pd_pb2.ConnectRequest(
            peer=base58.b58decode(holder.peer), addrs=addresses, timeout=int(self._limits.open_seconds)
        )
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=connect)
        # At once if we are connected already, also if it was the holder who dialled us.
        ask_daemon(self._control_path, request, self._limits.open_seconds).close()

    def _fetch_part(self, holder: Holder, digest: Digest, partial: _Partial, length: int) -> bytearray:
        with self._open(holder) as stream:
            stream.sendall(_REQUEST.pack(bytes.fromhex(digest), len(partial.data), length))
            status, size = _RESPONSE.unpack(read_exactly(stream, _RESPONSE.size))
            if status == Status.BUSY:
                raise _HolderError("is busy")
            if status != Status.OK:
                raise _HolderUselessError("does not have it" if status == Status.UNKNOWN else f"status {status}")
            if size != partial.size:
                raise _HolderUselessError(f"announces {size} bytes, expected {partial.size}")
            part = self._receive(stream, length)
            stream.sendall(_ACK)
            return part

    def _open(self, holder: Holder) -> socket.socket:
        opening = p2pd_pb2.StreamOpenRequest(
            peer=base58.b58decode(holder.peer), proto=[PROTOCOL], timeout=int(self._limits.open_seconds)
        )
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=opening)
        stream = ask_daemon(self._control_path, request, self._limits.open_seconds)
        stream.settimeout(self._limits.idle_seconds)
        return stream

    def _receive(self, stream: socket.socket, length: int) -> bytearray:
        part = bytearray(length)
        view, received, start = memoryview(part), 0, time.monotonic()
        while received < length:
            count = stream.recv_into(view[received : received + _CHUNK_BYTES])
            if not count:
                raise EOFError(f"the stream ended after {received} of {length} bytes")
            received += count
            self._traffic.add(received=count)
            elapsed = time.monotonic() - start
            if elapsed > self._limits.grace_seconds and received < elapsed * self._limits.min_bytes_per_second:
                raise TimeoutError(f"sent {received} bytes in {elapsed:.0f} s: too slow")
        return part


class _Partial:
    """A blob as far as it has come, and from whom. Grows as bytes arrive: a size costs no memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = bytearray()
        self.sources: list[Holder] = []

    @property
    def missing(self) -> int:
        return self.size - len(self.data)

    def add(self, part: bytearray, source: Holder) -> None:
        self.data += part
        if source not in self.sources:
            self.sources.append(source)

    def restart(self) -> None:
        self.data = bytearray()
        self.sources = []


def _check_range(blob: Blob | None, offset: int, length: int) -> Status:
    if blob is None:
        return Status.UNKNOWN
    return Status.OK if length <= PART_BYTES and offset + length <= blob.size else Status.BAD_RANGE


def _send(connection: socket.socket, blob: Blob, offset: int, length: int) -> int:
    if isinstance(blob.source, Path):
        with blob.source.open("rb") as file:
            return connection.sendfile(file, offset, length)
    view = memoryview(blob.source)[offset : offset + length]
    # In chunks, because the timeout of `sendall` is for all it is given.
    for start in range(0, length, _CHUNK_BYTES):
        connection.sendall(view[start : start + _CHUNK_BYTES])
    return length


def _transport_of(address: str, peer: PeerId) -> list[bytes]:
    """The part of a card's address that p2pd dials; nothing if it is not a TCP address of that peer."""
    transport, _, owner = address.partition("/p2p/")
    if owner not in ("", peer) or "/tcp/" not in transport:
        return []
    try:
        return [Multiaddr(transport).to_bytes()]
    except ValueError:
        return []
