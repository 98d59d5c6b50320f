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
from elastic.reduce.sparseloco import SparseLoCo, clip_factors, norm, quantise, select, split_levels
from elastic.registry import build
from elastic.wire.chunks import Density, blocks, widen

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

shapes = st.sampled_from(SHAPES)
densities = st.sampled_from(SETTINGS)
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(["normal", "heavy", "ties", "zeros", "tiny", "huge"])
quick = settings(max_examples=40, deadline=None)


def reducer(chunk=4096, k=64, **fields):
    return SparseLoCo(SparseLoCo.Config(chunk=chunk, k=k, **fields))


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
@given(shapes, densities, seeds, kinds)
def test_compress_selects_what_the_reference_selects(shape, density, seed, kind):
    # given a pseudo-gradient and a residual
    delta, residual = draw(shape, seed, kind), draw(shape, seed + 1) * 0.5
    # when it is compressed
    sut = reducer(*density, beta=0.95)
    payload, left = sut.compress(one(delta), one(residual))
    # then every chunk keeps the reference's entries of β·e + Δ
    error = (np.float32(0.95) * residual.numpy() + delta.numpy()).reshape(-1)
    for c, positions in enumerate(reference.chunks(shape, density[0])):
        kept = reference.num_kept(len(positions), *density)
        indices = payload["w"]["indices"][c].tolist()
        assert indices[:kept] == reference.select(error[positions], kept)
        assert set(indices[kept:]) <= {-1}
    # and what it leaves is exactly the rest
    decoded = sut.decompress(payload, one(delta))["w"].numpy()
    assert np.array_equal(left["w"].numpy(), error.reshape(shape) - decoded)


@quick
@given(shapes, densities, seeds, kinds)
def test_nothing_is_lost_between_payload_and_residual(shape, density, seed, kind):
    # given
    sut, delta = reducer(*density), draw(shape, seed, kind)
    # when
    payload, residual = sut.compress(one(delta), {})
    decoded = sut.decompress(payload, one(delta))["w"]
    # then what is left is exactly the fp32 difference, and both together are the input within one ulp
    assert np.array_equal(decoded.numpy(), reference.decompress(payload["w"], shape, density[0]))
    assert torch.equal(residual["w"], delta - decoded)
    with np.errstate(over="ignore"):
        ulp = np.spacing(np.maximum(np.abs(delta.numpy()), np.abs(decoded.numpy())))
    assert np.all(np.abs((residual["w"] + decoded - delta).numpy()) <= ulp)


def test_residual_is_exact_where_levels_are():
    # given chunks that hold two magnitudes that bfloat16 can store
    delta = torch.tensor([[1.0, -3.0, 1.0, 3.0]] * 4)
    # when everything is sent
    payload, residual = reducer(16, 16).compress(one(delta), {})
    # then nothing is left
    assert torch.equal(residual["w"], torch.zeros(4, 4))
    assert payload["w"]["levels"].tolist() == [[1.0, 3.0]]


@quick
@given(st.integers(1, 40), seeds, st.sampled_from(["normal", "heavy", "ties", "zeros"]))
def test_two_levels_are_the_best_possible(kept, seed, kind):
    # given chunks of magnitudes
    values = draw((3, kept), seed, kind).numpy()
    magnitudes = np.abs(values)
    # when
    levels = split_levels(magnitudes)
    stored = widen(quantise(np.zeros((3, kept), np.int32), values).levels_C2)
    # then the error is that of the best of all splits, and rounding the levels adds no more than it must
    for m, exact, rounded in zip(magnitudes, levels, stored, strict=True):
        best = reference.best_split_error(m)
        energy = math.fsum(float(v) ** 2 for v in m)
        assert reference.squared_error(m, exact) == pytest.approx(best, rel=1e-9, abs=1e-12 * energy)
        root = math.sqrt(best) + reference.BF16_EPS * math.sqrt(energy)
        assert reference.squared_error(m, rounded) <= root**2 * (1 + 1e-6)


@quick
@given(seeds, st.sampled_from(["normal", "heavy", "ties"]))
def test_codes_choose_the_nearer_level_and_keep_the_sign(seed, kind):
    # given
    values = draw((4, 16), seed, kind).numpy()
    # when
    rows = quantise(np.zeros((4, 16), np.int32), values)
    # then
    decoded, levels = rows.values(), widen(rows.levels_C2)
    nearest = np.abs(np.abs(values)[..., None] - levels[:, None, :]).min(axis=-1)
    assert np.array_equal(np.abs(np.abs(values) - np.abs(decoded)), nearest)
    assert np.all((np.sign(decoded) == np.sign(values)) | (values == 0) | (decoded == 0))


@pytest.mark.parametrize("slab", [1, 3, 5])
def test_working_in_slabs_does_not_show(monkeypatch, slab):
    # given a matrix with all four kinds of tiles, compressed at once
    sut, delta = reducer(16, 4), draw((30, 22), 4)
    whole, left = sut.compress(one(delta), {})
    # when a few chunks are compressed at a time
    monkeypatch.setattr("elastic.reduce.sparseloco.SLAB_CHUNKS", slab)
    payload, residual = sut.compress(one(delta), {})
    # then
    assert sut.encode(payload) == sut.encode(whole)
    assert torch.equal(residual["w"], left["w"])


def test_ties_go_to_the_first():
    assert select(np.ones((2, 8), np.float32), 3).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize(("distribution", "limit"), [("normal", 0.065), ("t4", 0.20)])
def test_quantiser_error_on_the_values_sent(distribution, limit):
    # given 64 full chunks
    rng = np.random.default_rng(7)
    values = rng.standard_normal((512, 512)) if distribution == "normal" else rng.standard_t(4, (512, 512))
    delta = torch.from_numpy(values.astype(np.float32))
    # when
    payload, _ = reducer().compress(one(delta), {})
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
    assert all(torch.equal(payload["w"][field], plain["w"][field]) for field in payload["w"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_diverged_pseudo_gradient_is_refused(bad):
    # given / when / then
    with pytest.raises(ElasticError, match="w is not finite"):
        reducer().compress(one(torch.tensor([1.0, bad])), {})


@quick
@given(shapes, densities, seeds, st.sampled_from(["mean", "senders"]), st.integers(1, 4))
def test_aggregate_is_the_reference_bit_for_bit(shape, density, seed, rule, num_peers):
    # given peers of different loudness and shares
    sut = reducer(*density, rule=rule)
    deltas = [draw(shape, seed + peer) * 3.0**peer for peer in range(num_peers)]
    payloads = [sut.compress(one(delta), {})[0] for delta in deltas]
    weights = [peer + 1 for peer in range(num_peers)]
    parts = [(p, weight / sum(weights)) for p, weight in zip(payloads, weights, strict=True)]
    # when
    update = sut.aggregate(parts, one(deltas[0]))["w"]
    # then
    expected = reference.aggregate([(p["w"], share) for p, share in parts], shape, density[0], rule)
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
    norms = [norm(p["w"]) for p in payloads]
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
    assert norm(payload["w"]) == pytest.approx(sut.decompress(payload, one(delta))["w"].double().norm().item())


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


@pytest.mark.parametrize("rule", ["mean", "senders"])
def test_number_of_threads_and_dict_order_do_not_show(threads, rule):
    # given
    sut = reducer(rule=rule)
    deltas = [{"b": draw((200, 130), s, "heavy"), "a": draw((70_000,), s), "c": draw((), s)} for s in range(3)]

    def everything(num_threads, order):
        threads(num_threads)
        ordered = [{name: delta[name] for name in order} for delta in deltas]
        made = [sut.compress(delta, {}) for delta in ordered]
        update = sut.aggregate([(payload, 1 / 3) for payload, _ in made], ordered[0])
        wire = [sut.encode(payload) for payload, _ in made]
        left = [residual[name].numpy().tobytes() for _, residual in made for name in "abc"]
        return wire, left, [update[name].numpy().tobytes() for name in "abc"]

    # when / then
    assert everything(1, "abc") == everything(2, "cab")


def test_bytes_per_parameter_of_a_llama_like_model():
    # given a million parameters: an embedding, four layers, norms
    like = {"embed": torch.empty(2048, 128, device="meta"), "norm": torch.empty(128, device="meta")}
    for layer in range(4):
        like |= {f"{layer}.{name}": torch.empty(128, 128, device="meta") for name in "qkvo"}
        like |= {f"{layer}.{name}": torch.empty(352, 128, device="meta") for name in ("gate", "up")}
        like |= {f"{layer}.down": torch.empty(128, 352, device="meta")}
        like |= {f"{layer}.norm{n}": torch.empty(128, device="meta") for n in (1, 2)}
    num_params = sum(tensor.numel() for tensor in like.values())
    # when / then
    assert 900_000 < num_params < 1_200_000
    assert reducer().max_bytes(like) / num_params < 0.0215


@pytest.mark.parametrize(
    ("shape", "sizes"), [((), [1]), ((0, 3), []), ((130, 64), [4096, 128]), ((5000,), [4096, 904])]
)
def test_chunks_cover_odd_shapes(shape, sizes):
    assert [block.size for block in blocks(shape, 4096)] == sizes


@quick
@given(shapes, densities)
def test_every_element_is_in_exactly_one_chunk(shape, density):
    # given / when
    places = [
        block.positions(np.tile(np.arange(block.size, dtype=np.int32), (block.num_chunks, 1)))
        for block in blocks(shape, density[0])
    ]
    flat = [row.tolist() for positions in places for row in positions]
    # then
    assert flat == reference.chunks(shape, density[0])
    assert sorted(itertools.chain.from_iterable(flat)) == list(range(math.prod(shape)))


@quick
@given(st.integers(1, 300), st.data())
def test_widest_is_the_largest_chunk_that_keeps_as_many(chunk, data):
    # given
    density = Density(chunk, data.draw(st.integers(1, chunk)))
    size = data.draw(st.integers(1, chunk))
    # when
    kept = density.kept(size)
    # then
    assert kept == reference.num_kept(size, *density)
    assert 1 <= kept <= size
    assert density.widest(kept) == max(n for n in range(1, chunk + 1) if density.kept(n) == kept)


def test_settings_are_checked():
    # given the name in a run file / when / then
    assert build("reducer", PluginChoice(name="sparseloco")).config.k == 64
    with pytest.raises(ConfigError, match="k is at most chunk = 16"):
        build("reducer", PluginChoice(name="sparseloco", chunk=16, k=17))
    with pytest.raises(ConfigError, match="k is at most chunk = 16"):
        build("reducer", PluginChoice(name="sparseloco", chunk=16))
    for wrong in ({"beta": 1.5}, {"rule": "median"}, {"chunks": 1}, {"k": 0}):
        with pytest.raises(ValidationError):
            SparseLoCo.Config(**wrong)
