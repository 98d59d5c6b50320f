"""What every Reducer promises, over all that ship."""

import math

import numpy as np
import pytest
import torch

from elastic.errors import ElasticError, MalformedError
from elastic.registry import KNOWN, build
from elastic.sections import PluginChoice

SHAPES = {"w": (70, 33), "norm": (33,), "scale": (), "none": (0, 4)}
LIKE = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}

every_reducer = pytest.mark.parametrize("reducer", sorted(KNOWN["reducer"]), indirect=True)


@pytest.fixture
def reducer(request):
    return build("reducer", PluginChoice(name=request.param))


def delta(seed):
    rng = np.random.default_rng(seed)
    drawn = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    return {name: torch.from_numpy(np.asarray(values, np.float32)) for name, values in drawn.items()}


def zeros():
    return {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@every_reducer
def test_a_payload_survives_the_wire(reducer):
    # given
    payload, _ = reducer.compress(delta(1), zeros())
    # when
    data = reducer.encode(payload)
    arrived = reducer.decode(data, LIKE)
    # then
    assert reducer.encode(arrived) == data
    assert same(reducer.decompress(arrived, LIKE), reducer.decompress(payload, LIKE))
    assert len(data) <= reducer.max_bytes(LIKE)


@every_reducer
def test_everything_dense_is_fp32_in_the_shapes_of_the_model(reducer):
    # given
    payload, residual = reducer.compress(delta(1), zeros())
    # when
    dense = [reducer.decompress(payload, LIKE), reducer.aggregate([(payload, 1.0)], LIKE), residual]
    # then
    for tensors in dense:
        assert {name: tuple(t.shape) for name, t in tensors.items()} == SHAPES
        assert {t.dtype for t in tensors.values()} == {torch.float32}


@every_reducer
def test_payload_and_residual_together_are_the_work_done(reducer):
    # given
    work = delta(1)
    # when
    payload, residual = reducer.compress(work, zeros())
    sent = reducer.decompress(payload, LIKE)
    # then fp16 is the coarsest rounding anywhere
    for name in work:
        assert torch.allclose(sent[name] + residual[name], work[name], rtol=2.0**-10, atol=1e-6)


@every_reducer
def test_who_averages_turns_payloads_into_arrays_and_back(reducer):
    if not reducer.averages:
        pytest.skip("its payloads are counted, not averaged")
    data = reducer.encode(reducer.compress(delta(1), zeros())[0])
    arrays = reducer.arrays(data, LIKE)
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        name: (np.float32, shape) for name, shape in SHAPES.items()
    }
    assert reducer.from_arrays(arrays) == data


@every_reducer
def test_one_payload_counted_fully_is_itself(reducer):
    # given
    payload, _ = reducer.compress(delta(1), zeros())
    # when / then
    assert same(reducer.aggregate([(payload, 1.0)], LIKE), reducer.decompress(payload, LIKE))


@every_reducer
def test_equal_payloads_average_to_themselves(reducer):
    # given the same payload from three peers, through the wire
    payload, _ = reducer.compress(delta(1), zeros())
    copies = [reducer.decode(reducer.encode(payload), LIKE) for _ in range(3)]
    # when
    update = reducer.aggregate([(copy, 1 / 3) for copy in copies], LIKE)
    # then
    alone = reducer.decompress(payload, LIKE)
    assert all(torch.allclose(update[name], alone[name], rtol=1e-6) for name in update)


@every_reducer
def test_aggregate_does_not_depend_on_the_order_of_names(reducer):
    # given
    parts = [(reducer.compress(delta(seed), zeros())[0], 0.25) for seed in range(4)]
    turned = [(reducer.compress(dict(reversed(delta(seed).items())), zeros())[0], 0.25) for seed in range(4)]
    # when / then
    backwards = {name: LIKE[name] for name in reversed(LIKE)}
    assert same(reducer.aggregate(parts, LIKE), reducer.aggregate(turned, backwards))


@every_reducer
def test_no_payloads_are_no_update(reducer):
    assert same(reducer.aggregate([], LIKE), zeros())


@every_reducer
def test_arguments_are_left_as_they_were(reducer):
    # given
    work, residual = delta(1), delta(2)
    # when
    reducer.compress(work, residual)
    # then
    assert same(work, delta(1))
    assert same(residual, delta(2))


@every_reducer
def test_huge_but_finite_work_can_be_sent(reducer):
    # given
    work = {name: tensor.sign() * 3.4e38 for name, tensor in delta(1).items()}
    # when
    payload, residual = reducer.compress(work, zeros())
    # then everyone accepts it, and nothing in it or left of it is infinite
    dense = reducer.decompress(reducer.decode(reducer.encode(payload), LIKE), LIKE)
    assert all(torch.isfinite(tensor).all() for tensor in [*dense.values(), *residual.values()])


@every_reducer
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_diverged_work_is_never_sent(reducer, bad):
    with pytest.raises(ElasticError, match="scale is not finite"):
        reducer.compress(delta(1) | {"scale": torch.tensor(bad)}, zeros())


@every_reducer
def test_a_glance_at_a_tensor_shows_where_it_speaks_and_how_loud(reducer):
    # given
    payload = reducer.decode(reducer.encode(reducer.compress(delta(1), zeros())[0]), LIKE)
    dense = reducer.decompress(payload, LIKE)
    for name, value in dense.items():
        # when
        places, energy = reducer.glance(payload, name)
        # then
        assert energy == pytest.approx(value.double().square().sum().item(), rel=1e-6)
        assert len(places) in (0, torch.count_nonzero(value).item())
        assert (np.diff(places) > 0).all()


@every_reducer
def test_garbage_is_malformed(reducer):
    # given
    data = reducer.encode(reducer.compress(delta(1), zeros())[0])
    other = {**LIKE, "more": torch.empty(8, device="meta")}
    garbage = [b"", b"\0", data[:-1], data[1:], data + b"\0", b"\xff" * len(data), bytes(len(data))]
    # when / then
    for wrong in garbage:
        with pytest.raises(MalformedError):
            reducer.decode(wrong, LIKE)
    with pytest.raises(MalformedError):
        reducer.decode(data, other)


def test_average_gives_back_the_common_payload_bit_for_bit():
    # given shares that do not sum to one exactly
    average = build("reducer", PluginChoice(name="average"))
    payload, _ = average.compress(delta(1), zeros())
    # when
    update = average.aggregate([(payload, 0.1)] * 10, LIKE)
    # then
    assert average.averages
    assert same(update, {name: tensor.half().float() for name, tensor in delta(1).items()})


def test_average_of_different_payloads_is_weighted():
    # given
    average = build("reducer", PluginChoice(name="average"))
    parts = [(average.compress(delta(seed), {})[0], share) for seed, share in ((1, 0.25), (2, 0.75))]
    # when
    update = average.aggregate(parts, LIKE)
    # then
    first, second = delta(1), delta(2)
    expected = {name: first[name].half().float() * 0.25 + second[name].half().float() * 0.75 for name in LIKE}
    assert same(update, expected)
