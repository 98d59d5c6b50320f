"""No entry point is left: peers that have met find each other again, where they were."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hivemind.p2p import PeerID

from elastic.config_local import NetworkConfig
from elastic.errors import BootstrapError
from elastic.exchange.hivemind import HivemindExchange
from elastic.exchange.known import KNOWN_FILE
from elastic.messages import PeerCard, PeerStage, RoundIndex, digest_of
from elastic.wire.signing import Identity

RUN = "known"
NOBODY = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.generate().peer}"

Live = Callable[[str, tuple[str, ...]], Awaitable[HivemindExchange]]


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    """Gives a peer of that name another life, in the same folder."""
    made: list[HivemindExchange] = []

    async def start(name: str, bootstrap: tuple[str, ...]) -> HivemindExchange:
        path = tmp_path / name / "peer.key"
        exchange = await HivemindExchange.start(
            identity=Identity.load_or_create(path), identity_path=path, run=RUN,
            network=NetworkConfig(host="127.0.0.1", bootstrap=bootstrap, bootstrap_seconds=2.0),
            known_file=tmp_path / name / KNOWN_FILE,
        )  # fmt: skip
        made.append(exchange)
        return exchange

    yield start
    for exchange in made:
        await exchange.close()


async def announce(exchange: HivemindExchange) -> None:
    card = PeerCard(
        peer=exchange.peer, run=RUN, shared=digest_of(b""), name="", stage=PeerStage.READY,
        addresses=tuple(exchange.addresses), round=RoundIndex(0),
    )  # fmt: skip
    await exchange.announce(card)


async def test_a_peer_comes_back_without_an_entry_point_and_where_it_was(live: Live) -> None:
    # given two peers that met through an entry point
    entry = await live("entry", ())
    ann, bob = [await live(name, tuple(entry.addresses)) for name in ("ann", "bob")]
    for each in (ann, bob):
        await announce(each)
    for each in (ann, bob):
        assert {card.peer for card in await each.cards()} == {ann.peer, bob.peer}
    # when the entry point is gone, and each of them dies once and comes back
    await entry.close()
    for name in ("bob", "ann"):
        before = {"ann": ann, "bob": bob}[name]
        await before.close()
        after = await live(name, (NOBODY,))
        assert after.addresses == before.addresses
        ann, bob = (after, bob) if name == "ann" else (ann, after)
    # then each reads what the other writes
    await ann.post("greeting", RoundIndex(1), b"hello")
    assert (await bob.records("greeting", RoundIndex(1)))[ann.peer] == b"hello"
    await bob.post("greeting", RoundIndex(2), b"hello")
    assert (await ann.records("greeting", RoundIndex(2)))[bob.peer] == b"hello"


async def test_a_neighbour_that_was_silent_for_long_is_asked_again_as_soon_as_it_answers(live: Live) -> None:
    # given a peer that was silent so often that Hivemind would not ask it for minutes
    entry = await live("entry", ())
    ann = await live("ann", tuple(entry.addresses))
    dht, silent = ann._node.dht, PeerID.from_base58(entry.peer)
    for _ in range(8):
        del dht.blacklist.banned_peers[silent]
        dht.blacklist.register_failure(silent)
    await entry.post("greeting", RoundIndex(1), b"hello")
    # when it answers, and ann looks
    await ann.records("greeting", RoundIndex(1))
    assert ann._node._knocking is not None
    await ann._node._knocking
    # then she hears it
    assert silent not in dht.blacklist
    assert (await ann.records("greeting", RoundIndex(1)))[entry.peer] == b"hello"


async def test_who_needs_no_entry_point_waits_for_nobody_it_knew(live: Live) -> None:
    # given a peer that was the first of its run, and knew one that is gone
    ann = await live("ann", ())
    bob = await live("bob", tuple(ann.addresses))
    await announce(bob)
    assert [card.peer for card in await ann.cards()] == [bob.peer]
    await bob.close()
    await ann.close()
    # when it comes back
    ann = await live("ann", ())
    # then it is there, alone; while who has an entry point is told that nobody answers
    await announce(ann)
    assert [card.peer for card in await ann.cards()] == [ann.peer]
    await ann.close()
    with pytest.raises(BootstrapError, match="nobody answered"):
        await live("bob", (NOBODY,))


async def test_a_port_that_another_has_taken_is_left_to_it(live: Live, tmp_path: Path) -> None:
    # given a peer whose port was taken while it was away
    ann = await live("ann", ())
    (tmp_path / "bob").mkdir()
    (tmp_path / "bob" / KNOWN_FILE).write_text(json.dumps({"port": int(ann.addresses[0].split("/")[4])}))
    # when
    bob = await live("bob", tuple(ann.addresses))
    # then it takes another
    assert bob.addresses[0].split("/")[4] != ann.addresses[0].split("/")[4]
