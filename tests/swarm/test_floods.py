"""A crowd of free identities against the DHT: on real nodes, with signatures that hold."""

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import base58
import numpy as np
import pytest
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import ValueWithExpiration

from elastic.config_local import NetworkConfig
from elastic.exchange.dht.bootstrap import Node
from elastic.exchange.dht.identity_validator import MAX_RECORD_BYTES, MAX_TTL_SECONDS, IdentityValidator
from elastic.exchange.dht.protocol import place_of
from elastic.exchange.gather import CONTRIBUTION
from elastic.exchange.hivemind import HivemindExchange
from elastic.exchange.limits import RecordLimits
from elastic.messages import PeerCard, PeerStage, RoundIndex, digest_of
from elastic.wire.signing import Identity

RUN, ROUND = "swarm", RoundIndex(1)
KEY, CARDS = f"{RUN}/{CONTRIBUTION}/{ROUND}", f"{RUN}/peers"
LIMITS = RecordLimits()
CROWD = 300
BATCH = 100
"""So many of their records fit into one message."""

Join = Callable[..., Awaitable[HivemindExchange]]


@pytest.fixture(scope="module")
def crowd() -> list[Identity]:
    return [Identity.generate() for _ in range(CROWD)]


@pytest.fixture
async def join(tmp_path: Path) -> AsyncIterator[Join]:
    """Makes peers that enter through the first one, and closes them."""
    made: list[HivemindExchange] = []

    async def start(listen: bool = True) -> HivemindExchange:
        path = tmp_path / f"peer{len(made)}.key"
        entries = tuple(made[0].addresses) if made else ()
        network = NetworkConfig(host="127.0.0.1", bootstrap=entries, listen=listen)
        identity = Identity.load_or_create(path)
        exchange = await HivemindExchange.start(identity=identity, identity_path=path, run=RUN, network=network)
        made.append(exchange)
        return exchange

    yield start
    for exchange in reversed(made):
        await exchange.close()


@pytest.fixture
async def flooder(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Node]]]:
    """Makes a node of the DHT that its owner does with as it likes."""
    made: list[Node] = []

    async def start(entry: HivemindExchange, listen: bool = True, identity: Identity | None = None) -> Node:
        path = tmp_path / f"flooder{len(made)}.key"
        if identity is not None:
            identity.save(path)
        network = NetworkConfig(host="127.0.0.1", bootstrap=tuple(entry.addresses), listen=listen)
        made.append(await Node.start(Identity.load_or_create(path), path, network))
        return made[-1]

    yield start
    for node in made:
        await node.close()


async def heed_each_other(peers: Sequence[HivemindExchange]) -> None:
    for peer in peers:
        await peer.heed([other.peer for other in peers])


def signed(identity: Identity, key: bytes, body: Any, expiration: float, subkey: bytes | None = None) -> DHTRecord:
    """A record whose signature holds for just these bytes."""
    subkey = subkey or DHTProtocol.serializer.dumps(base58.b58decode(identity.peer))
    validator = IdentityValidator(identity)
    validator._own_subkey = subkey
    unsigned = DHTRecord(key, subkey, DHTProtocol.serializer.dumps(body), expiration)
    return DHTRecord(key, subkey, validator.sign_value(unsigned), expiration)


async def push(node: Node, target: HivemindExchange, records: Sequence[DHTRecord]) -> Any:
    """Ask a peer's node to store these, as they are."""
    request = dht_pb2.StoreRequest(
        keys=[record.key for record in records], subkeys=[record.subkey for record in records],
        values=[record.value for record in records], expiration_time=[record.expiration_time for record in records],
        in_cache=[False] * len(records), peer=node.dht.protocol.node_info,
    )  # fmt: skip
    stub = node.dht.protocol.get_stub(PeerID.from_base58(target.peer))
    return (await stub.rpc_store(request, timeout=10)).store_ok


async def flood(node: Node, targets: Sequence[HivemindExchange], crowd: Sequence[Identity], key: str) -> None:
    """The largest records that there can be, of all of them, under one key."""
    key_bytes, until = DHTID.generate(source=key).to_bytes(), time.time() + 1000
    records = [signed(one, key_bytes, bytes(MAX_RECORD_BYTES), until) for one in crowd]
    for target in targets:
        for start in range(0, len(records), BATCH):
            await push(node, target, records[start : start + BATCH])


def card_of(exchange: HivemindExchange) -> PeerCard:
    return PeerCard(
        peer=exchange.peer, run=RUN, shared=digest_of(b"s"), stage=PeerStage.READY, round=ROUND,
        addresses=tuple(exchange.addresses),
    )  # fmt: skip


async def test_a_crowd_crowds_nobody_out(
    join: Join, flooder: Callable[..., Awaitable[Node]], crowd: list[Identity]
) -> None:
    # given three peers that know each other, one of which has posted, and an entry point that knows nobody
    entry, *peers = [await join() for _ in range(4)]
    await heed_each_other(peers)
    await peers[0].post(CONTRIBUTION, ROUND, b"early")
    await peers[0].announce(card_of(peers[0]))
    # when a crowd floods both keys everywhere, from a node that keeps nothing for anyone
    node = await flooder(entry, listen=False)
    for key in (KEY, CARDS):
        await flood(node, [entry, *peers], crowd, key)
    # and the others post only now
    for peer in peers[1:]:
        await peer.post(CONTRIBUTION, ROUND, b"late")
        await peer.announce(card_of(peer))
    # then everyone reads all of them, and little of the crowd; so does who keeps nothing and has to ask
    bodies = dict(zip([peer.peer for peer in peers], (b"early", b"late", b"late"), strict=True))
    asking = await join(listen=False)
    await asking.heed(list(bodies))
    for reader in (asking, *peers):
        found = await reader.records(CONTRIBUTION, ROUND)
        assert {peer: found.get(peer) for peer in bodies} == bodies
        assert sum(map(len, found.values())) <= LIMITS.stranger_bytes_in_key
        assert {card.peer for card in await reader.cards()} == set(bodies)
    # and the entry point still has the one that came before the crowd, and no more than it can tell
    kept = entry._node.dht.protocol.storage.get(DHTID.generate(source=KEY)).value
    assert base58.b58decode(peers[0].peer) in kept
    assert len(DHTProtocol.serializer.dumps(kept)) <= LIMITS.stranger_bytes_in_key


class Crowded:
    """The storage of a node that answers with whatever it likes."""

    def __init__(self, upstream: Any, found: DictionaryDHTValue) -> None:
        self.heeded, self._found = upstream.heeded, found

    def get(self, _key: DHTID) -> ValueWithExpiration:
        return ValueWithExpiration(self._found, float("inf"))

    def items(self) -> Sequence[Any]:
        return ()


async def test_a_node_that_answers_with_a_crowd_hides_nobody(
    join: Join, flooder: Callable[..., Awaitable[Node]], crowd: list[Identity]
) -> None:
    # given two peers that have posted, and nodes that say of themselves that they know the newest, for ever:
    peers = [await join(), await join()]
    await heed_each_other(peers)
    key, until = DHTID.generate(source=KEY).to_bytes(), time.time() + 1000
    # a crowd; lies in the name of one of the peers; nothing; and garbage
    answers = [DictionaryDHTValue() for _ in range(4)]
    for one in crowd[:150]:
        answers[0].store(base58.b58decode(one.peer), signed(one, key, bytes(MAX_RECORD_BYTES), until).value, until)
    answers[1].store(base58.b58decode(peers[0].peer), signed(crowd[0], key, b"forged", until).value, until)
    answers[3].store(7, [[]] * 1000, until)
    answers[3].maxsize = 1
    liars = [await flooder(peers[0]) for _ in answers]
    for node, answer in zip(liars, answers, strict=True):
        node.dht.protocol._records = Crowded(node.dht.protocol.storage, answer)
    for peer in peers:
        await peer.post(CONTRIBUTION, ROUND, b"honest")
    # then both read what the other posted, and not much more; so does who keeps nothing and has to ask
    asking = await join(listen=False)
    await asking.heed([peer.peer for peer in peers])
    for reader in (asking, *peers):
        found = await reader.records(CONTRIBUTION, ROUND)
        assert {peer.peer: found.get(peer.peer) for peer in peers} == {peer.peer: b"honest" for peer in peers}
        assert sum(map(len, found.values())) <= LIMITS.stranger_bytes_in_key
    # and the liars' word on how new their answers are does not end a search
    for node in liars[:2]:
        answered = await asking._node.dht.protocol.call_find(node.p2p.peer_id, [DHTID.generate(source=KEY)])
        ((value, _neighbours),) = answered.values()
        assert value is None or value.expiration_time == until


async def test_no_record_can_be_slipped_in_that_spoils_the_key_for_its_readers(
    join: Join, flooder: Callable[..., Awaitable[Node]], crowd: list[Identity]
) -> None:
    # given a peer that has posted, and one whose clock is a minute behind
    peers = [await join(), await join()]
    peers[1]._node.dht.protocol.record_validator._now = lambda: time.time() - 60
    await peers[0].post(CONTRIBUTION, ROUND, b"honest")
    # when records come whose signatures hold for the bytes that are sent, but not for those that readers get
    key, until = DHTID.generate(source=KEY).to_bytes(), time.time() + 1000
    raw = base58.b58decode(crowd[0].peer)
    spoilt = [
        signed(crowd[0], b"\x00" + key, b"long key", until),
        signed(crowd[1], key, b"long tag", until, subkey=b"\xc5" + len(raw).to_bytes(2, "big") + raw),
        signed(crowd[2], key, DictionaryDHTValue(), until, subkey=DHTProtocol.IS_DICTIONARY),
    ]
    # and one that lasts as long as it may, by the first clock only
    latest = signed(crowd[3], key, b"long life", time.time() + MAX_TTL_SECONDS - 5)
    node = await flooder(peers[0])
    for record in (*spoilt, latest):
        for peer in peers:
            await push(node, peer, [record])
    # then the honest record is there for both
    assert set(await peers[0].records(CONTRIBUTION, ROUND)) == {peers[0].peer, crowd[3].peer}
    assert set(await peers[1].records(CONTRIBUTION, ROUND)) == {peers[0].peer}


def place(peer: str) -> DHTID:
    return place_of(PeerID.from_base58(peer))


async def test_nobody_stands_between_a_key_and_those_who_keep_it(
    join: Join, flooder: Callable[..., Awaitable[Node]]
) -> None:
    # given two peers
    peers = [await join(), await join()]
    key = DHTID.generate(source=KEY)
    bound = min(key.xor_distance(place(peer.peer)) for peer in peers)
    # and nodes all around a key that keep nothing and name only neighbours that do not exist, others each time
    random = np.random.default_rng(0)
    names = (PeerID(b"\x00\x24\x08\x01\x12\x20" + random.bytes(32)) for _ in itertools.count())
    fakes = ((place_of(name), name) for name in names if key.xor_distance(place_of(name)) < bound)
    near = (one for one in (Identity.generate() for _ in itertools.count()) if place(one.peer) ^ key < bound)
    for one in itertools.islice(near, 5):
        node = await flooder(peers[0], identity=one)
        node.dht.protocol._records = Crowded(node.dht.protocol.storage, DictionaryDHTValue())
        node.dht.protocol.routing_table.get_nearest_neighbors = lambda *_args, **_options: list(
            itertools.islice(fakes, 20)
        )
    # when the peers post, and one that keeps nothing
    asking = await join(listen=False)
    everyone = [*peers, asking]
    await heed_each_other(everyone)
    for peer in everyone:
        await peer.post(CONTRIBUTION, ROUND, b"honest")
    # then all read all of them, though the way to the key leads nowhere
    expected = {peer.peer: b"honest" for peer in everyone}
    for reader in everyone:
        assert await reader.records(CONTRIBUTION, ROUND) == expected


async def test_a_node_at_a_place_of_its_own_choice_is_in_nobodys_table(
    join: Join, flooder: Callable[..., Awaitable[Node]]
) -> None:
    # given a node that says that it stands right at a key
    peer, key = await join(), DHTID.generate(source=KEY)
    node = await flooder(peer)
    node.dht.protocol.node_info = dht_pb2.NodeInfo(node_id=key.to_bytes())
    # when it makes itself known
    await node.dht.protocol.call_ping(PeerID.from_base58(peer.peer))
    # then the peer knows it at its own place only
    table = peer._node.dht.protocol.routing_table
    assert key not in table
    assert table.get(peer_id=node.p2p.peer_id) == place_of(node.p2p.peer_id)
