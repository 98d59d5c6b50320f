"""The real exchange over loopback: liars, garbage, and processes that die."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hivemind.p2p import PeerID

from elastic import trace
from elastic.config_local import NetworkConfig, TraceConfig
from elastic.errors import (
    AveragingError,
    BootstrapError,
    ClockSkewError,
    ConfigError,
    FetchError,
    NetworkError,
    PortTakenError,
)
from elastic.exchange import averaging
from elastic.exchange.blobs import bulk, selection
from elastic.exchange.blobs.store import BlobStore
from elastic.exchange.dht.bootstrap import Node, run_bootstrap
from elastic.exchange.hivemind import HivemindExchange
from elastic.messages import PeerCard, PeerStage, RoundIndex, digest_of
from elastic.trace_ids import unpack_context
from elastic.tracing.files import read_files, trace_files
from elastic.wire.signing import Identity
from elastic.wire.tree import CHUNK_BYTES, Table, blob_digest

RUN = "swarm"
ROUND = RoundIndex(1)
OWNER = """
import asyncio, sys, time
from pathlib import Path
offset = float(sys.argv[2])
import hivemind.dht.protocol
hivemind.dht.protocol.get_dht_time = lambda: time.time() + offset
from elastic.config_local import NetworkConfig
from elastic.exchange.hivemind import HivemindExchange
from elastic.wire.signing import Identity

async def main():
    path = Path(sys.argv[1])
    exchange = await HivemindExchange.start(
        identity=Identity.load_or_create(path),
        identity_path=path,
        run="swarm",
        network=NetworkConfig(host="127.0.0.1"),
    )
    sys.stdout.write(f"{exchange._node.p2p._child.pid} {exchange.addresses[0]}\\n")
    sys.stdout.flush()
    await asyncio.Event().wait()

asyncio.run(main())
"""

Join = Callable[..., Awaitable[HivemindExchange]]


@pytest.fixture
async def join(tmp_path: Path) -> AsyncIterator[Join]:
    """Makes peers that enter through the first one, and closes them."""
    made: list[HivemindExchange] = []

    async def start(**network: Any) -> HivemindExchange:
        path = tmp_path / f"peer{len(made)}.key"
        defaults = {"host": "127.0.0.1", "bootstrap": tuple(made[0].addresses) if made else ()}
        exchange = await HivemindExchange.start(
            identity=Identity.load_or_create(path),
            identity_path=path,
            run=RUN,
            network=NetworkConfig(**(defaults | network)),
            blob_dir=tmp_path / f"blobs{len(made)}",
        )
        made.append(exchange)
        return exchange

    yield start
    for exchange in reversed(made):
        await exchange.close()


@pytest.fixture
async def owner(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[tuple[Any, int, str]]]]:
    """Starts another process with an exchange; gives the process, its p2pd's pid, and its address."""
    running: list[asyncio.subprocess.Process] = []

    async def start(clock_offset: float = 0.0) -> tuple[Any, int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            OWNER,
            str(tmp_path / "owner.key"),
            str(clock_offset),
            stdout=subprocess.PIPE,
        )
        running.append(process)
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        pid, address = line.decode().split()
        return process, int(pid), address

    yield start
    for process in running:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def eventually(condition: Callable[[], bool], tries: int = 200) -> bool:
    for _ in range(tries):
        if condition():
            return True
        await asyncio.sleep(0.05)
    return False


def sockets_of(exchange: HivemindExchange) -> list[Path]:
    """Its own ones; whoever else runs peers on this machine has theirs in the same folder."""
    p2p = exchange._node.p2p
    daemons = [p2p._daemon_listen_maddr, p2p._client_listen_maddr]
    return [*(Path(str(address).removeprefix("/unix")) for address in daemons), exchange._server._directory]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


async def test_records_forged_in_anothers_name_are_rejected(join: Join) -> None:
    # Given a victim's record, and a forger in the same DHT
    witness, victim, forger = await join(), await join(), await join()
    await victim.post("commit", ROUND, b"true")
    key, later = f"{RUN}/commit/{ROUND}", time.time() + 1000
    # When it writes under the victim's id, without a subkey, for ever, or too much
    dht = forger._node.dht
    await dht.store(key, b"forged", later, subkey=victim._node.p2p.peer_id.to_bytes())
    await dht.store(key, b"plain", later)
    await dht.store(key, b"for ever", time.time() + 10**9, subkey=forger._node.p2p.peer_id.to_bytes())
    await dht.store(key, bytes(20_000), later, subkey=forger._node.p2p.peer_id.to_bytes())
    # Then nobody else sees any of it
    for reader in (witness, victim):
        assert await reader.records("commit", ROUND) == {victim.peer: b"true"}


async def test_a_replayed_old_record_does_not_bring_the_new_one_down(join: Join) -> None:
    a, b = await join(), await join()
    old_end = time.time() + 2
    await a._node.dht.store(f"{RUN}/commit/1", b"old", old_end, subkey=a._node.p2p.peer_id.to_bytes())
    await a.post("commit", ROUND, b"new")
    await b._node.dht.store(f"{RUN}/commit/1", b"old", old_end, subkey=a._node.p2p.peer_id.to_bytes())
    assert await eventually(lambda: time.time() > old_end)
    assert await b.records("commit", ROUND) == {a.peer: b"new"}


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"x",
        bytes(38),
        b"\xff" * 38,
        b"?" * 5000,
        struct.pack("!B32sHBHI", 1, bytes.fromhex(blob_digest(b"still here")), 1, 255, 1, 2**32 - 1),
    ],
)
async def test_garbage_requests_do_not_hurt_the_holder(join: Join, request_bytes: bytes) -> None:
    holder, stranger = await join(), await join()
    digest = await holder.provide(b"still here")
    for _ in range(3):
        peer = PeerID.from_base58(holder.peer)
        _, reader, writer = await stranger._node.p2p.call_binary_stream_handler(peer, bulk.PROTOCOL)
        writer.write(request_bytes)
        writer.write_eof()
        await asyncio.wait_for(reader.read(100), 10)
        writer.close()
    assert await stranger.fetch(digest, 10, [holder.peer]) == b"still here"


async def lying_node(tmp_path: Path, bootstrap: str, answer: bytes, to_chunks: bytes | None = None) -> Node:
    """A peer that answers every request for a table, and for chunks, with these bytes and closes."""

    async def lie(_info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = (await reader.readexactly(bulk.REQUEST_BYTES))[0]
        writer.write(answer if to_chunks is None or kind == bulk.Kind.TABLE else to_chunks)
        await writer.drain()
        writer.close()

    path = tmp_path / "liar.key"
    network = NetworkConfig(host="127.0.0.1", bootstrap=(bootstrap,))
    node = await Node.start(Identity.load_or_create(path), path, network)
    await node.p2p.add_binary_stream_handler(bulk.PROTOCOL, lie)
    return node


@pytest.mark.parametrize(
    ("answer", "story"),
    [
        (struct.pack("!BQ", 0, 2**60), "announces 1152921504606846976 bytes, expected 6"),
        (struct.pack("!BQ", 0, 6) + b"\x80tru", "ended after 3 of 32"),
        (struct.pack("!BQ", 0, 6) + b"\x80" + bytes(32), "wrong bytes: its table"),
        (struct.pack("!BQ", 77, 6), "status 77"),
        (b"", "ended after 0 of 9"),
    ],
)
async def test_a_lying_holder_is_left_for_the_next(join: Join, tmp_path: Path, answer: bytes, story: str) -> None:
    honest, b = await join(), await join()
    digest = await honest.provide(b"truths")
    liar = await lying_node(tmp_path, honest.addresses[0], answer)
    peer = liar.p2p.peer_id.to_base58()
    try:
        with pytest.raises(FetchError, match=story):
            await b.fetch(digest, 6, [peer])
        assert await b.fetch(digest, 6, [peer, honest.peer]) == b"truths"
    finally:
        await liar.close()


@pytest.mark.parametrize("spoken", [True, False])
async def test_a_transfer_tells_from_whom_and_the_holder_what_for(
    join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoken: bool
) -> None:
    # given a holder that speaks our protocol with spans, or only the one without
    ann, bob = await join(), await join()
    if not spoken:
        monkeypatch.setattr(bulk, "TRACED", "/elastic/bulk/9/traced")
    blob = bytes(3 * CHUNK_BYTES)
    digest = await ann.provide(blob)
    config = TraceConfig()
    trace.setup(config, run="run", peer=bob.peer, name="bob", state_dir=tmp_path)
    try:
        # when it is asked by who traces its round
        with trace.span("round.fetch") as fetch:
            assert await bob.fetch(digest, len(blob), [ann.peer]) == blob
    finally:
        trace.shutdown()
    # then both know
    (served,) = await ann.served()
    assert (served.peer, served.num_bytes) == (bob.peer, len(blob))
    found = read_files(trace_files(tmp_path)).spans
    (transfer,) = [span for span in found if span.name == "round.transfer"]
    assert transfer.parent == f"{fetch.get_span_context().span_id:016x}"
    assert [(each.text("peer"), each.number("bytes")) for each in transfer.events] == [(ann.peer, len(blob))]
    ids = unpack_context(served.span)
    assert ids == ((int(transfer.trace, 16), int(transfer.id, 16)) if spoken else None)


async def test_a_huge_size_takes_no_memory_before_bytes_arrive(join: Join, tmp_path: Path) -> None:
    # given a holder that announces eight petabytes, as its commitment did, and sends nothing
    b, size = await join(), 2**53
    liar = await lying_node(tmp_path, b.addresses[0], struct.pack("!BQ", 0, size) + bytes(1000))
    try:
        # then fetching it fails, and nothing was set up for it
        with pytest.raises(FetchError, match="ended after 1000 of"):
            await b.fetch(blob_digest(b"truths"), size, [liar.p2p.peer_id.to_base58()])
    finally:
        await liar.close()


@pytest.mark.parametrize(
    ("answer", "story"),
    [
        (struct.pack("!HI", 1, 1), "not asked for"),
        (struct.pack("!HII", 2, 0, 0), "sends 2 chunks, asked for 1"),
        (struct.pack("!HI", 1, 0) + b"lieabc", "wrong bytes for chunk 0"),
        (struct.pack("!HI", 1, 0) + b"tru", "ended after 3 of 6"),
        (struct.pack("!H", 1), "ended after 0 of 4"),
    ],
)
async def test_wrong_chunks_are_noticed(join: Join, tmp_path: Path, answer: bytes, story: str) -> None:
    honest, b = await join(), await join()
    digest = await honest.provide(b"truths")
    head = struct.pack("!BQ", 0, 6) + b"\x80"
    liar = await lying_node(tmp_path, honest.addresses[0], head + Table.of(b"truths").hashes, head + answer)
    peer = liar.p2p.peer_id.to_base58()
    try:
        with pytest.raises(FetchError, match=story):
            await b.fetch(digest, 6, [peer])
        assert await b.fetch(digest, 6, [peer, honest.peer]) == b"truths"
    finally:
        await liar.close()


async def test_a_fetch_goes_on_after_a_restart_with_what_is_right(
    join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a blob of which an earlier life left four chunks of six in its folder, one of them torn
    monkeypatch.setattr(selection, "STALL_SECONDS", 1.0)
    whole = await join()
    blob = np.random.default_rng(0).bytes(6 * CHUNK_BYTES - 5)
    digest = await whole.provide(blob)
    left = tmp_path / "blobs1" / f"{digest}.partial"
    left.parent.mkdir()
    left.write_bytes(blob[: 4 * CHUNK_BYTES - 1000] + bytes(1000))
    # when the peer starts again and fetches the blob
    b = await join()
    assert await b.fetch(digest, len(blob), [whole.peer]) == blob
    # then the torn chunk and those that were missing were sent, and once it is provided nothing is kept twice
    assert 2 * CHUNK_BYTES < (await b.traffic())[1] < 4 * CHUNK_BYTES
    await b.provide(blob)
    assert not left.exists()


async def test_a_peer_nobody_can_dial_serves_over_the_connection_it_dialled(join: Join) -> None:
    # given a public peer, and one that listens nowhere and has no address to tell
    public = await join()
    hidden = await join(listen=False)
    assert hidden.addresses == []
    card = PeerCard(peer=hidden.peer, run=RUN, shared=digest_of(b"s"), stage=PeerStage.READY, round=ROUND)
    await hidden.announce(card)
    assert [seen.addresses for seen in await public.cards()] == [()]
    # then blobs go both ways
    blob = np.random.default_rng(0).bytes(3 * CHUNK_BYTES)
    digest = await hidden.provide(blob)
    assert await public.fetch(digest, len(blob), [hidden.peer]) == blob
    assert await hidden.fetch(await public.provide(b"back"), 4, [public.peer]) == b"back"
    # and another one that cannot be dialled gets it through the public peer
    other = await join()
    assert await other.fetch(digest, len(blob), [hidden.peer, public.peer]) == blob


async def test_a_peer_with_relays_and_hole_punching_starts_and_is_found(join: Join) -> None:
    # given
    public = await join()
    behind = await join(listen=False, relays=tuple(public.addresses), hole_punching=True)
    # when
    blob = b"payload" * 1000
    digest = await behind.provide(blob)
    # then
    assert await public.fetch(digest, len(blob), [behind.peer]) == blob


async def test_a_taken_port_is_named(join: Join) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port} is in use"):
            await join(port=port)


async def test_the_port_of_another_peer_is_taken(join: Join) -> None:
    port = int((await join()).addresses[0].split("/")[4])
    with pytest.raises(PortTakenError):
        await join(port=port)


async def test_a_bootstrap_that_does_not_answer_is_an_error_with_advice(join: Join) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/tcp/{reserved.getsockname()[1]}/p2p/{Identity.generate().peer}"
        with pytest.raises(BootstrapError, match="nobody answered within 2 s") as caught:
            await join(bootstrap=(address,), bootstrap_seconds=2)
    assert address in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:4001",
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/1.2.3.999/tcp/1/p2p/{}",
        "/ip4/1.2.3.4/tcp/1/p2p/Qm1",
    ],
)
async def test_a_malformed_bootstrap_address_shows_the_right_form(join: Join, address: str) -> None:
    with pytest.raises(ConfigError, match=r"/ip4/203\.0\.113\.5/tcp/4001/p2p/12D3Koo"):
        await join(bootstrap=(address.format(Identity.generate().peer),))


async def test_a_host_that_is_no_address_is_a_config_error(join: Join) -> None:
    with pytest.raises(ConfigError, match=r"network\.host"):
        await join(host="localhost")


async def test_peers_meet_through_a_pure_entry_point(join: Join, tmp_path: Path) -> None:
    # Given an entry point that is in no run
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    path = tmp_path / "entry.key"
    entry = asyncio.create_task(run_bootstrap(path, "127.0.0.1", 0, (), ready.set_result, stop))
    addresses = await asyncio.wait_for(ready, 60)
    # When two peers come in through it
    a, b = await join(bootstrap=tuple(addresses)), await join(bootstrap=tuple(addresses))
    await a.post("commit", ROUND, b"a")
    digest = await a.provide(b"bytes of a")
    # Then they see each other and exchange bytes, though neither knew the other's address
    assert await b.records("commit", ROUND) == {a.peer: b"a"}
    assert await b.fetch(digest, 10, [a.peer]) == b"bytes of a"
    stop.set()
    await entry


async def test_a_wrong_clock_is_told(join: Join, owner: Any) -> None:
    _, _, address = await owner(clock_offset=100.0)
    with pytest.raises(ClockSkewError, match="clock is off"):
        await join(bootstrap=(address,))


async def test_no_p2pd_survives_the_sigkill_of_its_owner(owner: Any) -> None:
    process, daemon, _ = await owner()
    assert not is_gone(daemon)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert await eventually(lambda: is_gone(daemon))


async def test_calls_fail_at_once_when_the_local_p2pd_dies(join: Join) -> None:
    a, b = await join(), await join()
    b._node.p2p._child.kill()
    await b._node.exited
    for call in (b.cards(), b.post("commit", ROUND, b"x"), b.fetch(blob_digest(b"x"), 1, [a.peer])):
        with pytest.raises(NetworkError, match="p2pd is gone"):
            await call
    await b.close()


async def test_close_leaves_no_process_and_no_sockets(join: Join) -> None:
    exchange = await join()
    daemon, sockets = exchange._node.p2p._child.pid, sockets_of(exchange)
    assert all(path.exists() for path in sockets)
    await exchange.close()
    assert is_gone(daemon)
    assert not any(path.exists() for path in sockets)


async def test_a_card_tells_where_to_dial(join: Join) -> None:
    a, b = await join(), await join()
    digest = digest_of(b"s")
    card = PeerCard(
        peer=a.peer,
        run=RUN,
        shared=digest,
        stage=PeerStage.READY,
        round=ROUND,
        addresses=("garbage", "https://bucket.example.org/tcp/1", "/ip4/127.0.0.1/tcp/1/p2p/Qm", *a.addresses),
    )
    await a.announce(card)
    assert [seen.peer for seen in await b.cards()] == [a.peer]
    assert await b.fetch(await a.provide(b"dialled"), 7, [a.peer]) == b"dialled"


async def test_the_longest_card_is_read_and_no_longer_one(join: Join) -> None:
    # given a card as long as honest ones are: sixteen addresses, a bucket's among them
    a, b = await join(), await join()
    longest = f"/ip4/255.255.255.255/tcp/65535/p2p/{a.peer}"
    card = PeerCard(
        peer=a.peer, run=RUN, shared=digest_of(b"s"), name="ü" * 64, stage=PeerStage.CATCHING_UP,
        round=RoundIndex(2**40), addresses=(*[longest] * 15, "https://" + "b" * 248),
    )  # fmt: skip
    await a.announce(card)
    assert await b.cards() == [card]
    # then one with longer addresses is not posted, and not read if it is
    long = card.model_copy(update={"addresses": ("/dns4/" + "x" * 250,) * 16})
    with pytest.raises(ConfigError, match=r"fewer or shorter addresses in local\.network\.announce"):
        await a.announce(long)
    await a._write(f"{RUN}/peers", long.canonical(), time.time() + 100, "posting it all the same")
    assert await b.cards() == []


async def test_blobs_in_a_folder_are_files_that_the_next_start_finds(join: Join, tmp_path: Path) -> None:
    # Given a peer that provided a blob
    a = await join()
    digest = await a.provide(b"on disk")
    assert (tmp_path / "blobs0" / digest).read_bytes() == b"on disk"
    # Then another life on the same folder has it
    assert BlobStore(tmp_path / "blobs0").read(digest) == b"on disk"


async def test_nothing_waits_until_a_file_is_taken_over(
    join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a store that has much to free before it serves a file instead
    exchange, goes_on, waited = await join(), threading.Event(), []
    monkeypatch.setattr(exchange.store.partials, "drop", lambda _: waited.append(goes_on.wait(5)))
    (tmp_path / "state").write_bytes(b"anchor")
    # when it is provided, and something else happens in this loop
    providing = asyncio.create_task(exchange.provide_file(blob_digest(b"anchor"), str(tmp_path / "state")))
    await asyncio.sleep(0)
    goes_on.set()
    await providing
    # then that was not kept waiting
    assert waited == [True]


async def test_a_peer_that_comes_back_does_not_spoil_everyones_writes(join: Join, tmp_path: Path) -> None:
    # Given three peers, one of which is closed and comes back under its key, on another port
    a, _, c = await join(), await join(), await join()
    await c.post("greeting", RoundIndex(1), b"hello")
    assert c.peer in await a.records("greeting", RoundIndex(1))
    await c.close()
    path = tmp_path / "peer2.key"
    back = await HivemindExchange.start(
        identity=Identity.load(path),
        identity_path=path,
        run=RUN,
        network=NetworkConfig(host="127.0.0.1", bootstrap=tuple(a.addresses)),
    )
    try:
        # When the others go on writing
        for index in range(1, 6):
            await a.post("contribution", RoundIndex(index), b"body")
            # Then their records are taken, and read by the one that came back
            assert (await back.records("contribution", RoundIndex(index)))[a.peer] == b"body"
        # And nobody stands twice in their tables, once under a place in the DHT that it has left
        neighbours = list(a._node.dht.protocol.routing_table.uid_to_peer_id.values())
        assert len(neighbours) == len(set(neighbours))
    finally:
        await back.close()


async def test_a_peer_lost_while_averaging_fails_it_for_all(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given three peers, one of which breaks off after its first part
    monkeypatch.setattr(averaging, "NEXT_CHUNK_SECONDS", 1.0)
    peers = [await join() for _ in range(3)]
    lost = peers[2].peer
    upstream = averaging._ExactRunner._generate_input_for_peer

    async def break_off(self: Any, peer_index: int) -> AsyncIterator[Any]:
        async for part in upstream(self, peer_index):
            yield part
            if self.peer_id.to_base58() == lost:
                raise ConnectionResetError("the line is cut")

    monkeypatch.setattr(averaging._ExactRunner, "_generate_input_for_peer", break_off)
    # When they average
    inputs = [{"w": np.full(3_000_000, float(index), np.float32)} for index in range(3)]
    outcomes = await asyncio.gather(
        *(peer.average("r1", mine, 3, 40.0) for peer, mine in zip(peers, inputs, strict=True)),
        return_exceptions=True,
    )
    # Then nobody reports a result
    assert [type(outcome) for outcome in outcomes] == [AveragingError] * 3
    # And the next averaging works
    monkeypatch.setattr(averaging._ExactRunner, "_generate_input_for_peer", upstream)
    results = await asyncio.gather(*(p.average("r2", mine, 3, 60.0) for p, mine in zip(peers, inputs, strict=True)))
    assert all((result["w"] == 1.0).all() for result in results)
