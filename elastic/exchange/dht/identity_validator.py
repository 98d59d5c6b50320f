"""Only the owner of a peer id can write under it: the record validator of every DHT node of ours.

Every record lies under a subkey, the subkey is a peer id, and the value ends with that peer's signature over
key, subkey, value and expiration. A stranger can thus add records of its own and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

import base58
import msgpack
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.validation import DHTRecord, RecordValidatorBase

from elastic.errors import SignatureInvalidError
from elastic.exchange.dht.strict import StrictSerializer
from elastic.messages import PeerId
from elastic.wire.signing import SIGNATURE_BYTES, Identity, verify_bytes

MAX_RECORD_BYTES = 16 * 1024
"""Body of a record. All of one key travel in one message of 4 MiB, or the key cannot be read at all."""
MAX_VALUE_BYTES = MAX_RECORD_BYTES + 128
"""The body, its msgpack header, our signature."""
MAX_TTL_SECONDS = 3600.0
"""A record that never expired would block its key for ever."""
_DOMAIN = "record"
_MAX_SUBKEY_BYTES = 64
_REMEMBERED = 8192
"""Records whose signature is not checked again: the same ones come with every look, from every node that keeps them."""


class IdentityValidator(RecordValidatorBase):  # type: ignore[misc]
    """Signs our records and refuses those whose subkey did not sign them. Never raises on garbage."""

    def __init__(self, identity: Identity, now: Callable[[], float] = time.time) -> None:
        self._identity = identity
        self._own_subkey = DHTProtocol.serializer.dumps(base58.b58decode(identity.peer))
        self._now = now
        self._genuine: OrderedDict[bytes, None] = OrderedDict()

    def sign_value(self, record: DHTRecord) -> bytes:
        """The value with our signature at its end; values under others' subkeys are left alone."""
        if record.subkey != self._own_subkey:
            return bytes(record.value)
        return bytes(record.value) + self._identity.sign_bytes(_DOMAIN, _under_signature(record))

    def strip_value(self, record: DHTRecord) -> bytes:
        """The value without the signature; called after `validate` only."""
        return bytes(record.value[:-SIGNATURE_BYTES])

    def validate(self, record: DHTRecord) -> bool:
        """Whether the record is small, expires soon enough and is signed by the peer its subkey names."""
        if not SIGNATURE_BYTES < len(record.value) <= MAX_VALUE_BYTES:
            return False
        return self.ends_in_time(record.expiration_time) and self._is_genuine(record)

    def ends_in_time(self, expiration: float) -> bool:
        """Whether nothing is wrong with that expiration, by our clock."""
        return expiration <= self._now() + MAX_TTL_SECONDS  # written so that NaN is refused too

    def _is_genuine(self, record: DHTRecord) -> bool:
        seen = hashlib.sha256(_under_signature(record)).digest()
        if seen in self._genuine:
            return True
        peer = _peer_of(record.subkey)
        if peer is None:
            return False
        unsigned = dataclasses.replace(record, value=self.strip_value(record))
        try:
            verify_bytes(peer, _DOMAIN, _under_signature(unsigned), record.value[-SIGNATURE_BYTES:])
        except SignatureInvalidError:
            return False
        if not _readable(unsigned.value):
            return False
        self._genuine[seen] = None
        if len(self._genuine) > _REMEMBERED:
            self._genuine.popitem(last=False)
        return True


def _readable(value: bytes) -> bool:
    """Whether Hivemind can deserialize it: it tries only when a record is read, and then never answers the reader."""
    try:
        StrictSerializer.loads(value)
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException):
        return False
    return True


def _peer_of(subkey: bytes) -> PeerId | None:
    """The peer id that a serialized subkey stands for, if it is one."""
    if subkey in DHTProtocol.RESERVED_SUBKEYS or len(subkey) > _MAX_SUBKEY_BYTES:
        return None
    try:
        raw = msgpack.unpackb(subkey, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException):
        return None
    return PeerId(base58.b58encode(raw).decode()) if isinstance(raw, bytes) else None


def _under_signature(record: DHTRecord) -> bytes:
    fields = [record.key, record.subkey, record.value, float(record.expiration_time)]
    packed: bytes = msgpack.packb(fields)
    return packed
