"""Reading what strangers' nodes answer: a dictionary of records, a plain value, or nothing at all."""

import time

import msgpack
import pytest
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils import MSGPackSerializer
from hypothesis import given
from hypothesis import strategies as st

from elastic.exchange.dht.strict import StrictSerializer
from elastic.exchange.limits import RecordLimits

LATER = time.time() + 3000.0  # of the hour that a record may last at most


def dictionary(*records: object, head: tuple[object, ...] = (float("inf"), LATER), code: int = 0x50) -> bytes:
    return msgpack.packb(msgpack.ExtType(code, msgpack.packb([*head, list(records)])))


@given(st.dictionaries(st.binary(max_size=50), st.tuples(st.binary(max_size=50), st.floats(LATER, 2 * LATER))))
def test_what_hivemind_writes_is_read(records: dict[bytes, tuple[bytes, float]]) -> None:
    written = DictionaryDHTValue()
    for author, (value, expiration) in records.items():
        written.store(author, value, expiration)
    found = StrictSerializer.loads(MSGPackSerializer.dumps(written))
    assert {author: tuple(record) for author, record in found.items()} == records


def test_a_dictionarys_own_word_on_its_size_and_age_is_not_taken() -> None:
    found = StrictSerializer.loads(dictionary([b"a", b"x", LATER], [b"b", b"y", LATER + 1], head=(1, 1e18)))
    assert len(found) == 2
    assert found.latest_expiration_time == LATER + 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xc1",
        b"\x80" * 1000,
        msgpack.packb([1, 2]),
        msgpack.packb({1: 2}),
        bytes(RecordLimits().bytes_in_key + 1),
        dictionary([b"a", b"x", LATER], code=0x40),
        dictionary([b"a", b"x"]),
        dictionary([b"a", b"x", LATER, 0]),
        dictionary(["a", b"x", LATER]),
        dictionary([b"a", [b"x"], LATER]),
        dictionary([b"a", {}, LATER]),
        dictionary([b"a", msgpack.ExtType(0x50, b"x"), LATER]),
        dictionary([b"a", b"x", None]),
        dictionary([b"a", b"x", 10**18]),
        dictionary([b"a", b"x", float("nan")]),
        dictionary([b"a", b"x", float("inf")]),
        dictionary(b"a"),
        dictionary(head=()),
        msgpack.packb(msgpack.ExtType(0x50, b"\x93\xc0\xc0\xdd\xff\xff\xff\xff")),
        msgpack.packb(msgpack.ExtType(0x50, b"")),
    ],
)
def test_garbage_is_refused_with_an_error_of_the_kind_that_callers_expect(garbage: bytes) -> None:
    with pytest.raises((ValueError, TypeError, msgpack.UnpackException)):
        StrictSerializer.loads(garbage)
