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


LAYOUT = dense.StateLayout.of(LIKE)


def empty_file(path, size=LAYOUT.size):
    with path.open("wb") as file:
        file.truncate(size)
    return path


@quick
@given(st.lists(st.sampled_from([0, 1, 2]), min_size=len(SHAPES), max_size=len(SHAPES)), st.randoms())
def test_a_file_written_in_parts_is_the_state(tmp_path_factory, owners, random):
    # given writers that share the tensors, some of whom may have none
    state, path = tensors(), empty_file(tmp_path_factory.mktemp("parts") / "anchor")
    parts = [
        {name: state[name] for name, owner in zip(SHAPES, owners, strict=True) if owner == each} for each in (0, 1, 2)
    ]
    random.shuffle(parts)
    # when
    for part in parts:
        LAYOUT.write(path, part)
    # then
    assert path.read_bytes() == dense.encode_state(state)
    assert len(path.read_bytes()) == LAYOUT.size
    # and any number of readers find theirs
    for part in parts:
        read = LAYOUT.read(path, part)
        assert read.keys() == part.keys()
        assert all(torch.equal(read[name], state[name]) and read[name].shape == state[name].shape for name in part)
    assert LAYOUT.read(path).keys() == state.keys()


def test_tensors_of_any_type_and_order_in_memory_are_written_as_fp32(tmp_path):
    # given
    state, path = tensors(), empty_file(tmp_path / "anchor")
    odd = {"b": state["b"].T.contiguous().T, "a": state["a"].bfloat16(), "scalar": state["scalar"].requires_grad_()}
    # when
    LAYOUT.write(path, odd | {"empty": state["empty"]})
    # then
    assert path.read_bytes() == dense.encode_state(state | {"a": state["a"].bfloat16().float()})


def test_what_is_read_from_a_file_owns_its_memory(tmp_path):
    # given
    path = tmp_path / "anchor"
    path.write_bytes(dense.encode_state(tensors()))
    # when
    for tensor in LAYOUT.read(path).values():
        tensor.zero_()
    # then
    assert path.read_bytes() == dense.encode_state(tensors())


def test_a_writer_never_makes_a_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        LAYOUT.write(tmp_path / "swept", tensors())
    assert not (tmp_path / "swept").exists()


def test_a_file_is_read_as_strictly_as_bytes(tmp_path):
    # given
    data, path = dense.encode_state(tensors()), tmp_path / "anchor"
    changes = [data[:length] for length in range(len(data))] + [data + b"\0"]
    changes += [data[:place] + bytes([data[place] ^ 0x7C]) + data[place + 1 :] for place in range(len(data))]
    for changed in changes:
        path.write_bytes(changed)
        # when / then both take it, or both refuse it for the same reason
        try:
            expected = dense.encode_state(dense.decode_state(changed, LIKE))
        except MalformedError as refused:
            with pytest.raises(MalformedError) as caught:
                LAYOUT.read(path)
            assert str(caught.value) == str(refused)
        else:
            assert dense.encode_state(LAYOUT.read(path)) == expected


def test_only_values_that_are_asked_for_are_looked_at(tmp_path):
    # given a value of one tensor that no model has
    path = tmp_path / "anchor"
    path.write_bytes(dense.encode_state(tensors() | {"scalar": torch.tensor(math.nan)}))
    # then its owner finds it
    assert LAYOUT.read(path, ["a", "b"]).keys() == {"a", "b"}
    with pytest.raises(MalformedError, match="scalar: a value is infinite or not a number"):
        LAYOUT.read(path, ["a", "scalar"])


def test_a_value_is_looked_at_wherever_it_stands(monkeypatch):
    # given tensors that are looked at in pieces
    monkeypatch.setattr(dense, "LOOK_AT", 4)
    for place in range(SHAPES["a"][0]):
        state = tensors()
        state["a"][place] = math.inf
        # when / then
        with pytest.raises(MalformedError, match="a: a value is infinite"):
            dense.decode_state(dense.encode_state(state), LIKE)
