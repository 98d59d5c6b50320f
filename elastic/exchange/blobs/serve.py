"""Giving blobs to whoever asks: one thread per stream, and bounds on all that a stranger can cause."""

from __future__ import annotations

import logging
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path

import base58
import numpy as np
from google.protobuf.message import DecodeError
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr
from numpy.typing import NDArray

from elastic.exchange.blobs import bulk
from elastic.exchange.blobs.bulk import Head, Kind, Status, Traffic
from elastic.exchange.blobs.ledger import Ledger
from elastic.exchange.blobs.selection import MAX_BATCH, MAX_LISTED, pick
from elastic.exchange.blobs.store import BlobStore
from elastic.exchange.blobs.streams import ask_daemon, read_delimited, read_exactly, shut
from elastic.exchange.dht.leftovers import OURS
from elastic.exchange.dht.records import Heeded
from elastic.exchange.limits import Limits, Uplink
from elastic.messages import Digest, PeerId
from elastic.trace_ids import CONTEXT_BYTES, unpack_context

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Call:
    """Who asks, and what for."""

    caller: bytes
    """Raw peer id."""
    traced: bool
    """Whether the request begins with a span of the caller's."""
    span: bytes = b""
    """That span; anything, until it is looked at."""


class BulkServer:
    """Serves what a store has, whole blobs and unfinished ones, to any peer.

    Args:
        heeded: to these, and to no crowd of others, it gives more than `max_stranger_streams`.
    """

    def __init__(
        self, store: BlobStore, control_path: str, traffic: Traffic, heeded: Heeded, limits: Limits | None = None
    ) -> None:
        self._store = store
        self._control_path = control_path
        self._traffic = traffic
        self._heeded = heeded
        self._limits = limits or Limits()
        self._uplink = Uplink(self._limits.upload_bytes_per_second)
        self.ledger = Ledger()
        """Who took how much of us."""
        self._closed = threading.Event()
        self._callers: Counter[bytes] = Counter()
        """Raw peer id → streams."""
        self._handed: OrderedDict[Digest, NDArray[np.uint8]] = OrderedDict()
        self._connections: dict[socket.socket, PeerId | None] = {}
        """Stream → who called, as soon as that is known."""
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
            addr=Multiaddr(f"/unix{path}").to_bytes(), proto=[bulk.PROTOCOL, bulk.TRACED], balanced=False
        )
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_HANDLER, streamHandler=handler)
        ask_daemon(self._control_path, request, self._limits.open_seconds).close()

    def close(self) -> None:
        """Stop serving; streams in progress break off."""
        self._closed.set()
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
                self._connections[connection] = None
            threading.Thread(target=self._serve, args=(connection,), name="bulk-serve", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(self._limits.idle_seconds)
            info = p2pd_pb2.StreamInfo()
            info.ParseFromString(read_delimited(connection))
            with self._lock:
                self._connections[connection] = PeerId(base58.b58encode(info.peer).decode())
            self._admit(connection, _Call(info.peer, traced=info.proto == bulk.TRACED))
        except (OSError, EOFError, DecodeError) as error:
            logger.debug("a bulk stream ended early: %s", error)
        finally:
            with self._lock:
                self._connections.pop(connection, None)
            connection.close()
            self._slots.release()

    def _admit(self, connection: socket.socket, call: _Call) -> None:
        """Hear a caller out, unless that alone would take a slot that is somebody else's."""
        caller = call.caller
        with self._lock:
            self._callers[caller] += 1
            own, allowed = self._callers[caller], self._limits.max_streams_per_peer
            room = own <= 2 * allowed and (
                caller in self._heeded or self._strangers() <= self._limits.max_stranger_streams
            )
        try:
            if room:
                self._hear(connection, call, crowded=own > allowed)
        finally:
            with self._lock:
                self._callers[caller] -= 1
                self._callers += Counter()

    def _strangers(self) -> int:
        return sum(streams for caller, streams in self._callers.items() if caller not in self._heeded)

    def _hear(self, connection: socket.socket, call: _Call, crowded: bool) -> None:
        if call.traced:
            call.span = self._read(connection, CONTEXT_BYTES)
        head = Head.unpack(self._read(connection, bulk.REQUEST_BYTES))
        if head.count > MAX_LISTED or head.most > MAX_BATCH or head.kind not in (Kind.TABLE, Kind.CHUNKS):
            self._refuse(connection, Status.BAD_REQUEST)
            return
        chunks = bulk.unpack_numbers(self._read(connection, head.count * bulk.NUMBER_BYTES))
        late = head.count and self._uplink.queue(time.monotonic()) > self._limits.max_queue_seconds
        if crowded or late:
            self._refuse(connection, Status.BUSY)
        else:
            self._answer(connection, call, head, chunks)

    def _read(self, connection: socket.socket, length: int) -> bytes:
        """From a stranger, who may not keep us waiting byte by byte."""
        return read_exactly(connection, length, self._limits.grace_seconds, self._limits.min_bytes_per_second)

    def _refuse(self, connection: socket.socket, status: Status) -> None:
        connection.sendall(bulk.RESPONSE.pack(status, 0))
        read_exactly(connection, len(bulk.ACK))

    def _answer(self, connection: socket.socket, call: _Call, head: Head, chunks: list[int]) -> None:
        offer = self._store.offer(head.digest)
        if offer is None:
            self._refuse(connection, Status.UNKNOWN)
            return
        if any(chunk >= len(offer.table) for chunk in chunks):
            self._refuse(connection, Status.BAD_REQUEST)
            return
        start = bulk.RESPONSE.pack(Status.OK, offer.table.size) + bulk.pack_bits(offer.holds)
        if head.kind == Kind.TABLE:
            self._send(connection, start)
            self._send(connection, offer.table.hashes)
            read_exactly(connection, len(bulk.ACK))
            return
        handed = self._handed_out(head.digest, len(offer.table))
        with self._lock:
            picked = pick(list(dict.fromkeys(chunks)), head.most, head.copies, offer.holds, handed)
        peer, sent = PeerId(base58.b58encode(call.caller).decode()), 0
        entry = self.ledger.begin(peer, call.span if unpack_context(call.span) else b"")
        try:
            self._send(connection, start + bulk.COUNT.pack(len(picked)) + bulk.pack_numbers(picked))
            for chunk in picked:
                data = offer.read(chunk)
                self._closed.wait(self._uplink.reserve(len(data), time.monotonic()))
                self.ledger.add(entry, len(data))  # before they go: who has them must find them in the books
                self._send(connection, data)
                sent += 1
            read_exactly(connection, len(bulk.ACK))
        finally:
            self.ledger.end(entry)
            with self._lock:
                handed[picked[sent:]] -= 1  # who never got them will not pass them on

    def _send(self, connection: socket.socket, data: bytes) -> None:
        connection.sendall(data)
        self._traffic.add(out=len(data), peer=self._connections.get(connection))

    def _handed_out(self, digest: Digest, count: int) -> NDArray[np.uint8]:
        """How often each chunk of that blob was handed out since we began to count."""
        with self._lock:
            handed = self._handed.setdefault(digest, np.zeros(count, np.uint8))
            self._handed.move_to_end(digest)
            if len(self._handed) > bulk.SERVED_TABLES:
                self._handed.popitem(last=False)
            return handed
