"""Sparse payloads from strangers: either exactly what `encode` could have written, or MalformedError, nothing else."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.errors import MalformedError
from elastic.reduce.sparseloco import SparseLoCo
from elastic.wire import codec, packing
from elastic.wire.chunks import Sparsity
from elastic.wire.dense import encode_state
from elastic.wire.packing import Entries, layout, level_table, pack, round_levels, unpack

SMALL = Sparsity(16, 4)
SHAPES = {"b": (9, 6), "a": (21,), "scalar": (), "empty": (0, 3)}
LIKE = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}
SETTINGS = [(16, 4), (16, 16), (16, 1), (24, 5), (4096, 64), (65536, 9)]

seeds = st.integers(0, 2**32 - 1)
sparsities = st.builds(
    lambda setting, bits: Sparsity(*setting, bits), st.sampled_from(SETTINGS), st.sampled_from([1, 2])
)
shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)
quick = settings(max_examples=60, deadline=None)


def payload_of(shapes, seed=0, sparsity=SMALL):
    rng = np.random.default_rng(seed)
    delta = {
        name: torch.from_numpy(np.asarray(rng.standard_normal(shape), np.float32)) for name, shape in shapes.items()
    }
    config = SparseLoCo.Config(chunk=sparsity.chunk, k=sparsity.k, bits=sparsity.bits)
    return SparseLoCo(config).compress(delta, {})[0]


def same(left, right):
    return left.sparsity == right.sparsity and {name: part.data.tobytes() for name, part in left.parts.items()} == {
        name: part.data.tobytes() for name, part in right.parts.items()
    }


def decodes(data, like=LIKE, sparsity=SMALL):
    """What decodes is the one encoding of what it decodes to; anything but MalformedError fails the test.

    The compiled decoder and the one in numpy must agree.
    """
    outcomes = []
    for kernels in (codec.kernels, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(codec, "kernels", kernels)
            try:
                payload = codec.decode(data, like, sparsity)
            except MalformedError:
                outcomes.append(False)
            else:
                assert codec.encode(payload) == data
                for name, part in payload.parts.items():
                    form = layout(tuple(like[name].shape), payload.sparsity)
                    assert np.array_equal(pack(unpack(part.data, form)[0], form), part.data)
                outcomes.append(True)
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


def one_chunk(indices, codes=(0, 0, 0, 0), exponent=127, scales=(128, 240), size=16):
    """The bytes of one tensor with one chunk, honest or not; gaps may be anything that Rice codes can say."""
    entries = Entries([np.array([indices])], [np.array([codes], np.uint8)], exponent, np.array([scales], np.uint8))
    packed = pack(entries, layout((size,), SMALL))
    return codec.HEADER.pack(codec.MAGIC, codec.VERSION, 2, *SMALL[:2]) + packed.tobytes()


@quick
@given(st.dictionaries(st.text(max_size=5), shapes, max_size=4), seeds, sparsities)
def test_decode_is_the_inverse_of_encode(shapes, seed, sparsity):
    # given any layout
    payload = payload_of(shapes, seed, sparsity)
    like = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    # when
    data = codec.encode(payload)
    # then
    assert len(data) <= codec.max_bytes(like, sparsity)
    assert decodes(data, like, sparsity)
    assert same(codec.decode(data, like), payload)
    reordered = codec.SparsePayload(sparsity, dict(reversed(payload.parts.items())))
    assert codec.encode(reordered) == data


@quick
@given(seeds, sparsities, shapes)
def test_unpack_is_the_inverse_of_pack_whatever_follows(seed, sparsity, shape):
    # given
    form = layout(shape, sparsity)
    part = payload_of({"w": shape}, seed, sparsity).parts["w"].data
    followed = np.concatenate([part, np.random.default_rng(seed).integers(0, 256, 20).astype(np.uint8)])
    # when
    entries, used = unpack(followed, form)
    # then
    assert used == len(part)
    assert np.array_equal(pack(entries, form), part)
    assert form.min_bytes <= len(part) <= form.max_bytes


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("crowded", ["first", "last", "both ends", "even"])
def test_no_choice_of_places_is_longer_than_the_bound(crowded, bits):
    # given chunks whose entries lie as awkwardly as can be
    places = {
        "first": np.arange(64),
        "last": np.arange(4032, 4096),
        "both ends": np.r_[np.arange(32), np.arange(4064, 4096)],
        "even": np.arange(64) * 64 + 63,
    }[crowded]
    form = layout((4096 * 3,), Sparsity(bits=bits))
    codes, scales = np.zeros((3, 64), np.uint8), np.zeros((3, bits), np.uint8)
    # when
    part = pack(Entries([np.tile(places, (3, 1))], [codes], 100, scales), form)
    # then
    assert form.min_bytes <= len(part) <= form.max_bytes
    assert np.array_equal(unpack(part, form)[0].indices[0][0], places)


def test_a_full_chunk_takes_78_bytes():
    # given a thousand full chunks of random places
    payload = payload_of({"w": (64 * 1000, 64)}, sparsity=Sparsity())
    # when / then
    assert len(payload.parts["w"].data) < 78.2 * 1000


@pytest.mark.parametrize("exponent", [0, packing.MIN_EXPONENT, 127, packing.MAX_EXPONENT])
def test_levels_are_exact_normal_and_increasing(exponent):
    # given
    table = level_table(exponent)
    # when / then
    assert table.dtype == np.float32 and np.isfinite(table).all() and table[0] == 0
    if exponent:
        assert (np.diff(table) > 0).all() and table[1] >= np.finfo(np.float32).tiny
        assert table[255] == 31 * 2.0 ** (exponent - 127 - 4)
        assert (table.astype(np.float64) == [math.ldexp(1, exponent - 145) * step for step in _steps()]).all()


def _steps():
    return [(16 + m) * 2 ** (e - 1) if e else m for e, m in itertools.product(range(16), range(16))]


@quick
@given(st.lists(st.floats(0, 3.4e38), min_size=1, max_size=20), st.sampled_from([1, 2]))
def test_a_stored_level_is_the_nearest_there_is(uppers, bits):
    # given
    levels = np.array([[upper / 3, upper] for upper in uppers])
    # when
    exponent, scales = round_levels(levels, bits)
    # then
    table = level_table(exponent).astype(np.float64)
    for upper, code in zip(uppers, scales[:, 0], strict=True):
        assert abs(table[code] - upper) <= np.abs(table - upper).min() or max(uppers) < 2.0**-106
    assert exponent == 0 or packing.MIN_EXPONENT <= exponent <= packing.MAX_EXPONENT


def test_every_truncation_and_extension_is_refused():
    data = codec.encode(payload_of(SHAPES))
    for length in range(len(data)):
        assert not decodes(data[:length])
    assert not decodes(data + b"\0")
    assert not decodes(data + data)


def test_every_changed_bit_is_refused_or_another_valid_payload():
    # given an honest payload
    data = codec.encode(payload_of(SHAPES))
    outcomes = set()
    # when each bit is another
    for place, bit in itertools.product(range(len(data)), range(8)):
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        decoded = decodes(bytes(changed))
        outcomes.add(decoded)
        # then nothing else happens, and the header is never another
        assert not (decoded and place < codec.HEADER.size)
    assert outcomes == {True, False}


@quick
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused_or_valid(noise, with_header):
    header = codec.HEADER.pack(codec.MAGIC, codec.VERSION, 2, *SMALL[:2])
    decodes((header if with_header else b"") + noise)


@quick
@given(st.binary(max_size=60), sparsities)
def test_random_bytes_under_any_header_are_refused_or_valid(noise, sparsity):
    chunk, k, bits = sparsity
    decodes(codec.HEADER.pack(codec.MAGIC, codec.VERSION, bits, chunk, k) + noise, sparsity=None)


@pytest.mark.parametrize(
    ("data", "because"),
    [
        (one_chunk([0, 1, 2, 15], size=15), "an index is outside its chunk"),
        (one_chunk([0, 1, 2, 3], exponent=255), "exponent 255 is out of range"),
        (one_chunk([0, 1, 2, 3], exponent=packing.MIN_EXPONENT - 1), "exponent 19 is out of range"),
        (one_chunk([0, 1, 2, 3], exponent=0), "scales without an exponent"),
        (one_chunk([0, 1, 2, 3])[:-1], "it ends early"),
        (one_chunk([0, 1, 2, 3])[:-1] + b"\xff", "padding bits are not zero"),
        (one_chunk([0, 1, 2, 3]) + b"\0", "1 bytes too many"),
    ],
)
def test_lies_inside_a_tensor_are_named(data, because):
    # given a chunk of 15 elements, which keeps four like a full one, and a forged payload
    like = {"w": torch.empty(15, device="meta")}
    # when / then
    with pytest.raises(MalformedError, match=because):
        codec.decode(data, like, SMALL)
    assert not decodes(data, like)


def test_a_coordinate_cannot_be_said_twice():
    # given the format, in which a place is its distance to the one before
    form = layout((16,), SMALL)
    # when any bits at all are read as four places
    for bits in itertools.product([0, 1], repeat=10):
        stream = np.packbits([0] * (4 * 2 + form.remainder_bits) + list(bits), bitorder="little")
        data = np.concatenate([np.array([127, 0, 0], np.uint8), stream])
        try:
            entries, _ = unpack(data, form)
        except MalformedError:
            continue
        # then they are four different ones
        assert (np.diff(entries.indices[0]) > 0).all() and entries.indices[0][0, -1] < 16


HEADERS = [
    *((2, 1, 1), (0, 16, 4), (3, 16, 4), (2, 0, 0), (2, 16, 0), (2, 4, 16), (2, 4096, 64), (1, 16, 4)),
    *((2, 2**32 - 1, 2**32 - 1), (2, 2**32 - 1, 1)),
]


@pytest.mark.parametrize("made_with", HEADERS)
def test_a_header_cannot_choose_sizes(made_with):
    # given a payload whose header claims other settings
    bits, chunk, k = made_with
    data = codec.HEADER.pack(codec.MAGIC, codec.VERSION, bits, chunk, k) + bytes(100)
    # when / then
    with pytest.raises(MalformedError, match=r"Sparsity.* came|no payload has"):
        codec.decode(data, LIKE, SMALL)


def test_other_magic_or_version_is_refused():
    data = codec.encode(payload_of(SHAPES))
    for changed in (b"PK\3\4" + data[4:], data[:4] + b"\1" + data[5:], encode_state({}), b""):
        with pytest.raises(MalformedError):
            codec.decode(changed, LIKE, SMALL)


def test_a_payload_of_another_model_is_refused_before_anything_is_allocated():
    # given the payload of a small model, and a model that no machine holds
    data = codec.encode(payload_of(SHAPES))
    vast = {"w": torch.empty(2**24, 2**24, device="meta")}
    # when / then
    with pytest.raises(MalformedError, match="it ends early"):
        codec.decode(data, vast, SMALL)
    with pytest.raises(MalformedError, match="bytes expected for this model"):
        codec.decode(data + bytes(10**6), LIKE, SMALL)
