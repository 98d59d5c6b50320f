"""Hivemind's DHT protocol among strangers: calls take bounded work, and answers are believed as far as they prove.

What upstream leaves open: any number of records, keys and neighbours in a message; an answer in which one record is bad
is lost as a whole, so whoever slips such a record into others' storage hides a key; an answer's own word on how new it
is ends the search; and a node may claim any place in the DHT.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from typing import Any

import msgpack
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import ValueWithExpiration

from elastic.exchange.dht.records import Heeded, Records
from elastic.exchange.dht.strict import StrictSerializer
from elastic.exchange.limits import RecordLimits
from elastic.messages import PeerId

answered: ContextVar[set[PeerID] | None] = ContextVar("answered", default=None)
"""Who answered, of all that this task and those that it began asked to find or store something; None: nobody minds."""


@functools.lru_cache(maxsize=4096)
def place_of(peer: PeerID) -> DHTID:
    """A peer's place in the DHT, the same in every life.

    A random one (Hivemind's default) leaves the old one in others' tables when a peer comes back: they then store every
    record on it twice, the second copy is refused as a duplicate, and the whole write counts as failed. And one that
    a peer may choose puts it between any key and everybody else.
    """
    return DHTID.from_bytes(hashlib.sha256(peer.to_base58().encode()).digest()[: DHTID.HASH_NBYTES])


class GuardedProtocol(DHTProtocol):  # type: ignore[misc]
    """The protocol of every node of ours."""

    serializer = StrictSerializer

    @classmethod
    def _get_handle_name(cls, namespace: str | None, method_name: str) -> str:
        """Calls keep their names, whatever the class is called here."""
        name: str = DHTProtocol._get_handle_name(namespace, method_name)
        return name

    @property
    def storage(self) -> Records:
        """What we keep for others."""
        return self._records

    @storage.setter
    def storage(self, _unbounded: Any) -> None:
        self._records = Records(Heeded(PeerId(self.p2p.peer_id.to_base58())))

    @property
    def _limits(self) -> RecordLimits:
        return self._records.heeded.limits

    async def rpc_store(self, request: dht_pb2.StoreRequest, context: P2PContext) -> dht_pb2.StoreResponse:
        """Keep what there is room for. Only so many signatures are checked, and none after one that is bad."""
        if request.peer:
            asyncio.create_task(self.rpc_ping(dht_pb2.PingRequest(peer=request.peer), context))  # noqa: RUF006
        columns = request.keys, request.subkeys, request.values, request.expiration_time, request.in_cache
        if len(request.keys) > self._limits.records_in_store:
            raise ValueError("too many records")
        response, checks = dht_pb2.StoreResponse(peer=self.node_info), self._limits.records_in_store
        for key_bytes, tag, value, expiration, in_cache in zip(*columns, strict=True):
            key, kept = DHTID.from_bytes(key_bytes), []
            for author, record in ({} if in_cache else self._offered(tag, value, expiration)).items():
                checked = checks > 0 and self._would_keep(key, author, record)
                genuine = checked and self._is_genuine(key, author, record)
                checks = checks - checked if genuine or not checked else 0
                kept.append(genuine and self.storage.store_subkey(key, author, *record))
            response.store_ok.append(bool(kept) and all(kept))
        return response

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        """As upstream, for a few keys: each may be an answer of megabytes."""
        if len(request.keys) > self._limits.keys_in_find:
            raise ValueError("too many keys")
        return await super().rpc_find(request, context)

    async def call_find(
        self, peer: PeerID, keys: Collection[DHTID]
    ) -> dict[DHTID, tuple[ValueWithExpiration | None, dict[DHTID, PeerID]]] | None:
        """As upstream, but an answer is as new as its newest record, and names neighbours where they can be."""
        found = await super().call_find(peer, keys)
        if found is None:
            return None
        _note(peer)
        return {key: (_as_new_as_it_is(value), self._neighbours(key, near)) for key, (value, near) in found.items()}

    async def call_store(self, peer: PeerID, *records: Any, **options: Any) -> list[bool] | None:
        """As upstream."""
        stored: list[bool] | None = await super().call_store(peer, *records, **options)
        if stored is not None:
            _note(peer)
        return stored

    async def update_routing_table(self, node_id: DHTID | None, peer_id: PeerID, responded: bool = True) -> None:
        """As upstream, of nodes at the place that their peer id gives them; few wait for a place to become free."""
        if responded and node_id not in (None, place_of(peer_id)):
            return
        await super().update_routing_table(node_id, peer_id, responded)
        bucket = self.routing_table.buckets[self.routing_table.get_bucket_index(place_of(peer_id))]
        while len(bucket.replacement_nodes) > self.bucket_size:
            del self.routing_table[next(iter(bucket.replacement_nodes))]

    def _validate_dictionary(self, key_bytes: bytes, dictionary: DictionaryDHTValue) -> bool:
        """Leave those records in an answer that we read and that are genuine; up to a lie, if there is one."""
        key, offered, genuine = DHTID.from_bytes(key_bytes), dict(dictionary.items()), set()
        for author in self.storage.heeded.choose({author: len(record.value) for author, record in offered.items()}):
            if not self.record_validator.ends_in_time(offered[author].expiration_time):
                continue  # whoever kept it may have another clock than we
            if not self._is_genuine(key, author, offered[author]):
                break
            genuine.add(author)
        for author in offered.keys() - genuine:
            del dictionary[author]
        return True

    def _offered(self, tag: bytes, value: bytes, expiration: float) -> Mapping[bytes, ValueWithExpiration]:
        """Author → record, of one record or a dictionary of them; nothing of what can be neither."""
        try:
            found = self.serializer.loads(value if tag == self.IS_DICTIONARY else tag)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
            return {}
        if tag != self.IS_DICTIONARY:
            return {found: ValueWithExpiration(value, expiration)} if isinstance(found, bytes) else {}
        return dict(found.items()) if isinstance(found, DictionaryDHTValue) else {}

    def _would_keep(self, key: DHTID, author: bytes, record: ValueWithExpiration) -> bool:
        in_time = self.record_validator.ends_in_time(record.expiration_time)
        return in_time and self.storage.has_room(key, author, len(record.value), record.expiration_time)

    def _is_genuine(self, key: DHTID, author: bytes, record: ValueWithExpiration) -> bool:
        """In the form in which it will be read: else a record could pass here and be bad for everyone who reads it."""
        return bool(self._validate_record(key.to_bytes(), self.serializer.dumps(author), *record))

    def _neighbours(self, key: DHTID, told: Mapping[DHTID, PeerID]) -> dict[DHTID, PeerID]:
        if len(told) > self.bucket_size:
            return {}
        return {node: peer for node, peer in told.items() if node == place_of(peer)}


def _note(peer: PeerID) -> None:
    peers = answered.get()
    if peers is not None:
        peers.add(peer)


def _as_new_as_it_is(answer: ValueWithExpiration | None) -> ValueWithExpiration | None:
    if answer is None or not isinstance(answer.value, DictionaryDHTValue):
        return None
    newest = max((record.expiration_time for _, record in answer.value.items()), default=None)
    return None if newest is None else ValueWithExpiration(answer.value, newest)
