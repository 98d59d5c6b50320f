"""The DHT's calls against strangers' requests: bounded work for each, and no word taken for more than it proves."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2

from elastic.exchange.dht.guards import guard
from elastic.exchange.dht.identity_validator import MAX_TTL_SECONDS, IdentityValidator
from elastic.exchange.dht.protocol import GuardedProtocol, place_of
from elastic.exchange.limits import RecordLimits
from elastic.wire.signing import Identity

guard()

LIMITS = RecordLimits()
KEY = DHTID.generate(source="key")
PEOPLE = [Identity.generate() for _ in range(12)]


class Counting(IdentityValidator):
    """Counts the records that it is asked about."""

    asked = 0

    def validate(self, record: DHTRecord) -> bool:
        self.asked += 1
        return super().validate(record)


class Scene:
    """A node without a network."""

    def __init__(self) -> None:
        me = Identity.generate()
        self.protocol: Any = GuardedProtocol(_initialized_with_create=True)
        self.protocol.p2p = SimpleNamespace(peer_id=PeerID.from_base58(me.peer))
        self.protocol.storage = self.protocol.cache = None
        self.protocol.cache = SimpleNamespace(get=lambda _key: None)
        self.protocol.record_validator = self.validator = Counting(me)
        self.protocol.node_id = place_of(self.protocol.p2p.peer_id)
        self.protocol.bucket_size, self.protocol.num_replicas, self.protocol.client_mode = 2, 2, False
        self.protocol.routing_table = RoutingTable(self.protocol.node_id, 2, 1)
        self.protocol.node_info = dht_pb2.NodeInfo(node_id=self.protocol.node_id.to_bytes())

    async def store(self, *records: DHTRecord, in_cache: bool = False) -> list[bool]:
        request = dht_pb2.StoreRequest(
            keys=[record.key for record in records], subkeys=[record.subkey for record in records],
            values=[record.value for record in records], in_cache=[in_cache] * len(records),
            expiration_time=[record.expiration_time for record in records],
        )  # fmt: skip
        return list((await self.protocol.rpc_store(request, SimpleNamespace(remote_id=None))).store_ok)

    def kept(self) -> dict[bytes, Any]:
        found = self.protocol.storage.get(KEY)
        return {} if found is None else {PeerID(author).to_base58(): value for author, value in found.value.items()}


def raw(identity: Identity) -> bytes:
    return PeerID.from_base58(identity.peer).to_bytes()


def record(identity: Identity, until: float = 1000.0, signer: Identity | None = None, body: bytes = b"b") -> DHTRecord:
    subkey = DHTProtocol.serializer.dumps(raw(identity))
    validator = IdentityValidator(signer or identity)
    validator._own_subkey = subkey
    unsigned = DHTRecord(KEY.to_bytes(), subkey, DHTProtocol.serializer.dumps(body), time.time() + until)
    return DHTRecord(unsigned.key, subkey, validator.sign_value(unsigned), unsigned.expiration_time)


def together(*records: DHTRecord) -> DHTRecord:
    """All of them as one dictionary, as nodes hand records over."""
    whole = DictionaryDHTValue()
    for each in records:
        whole.store(DHTProtocol.serializer.loads(each.subkey), each.value, each.expiration_time)
    value = DHTProtocol.serializer.dumps(whole)
    return DHTRecord(KEY.to_bytes(), DHTProtocol.IS_DICTIONARY, value, whole.latest_expiration_time)


async def test_records_are_kept_one_by_one_and_in_dictionaries() -> None:
    scene = Scene()
    assert await scene.store(record(PEOPLE[0]), together(record(PEOPLE[1]), record(PEOPLE[2]))) == [True, True]
    assert set(scene.kept()) == {one.peer for one in PEOPLE[:3]}


async def test_anothers_record_is_refused_and_ends_the_work_on_a_request() -> None:
    # given a request with a good record, one under another's id, and more good ones
    scene = Scene()
    forged = record(PEOPLE[1], signer=PEOPLE[9])
    offered = [record(PEOPLE[0]), forged, *map(record, PEOPLE[2:])]
    # then what came before the lie is kept, and no signature after it is looked at
    assert await scene.store(*offered) == [True] + [False] * 11
    assert scene.validator.asked == 2
    # and nobody else pays for it
    assert await scene.store(record(PEOPLE[5])) == [True]


async def test_a_record_of_a_clock_that_is_minutes_off_is_left_out_and_no_other() -> None:
    # given records that ended minutes ago, and that last minutes longer than any may
    scene = Scene()
    past, future = record(PEOPLE[0], until=-180), record(PEOPLE[1], until=MAX_TTL_SECONDS + 180)
    assert await scene.store(past, future, record(PEOPLE[2])) == [False, False, True]
    assert set(scene.kept()) == {PEOPLE[2].peer}
    # and a reader leaves just them out of an answer
    answer = DHTProtocol.serializer.loads(together(past, future, record(PEOPLE[3])).value)
    assert scene.protocol._validate_dictionary(KEY.to_bytes(), answer)
    assert [author for author, _ in answer.items()] == [raw(PEOPLE[3])]


async def test_a_replayed_record_is_refused_without_looking_at_its_signature() -> None:
    # given an author's older and newer record
    scene = Scene()
    old, new = record(PEOPLE[0], until=100, body=b"old"), record(PEOPLE[0], until=200, body=b"new")
    assert await scene.store(new) == [True]
    # when anyone posts the old one, or the same again
    assert await scene.store(old, new, old) == [False, False, False]
    # then the new one stays, and that cost nothing
    assert scene.kept()[PEOPLE[0].peer].value == new.value
    assert scene.validator.asked == 1


async def test_a_signature_that_held_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    answer = together(*map(record, PEOPLE))
    checked: list[Any] = []
    upstream = IdentityValidator.strip_value
    monkeypatch.setattr(IdentityValidator, "strip_value", lambda *args: checked.append(1) or upstream(*args))
    for _ in range(20):
        scene.protocol._validate_dictionary(KEY.to_bytes(), DHTProtocol.serializer.loads(answer.value))
    assert len(checked) == len(PEOPLE)


async def test_a_full_store_looks_at_no_signature() -> None:
    scene = Scene()
    scene.protocol.storage.heeded.limits = RecordLimits(strangers_in_key=3)
    assert await scene.store(*map(record, PEOPLE)) == [True] * 3 + [False] * 9
    assert scene.validator.asked == 3


async def test_an_answer_costs_a_bounded_number_of_signatures() -> None:
    # given a node that answers with more strangers than anyone reads
    scene = Scene()
    scene.protocol.storage.heeded.limits = RecordLimits(strangers_in_key=3)
    scene.protocol.storage.heeded.heed([PEOPLE[7].peer])
    answer = DHTProtocol.serializer.loads(together(*map(record, PEOPLE)).value)
    # then who is heeded is there, three others are, and nothing else was looked at
    assert scene.protocol._validate_dictionary(KEY.to_bytes(), answer)
    authors = [author for author, _ in answer.items()]
    assert len(authors) == scene.validator.asked == 4
    assert raw(PEOPLE[7]) in authors


async def test_an_answer_with_a_lie_is_believed_as_far_as_it_is_right() -> None:
    # given an answer with a heeded peer's record, and others forged in strangers' names
    scene = Scene()
    scene.protocol.storage.heeded.heed([PEOPLE[0].peer])
    forged = [record(one, signer=PEOPLE[0]) for one in PEOPLE[1:]]
    answer = DHTProtocol.serializer.loads(together(*forged, record(PEOPLE[0])).value)
    # then that one is read, and after the first lie no signature is looked at
    assert scene.protocol._validate_dictionary(KEY.to_bytes(), answer)
    assert [author for author, _ in answer.items()] == [raw(PEOPLE[0])]
    assert scene.validator.asked == 2


async def test_requests_for_too_much_are_refused() -> None:
    scene = Scene()
    with pytest.raises(ValueError, match="too many records"):
        await scene.store(*[record(PEOPLE[0])] * (LIMITS.records_in_store + 1))
    keys = [DHTID.generate().to_bytes() for _ in range(LIMITS.keys_in_find + 1)]
    with pytest.raises(ValueError, match="too many keys"):
        await scene.protocol.rpc_find(dht_pb2.FindRequest(keys=keys), SimpleNamespace(remote_id=None))
    assert scene.validator.asked == 0


async def test_a_whole_dictionary_cannot_hold_more_checks_than_a_request_may_cost() -> None:
    scene = Scene()
    scene.protocol.storage.heeded.limits = RecordLimits(records_in_store=5)
    assert await scene.store(together(*map(record, PEOPLE))) == [False]
    assert scene.validator.asked == len(scene.kept()) == 5


async def test_nothing_is_kept_in_a_cache_for_others() -> None:
    scene = Scene()
    assert await scene.store(record(PEOPLE[0]), together(record(PEOPLE[1])), in_cache=True) == [False, False]
    assert scene.kept() == {}


@pytest.mark.parametrize("tag", [DHTProtocol.IS_REGULAR_VALUE, b"\x01", b"\xa1a", b"\xc1", b"\x91\x01"])
async def test_a_record_under_no_peers_name_is_refused(tag: bytes) -> None:
    scene = Scene()
    good = record(PEOPLE[0])
    assert await scene.store(DHTRecord(good.key, tag, good.value, good.expiration_time)) == [False]
    assert scene.kept() == {}


async def test_a_node_stands_where_its_peer_id_puts_it_and_few_wait_for_a_place() -> None:
    # given a routing table with few places
    scene = Scene()
    table = scene.protocol.routing_table
    for one in [Identity.generate() for _ in range(200)]:
        peer = PeerID.from_base58(one.peer)
        await scene.protocol.update_routing_table(DHTID.generate(), peer)
        assert peer not in table
        # when very many nodes come
        await scene.protocol.update_routing_table(place_of(peer), peer)
    # then few are remembered
    assert all(len(bucket.replacement_nodes) <= scene.protocol.bucket_size for bucket in table.buckets)
    assert len(table.uid_to_peer_id) <= 2 * scene.protocol.bucket_size * len(table.buckets) < 150


def test_calls_keep_hiveminds_names() -> None:
    assert GuardedProtocol._get_handle_name(None, "rpc_find") == "DHTProtocol.rpc_find"
