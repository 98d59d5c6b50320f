"""Hivemind's serializer, as far as strangers' bytes may go: one plain value, or one dictionary of records.

Upstream builds whatever the bytes describe, which may take a hundred times their size, and believes a dictionary's own
word about how long it lasts.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils import MSGPackSerializer

from elastic.exchange.limits import RecordLimits

_DICTIONARY = MSGPackSerializer._ext_types[DictionaryDHTValue]
_FIELDS = 3
_MAX_BYTES = RecordLimits().bytes_in_key


class StrictSerializer(MSGPackSerializer):  # type: ignore[misc]
    """Writes what upstream writes; reads a part of it."""

    @classmethod
    def loads(cls, buf: bytes) -> Any:
        """Raises ValueError, or what msgpack raises, unless it is a plain value or a dictionary of records."""
        if len(buf) > _MAX_BYTES:
            raise ValueError(f"{len(buf)} bytes, more than a key may hold")
        return msgpack.unpackb(buf, ext_hook=_dictionary, raw=False, max_array_len=0, max_map_len=0)


def _dictionary(code: int, data: bytes) -> DictionaryDHTValue:
    """Author → (value, expiration); what else stands there is whoever answers' own word."""
    if code != _DICTIONARY:
        raise ValueError(f"an extension of type {code}")
    reader = msgpack.Unpacker(raw=False, max_array_len=0, max_map_len=0, max_ext_len=0)
    reader.feed(data)
    if reader.read_array_header() != _FIELDS:
        raise ValueError("not a dictionary")
    reader.skip()
    reader.skip()
    found = DictionaryDHTValue()
    with found.freeze():
        for _ in range(reader.read_array_header()):
            if reader.read_array_header() != _FIELDS:
                raise ValueError("not a record")
            author, value, expiration = (reader.unpack() for _ in range(_FIELDS))
            if [type(author), type(value), type(expiration)] != [bytes, bytes, float] or not math.isfinite(expiration):
                raise ValueError("not a record")
            found.store(author, value, expiration)
    return found
