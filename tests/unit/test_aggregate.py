"""Adding payloads up: rules, clips, and the same bits on any number of threads."""

import math

import numpy as np
import pytest
import sparseloco_reference as reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparseloco_cases import RULES, compiled, densities, draw, entries, one, quick, reducer, seeds, shapes

from elastic.reduce.sparseloco import clip_factors
from elastic.reduce.topk import energy
from elastic.wire.packing import layout
from elastic.wire.threads import in_threads


@quick
@given(shapes, densities, seeds, st.sampled_from(RULES), st.integers(1, 4), compiled)
def test_aggregate_is_the_reference_bit_for_bit(shape, density, seed, rule, num_peers, compiled):
    # given peers of different loudness and shares
    sut = reducer(*density, compiled, rule=rule)
    deltas = [draw(shape, seed + peer) * 3.0**peer for peer in range(num_peers)]
    payloads = [sut.compress(one(delta), {})[0] for delta in deltas]
    weights = [peer + 1 for peer in range(num_peers)]
    parts = [(p, weight / sum(weights)) for p, weight in zip(payloads, weights, strict=True)]
    # when
    update = sut.aggregate(parts, one(deltas[0]))["w"]
    # then
    sent = [(entries(sut, payload, deltas[0]), share) for payload, share in parts]
    expected = reference.aggregate(sent, shape, density[0], rule)
    assert np.array_equal(update.numpy(), expected)


def test_mean_moves_a_lonely_coordinate_by_its_share_and_senders_fully():
    # given two peers that send different coordinates of the same size
    like = one(torch.zeros(16))
    deltas = [torch.zeros(16), torch.zeros(16)]
    deltas[0][3], deltas[1][5] = 2.0, -2.0
    mean, senders = reducer(16, 1), reducer(16, 1, rule="senders")
    parts = [(mean.compress(one(d), {})[0], share) for d, share in zip(deltas, [0.25, 0.75], strict=True)]
    # when / then
    assert mean.aggregate(parts, like)["w"][[3, 5]].tolist() == [0.5, -1.5]
    assert senders.aggregate(parts, like)["w"][[3, 5]].tolist() == [2.0, -2.0]


def test_loud_peers_are_clipped_to_the_median_and_quiet_ones_left_alone():
    # given three peers that say the same, one 1000 times as loud, one ten times as quietly
    sut, delta = reducer(16, 4), draw((8, 8), 5)
    payloads = [sut.compress(one(delta * scale), {})[0] for scale in (1.0, 1024.0, 0.125)]
    # when
    norms = [math.sqrt(energy(entries(sut, p, delta))) for p in payloads]
    update = sut.aggregate([(p, 1 / 4) for p in payloads], one(delta))["w"]
    # then
    assert clip_factors(norms) == [1.0, 1 / 1024, 1.0]
    alone = sut.decompress(payloads[0], one(delta))["w"]
    assert torch.allclose(update, alone * (2.125 / 4), rtol=1e-6)


@pytest.mark.parametrize(
    ("norms", "clips"),
    [
        ([], []),
        ([3.0], [1.0]),
        ([1.0, 1e38], [1.0, 1e-38]),
        ([2.0, 8.0, 1.0, 1e38], [1.0, 0.25, 1.0, 2e-38]),
        ([0.0, 4.0], [1.0, 1.0]),
        ([0.0, 0.0], [1.0, 1.0]),
    ],
)
def test_half_of_the_peers_cannot_say_what_is_loud(norms, clips):
    assert clip_factors(norms) == pytest.approx(clips)


def test_norm_is_that_of_what_is_decoded():
    # given
    sut, delta = reducer(16, 4), draw((9, 10), 5)
    # when
    payload, _ = sut.compress(one(delta), {})
    # then
    assert math.sqrt(energy(entries(sut, payload, delta))) == pytest.approx(
        sut.decompress(payload, one(delta))["w"].double().norm().item()
    )


def test_silent_peers_and_no_peers_are_fine():
    # given peers that send only zeros
    sut, like = reducer(16, 4), one(torch.zeros(4, 4))
    silent, _ = sut.compress(like, {})
    # when / then
    assert clip_factors([0.0, 0.0]) == [1.0, 1.0]
    assert torch.equal(sut.aggregate([(silent, 1.0)], like)["w"], torch.zeros(4, 4))
    assert torch.equal(sut.aggregate([], like)["w"], torch.zeros(4, 4))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rule", RULES)
def test_a_gpu_makes_the_same_bits_as_the_cpu(rule):
    # given three peers' work of two rounds
    sut = reducer(1024, 16, rule=rule)
    deltas = [{"a": draw((500, 530), seed, "heavy"), "b": draw((3000,), seed)} for seed in range(3)]

    def everything(device):
        made = []
        for delta in deltas:
            there = {name: value.to(device) for name, value in delta.items()}
            _, residual = sut.compress(there, {})
            made.append(sut.compress(there, residual))
        room = {name: torch.empty(value.shape, device=device) for name, value in deltas[0].items()}
        update = sut.aggregate([(payload, 1 / 3) for payload, _ in made], deltas[0], out=room)
        left = [residual[name].cpu().numpy().tobytes() for _, residual in made for name in "ab"]
        return [sut.encode(payload) for payload, _ in made], left, [update[n].cpu().numpy().tobytes() for n in "ab"]

    # when / then
    assert everything("cuda") == everything("cpu")


@pytest.mark.parametrize("rule", RULES)
def test_number_of_threads_and_dict_order_do_not_show(threads, rule):
    # given tensors that are large enough to be cut for several threads, with edges
    sut = reducer(1024, 16, rule=rule)
    deltas = [{"b": draw((500, 530), s, "heavy"), "a": draw((300_000,), s), "c": draw((), s)} for s in range(3)]
    assert all(layout(tuple(deltas[0][name].shape), sut.sparsity).num_chunks > 4 * 64 for name in "ab")

    def everything(num_threads, order):
        threads(num_threads)
        ordered = [{name: delta[name] for name in order} for delta in deltas]
        made = [sut.compress(delta, {}) for delta in ordered]
        update = sut.aggregate([(payload, 1 / 3) for payload, _ in made], ordered[0])
        wire = [sut.encode(payload) for payload, _ in made]
        left = [residual[name].numpy().tobytes() for _, residual in made for name in "abc"]
        return wire, left, [update[name].numpy().tobytes() for name in "abc"]

    # when / then
    alone = everything(1, "abc")
    assert everything(2, "cab") == alone
    assert everything(3, "bca") == alone
    # and the torch path says the same
    slow = reducer(1024, 16, compiled=False, rule=rule)
    parts = [(slow.decode(data, deltas[0]), 1 / 3) for data in alone[0]]
    assert [slow.aggregate(parts, deltas[0])[name].numpy().tobytes() for name in "abc"] == alone[2]


def test_threads_may_use_the_reducer_too(threads):
    # given
    threads(2)
    sut, delta = reducer(16, 4), {name: draw((400, 40), seed) for seed, name in enumerate("abc")}
    payload, _ = sut.compress(delta, {})
    # when its own threads add up
    updates = in_threads(lambda _: sut.aggregate([(payload, 1.0)], delta), range(4))
    # then nobody waits for ever
    assert all(torch.equal(update["a"], updates[0]["a"]) for update in updates)
