"""Records among those who heed each other, when the DHT leads nowhere."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hivemind.dht.node import Blacklist
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID
from hivemind.utils.timed_storage import ValueWithExpiration

from elastic.exchange.dht import keepers
from elastic.exchange.dht.identity_validator import IdentityValidator
from elastic.exchange.dht.keepers import KEEPERS, find, store
from elastic.exchange.dht.protocol import answered, place_of
from elastic.exchange.dht.records import Heeded
from elastic.exchange.dht.strict import StrictSerializer
from elastic.wire.signing import Identity

ME = Identity.generate()
PEOPLE = [Identity.generate() for _ in range(10)]
PLACE = DHTID.generate(source="key")
UNTIL = time.time() + 3000.0  # of the hour that a record may last at most

Search = Callable[..., Awaitable[Any]]


def id_of(identity: Identity) -> PeerID:
    return PeerID.from_base58(identity.peer)


NEAREST = sorted(map(id_of, PEOPLE), key=lambda peer: PLACE.xor_distance(place_of(peer)))[:KEEPERS]


async def nothing(*_args: Any, **_options: Any) -> None:
    return None


async def for_ever(*_args: Any, **_options: Any) -> None:
    await asyncio.Event().wait()


class Scene:
    """A node whose DHT does as the test says, and keepers that keep what they are given."""

    def __init__(self, search: Search) -> None:
        self.asked: list[PeerID] = []
        self.kept: dict[PeerID, DictionaryDHTValue] = {}
        self.down: set[PeerID] = set()
        heeded = Heeded(ME.peer)
        heeded.heed([ME.peer, *(one.peer for one in PEOPLE)])
        protocol = SimpleNamespace(
            storage=SimpleNamespace(heeded=heeded), record_validator=IdentityValidator(ME), serializer=StrictSerializer,
            call_store=self.keep,
        )  # fmt: skip
        self.dht: Any = SimpleNamespace(
            get=search, store=search, protocol=protocol, peer_id=id_of(ME), blacklist=Blacklist(5.0, 2.0),
            _call_find_with_blacklist=self.tell,
        )  # fmt: skip

    async def keep(self, peer: PeerID, keys: Any, values: Any, expirations: Any, subkeys: Any) -> list[bool] | None:
        self.asked.append(peer)
        if peer in self.down:
            return None
        assert keys == [PLACE]
        kept = self.kept.setdefault(peer, DictionaryDHTValue())
        return [kept.store(subkeys[0], values[0], expirations[0])]

    async def tell(self, peer: PeerID, keys: list[DHTID]) -> Any:
        self.asked.append(peer)
        kept = self.kept.get(peer)
        return None if kept is None else {keys[0]: (ValueWithExpiration(kept, UNTIL), {})}


@pytest.mark.parametrize("search", [nothing, for_ever])
async def test_what_the_dht_loses_is_kept_and_found_among_those_we_heed(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a DHT that finds nothing, or never comes to an end
    monkeypatch.setattr(keepers, "DHT_SECONDS", 0.01)
    scene = Scene(search)
    # when a record is posted
    assert await store(scene.dht, "key", b"body", UNTIL)
    # then those nearest to the key have it, signed, and it is found
    assert set(scene.asked) == set(NEAREST)
    signed, expiration = scene.kept[NEAREST[0]].get(id_of(ME).to_bytes())
    subkey = StrictSerializer.dumps(id_of(ME).to_bytes())
    record = DHTRecord(PLACE.to_bytes(), subkey, signed, expiration)
    assert IdentityValidator(PEOPLE[0]).validate(record)
    assert await find(scene.dht, "key") == {id_of(ME).to_bytes(): ValueWithExpiration(b"body", UNTIL)}


async def test_who_answered_in_the_dht_is_not_asked_twice() -> None:
    # given a DHT that leads to all keepers but one
    async def search(*_args: Any, **_options: Any) -> None:
        noted = answered.get()
        assert noted is not None
        noted.update(NEAREST[1:])

    scene = Scene(search)
    await store(scene.dht, "key", b"body", UNTIL)
    await find(scene.dht, "key")
    assert scene.asked == NEAREST[:1] * 2


async def test_of_two_records_of_an_author_the_newer_one_is_found() -> None:
    # given keepers that have a record, and a DHT that found an older one of that author, and another author's
    older = {id_of(ME).to_bytes(): ValueWithExpiration(b"old", UNTIL - 1), b"other": ValueWithExpiration(b"o", UNTIL)}
    found = [ValueWithExpiration(older, UNTIL)]

    async def search(*_args: Any, **_options: Any) -> Any:
        return found[0]

    scene = Scene(nothing)
    await store(scene.dht, "key", b"new", UNTIL)
    scene.dht.get = search
    records = await find(scene.dht, "key")
    assert {author: record.value for author, record in records.items()} == {
        id_of(ME).to_bytes(): b"new", b"other": b"o"
    }  # fmt: skip
    # and the other way round
    found[0] = ValueWithExpiration({id_of(ME).to_bytes(): ValueWithExpiration(b"newest", UNTIL + 1)}, UNTIL + 1)
    assert (await find(scene.dht, "key"))[id_of(ME).to_bytes()].value == b"newest"


async def test_a_keeper_that_is_down_is_left_alone_for_a_while() -> None:
    scene = Scene(nothing)
    scene.down = set(NEAREST)
    assert not await store(scene.dht, "key", b"body", UNTIL)
    assert not await store(scene.dht, "key", b"body", UNTIL)
    assert len(scene.asked) == KEEPERS
