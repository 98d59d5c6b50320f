"""Dense tensors from strangers: exactly what was written, or MalformedError, nothing else."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.errors import MalformedError
from elastic.messages import digest_of
from elastic.wire import dense

SHAPES = {"b": (9, 6), "a": (21,), "scalar": (), "empty": (0, 3)}
LIKE = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}

quick = settings(max_examples=60, deadline=None)


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    drawn = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    return {name: torch.from_numpy(np.asarray(values, np.float32)) for name, values in drawn.items()}


def test_state_bytes_are_canonical_and_explain_themselves():
    # given
    state = tensors()
    # when
    data = dense.encode_state(state)
    # then they do not depend on dict order, layout in memory or device, and start with their layout
    shuffled = {name: state[name].T.contiguous().T if name == "b" else state[name] for name in sorted(state)}
    assert digest_of(dense.encode_state(shuffled)) == digest_of(data)
    assert b'[["a",[21]],["b",[9,6]],["empty",[0,3]],["scalar",[]]]' in data
    decoded = dense.decode_state(data, LIKE)
    assert decoded.keys() == state.keys()
    assert all(torch.equal(decoded[name], state[name]) for name in state)
    assert len(data) == len(dense.state_header(LIKE)) + 4 * sum(t.numel() for t in state.values())


def test_decoded_tensors_own_their_memory():
    # given
    data = dense.encode_state(tensors())
    # when
    dense.decode_state(data, LIKE)["a"].zero_()
    # then
    assert dense.encode_state(tensors()) == data


@pytest.mark.parametrize("pair", ["dense", "state"])
def test_dense_bytes_are_refused_or_valid(pair):
    # given
    encode, decode = getattr(dense, f"encode_{pair}"), getattr(dense, f"decode_{pair}")
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
    data = getattr(dense, f"encode_{pair}")(tensors() | {"scalar": torch.tensor(bad)})
    # when / then
    with pytest.raises(MalformedError, match="scalar: a value is infinite or not a number"):
        getattr(dense, f"decode_{pair}")(data, LIKE)


@pytest.mark.parametrize("length", [0, 2**31, 2**32 - 1])
def test_a_state_header_cannot_choose_its_length(length):
    # given
    data = dense.STATE_MAGIC + struct.pack("<I", length) + b"[[" * 40
    # when / then
    with pytest.raises(MalformedError, match="another format, version or model"):
        dense.decode_state(data, LIKE)


@quick
@given(st.binary(max_size=100))
def test_random_dense_bytes_are_refused(noise):
    for decode in (dense.decode_dense, dense.decode_state):
        with pytest.raises(MalformedError):
            decode(noise, LIKE)
