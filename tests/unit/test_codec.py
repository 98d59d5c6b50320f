"""Bytes from strangers: either exactly what `encode` could have written, or MalformedError, nothing else."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.errors import MalformedError
from elastic.messages import digest_of
from elastic.reduce.sparseloco import SparseLoCo
from elastic.wire import codec
from elastic.wire.chunks import Density

SMALL = Density(16, 4)
SHAPES = {"b": (9, 6), "a": (21,), "scalar": (), "empty": (0, 3)}
LIKE = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}

seeds = st.integers(0, 2**32 - 1)
densities = st.sampled_from([SMALL, *(Density(*d) for d in ((16, 16), (16, 1), (24, 5), (4096, 64), (65536, 9)))])
shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)
quick = settings(max_examples=60, deadline=None)


def payload_of(shapes, seed=0, density=SMALL):
    rng = np.random.default_rng(seed)
    delta = {
        name: torch.from_numpy(np.asarray(rng.standard_normal(shape), np.float32)) for name, shape in shapes.items()
    }
    return SparseLoCo(SparseLoCo.Config(chunk=density.chunk, k=density.k)).compress(delta, {})[0]


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].keys() == right[name].keys()
        and all(torch.equal(left[name][field], right[name][field]) for field in left[name])
        for name in left
    )


def decodes_or_is_malformed(data, like=LIKE, density=SMALL):
    """What decodes is the one encoding of what it decodes to; anything but MalformedError fails the test."""
    try:
        payload = codec.decode(data, like, density)
    except MalformedError:
        return False
    assert codec.encode(payload, density) == data
    return True


def one_chunk(indices, codes=(0, 0, 0, 0), levels=(0.5, 1.0)):
    """A payload of one tensor with one chunk, honest or not."""
    fields = {
        "indices": torch.tensor([indices], dtype=torch.int32),
        "values": torch.tensor([codes], dtype=torch.uint8),
        "levels": torch.tensor([levels], dtype=torch.bfloat16),
    }
    return {"w": fields}


@quick
@given(st.dictionaries(st.text(max_size=5), shapes, max_size=4), seeds, densities)
def test_decode_is_the_inverse_of_encode(shapes, seed, density):
    # given any layout
    payload = payload_of(shapes, seed, density)
    like = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    # when
    data = codec.encode(payload, density)
    # then
    assert len(data) == codec.size_bytes(like, density)
    assert same(codec.decode(data, like, density), payload)
    reordered = dict(reversed(payload.items()))
    assert codec.encode(reordered, density) == data


def test_a_full_chunk_takes_84_bytes():
    # given a thousand full chunks
    like = {"w": torch.empty(64 * 1000, 64, device="meta")}
    # when / then
    assert codec.size_bytes(like) - codec.HEADER.size == 84 * 1000


def test_every_truncation_and_extension_is_refused():
    data = codec.encode(payload_of(SHAPES), SMALL)
    for length in range(len(data)):
        assert not decodes_or_is_malformed(data[:length])
    assert not decodes_or_is_malformed(data + b"\0")
    assert not decodes_or_is_malformed(data + data)


def test_every_changed_byte_is_refused_or_another_valid_payload():
    # given an honest payload
    data = codec.encode(payload_of(SHAPES), SMALL)
    outcomes = set()
    # when each byte takes eight other values
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            decoded = decodes_or_is_malformed(bytes(changed))
            outcomes.add(decoded)
            # then nothing else happens, and the header is never another
            assert not (decoded and place < codec.HEADER.size)
    assert outcomes == {True, False}


@quick
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused(noise, with_header):
    decodes_or_is_malformed((codec.HEADER.pack(codec.MAGIC, codec.VERSION, *SMALL) if with_header else b"") + noise)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=codec.size_bytes(LIKE, SMALL), max_size=codec.size_bytes(LIKE, SMALL)))
def test_random_bodies_of_the_right_length_are_refused_or_valid(noise):
    header = codec.HEADER.pack(codec.MAGIC, codec.VERSION, *SMALL)
    decodes_or_is_malformed(header + noise[len(header) :])


@pytest.mark.parametrize(
    ("payload", "because"),
    [
        (one_chunk([1, 1, 2, 3]), "repeated or out of order"),
        (one_chunk([7, 7, 7, 7]), "repeated or out of order"),
        (one_chunk([1, 3, 2, 9]), "repeated or out of order"),
        (one_chunk([0, 1, 2, 15]), "outside its chunk of 15"),
        (one_chunk([0, 1, 2, 3], levels=(1.0, 0.5)), "lower magnitude level is above"),
        (one_chunk([0, 1, 2, 3], levels=(0.5, math.nan)), "not a number"),
        (one_chunk([0, 1, 2, 3], levels=(0.5, math.inf)), "infinite"),
        (one_chunk([0, 1, 2, 3], levels=(-0.5, 0.5)), "negative"),
        (one_chunk([0, 1, 2, 3], levels=(-0.0, 0.5)), "negative"),
    ],
)
def test_lies_inside_a_chunk_are_named(payload, because):
    # given a chunk of 15 elements, which keeps four like a full one, and a forged payload
    like = {"w": torch.empty(15, device="meta")}
    # when / then
    with pytest.raises(MalformedError, match=f"w: .*{because}"):
        codec.decode(codec.encode(payload, SMALL), like, SMALL)


def test_wrong_number_of_indices_is_refused():
    # given a chunk whose unary part lost a bit
    data = bytearray(codec.encode(one_chunk([0, 1, 2, 3]), SMALL))
    data[codec.HEADER.size] = 0b11100000
    # when / then
    with pytest.raises(MalformedError, match="does not hold 4 indices"):
        codec.decode(bytes(data), {"w": torch.empty(16, device="meta")}, SMALL)


def test_padding_bits_must_be_zero():
    # given the format of a chunk, which leaves bits of its last byte unused
    data = bytearray(codec.encode(one_chunk([0, 1, 2, 3]), SMALL))
    assert codec.row_format(4, SMALL).bits % 8 != 0
    # when
    data[-1] |= 1
    # then
    with pytest.raises(MalformedError, match="padding"):
        codec.decode(bytes(data), {"w": torch.empty(16, device="meta")}, SMALL)


@pytest.mark.parametrize("made_with", [(1, 1), (0, 0), (16, 0), (4096, 64), (2**32 - 1, 2**32 - 1), (2**32 - 1, 1)])
def test_a_header_cannot_choose_sizes(made_with):
    # given a payload whose header claims other settings
    data = codec.HEADER.pack(codec.MAGIC, codec.VERSION, *made_with) + bytes(100)
    # when / then
    with pytest.raises(MalformedError, match=r"expected, Density.* came"):
        codec.decode(data, LIKE, SMALL)


def test_other_magic_or_version_is_refused():
    data = codec.encode(payload_of(SHAPES), SMALL)
    for changed in (b"PK\3\4" + data[4:], data[:4] + b"\2" + data[5:], codec.encode_state({}), b""):
        with pytest.raises(MalformedError):
            codec.decode(changed, LIKE, SMALL)


def test_a_payload_of_another_model_is_refused_before_anything_is_allocated():
    # given the payload of a small model, and a model that no machine holds
    data = codec.encode(payload_of(SHAPES), SMALL)
    vast = {"w": torch.empty(2**24, 2**24, device="meta")}
    # when / then
    with pytest.raises(MalformedError, match="bytes expected for this model"):
        codec.decode(data, vast, SMALL)
    with pytest.raises(MalformedError, match="bytes expected"):
        codec.decode_dense(codec.encode_dense({}), vast)


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    drawn = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    return {name: torch.from_numpy(np.asarray(values, np.float32)) for name, values in drawn.items()}


def test_state_bytes_are_canonical_and_explain_themselves():
    # given
    state = tensors()
    # when
    data = codec.encode_state(state)
    # then they do not depend on dict order, layout in memory or device, and start with their layout
    shuffled = {name: state[name].T.contiguous().T if name == "b" else state[name] for name in sorted(state)}
    assert digest_of(codec.encode_state(shuffled)) == digest_of(data)
    assert b'[["a",[21]],["b",[9,6]],["empty",[0,3]],["scalar",[]]]' in data
    decoded = codec.decode_state(data, LIKE)
    assert decoded.keys() == state.keys()
    assert all(torch.equal(decoded[name], state[name]) for name in state)
    assert len(data) == len(codec.state_header(LIKE)) + 4 * sum(t.numel() for t in state.values())


def test_decoded_tensors_own_their_memory():
    # given
    data = codec.encode_state(tensors())
    # when
    codec.decode_state(data, LIKE)["a"].zero_()
    # then
    assert codec.encode_state(tensors()) == data


@pytest.mark.parametrize("pair", ["dense", "state"])
def test_dense_bytes_are_refused_or_valid(pair):
    # given
    encode, decode = getattr(codec, f"encode_{pair}"), getattr(codec, f"decode_{pair}")
    halves = {name: tensor.half() for name, tensor in tensors().items()}
    data = encode(halves)
    assert all(torch.equal(halves[name].float(), tensor.float()) for name, tensor in decode(data, LIKE).items())
    # when it is cut short, or a byte changes
    changes = [data[:length] for length in range(len(data))] + [data + b"\0"]
    changes += [data[:place] + bytes([data[place] ^ 0x7C]) + data[place + 1 :] for place in range(len(data))]
    # then
    for changed in changes:
        try:
            assert encode(decode(changed, LIKE)) == changed
        except MalformedError:
            continue
        assert len(changed) == len(data)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pair", ["dense", "state"])
def test_dense_bytes_must_be_finite(pair, bad):
    # given
    data = getattr(codec, f"encode_{pair}")(tensors() | {"scalar": torch.tensor(bad)})
    # when / then
    with pytest.raises(MalformedError, match="scalar: a value is infinite or not a number"):
        getattr(codec, f"decode_{pair}")(data, LIKE)


@pytest.mark.parametrize("length", [0, 2**31, 2**32 - 1])
def test_a_state_header_cannot_choose_its_length(length):
    # given
    data = codec.STATE_MAGIC + struct.pack("<I", length) + b"[[" * 40
    # when / then
    with pytest.raises(MalformedError, match="another format, version or model"):
        codec.decode_state(data, LIKE)


@quick
@given(st.binary(max_size=100))
def test_random_dense_bytes_are_refused(noise):
    for decode in (codec.decode_dense, codec.decode_state):
        with pytest.raises(MalformedError):
            decode(noise, LIKE)
