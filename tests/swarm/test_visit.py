"""Real p2pd on loopback: entry points and peers that dial back and measure, and `elastic doctor`, who asks them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hivemind.p2p import PeerID

from elastic.actors.finding import Finding, Level
from elastic.actors.outside import outside
from elastic.config import RunConfig
from elastic.config_local import NetworkConfig
from elastic.errors import NetworkError
from elastic.exchange.dht.bootstrap import Entry, Node, run_bootstrap
from elastic.exchange.hivemind import HivemindExchange
from elastic.exchange.known import KNOWN_FILE
from elastic.exchange.probe import server as probe
from elastic.exchange.probe import visit as visits
from elastic.exchange.probe.server import MEASURE_BYTES, PROTOCOL, REQUEST, RESPONSE, Kind, Status
from elastic.exchange.probe.visit import TooOldError, Visit, ports_of, visiting
from elastic.state.claim import claim
from elastic.wire.signing import Identity

LOOPBACK = NetworkConfig(host="127.0.0.1")


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What is entered there is left at the end of the test."""
    async with AsyncExitStack() as entered:
        yield entered


@pytest.fixture
async def entry(tmp_path: Path) -> AsyncIterator[Entry]:
    """An entry point as `elastic bootstrap` runs it."""
    ready, stop = asyncio.get_running_loop().create_future(), asyncio.Event()
    serving = asyncio.create_task(run_bootstrap(tmp_path / "entry.key", "127.0.0.1", 0, (), ready.set_result, stop))
    await asyncio.wait({ready, serving}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    yield Entry.parse(ready.result()[0])
    stop.set()
    await serving


async def visit_of(stack: AsyncExitStack, path: Path, network: NetworkConfig = LOOPBACK) -> tuple[Identity, Visit]:
    identity = Identity.load_or_create(path)
    return identity, await stack.enter_async_context(visiting(path, network))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return int(gone.getsockname()[1])


async def test_an_entry_point_dials_back_over_a_connection_of_its_own(
    entry: Entry, stack: AsyncExitStack, tmp_path: Path
) -> None:
    # given somebody who listens, and somebody who is connected and does not
    me, visit = await visit_of(stack, tmp_path / "listens.key")
    _, deaf = await visit_of(stack, tmp_path / "deaf.key", NetworkConfig(host="127.0.0.1", listen=False))
    await visit.enter(entry)
    await deaf.enter(entry)
    (port,) = await visit.ports()
    # then the first is found where it listens, and nowhere else
    answer = await visit.ask(entry, Kind.DIAL, port)
    assert (answer.status, answer.ip, answer.peer) == (Status.OK, "127.0.0.1", me.peer)
    assert (await visit.ask(entry, Kind.DIAL, free_port())).status is Status.REFUSED
    # and to the second its connection is no help: who answers on the first one's port is told by name
    assert await deaf.ports() == ()
    assert (await deaf.ask(entry, Kind.DIAL, free_port())).status is Status.REFUSED
    assert (await deaf.ask(entry, Kind.DIAL, port)).peer == me.peer


async def test_an_entry_point_measures_both_ways(entry: Entry, stack: AsyncExitStack, tmp_path: Path) -> None:
    _, visit = await visit_of(stack, tmp_path / "visit.key")
    await visit.enter(entry)
    for kind in (Kind.DOWN, Kind.UP):
        answer = await visit.measure(entry, kind)
        assert answer.status is Status.OK and answer.bits_per_second > 0
    assert (await visit.ask(entry, Kind.DOWN, MEASURE_BYTES + 1)).status is Status.BAD_REQUEST


@pytest.mark.parametrize("kind", [Kind.DOWN, Kind.UP])
async def test_a_measurement_that_is_cut_short_still_counts(
    entry: Entry, stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    # given so little time that most of the bytes are still on their way
    monkeypatch.setattr(probe, "MEASURE_SECONDS", 0.002)
    _, visit = await visit_of(stack, tmp_path / "visit.key")
    await visit.enter(entry)
    # then what came is told, each time
    for _ in range(6):
        answer = await visit.ask(entry, kind, MEASURE_BYTES)
        assert answer.status is Status.OK and 0 <= answer.counted < MEASURE_BYTES and answer.seconds > 0


async def test_garbage_and_floods_leave_an_entry_point_serving(
    entry: Entry, stack: AsyncExitStack, tmp_path: Path
) -> None:
    # given somebody who opens many streams, and says nothing, garbage, or too much
    _, hostile = await visit_of(stack, tmp_path / "hostile.key")
    await hostile.enter(entry)
    opened = []
    for index in range(60):
        stream = await hostile._p2p.call_binary_stream_handler(PeerID.from_base58(entry.peer), PROTOCOL)
        stream[2].write([b"", b"\xff" * 3, REQUEST.pack(Kind.UP, MEASURE_BYTES) + bytes(50_000)][index % 3])
        opened.append(stream)
    # then most are turned away at once
    first = await asyncio.wait_for(opened[-1][1].read(RESPONSE.size), 10)
    assert first in (b"", RESPONSE.pack(Status.BUSY, bytes([127, 0, 0, 1])))
    # and when they are gone, the next one is served
    for _, _, writer in opened:
        writer.transport.abort()
    me, visit = await visit_of(stack, tmp_path / "visit.key")
    await visit.enter(entry)
    (port,) = await visit.ports()
    assert (await visit.ask(entry, Kind.DIAL, port)).peer == me.peer


async def test_a_peer_dials_back_and_measures_nothing(stack: AsyncExitStack, tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    peer = await HivemindExchange.start(
        identity=Identity.load_or_create(path), identity_path=path, run="demo", network=LOOPBACK
    )
    stack.push_async_callback(peer.close)
    me, visit = await visit_of(stack, tmp_path / "visit.key")
    door = Entry.parse(peer.addresses[0])
    await visit.enter(door)
    (port,) = await visit.ports()
    assert (await visit.ask(door, Kind.DIAL, port)).peer == me.peer
    assert (await visit.measure(door, Kind.DOWN)).status is Status.UNSERVED


async def test_an_entry_point_that_does_not_know_the_request(stack: AsyncExitStack, tmp_path: Path) -> None:
    # given a node of a release without probes
    path = tmp_path / "old.key"
    old = await Node.start(Identity.load_or_create(path), path, LOOPBACK)
    stack.push_async_callback(old.close)
    _, visit = await visit_of(stack, tmp_path / "visit.key")
    door = Entry.parse(old.addresses[0])
    await visit.enter(door)
    with pytest.raises(TooOldError):
        await visit.ask(door, Kind.DIAL, 1)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Kind.DIAL, RESPONSE.pack(99, bytes(4))),
        (Kind.DIAL, RESPONSE.pack(Status.OK, bytes(4)) + b"short"),
        (Kind.UP, RESPONSE.pack(Status.OK, bytes(4)) + probe.COUNTED.pack(2**32 - 1, 1)),
    ],
)
async def test_an_entry_point_that_talks_nonsense(
    stack: AsyncExitStack, tmp_path: Path, kind: Kind, says: bytes
) -> None:
    # given one who answers with these bytes and hangs up
    async def liar(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(REQUEST.size)
        writer.write(says)
        writer.write_eof()
        await reader.read()
        writer.close()

    path = tmp_path / "liar.key"
    node = await Node.start(Identity.load_or_create(path), path, LOOPBACK)
    stack.push_async_callback(node.close)
    await node.p2p.add_binary_stream_handler(PROTOCOL, liar)
    _, visit = await visit_of(stack, tmp_path / "visit.key")
    door = Entry.parse(node.addresses[0])
    await visit.enter(door)
    with pytest.raises(NetworkError):
        await visit.ask(door, kind, 1000)


async def test_another_peer_than_the_one_that_was_named(entry: Entry, stack: AsyncExitStack, tmp_path: Path) -> None:
    _, visit = await visit_of(stack, tmp_path / "visit.key")
    with pytest.raises(NetworkError, match="mismatch"):
        await visit.enter(Entry(Identity.generate().peer, entry.transport))


@pytest.mark.parametrize("turned_away", [1, 9])
async def test_who_hangs_up_without_a_word_is_asked_again(
    stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turned_away: int
) -> None:
    # given an entry point whose "busy" is cut off on its way, so many times
    monkeypatch.setattr(visits, "BUSY_SECONDS", (0.0, 0.0, 0.0))
    path = tmp_path / "busy.key"
    node = await Node.start(Identity.load_or_create(path), path, LOOPBACK)
    stack.push_async_callback(node.close)
    server, came = probe.ProbeServer(node.p2p, measures=True), count()
    stack.callback(server.close)

    async def handle(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(came) < turned_away:
            writer.close()
        else:
            await server.handle(info, reader, writer)

    await node.p2p.add_binary_stream_handler(PROTOCOL, handle)
    _, visit = await visit_of(stack, tmp_path / "visit.key")
    door = Entry.parse(node.addresses[0])
    await visit.enter(door)
    # then it is asked four times in all, and what became of the last is told as it was
    if turned_away < 4:
        assert (await visit.ask(door, Kind.DOWN, 1000)).status is Status.OK
    else:
        with pytest.raises(NetworkError, match="hung up without a word"):
            await visit.ask(door, Kind.DOWN, 1000)
    assert next(came) == min(turned_away + 1, 4)


# --- elastic doctor --------------------------------------------------------------------------------------------------


def run_file(folder: Path, *entries: object, **network: Any) -> RunConfig:
    tree = {
        "shared": {"run": "demo", "agreement": {"validators": [Identity.generate().peer]}},
        "local": {
            "state_dir": str(folder / "state"),
            "network": {"host": "127.0.0.1", "bootstrap": [str(entry) for entry in entries], **network},
        },
    }
    return RunConfig.model_validate(tree)


async def examined(config: RunConfig) -> list[Finding]:
    return await asyncio.to_thread(lambda: list(outside(config, config.local.network.bootstrap)))


async def test_the_doctor_before_the_peer_has_a_key(entry: Entry, tmp_path: Path) -> None:
    config = run_file(tmp_path, entry)
    found, line = await examined(config)
    assert (found.what, found.level) == ("reach", Level.OK) and "dialled us at 127.0.0.1:" in found.says
    assert (line.what, line.level) == ("bandwidth", Level.OK) and "time for all others" in line.says, line
    assert not config.local.state_dir.exists()


async def test_the_doctor_as_the_peer(entry: Entry, tmp_path: Path) -> None:
    # given a peer that ran once, on a port of its own
    config = run_file(tmp_path, entry, port=free_port())
    Identity.load_or_create(config.key_path)
    with claim(config.local.state_dir):
        pass
    before = sorted(config.local.state_dir.iterdir())
    # then it is that port that is dialled, and nothing is left behind
    found, _ = await examined(config)
    assert found.level is Level.OK and f"127.0.0.1:{config.local.network.port}" in found.says
    assert sorted(config.local.state_dir.iterdir()) == before


async def test_the_doctor_beside_the_running_peer(entry: Entry, stack: AsyncExitStack, tmp_path: Path) -> None:
    # given a peer that runs on any port
    config = run_file(tmp_path, entry)
    state = config.local.state_dir
    stack.enter_context(claim(state))
    peer = await HivemindExchange.start(
        identity=Identity.load_or_create(config.key_path),
        identity_path=config.key_path,
        run="demo",
        network=config.local.network,
        known_file=state / KNOWN_FILE,
    )
    stack.push_async_callback(peer.close)
    # then it is found where it is, by somebody else who asks
    found, _ = await examined(config)
    (port,) = ports_of(peer.addresses)
    assert found.level is Level.OK and f"127.0.0.1:{port}" in found.says


async def test_the_doctor_beside_a_peer_that_does_not_listen_yet(entry: Entry, tmp_path: Path) -> None:
    # given a peer that is running, and has not written down where it listens
    config = run_file(tmp_path, entry)
    Identity.load_or_create(config.key_path)
    with claim(config.local.state_dir):
        found, _ = await examined(config)
    # then that is what the doctor says
    assert found.level is Level.WARNING
    assert (
        "which port the running peer listens on is not known" in found.says and "set local.network.port" in found.says
    )


async def test_the_doctor_of_a_peer_that_nobody_can_dial(entry: Entry, tmp_path: Path) -> None:
    # given a run file that announces a port on which nobody listens
    wrong = free_port()
    found, _ = await examined(run_file(tmp_path, entry, announce=[f"/ip4/127.0.0.1/tcp/{wrong}"]))
    assert found.level is Level.WARNING
    assert f"127.0.0.1:{wrong}, connection refused" in found.says and "local.network.announce" in found.says
    # and one that does not want to be dialled
    quiet, line = await examined(run_file(tmp_path, entry, listen=False))
    assert quiet.level is Level.OK and "listen = false" in quiet.says
    assert line.what == "bandwidth" and line.level is Level.OK


async def test_the_doctor_and_entry_points_that_are_no_use(entry: Entry, stack: AsyncExitStack, tmp_path: Path) -> None:
    # given one of an older release, and one that is another peer than the run file says
    path = tmp_path / "old.key"
    old = await Node.start(Identity.load_or_create(path), path, LOOPBACK)
    stack.push_async_callback(old.close)
    other = Entry(Identity.generate().peer, entry.transport)
    # when
    wrong, aged, line = await examined(run_file(tmp_path, old.addresses[0], other))
    # then
    assert wrong.level is Level.PROBLEM and f"not as {other.peer}" in wrong.says
    assert aged.level is Level.WARNING and "older release" in aged.says
    assert line.level is Level.WARNING and "not measured" in line.says


async def test_the_doctor_when_the_port_is_taken(entry: Entry, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (found,) = await examined(run_file(tmp_path, entry, port=taken.getsockname()[1]))
    assert found.level is Level.WARNING and "in use" in found.says
