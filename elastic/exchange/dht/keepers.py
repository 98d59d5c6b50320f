"""Records among those who heed each other, whoever stands between them in the DHT.

A DHT is as good as the nodes next to a key, and a place there costs a stranger some thousand new identities: it could
take what is stored and answer nothing, or name neighbours that do not exist. So what is written or read also goes to
the few of those whom we heed that are nearest to the key, unless the DHT has led us to them anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID
from hivemind.utils.timed_storage import ValueWithExpiration

from elastic.exchange.dht.protocol import answered, place_of

T = TypeVar("T")

KEEPERS = 6
"""Of those whom we heed, so many keep a record: some of them may be down, or lie."""
DHT_SECONDS = 8.0
"""Longest search of the DHT: who stands around a key could also keep us waiting."""


async def find(dht: DHTNode, key: str) -> dict[bytes, ValueWithExpiration[Any]]:
    """Everyone's records under a key, as author → value."""
    found = await _bounded(dht.get(key, latest=True))
    records = dict(found.value) if found is not None and isinstance(found.value, dict) else {}
    place, protocol = DHTID.generate(source=key), dht.protocol
    for answer in await asyncio.gather(
        *(dht._call_find_with_blacklist(peer, [place]) for peer in _unasked_keepers(dht, place))
    ):
        value, _neighbours = (answer or {}).get(place, (None, None))
        for author, (signed, expiration) in value.value.items() if value is not None else ():
            if author not in records or records[author].expiration_time < expiration:
                record = DHTRecord(place.to_bytes(), protocol.serializer.dumps(author), signed, expiration)
                body = protocol.serializer.loads(protocol.record_validator.strip_value(record))
                records[author] = ValueWithExpiration(body, expiration)
    return records


async def store(dht: DHTNode, key: str, body: bytes, expiration: float) -> bool:
    """Post our record under a key; False may mean that one of several nodes refused it."""
    place, author, protocol = DHTID.generate(source=key), dht.peer_id.to_bytes(), dht.protocol
    stored = await _bounded(dht.store(key, body, expiration, subkey=author))
    subkey, value = protocol.serializer.dumps(author), protocol.serializer.dumps(body)
    signed = protocol.record_validator.sign_value(DHTRecord(place.to_bytes(), subkey, value, expiration))
    keepers = _unasked_keepers(dht, place)
    taken = await asyncio.gather(
        *(protocol.call_store(peer, [place], [signed], [expiration], [author]) for peer in keepers)
    )
    for peer, result in zip(keepers, taken, strict=True):
        if result is None:
            dht.blacklist.register_failure(peer)
    return bool(stored) or [True] in taken


async def _bounded(search: Awaitable[T]) -> T | None:
    """What a search of the DHT comes to, if it ends; from here on it is noted who answers."""
    answered.set(set())
    try:
        return await asyncio.wait_for(search, DHT_SECONDS)
    except TimeoutError:
        answered.set(set())  # what they said is lost
        return None


def _unasked_keepers(dht: DHTNode, place: DHTID) -> list[PeerID]:
    """Those that the DHT has not led us to, and that answered when they were last asked."""
    heeded = [PeerID(raw) for raw in dht.protocol.storage.heeded.latest]
    nearest = sorted(heeded, key=lambda peer: place.xor_distance(place_of(peer)))[:KEEPERS]
    return [peer for peer in nearest if peer not in (answered.get() or ()) and peer not in dht.blacklist]
