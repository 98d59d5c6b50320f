"""The bytes of the bulk protocol, there and back; and reading from a socket that lies about lengths."""

import socket
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.exchange.blobs import bulk
from elastic.exchange.blobs.bulk import Head
from elastic.exchange.blobs.streams import read_exactly
from elastic.messages import digest_of

U8, U16, U32 = st.integers(0, 2**8 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)


@given(U8, st.binary(), U16, U8, U16)
def test_a_request_comes_back(kind: int, named: bytes, most: int, copies: int, count: int) -> None:
    head = Head(kind, digest_of(named), most, copies, count)
    assert len(head.pack()) == bulk.REQUEST_BYTES
    assert Head.unpack(head.pack()) == head


@given(st.lists(U32, max_size=50))
def test_chunk_numbers_come_back(chunks: list[int]) -> None:
    packed = bulk.pack_numbers(chunks)
    assert len(packed) == len(chunks) * bulk.NUMBER_BYTES
    assert bulk.unpack_numbers(packed) == chunks


@given(st.lists(st.booleans(), max_size=50))
def test_bits_come_back(held: list[bool]) -> None:
    packed = bulk.pack_bits(np.array(held, np.bool_))
    assert len(packed) == -(-len(held) // 8)
    assert bulk.unpack_bits(packed, len(held)).tolist() == held


@pytest.mark.parametrize("size", [0, 1, 300_000, 700_001])
def test_exactly_so_many_bytes_are_read(size: int) -> None:
    # given a socket that sends in pieces, and more than is wanted
    ours, theirs = socket.socketpair()
    sent = np.random.default_rng(0).bytes(size)
    with ours, theirs:
        theirs.setblocking(False)
        ours.settimeout(10)
        received = bytearray()
        for start in range(0, size, 100_000):
            piece = sent[start : start + 100_000]
            theirs.sendall(piece)
            received += read_exactly(ours, len(piece))
        assert bytes(received) == sent
        theirs.sendall(b"more")
        assert read_exactly(ours, 2) == b"mo"


def test_a_length_takes_no_memory_before_the_bytes_arrive() -> None:
    # given a socket from which a petabyte is expected, and ten bytes come
    ours, theirs = socket.socketpair()
    tracemalloc.start()
    try:
        with ours:
            with theirs:
                theirs.sendall(bytes(10))
            with pytest.raises(EOFError, match="ended after 10 of 1125899906842624"):
                read_exactly(ours, 2**50)
        # then hardly anything was set aside for them
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
