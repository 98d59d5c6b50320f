"""What strangers can make a probe server do, and who is believed to answer at an address."""

import asyncio
import datetime
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hivemind.p2p import PeerID

from elastic.exchange.probe import dialback
from elastic.exchange.probe import server as probe
from elastic.exchange.probe.dialback import GREETING, NotLibp2pError, signer_of, who_answers
from elastic.exchange.probe.server import (
    COUNTED,
    REQUEST,
    RESPONSE,
    Kind,
    ProbeLimits,
    ProbeServer,
    Ration,
    Status,
    address_of,
)
from elastic.messages import PeerId
from elastic.wire.signing import Identity, peer_id_of, public_key_of

ANN, BOB = (Identity(Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32))).peer for seed in range(2))
HERE, THERE = "/ip4/198.51.100.7/tcp/4001", "/ip4/203.0.113.5/tcp/4001"
SOON = 10.0
"""Seconds in which everything that a test waits for has happened."""


class Asker:
    """One stream to a server that runs in this loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None]) -> None:
        self.reader, self.writer, self.task = reader, writer, task

    async def says(self) -> tuple[Status, str]:
        async with asyncio.timeout(SOON):
            status, ip = RESPONSE.unpack(await self.reader.readexactly(RESPONSE.size))
        return Status(status), socket.inet_ntoa(ip)

    async def ended(self) -> None:
        """Until the server has let go of the stream."""
        await asyncio.wait_for(asyncio.shield(self.task), SOON)


Ask = Callable[..., Awaitable[Asker]]


@asynccontextmanager
async def asking(server: ProbeServer) -> AsyncIterator[Ask]:
    """Makes streams to the server as p2pd would, and cuts them."""
    writers: list[asyncio.StreamWriter] = []

    async def ask(sent: bytes, peer: PeerId = ANN, came_from: str = HERE) -> Asker:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        writers.append(writer)
        info: Any = SimpleNamespace(peer_id=PeerID.from_base58(peer), addr=came_from)
        task = asyncio.create_task(server.handle(info, *await asyncio.open_connection(sock=theirs)))
        await asyncio.sleep(0)
        writer.write(sent)
        return Asker(reader, writer, task)

    try:
        yield ask
    finally:
        for writer in writers:
            writer.transport.abort()
        server.close()


def make_server(measures: bool = True, **limits: Any) -> ProbeServer:
    return ProbeServer(None, measures=measures, limits=ProbeLimits(**limits))


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where a server dialled; ANN answers everywhere."""
    calls: list[tuple[str, int]] = []

    async def answers(ip: str, port: int, seconds: float) -> PeerId:
        calls.append((ip, port))
        return ANN

    monkeypatch.setattr(probe, "who_answers", answers)
    return calls


# --- what may be asked for -------------------------------------------------------------------------------------------


async def test_only_the_address_that_one_comes_from_is_dialled(dialled: list[tuple[str, int]]) -> None:
    async with asking(make_server()) as ask:
        # when somebody asks for a port, and sends another's address after it
        asker = await ask(REQUEST.pack(Kind.DIAL, 4001) + socket.inet_aton("203.0.113.5"), came_from=HERE)
        # then its own address is dialled, and the key that answers there is told
        assert await asker.says() == (Status.OK, "198.51.100.7")
        assert await asker.reader.readexactly(32) == public_key_of(ANN).public_bytes_raw()
    assert dialled == [("198.51.100.7", 4001)]


@pytest.mark.parametrize(
    "sent",
    [
        REQUEST.pack(Kind.DIAL, 0),
        REQUEST.pack(Kind.DIAL, 65536),
        REQUEST.pack(Kind.DOWN, probe.MEASURE_BYTES + 1),
        REQUEST.pack(Kind.UP, 2**32 - 1),
        REQUEST.pack(9, 1),
        b"\xff" * 100_000,
    ],
)
async def test_what_nobody_may_ask_for_is_refused(sent: bytes, dialled: list[tuple[str, int]]) -> None:
    async with asking(make_server()) as ask:
        asker = await ask(sent)
        assert (await asker.says())[0] is Status.BAD_REQUEST
        asker.writer.write_eof()
        await asker.ended()
    assert dialled == []


async def test_who_comes_through_a_relay_has_no_address(dialled: list[tuple[str, int]]) -> None:
    async with asking(make_server()) as ask:
        asker = await ask(REQUEST.pack(Kind.DIAL, 4001), came_from=f"{THERE}/p2p/{BOB}/p2p-circuit")
        assert await asker.says() == (Status.INDIRECT, "0.0.0.0")
    assert dialled == []


@pytest.mark.parametrize(
    ("address", "ip"),
    [
        (HERE, "198.51.100.7"),
        (f"{HERE}/p2p/{ANN}/p2p-circuit", None),
        ("/ip6/2001:db8::1/tcp/4001", None),
        ("/ip4/198.51.100.7/udp/4001", None),
        ("", None),
    ],
)
def test_the_address_at_the_other_end(address: str, ip: str | None) -> None:
    assert address_of(address) == ip


async def test_peers_measure_nothing(dialled: list[tuple[str, int]]) -> None:
    async with asking(make_server(measures=False)) as ask:
        for kind in (Kind.DOWN, Kind.UP):
            asker = await ask(REQUEST.pack(kind, 1000))
            assert (await asker.says())[0] is Status.UNSERVED
            asker.writer.write_eof()
            await asker.ended()
        assert (await (await ask(REQUEST.pack(Kind.DIAL, 1))).says())[0] is Status.OK


# --- how much, how often, how long -----------------------------------------------------------------------------------


def test_rations_are_by_address_and_in_all() -> None:
    ration = Ration(at_once=9, each=2, in_all=3)

    def gets(address: str, now: float, amount: int = 1) -> bool:
        with ration.one(address, amount, now) as granted:
            return granted

    assert [gets("a", 0.0), gets("a", 1.0), gets("a", 2.0)] == [True, True, False]
    assert not gets("b", 2.0, amount=2)
    assert [gets("b", 3.0), gets("c", 3.0)] == [True, False]
    # when a minute is over, what was given first is forgotten
    assert [gets("a", 60.0), gets("a", 60.5)] == [True, False]


def test_rations_are_limited_at_a_time() -> None:
    ration = Ration(at_once=1, each=9, in_all=9)
    with ration.one("a", 1, 0.0) as first, ration.one("b", 1, 0.0) as second:
        assert (first, second) == (True, False)
    with ration.one("b", 1, 0.0) as third:
        assert third


@pytest.mark.parametrize(("peer", "came_from"), [(ANN, THERE), (BOB, HERE)])
async def test_one_at_a_time_of_a_peer_and_of_an_address(peer: PeerId, came_from: str) -> None:
    async with asking(make_server()) as ask:
        # given a stream on which nothing is asked yet
        first = await ask(b"")
        # when the same peer comes from elsewhere, or another one from there
        second = await ask(REQUEST.pack(Kind.DOWN, 10), peer, came_from)
        # then it has to wait, until the first has gone
        assert (await second.says())[0] is Status.BUSY
        first.writer.write_eof()
        await first.ended()
        assert (await (await ask(REQUEST.pack(Kind.DOWN, 10), peer, came_from)).says())[0] is Status.OK


async def test_streams_are_bounded_in_all() -> None:
    async with asking(make_server(streams=3)) as ask:
        for index in range(3):
            await ask(b"", Identity.generate().peer, f"/ip4/198.51.100.{index}/tcp/1")
        assert (await (await ask(b"", BOB, THERE)).says())[0] is Status.BUSY


async def test_dials_and_bytes_are_rationed(dialled: list[tuple[str, int]]) -> None:
    async with asking(make_server(each=(2, 2 * probe.PIECE_BYTES))) as ask:
        seen = []
        for kind, number in [*[(Kind.DIAL, 1)] * 3, *[(Kind.DOWN, 1)] * 3]:  # of bytes, a piece at least
            asker = await ask(REQUEST.pack(kind, number))
            seen.append((await asker.says())[0])
            asker.writer.write_eof()
            await asker.ended()
    assert seen == [Status.OK, Status.OK, Status.BUSY] * 2
    assert len(dialled) == 2


async def test_measurements_are_limited_at_a_time() -> None:
    async with asking(make_server(at_once=(1, 1))) as ask:
        # given one who is sending
        first = await ask(REQUEST.pack(Kind.UP, 1000))
        assert (await first.says())[0] is Status.OK
        # then another one has to wait
        assert (await (await ask(REQUEST.pack(Kind.UP, 1000), BOB, THERE)).says())[0] is Status.BUSY


@pytest.mark.parametrize("sent", [b"", b"\0", REQUEST.pack(9, 1)])
async def test_who_only_dawdles_is_let_go(sent: bytes) -> None:
    async with asking(make_server(request_seconds=0.05)) as ask:
        asker = await ask(sent)
        await asker.ended()
        assert len(await asker.reader.read(100)) <= RESPONSE.size


@pytest.mark.parametrize(
    ("says", "status"), [(None, Status.REFUSED), ((), Status.NOT_LIBP2P), ((b"SSH-2.0-OpenSSH",), Status.NOT_LIBP2P)]
)
async def test_what_comes_of_dialling_others_than_peers(says: tuple[bytes, ...] | None, status: Status) -> None:
    # given nobody, somebody who says nothing, and somebody who is no peer, on the asker's machine
    async with listening(*(says or ()), stays=True) as (port, _):
        if says is None:
            with socket.create_server(("127.0.0.1", 0)) as gone:
                port = gone.getsockname()[1]
        async with asking(make_server(dial_seconds=0.1)) as ask:
            asker = await ask(REQUEST.pack(Kind.DIAL, port), came_from="/ip4/127.0.0.1/tcp/1")
            assert await asker.says() == (status, "127.0.0.1")


async def test_an_address_to_which_no_way_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a connection that is never made
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    async with asking(make_server(dial_seconds=0.05)) as ask:
        asker = await ask(REQUEST.pack(Kind.DIAL, 4001))
        monkeypatch.setattr(dialback.asyncio, "open_connection", never)
        assert (await asker.says())[0] is Status.SILENT


async def test_who_pours_after_the_answer_is_let_go() -> None:
    # given one who has its answer, and sends on and on
    async with asking(make_server(request_seconds=2 * SOON)) as ask:
        asker = await ask(REQUEST.pack(9, 1))
        assert (await asker.says())[0] is Status.BAD_REQUEST
        asker.writer.write(bytes(2 * probe.FAREWELL_BYTES))
        # then it is not heard for long
        await asker.ended()


async def test_who_takes_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MEASURE_SECONDS", -0.9)  # a second more is allowed
    async with asking(make_server(request_seconds=0.05)) as ask:
        asker = await ask(REQUEST.pack(Kind.DOWN, probe.MEASURE_BYTES))
        await asker.ended()


async def test_who_sends_without_end_is_counted_and_let_go() -> None:
    # given one who sends more than it said
    async with asking(make_server(request_seconds=0.05)) as ask:
        asker = await ask(REQUEST.pack(Kind.UP, 200_000))
        assert (await asker.says())[0] is Status.OK
        asker.writer.write(bytes(1_000_000))
        # then no more than that is taken
        counted, _ = COUNTED.unpack(await asyncio.wait_for(asker.reader.readexactly(COUNTED.size), SOON))
        assert counted < 200_000
        await asker.ended()


async def test_who_has_more_to_send_than_is_counted_is_heard_out() -> None:
    # given one who still sends when the answer is there: closing now might cut it off
    async with asking(make_server()) as ask:
        asker = await ask(REQUEST.pack(Kind.UP, 200_000))
        asker.writer.write(bytes(1_000_000))
        assert (await asker.says())[0] is Status.OK
        await asyncio.wait_for(asker.reader.readexactly(COUNTED.size), SOON)
        # then the server waits until that is over
        assert not asker.task.done()
        asker.writer.write_eof()
        await asker.ended()


async def test_who_stops_sending_is_counted_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MEASURE_SECONDS", 0.05)
    async with asking(make_server()) as ask:
        asker = await ask(REQUEST.pack(Kind.UP, 200_000))
        assert (await asker.says())[0] is Status.OK
        asker.writer.write(bytes(10))
        counted, micros = COUNTED.unpack(await asyncio.wait_for(asker.reader.readexactly(COUNTED.size), SOON))
        assert (counted, micros > 0) == (0, True)  # the first piece only starts the clock


async def test_closing_ends_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    dialling = asyncio.Event()

    async def never(ip: str, port: int, seconds: float) -> PeerId:
        dialling.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(probe, "who_answers", never)
    server = make_server()
    async with asking(server) as ask:
        asker = await ask(REQUEST.pack(Kind.DIAL, 4001))
        await asyncio.wait_for(dialling.wait(), SOON)
        server.close()
        await asker.ended()


# --- who answers -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(*says: bytes, stays: bool = False) -> AsyncIterator[tuple[int, asyncio.Queue[bytes]]]:
    """Somebody who says these things, waiting for a word after each but the last; gives its port, and what it heard."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for index, word in enumerate(says):
                if index:
                    heard.put_nowait(await reader.read(4096))
                writer.write(word)
            if stays or not says:
                heard.put_nowait(await reader.read(4096))
        except OSError:
            heard.put_nowait(b"")
        finally:
            writer.transport.abort() if stays else writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


@pytest.mark.parametrize(
    "says",
    [
        (b"SSH-2.0-OpenSSH_9.9\r\n",),
        (b"\0" * 1_000_000,),
        (b"",),
        (GREETING,),
        (GREETING, b"\x03na\n" * 10),
        (GREETING, b"\x0b/tls/1.0.0\n"),
        (GREETING, b"\x0b/tls/1.0.0\n" + b"no TLS at all" * 1000),
        (GREETING, b"\x0b/tls/1.0.0\n", b"\x16\x03\x03\xff\xff" + bytes(100_000)),
    ],
)
async def test_others_than_peers_are_told_apart(says: tuple[bytes, ...]) -> None:
    async with listening(*says) as (port, _):
        with pytest.raises(NotLibp2pError):
            await who_answers("127.0.0.1", port, SOON)


async def test_who_does_not_greet_gets_no_byte_from_us() -> None:
    async with listening(b"220 mail.example.org ESMTP ready\r\n", stays=True) as (port, heard):
        with pytest.raises(NotLibp2pError):
            await who_answers("127.0.0.1", port, SOON)
        assert await asyncio.wait_for(heard.get(), SOON) == b""


@pytest.mark.parametrize("says", [(), (GREETING, b"\x0b/tls/1.0.0\n", b"")])
async def test_who_says_nothing_is_waited_for_as_long_as_the_caller_likes(says: tuple[bytes, ...]) -> None:
    async with listening(*says, stays=True) as (port, _):
        with pytest.raises(NotLibp2pError):
            await who_answers("127.0.0.1", port, 0.2)


async def test_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        free = gone.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await who_answers("127.0.0.1", free, SOON)


def certificate(host: Ed25519PrivateKey, *, forged: bool = False, extended: bool = True) -> bytes:
    """A certificate as libp2p makes it; forged: the signature is of another certificate's key."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([])
    today = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    signed = Ed25519PrivateKey.generate() if forged else key
    spki = signed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    value = bytes.fromhex("3068042408011220") + host.public_key().public_bytes_raw()
    value += bytes.fromhex("0440") + host.sign(b"libp2p-tls-handshake:" + spki)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, today, today + datetime.timedelta(1))
    if extended:
        made = made.add_extension(x509.UnrecognizedExtension(dialback._EXTENSION, value), critical=True)
    return made.sign(key, None).public_bytes(Encoding.DER)


def test_the_signer_of_a_certificate() -> None:
    host = Ed25519PrivateKey.generate()
    assert signer_of(certificate(host)) == peer_id_of(host.public_key())


@pytest.mark.parametrize("made", [{"forged": True}, {"extended": False}])
def test_a_certificate_that_proves_nothing(made: dict[str, bool]) -> None:
    with pytest.raises(NotLibp2pError):
        signer_of(certificate(Ed25519PrivateKey.generate(), **made))


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_certificate_with_bytes_changed_is_no_proof_or_still_its_signers() -> None:
    host, rng = Ed25519PrivateKey.generate(), np.random.default_rng(0)
    good, signer = certificate(host), peer_id_of(host.public_key())
    version = good.index(bytes.fromhex("a003020102")) + 4
    assert refused(good[:version] + b"\x37" + good[version + 1 :])
    for _ in range(3000):
        broken = bytearray(good)
        for place in rng.integers(len(good), size=rng.integers(1, 5)):
            broken[place] = rng.integers(256)
        assert refused(bytes(broken)) or signer_of(bytes(broken)) == signer


def test_garbage_for_a_certificate() -> None:
    good = certificate(Ed25519PrivateKey.generate())
    assert all(map(refused, (b"", b"\x30\x80", good[:-1], good[: len(good) // 2], bytes(1000))))


def refused(certificate: bytes) -> bool:
    try:
        signer_of(certificate)
    except NotLibp2pError:
        return True
    return False
