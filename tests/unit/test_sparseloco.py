"""SparseLoCo against a slow reference, and the numbers it promises."""

import itertools
import math

import numpy as np
import pytest
import sparseloco_reference as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from elastic.config import PluginChoice
from elastic.errors import ConfigError, ElasticError
from elastic.reduce.sparseloco import SparseLoCo, clip_factors
from elastic.reduce.topk import choose, energy, select, split_levels, values_of
from elastic.registry import build
from elastic.wire import codec
from elastic.wire.chunks import Sparsity, blocks
from elastic.wire.packing import layout, levels_of, round_levels
from elastic.wire.threads import in_threads

SHAPES = [
    (),
    (0,),
    (0, 5),
    (5, 0),
    (1,),
    (3,),
    (16,),
    (37,),
    (4, 4),
    (8, 12),
    (9, 10),
    (3, 21),
    (1, 40),
    (2, 3, 7),
]
SETTINGS = [(16, 4), (16, 1), (16, 16), (24, 5), (64, 3)]
RULES = ["mean", "senders"]
HARD = ["all equal", "zeros", "two values", "quieter and quieter", "one loud chunk", "bfloat16", "few at all"]

shapes = st.sampled_from(SHAPES)
densities = st.sampled_from(SETTINGS)
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(["normal", "heavy", "ties", "zeros", "tiny", "huge"])
quick = settings(max_examples=40, deadline=None)


compiled = st.booleans()


def reducer(chunk=4096, k=64, compiled=True, **fields):
    return SparseLoCo(SparseLoCo.Config(chunk=chunk, k=k, **fields), compiled)


def entries(sut, payload, like):
    """What a payload sends of the tensor "w"."""
    return sut.entries(payload, "w", like.shape)


def draw(shape, seed, kind="normal"):
    """Seeded fp32 values of a kind that is hard in its own way."""
    rng = np.random.default_rng(seed)
    values = {
        "normal": lambda: rng.standard_normal(shape),
        "heavy": lambda: rng.standard_t(2, shape) * 1e-3,
        "ties": lambda: rng.integers(-2, 3, shape).astype(float),
        "zeros": lambda: np.zeros(shape),
        "tiny": lambda: rng.standard_normal(shape) * 1e-40,
        "huge": lambda: rng.uniform(-1, 1, shape) * 3.4e38,
    }[kind]()
    return torch.from_numpy(np.asarray(values, np.float32))


def one(tensor):
    return {"w": tensor}


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


def test_threads_may_use_the_reducer_too(threads):
    # given
    threads(2)
    sut, delta = reducer(16, 4), {name: draw((400, 40), seed) for seed, name in enumerate("abc")}
    payload, _ = sut.compress(delta, {})
    # when its own threads add up
    updates = in_threads(lambda _: sut.aggregate([(payload, 1.0)], delta), range(4))
    # then nobody waits for ever
    assert all(torch.equal(update["a"], updates[0]["a"]) for update in updates)


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


@pytest.mark.parametrize(
    ("shape", "sizes"), [((), [1]), ((0, 3), []), ((130, 64), [4096, 128]), ((5000,), [4096, 904])]
)
def test_chunks_cover_odd_shapes(shape, sizes):
    assert [block.size for block in blocks(shape, Sparsity())] == sizes


@quick
@given(shapes, densities)
def test_every_element_is_in_exactly_one_chunk(shape, density):
    # given / when
    places = [
        block.positions(np.tile(np.arange(block.size, dtype=np.int32), (block.num_chunks, 1)))
        for block in blocks(shape, Sparsity(*density))
    ]
    flat = [row.tolist() for positions in places for row in positions]
    # then
    assert flat == reference.chunks(shape, density[0])
    assert sorted(itertools.chain.from_iterable(flat)) == list(range(math.prod(shape)))


@quick
@given(st.integers(1, 300), st.data())
def test_kept_is_the_same_proportion_of_any_chunk(chunk, data):
    # given
    sparsity = Sparsity(chunk, data.draw(st.integers(1, chunk)))
    size = data.draw(st.integers(1, chunk))
    # when / then
    assert sparsity.kept(size) == reference.num_kept(size, *sparsity[:2])
    assert 1 <= sparsity.kept(size) <= size


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
