"""What a stranger can take from a holder of blobs: so many streams, so much time, so much memory, and no more."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import base58
import numpy as np
import pytest
from hivemind.proto import p2pd_pb2

from elastic.errors import FetchError
from elastic.exchange.blobs import bulk, selection
from elastic.exchange.blobs.bulk import Head, Holder, Kind, Status, Traffic
from elastic.exchange.blobs.fetch import BulkClient
from elastic.exchange.blobs.serve import BulkServer
from elastic.exchange.blobs.store import BlobStore
from elastic.exchange.blobs.streams import _varint, read_delimited, read_exactly
from elastic.exchange.dht.records import Heeded
from elastic.exchange.limits import Limits
from elastic.messages import Digest, PeerId
from elastic.trace_ids import pack_context, unpack_context
from elastic.wire.signing import Identity
from elastic.wire.tree import CHUNK_BYTES, HASH_BYTES, Table, num_chunks

BLOB = np.random.default_rng(0).bytes(3 * CHUNK_BYTES)
TABLE = Table.of(BLOB)
ME, ANN, BOB = (Identity.generate().peer for _ in range(3))


class Daemon:
    """Does what p2pd does for bulk streams: says yes to all, and connects streams to whoever handles them."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "p2pd.sock")
        self.handler = b""
        self.on_stream: Callable[[socket.socket], None] = lambda stream: stream.close()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(64)
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            request = p2pd_pb2.Request()
            request.ParseFromString(read_delimited(connection))
            self.handler = request.streamHandler.addr or self.handler
            body = p2pd_pb2.Response(type=p2pd_pb2.Response.OK).SerializeToString()
            connection.sendall(_varint(len(body)) + body)
            if request.type == p2pd_pb2.Request.STREAM_OPEN:
                threading.Thread(target=self.on_stream, args=(connection,), daemon=True).start()

    def stream(self, caller: PeerId, request: bytes = b"", proto: str = bulk.PROTOCOL) -> socket.socket:
        """A stream of that peer to whoever handles it here."""
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(20)
        stream.connect(self.handler[self.handler.index(b"/") :])
        info = p2pd_pb2.StreamInfo(peer=base58.b58decode(caller), addr=b"", proto=proto).SerializeToString()
        stream.sendall(_varint(len(info)) + info + request)
        return stream


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    made.close()


@pytest.fixture
def serving(daemon: Daemon) -> Iterator[Callable[..., BulkServer]]:
    """Starts a server of BLOB that heeds these peers."""
    made: list[BulkServer] = []

    def start(limits: Limits, *peers: PeerId) -> BulkServer:
        store, heeded = BlobStore(), Heeded(ME)
        store.add(BLOB)
        heeded.heed(peers)
        made.append(BulkServer(store, daemon.path, Traffic(), heeded, limits))
        made[-1].start()
        return made[-1]

    yield start
    for server in made:
        server.close()


def ask(kind: int = Kind.TABLE, *chunks: int, digest: Digest = TABLE.digest) -> bytes:
    return Head(kind, digest, len(chunks), 1, len(chunks)).pack() + bulk.pack_numbers(list(chunks))


def status(stream: socket.socket) -> int:
    """What is answered; the stream stays open, as the ack has not been sent."""
    answer: int = bulk.RESPONSE.unpack(read_exactly(stream, bulk.RESPONSE.size))[0]
    return answer


def is_cut(stream: socket.socket) -> bool:
    try:
        return stream.recv(1) == b""
    except ConnectionError:
        return True


def took(server: BulkServer) -> list[tuple[PeerId, int, bytes]]:
    return [(each.peer, each.num_bytes, each.span) for each in server.ledger.take()]


def received(stream: socket.socket) -> None:
    """Take one chunk, and say so."""
    assert status(stream) == Status.OK
    read_exactly(stream, 1 + bulk.COUNT.size + bulk.NUMBER_BYTES + CHUNK_BYTES)
    stream.sendall(bulk.ACK)
    while not is_cut(stream):
        pass


@pytest.mark.parametrize("span", [b"", pack_context(5, 6), b"\xff" * 26], ids=["none", "one", "garbage"])
def test_what_a_request_is_for_is_noted_if_it_is_said_and_is_something(
    daemon: Daemon, serving: Callable[..., BulkServer], span: bytes
) -> None:
    server = serving(Limits(), ANN)
    # given a request as it ever was, or one that says what it is for
    with daemon.stream(ANN, span + ask(Kind.CHUNKS, 1), bulk.TRACED if span else bulk.PROTOCOL) as stream:
        received(stream)
    # then it is served, and who took how much is known once
    assert took(server) == [(ANN, CHUNK_BYTES, span if unpack_context(span) else b"")]
    assert took(server) == []


def test_who_has_the_bytes_is_in_the_books(
    daemon: Daemon, serving: Callable[..., BulkServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, found = serving(Limits(), ANN), list[int]()

    # given somebody who looks at the very moment at which bytes go
    def look(connection: socket.socket, data: bytes) -> None:
        found.append(sum(each.num_bytes for each in server.ledger.take()))
        connection.sendall(data)

    monkeypatch.setattr(server, "_send", look)
    with daemon.stream(ANN, ask(Kind.CHUNKS, 1)) as stream:
        received(stream)
    # then they were counted with the chunk, and not behind its back
    assert found == [0, CHUNK_BYTES]


def test_who_breaks_off_took_what_was_sent(daemon: Daemon, serving: Callable[..., BulkServer]) -> None:
    server = serving(Limits(), ANN)
    with daemon.stream(ANN, pack_context(5, 6)[:10], bulk.TRACED):
        pass
    assert took(server) == []


def test_a_peer_has_so_many_streams_and_another_one_has_its_own(
    daemon: Daemon, serving: Callable[..., BulkServer]
) -> None:
    # given a peer that holds as many streams open as it may
    serving(Limits(max_streams_per_peer=3))
    held = [daemon.stream(ANN, ask()) for _ in range(3)]
    assert [status(stream) for stream in held] == [Status.OK] * 3
    # then one more is told that we are busy, and another peer is served
    more, other = daemon.stream(ANN, ask()), daemon.stream(BOB, ask())
    assert (status(more), status(other)) == (Status.BUSY, Status.OK)
    for stream in (*held, more, other):
        stream.close()


def test_who_goes_on_opening_streams_is_cut_off(daemon: Daemon, serving: Callable[..., BulkServer]) -> None:
    # given a peer that holds what it may have, and as many streams again on which it was told to wait
    serving(Limits(max_streams_per_peer=2), ANN)
    held = [daemon.stream(ANN, ask()) for _ in range(2)]
    assert [status(stream) for stream in held] == [Status.OK] * 2
    refused = [daemon.stream(ANN, ask()) for _ in range(2)]
    assert [status(stream) for stream in refused] == [Status.BUSY] * 2
    # then the next is not heard at all
    with daemon.stream(ANN) as more:
        assert is_cut(more)
    for stream in (*held, *refused):
        stream.close()


def test_strangers_leave_half_of_the_streams_to_those_who_are_heeded(
    daemon: Daemon, serving: Callable[..., BulkServer]
) -> None:
    # given a crowd that holds all the streams that it may have
    serving(Limits(max_streams=4, max_stranger_streams=2), ANN)
    crowd = [daemon.stream(Identity.generate().peer, ask()) for _ in range(2)]
    assert [status(stream) for stream in crowd] == [Status.OK] * 2
    # then another stranger is cut off, and who is heeded is served
    with daemon.stream(BOB) as more:
        assert is_cut(more)
    held = [daemon.stream(ANN, ask()) for _ in range(2)]
    assert [status(stream) for stream in held] == [Status.OK] * 2
    # and when one of the crowd has gone, so is a newcomer
    crowd[0].sendall(bulk.ACK)
    while not is_cut(crowd[0]):
        pass
    newcomer = daemon.stream(BOB, ask())
    assert status(newcomer) == Status.OK
    for stream in (*crowd, *held, newcomer):
        stream.close()


def test_all_streams_together_are_bounded(daemon: Daemon, serving: Callable[..., BulkServer]) -> None:
    # given as many streams of many peers as there may be
    peers = [Identity.generate().peer for _ in range(4)]
    serving(Limits(max_streams=4), *peers)
    held = [daemon.stream(peer, ask()) for peer in peers]
    assert [status(stream) for stream in held] == [Status.OK] * 4
    # then one more is cut off
    with pytest.raises((BrokenPipeError, ConnectionResetError, EOFError)), daemon.stream(BOB, ask()) as more:
        status(more)
    for stream in held:
        stream.close()


def test_a_stream_on_which_nothing_comes_is_cut(daemon: Daemon, serving: Callable[..., BulkServer]) -> None:
    serving(Limits(idle_seconds=0.05))
    with daemon.stream(ANN, ask()[:5]) as silent:
        assert is_cut(silent)


def test_a_request_that_drips_is_cut(daemon: Daemon, serving: Callable[..., BulkServer]) -> None:
    serving(Limits(grace_seconds=0.0, min_bytes_per_second=1e12))
    with daemon.stream(ANN, ask()[:5]) as dripping:
        assert is_cut(dripping)


def test_who_would_wait_long_for_the_uplink_is_told_so(daemon: Daemon, serving: Callable[..., BulkServer]) -> None:
    # given an uplink that is taken for hours by one stream
    serving(Limits(upload_bytes_per_second=10.0))
    with daemon.stream(ANN, ask(Kind.CHUNKS, 0, 1)) as first:
        assert status(first) == Status.OK
        read_exactly(first, 1 + bulk.COUNT.size + 2 * bulk.NUMBER_BYTES + CHUNK_BYTES)  # so the second is waiting
        # then nobody else is kept waiting
        with daemon.stream(BOB, ask(Kind.CHUNKS, 2)) as second:
            assert status(second) == Status.BUSY


Serve = Callable[[socket.socket], None]


def client(daemon: Daemon, serve: Serve, limits: Limits, store: BlobStore | None = None) -> BulkClient:
    daemon.on_stream = serve
    return BulkClient(daemon.path, (store or BlobStore()).partials, Traffic(), 0, limits)


def fetch(client: BulkClient, size: int = len(BLOB)) -> bytes:
    try:
        return client.fetch_blob([Holder(ANN, ())], TABLE.digest, size, threading.Event())
    finally:
        client.close()


def test_a_holder_that_drips_is_given_up(daemon: Daemon) -> None:
    # given a holder that sends a byte and then another, and never ends
    stop = threading.Event()

    def drip(stream: socket.socket) -> None:
        try:
            while not stop.wait(0.001):
                stream.sendall(b"\0")
        except OSError:
            return

    limits = Limits(grace_seconds=0.0, min_bytes_per_second=1e12)
    try:
        with pytest.raises(FetchError, match="too slow"):
            fetch(client(daemon, drip, limits))
    finally:
        stop.set()


def test_an_endless_stream_is_read_no_further_than_what_was_asked_for(daemon: Daemon) -> None:
    # given a holder whose answers are right, and go on for ever
    sent: list[int] = []

    def pour(stream: socket.socket) -> None:
        try:
            head = Head.unpack(read_exactly(stream, bulk.REQUEST_BYTES))
            numbers = bulk.unpack_numbers(read_exactly(stream, head.count * bulk.NUMBER_BYTES))
            stream.sendall(bulk.RESPONSE.pack(Status.OK, len(BLOB)) + bulk.pack_bits(np.ones(3, np.bool_)))
            if head.kind == Kind.TABLE:
                stream.sendall(TABLE.hashes)
            else:
                stream.sendall(bulk.COUNT.pack(len(numbers)) + bulk.pack_numbers(numbers))
                for number in numbers:
                    stream.sendall(BLOB[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES])
            while True:
                stream.sendall(bytes(CHUNK_BYTES))
                sent.append(CHUNK_BYTES)
        except (OSError, EOFError):
            return

    # then the blob is there, and what came beyond it filled no more than the sockets' buffers
    fetching = client(daemon, pour, Limits())
    assert fetch(fetching) == BLOB
    assert fetching.traffic.received < 2 * len(BLOB)
    assert sum(sent) < 64 * CHUNK_BYTES


def test_so_many_requests_are_open_at_a_time(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "PATIENCE_SECONDS", 0.0)
    # given a holder that has nothing, and others that take requests and never answer
    streams: list[socket.socket] = []
    full, stop = threading.Event(), threading.Event()

    def hold(stream: socket.socket) -> None:
        streams.append(stream)
        if len(streams) == 1:
            stream.sendall(bulk.RESPONSE.pack(Status.UNKNOWN, 0))
        elif len(streams) == 4:
            full.set()

    fetching = client(daemon, hold, Limits(max_asks=3))
    holders = [Holder(Identity.generate().peer, ()) for _ in range(12)]
    with ThreadPoolExecutor(1) as thread:
        fetched = thread.submit(fetching.fetch_blob, holders, TABLE.digest, len(BLOB), stop)
        # when as many were asked as may be
        assert full.wait(20)
        stop.set()
        with pytest.raises(FetchError, match="given up"):
            fetched.result(20)
    fetching.close()
    # then no more were
    assert len(streams) == 4


def test_a_client_that_closes_just_before_a_request_gives_the_fetch_up(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a client that is closed between the look whether it is and the next request
    fetching = client(daemon, lambda stream: stream.close(), Limits())
    submit = fetching.streams.submit

    def submit_too_late(*request: Any) -> Any:
        fetching.close()
        return submit(*request)

    monkeypatch.setattr(fetching.streams, "submit", submit_too_late)
    # then that is no fault of ours
    with pytest.raises(FetchError, match="given up"):
        fetch(fetching)


def test_many_fetches_share_the_streams() -> None:
    fetching = BulkClient("", BlobStore().partials, Traffic(), 0, Limits(max_asks=8, max_fetch_streams=16))
    asks = []
    for count in (1, 2, 4, 16):
        fetching._active = [TABLE.digest] * count
        asks.append(fetching.max_asks())
    assert asks == [8, 8, 4, 2]
    fetching.close()


def test_a_size_that_would_fill_the_memory_takes_none(daemon: Daemon) -> None:
    # given a holder that agrees to any size, and sends what there is of a table
    size = 2**50

    def promise(stream: socket.socket) -> None:
        read_exactly(stream, bulk.REQUEST_BYTES)
        stream.sendall(bulk.RESPONSE.pack(Status.OK, size) + bytes(HASH_BYTES))
        stream.close()

    assert num_chunks(size) * HASH_BYTES > 2**36
    with pytest.raises(FetchError, match="ended after"):
        fetch(client(daemon, promise, Limits()), size)
