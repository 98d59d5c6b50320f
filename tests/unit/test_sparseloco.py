"""SparseLoCo against a slow reference, and the numbers it promises."""

import math

import numpy as np
import pytest
import sparseloco_reference as reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sparseloco_cases import HARD, RULES, compiled, densities, draw, entries, kinds, one, quick, reducer, seeds, shapes

from elastic.errors import ConfigError, ElasticError
from elastic.reduce.sparseloco import SparseLoCo
from elastic.reduce.topk import choose, select, split_levels, values_of
from elastic.registry import build
from elastic.sections import PluginChoice
from elastic.wire import codec
from elastic.wire.packing import levels_of, round_levels


@quick
@given(shapes, densities, seeds, kinds, compiled)
def test_compress_selects_what_the_reference_selects(shape, density, seed, kind, compiled):
    # given a pseudo-gradient and a residual
    delta, residual = draw(shape, seed, kind), draw(shape, seed + 1) * 0.5
    # when it is compressed
    sut = reducer(*density, compiled, beta=0.95)
    payload, left = sut.compress(one(delta), one(residual))
    # then every chunk keeps the reference's entries of β·e + Δ
    error = (np.float32(0.95) * residual.numpy() + delta.numpy()).reshape(-1)
    sent = reference.flatten(entries(sut, payload, delta))
    for positions, (indices, _, _) in zip(reference.chunks(shape, density[0]), sent, strict=True):
        kept = reference.num_kept(len(positions), *density)
        assert indices == reference.select(error[positions], kept)
    # and what it leaves is exactly the rest
    decoded = sut.decompress(payload, one(delta))["w"].numpy()
    assert np.array_equal(left["w"].numpy(), error.reshape(shape) - decoded)


@quick
@given(shapes, densities, seeds, kinds, st.sampled_from([1, 2]), compiled)
def test_nothing_is_lost_between_payload_and_residual(shape, density, seed, kind, bits, compiled):
    # given
    sut, delta = reducer(*density, compiled, bits=bits), draw(shape, seed, kind)
    # when
    payload, residual = sut.compress(one(delta), {})
    decoded = sut.decompress(payload, one(delta))["w"]
    # then what is left is exactly the fp32 difference, and both together are the input within one ulp
    assert np.array_equal(decoded.numpy(), reference.decompress(entries(sut, payload, delta), shape, density[0]))
    assert torch.equal(residual["w"], delta - decoded)
    with np.errstate(over="ignore"):
        ulp = np.spacing(np.maximum(np.abs(delta.numpy()), np.abs(decoded.numpy())))
    assert np.all(np.abs((residual["w"] + decoded - delta).numpy()) <= ulp)


@quick
@given(
    st.lists(shapes, min_size=1, max_size=3), densities, seeds, kinds, st.sampled_from([1, 2]), st.sampled_from(RULES)
)
def test_the_kernels_are_the_torch_path_bit_for_bit(shapes, density, seed, kind, bits, rule):
    # given some tensors with residuals
    names = "abc"[: len(shapes)]
    delta = {name: draw(shape, seed + i, kind) for i, (name, shape) in enumerate(zip(names, shapes, strict=True))}
    residual = {name: draw(delta[name].shape, seed + 7) for name in names[1:]}
    fast, slow = (reducer(*density, each, bits=bits, rule=rule) for each in (True, False))
    # when both compress, one of them over its residual
    mine = {name: tensor.clone() for name, tensor in residual.items()}
    payload, left = fast.compress(delta, mine, inplace=True)
    other, other_left = slow.compress(delta, residual)
    # then
    assert fast.encode(payload) == slow.encode(other)
    assert all(torch.equal(left[name], other_left[name]) for name in names)
    assert all(left[name].data_ptr() == mine[name].data_ptr() for name in mine if mine[name].numel())
    # and both apply alike what the other decoded
    second, _ = slow.compress({name: tensor * 3 for name, tensor in delta.items()} if kind != "huge" else delta, {})
    parts = [(fast.decode(slow.encode(each), delta), share) for each, share in ((other, 0.3), (second, 0.7))]
    updates = [sut.aggregate(parts, delta) for sut in (fast, slow)]
    assert all(torch.equal(updates[0][name], updates[1][name]) for name in names)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_silent_chunk_does_not_silence_its_neighbours(compiled):
    # given a quiet tensor with one chunk of zeros
    values = draw((8, 4096), 3) * 1e-7
    values[5] = 0
    delta = values.reshape(-1)
    # when
    sut = reducer(compiled=compiled)
    decoded = sut.decompress(sut.compress(one(delta), {})[0], one(delta))["w"].reshape(8, 4096)
    # then
    for chunk, sent in zip(values, decoded, strict=True):
        assert (sent != 0).sum() == (64 if chunk.any() else 0)
        assert torch.allclose(sent[sent != 0], chunk[sent != 0], rtol=0.5)


def test_payloads_are_added_only_to_what_they_were_checked_for():
    # given a payload that was decoded, as anyone may, with what its own header says
    other, like = reducer(65536, 1), one(torch.zeros(256, 256))
    foreign = codec.decode(other.encode(other.compress(one(draw((256, 256), 1)), {})[0]), like)
    mine, _ = reducer().compress(one(draw((256, 256), 1)), {})
    # when it is added as if it were made like ours, or to another shape
    with pytest.raises(ValueError, match="cannot be added as"):
        reducer().aggregate([(foreign, 1.0)], like)
    with pytest.raises(ValueError, match="cannot be added as"):
        reducer().aggregate([(mine, 1.0)], one(torch.zeros(64, 192)))
    # and a residual must have its tensor's shape
    with pytest.raises(ValueError, match="residual of shape"):
        reducer().compress(one(draw((256, 256), 1)), one(torch.zeros(3)), inplace=True)


def test_a_residual_is_changed_only_when_told_so():
    # given
    delta, residual = draw((70, 70), 1), draw((70, 70), 2)
    before = residual.clone()
    # when
    _, left = reducer().compress(one(delta), one(residual))
    # then
    assert torch.equal(residual, before)
    assert left["w"].data_ptr() != residual.data_ptr()


def test_everything_sent_at_once_leaves_only_rounding():
    # given chunks that hold two magnitudes that the scales can store
    delta = torch.tensor([[1.0, -3.0, 1.5, 3.0]] * 4)
    # when everything is sent
    sut = reducer(16, 16)
    payload, residual = sut.compress(one(delta), {})
    # then nothing but the rounding of the lower level is left
    assert entries(sut, payload, delta).exponent == 128
    assert torch.equal(residual["w"][:, 1::2], torch.zeros(4, 2))
    assert residual["w"].abs().max() <= 0.25 + 3 / 512


@quick
@given(st.integers(1, 40), seeds, st.sampled_from(["normal", "heavy", "ties", "zeros"]), st.sampled_from([1, 2]))
def test_levels_are_the_best_possible(kept, seed, kind, bits):
    # given chunks of magnitudes
    magnitudes = np.abs(draw((3, kept), seed, kind).numpy())
    # when
    levels = split_levels(magnitudes, bits)
    exponent, scales = round_levels(levels, bits)
    stored = levels_of(scales, exponent)
    # then the error is that of the best of all splits, and rounding the levels adds no more than it must
    for m, exact, rounded in zip(magnitudes, levels, stored, strict=True):
        mean = math.fsum(map(float, m)) / len(m)
        best = reference.best_split_error(m) if bits == 2 else reference.squared_error(m, [mean])
        energy = math.fsum(float(v) ** 2 for v in m)
        assert reference.squared_error(m, exact) == pytest.approx(best, rel=1e-9, abs=1e-12 * energy)
        root = math.sqrt(best) + reference.SCALE_EPS * math.sqrt(energy)
        assert reference.squared_error(m, rounded) <= root**2 * (1 + 1e-6)


@quick
@given(seeds, st.sampled_from(["normal", "heavy", "ties"]))
def test_codes_choose_the_nearer_level_and_keep_the_sign(seed, kind):
    # given
    values = draw((4, 16), seed, kind).numpy()
    levels = levels_of(*reversed(round_levels(split_levels(np.abs(values), 2), 2)))
    # when
    decoded = values_of(choose(values, levels, 2), levels)
    # then
    nearest = np.abs(np.abs(values)[..., None] - levels[:, None, :]).min(axis=-1)
    assert np.array_equal(np.abs(np.abs(values) - np.abs(decoded)), nearest)
    assert np.all((np.sign(decoded) == np.sign(values)) | (values == 0) | (decoded == 0))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("hard", HARD)
def test_chunks_that_are_unlike_their_neighbours(hard, compiled):
    # given twelve chunks of 4096 whose thresholds say nothing of each other's
    values = draw((12, 4096), 3)
    values = {
        "all equal": torch.ones(12, 4096),
        "zeros": torch.zeros(12, 4096),
        "two values": (values > 1).float() + 0.5,
        "quieter and quieter": values * 8.0 ** -torch.arange(12)[:, None],
        "one loud chunk": values * (1 + 1e6 * (torch.arange(12) == 5))[:, None],
        "bfloat16": values.bfloat16().float(),
        "few at all": values * (torch.arange(4096) % 200 == 7),
    }[hard]
    sut = reducer(compiled=compiled)
    # when
    payload, _ = sut.compress(one(values.reshape(-1)), {})
    # then
    for chunk, (indices, _, _) in zip(
        values, reference.flatten(entries(sut, payload, values.reshape(-1))), strict=True
    ):
        assert indices == reference.select(chunk.numpy(), 64)


def test_ties_go_to_the_first():
    assert select(torch.ones(2, 8), 3).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("distribution", "limit"), [("normal", 0.065), ("t4", 0.20)])
def test_quantiser_error_on_the_values_sent(distribution, limit, compiled):
    # given 64 full chunks
    rng = np.random.default_rng(7)
    values = rng.standard_normal((512, 512)) if distribution == "normal" else rng.standard_t(4, (512, 512))
    delta = torch.from_numpy(values.astype(np.float32))
    # when
    payload, _ = reducer(compiled=compiled).compress(one(delta), {})
    decoded = reducer().decompress(payload, one(delta))["w"]
    # then
    was_sent = decoded != 0
    error = (decoded - delta)[was_sent].double().norm() / delta[was_sent].double().norm()
    assert was_sent.sum() == 64 * 64
    assert error <= limit
    assert torch.equal(decoded[was_sent].sign(), delta[was_sent].sign())


def test_error_feedback_sends_everything_in_the_end():
    # given one pseudo-gradient and no forgetting
    sut, delta = reducer(16, 4, beta=1.0), draw((8, 8), 3)
    residual, total, nothing = {}, torch.zeros(8, 8), one(torch.zeros(8, 8))
    # when rounds without news follow
    for round_ in range(40):
        payload, residual = sut.compress(one(delta) if round_ == 0 else nothing, residual)
        total += sut.decompress(payload, nothing)["w"]
    # then it has all arrived
    assert torch.allclose(total, delta, atol=1e-3)


def test_compress_changes_neither_argument_and_takes_other_layouts():
    # given a transposed half-precision pseudo-gradient
    delta = draw((20, 9), 1).to(torch.bfloat16).T
    residual = draw((9, 20), 2)
    before = delta.clone(), residual.clone()
    # when
    payload, left = reducer(16, 4).compress(one(delta), one(residual))
    plain, plain_left = reducer(16, 4).compress(one(delta.float().contiguous()), one(residual))
    # then
    assert torch.equal(delta, before[0])
    assert torch.equal(residual, before[1])
    assert torch.equal(left["w"], plain_left["w"])
    assert codec.encode(payload) == codec.encode(plain)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_diverged_pseudo_gradient_is_refused(bad, compiled):
    # given / when / then
    for place in (0, 4095, 4096, 4999):
        delta = torch.ones(5000)
        delta[place] = bad
        with pytest.raises(ElasticError, match="w is not finite"):
            reducer(compiled=compiled).compress(one(delta), {})


def test_bytes_per_parameter_of_a_llama_like_model():
    # given a million parameters: an embedding, four layers, norms
    like = {"embed": torch.empty(2048, 128, device="meta"), "norm": torch.empty(128, device="meta")}
    for layer in range(4):
        like |= {f"{layer}.{name}": torch.empty(128, 128, device="meta") for name in "qkvo"}
        like |= {f"{layer}.{name}": torch.empty(352, 128, device="meta") for name in ("gate", "up")}
        like |= {f"{layer}.down": torch.empty(128, 352, device="meta")}
        like |= {f"{layer}.norm{n}": torch.empty(128, device="meta") for n in (1, 2)}
    num_params = sum(tensor.numel() for tensor in like.values())
    # when it sends a heavy-tailed update
    delta = {name: draw(tuple(meta.shape), seed, "heavy") for seed, (name, meta) in enumerate(like.items())}
    data = reducer().encode(reducer().compress(delta, {})[0])
    # then
    assert 900_000 < num_params < 1_200_000
    assert len(data) / num_params < 0.0195
    assert reducer().max_bytes(like) / num_params < 0.021


def test_settings_are_checked():
    # given the name in a run file / when / then
    assert build("reducer", PluginChoice(name="sparseloco")).config.k == 64
    with pytest.raises(ConfigError, match="k is at most chunk = 16"):
        build("reducer", PluginChoice(name="sparseloco", chunk=16, k=17))
    with pytest.raises(ConfigError, match="k is at most chunk = 16"):
        build("reducer", PluginChoice(name="sparseloco", chunk=16))
    for wrong in ({"beta": 1.5}, {"rule": "median"}, {"chunks": 1}, {"k": 0}, {"bits": 3}):
        with pytest.raises(ValidationError):
            SparseLoCo.Config(**wrong)
