"""The benchmarks measure what they say: the yardstick is right, the simulated swarm is a swarm, tables are true."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from elastic.bench import published
from elastic.bench.convergence import Row, read_text, recipes, run, table
from elastic.bench.peer import _config
from elastic.bench.reducer import Setup, draw, llama_shapes, measure, num_params, quantiser_errors
from elastic.bench.reducer import table as reducer_table
from elastic.bench.sim import collect
from elastic.bench.simulate import Recipe, Swarm
from elastic.config import InnerConfig, OuterConfig
from elastic.errors import ConfigError
from elastic.reduce.sparseloco import SparseLoCo
from elastic.sections import PluginChoice
from elastic.sim.world import Outcome
from tests.fuzz.sparse import run as fuzz

MODEL = PluginChoice.model_validate(
    {"name": "llama", "preset": "nano", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
)
INNER = InnerConfig(steps=3, batch_size=2, sequence_length=16, warmup_steps=2)
TOKENS = np.random.default_rng(0).integers(0, 256, 20_000).astype(np.uint16)


def tensors(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (128, 192), "v": (128,)}
    return {name: torch.from_numpy((rng.standard_normal(s) * scale).astype(np.float32)) for name, s in shapes.items()}


def test_the_yardstick_packs_chunks_and_indices_and_finds_them_again():
    value = tensors(1)["w"]
    assert torch.equal(published.from_chunks(published.to_chunks(value), value.shape), value)
    indices = torch.randint(0, 4096, (5, 64), generator=torch.Generator().manual_seed(0))
    packed = published.pack12(indices)
    assert packed.dtype == torch.uint8 and packed.shape == (5, 96)
    assert torch.equal(published.unpack12(packed), indices)


def test_the_yardstick_sends_the_largest_and_keeps_the_rest():
    # given
    delta, error = tensors(1), tensors(2, 0.1)
    before = {name: 0.95 * error[name] + delta[name] for name in delta}
    # when
    parts = published.compress(delta, error)
    update = published.aggregate([parts], delta)
    # then what one peer sent is what left its residual
    for name in delta:
        assert torch.allclose(update[name] + error[name], before[name], atol=1e-6)
        assert published.size_bytes({name: parts[name]}) == len(parts[name].codes) * 160 + 20
    assert (update["w"] != 0).sum() <= 6 * 64


def test_the_yardstick_takes_the_mean_over_who_sent_a_coordinate():
    # given one loud and one silent peer
    loud, silent = tensors(1), {name: torch.zeros_like(value) for name, value in tensors(1).items()}
    parts = [published.compress(delta, {n: torch.zeros_like(v) for n, v in delta.items()}) for delta in (loud, loud)]
    # when / then two who say the same are as one
    both, one = published.aggregate(parts, silent), published.aggregate(parts[:1], silent)
    assert all(torch.allclose(both[name], one[name]) for name in both)


def test_the_yardstick_refuses_what_it_would_add_in_the_wrong_place():
    # given
    delta = tensors(1)
    parts = published.compress(delta, {name: torch.zeros_like(value) for name, value in delta.items()})
    assert published.check(parts, delta) is parts
    # when an index of a vector's chunk, 64 long, is larger
    name = next(name for name in delta if delta[name].ndim == 1)
    wrong = replace(parts[name], indices=torch.full_like(parts[name].indices, 255))
    # then
    with pytest.raises(ValueError, match="outside"):
        published.check({**parts, name: wrong}, delta)


def test_uneven_tiles_differ_in_size_from_each_other_and_not_inside():
    # given / when
    value = draw({"w": (128, 192)}, seed=1, kind="uneven")["w"]
    tiles = published.to_chunks(value).double().square().mean(1).sqrt()
    # then
    assert tiles.max() > 3 * tiles.min()


def test_a_text_that_is_no_text_is_named(tmp_path):
    (tmp_path / "good.txt").write_text("so")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"bad\.txt: .*expected UTF-8"):
        read_text([tmp_path / "good.txt", tmp_path / "bad.txt"])


def test_a_llama_of_about_as_many_parameters():
    for params in (1e6, 3e7, 1.24e8):
        shapes = llama_shapes(params)
        assert 0.6 * params < num_params(shapes) < 1.6 * params
        assert all(size % 64 == 0 for shape in shapes.values() for size in shape)


def test_the_published_quantiser_loses_signs_where_ours_does_not():
    errors = quantiser_errors(draw({"w": (256, 256)}, seed=1))
    assert errors["ours"] < 0.25 < 0.4 < errors["published"]
    assert errors["ours, wrong signs"] == 0 < errors["published, wrong signs"]


def test_the_reducer_benchmark_says_what_it_measured(monkeypatch):
    # given residuals that need no training
    monkeypatch.setattr("elastic.bench.reducer.recorded_residuals", lambda seed: draw({"w": (64, 64)}, seed))
    # when
    said = []
    result = measure(Setup(2e5, [1, 3], passes=1), said.append)
    # then
    assert set(result["receiver"]) == {"1", "3"}
    assert result["times smaller than fp32"]["ours"] > 190 > result["times smaller than fp32"]["published"]
    assert set(result["sender"]) == {"student-t", "uneven", "bf16"}
    assert all(row[who]["total"] > 0 for row in result["sender"].values() for who in ("ours", "published"))
    assert "receiver, 3 peers" in reducer_table(result)


def outcome(method, **changes):
    recipe = replace(Recipe("x", method, INNER, peers=2, tokens=600), **changes)
    return Swarm(recipe, MODEL, TOKENS).train()


@pytest.mark.parametrize("method", ["adamw", "diloco", "sparseloco"])
def test_a_simulated_swarm_is_the_same_every_time(method):
    # given / when
    first, second = outcome(method), outcome(method)
    # then
    assert first.held_out == second.held_out
    assert first.tokens == 576  # whole rounds of 2 peers × 3 steps × 2 × 16
    assert first.curve[-1] == (first.tokens, first.held_out)
    assert first.held_out != outcome(method, seed=1).held_out


def test_everything_sent_by_all_is_plain_local_sgd():
    # given a reducer that sends every entry, and dense averaging without momentum
    everything = SparseLoCo.Config(chunk=16, k=16, beta=1.0)
    # when
    sparse, dense = outcome("sparseloco", reducer=everything), outcome("diloco", outer=OuterConfig())
    # then they differ only by two levels per chunk and fp16
    assert sparse.held_out == pytest.approx(dense.held_out, rel=2e-3)
    assert sparse.bytes_per_peer < dense.bytes_per_peer / 3.5


def test_all_methods_see_the_same_tokens():
    # given two ways to cut the same steps into rounds
    long = INNER.model_copy(update={"steps": 6})
    swarms = [Swarm(Recipe("x", "adamw", inner, peers=2), MODEL, TOKENS) for inner in (INNER, long)]
    # when
    short = [batch for round_ in (0, 1) for batch in swarms[0]._batches(round_, 1)]
    # then
    assert all(torch.equal(a, b) for a, b in zip(short, swarms[1]._batches(0, 1), strict=True))


def test_rows_that_are_done_are_kept(tmp_path, monkeypatch):
    # given a run that was cut short
    kept, said = tmp_path / "rows.json", []
    monkeypatch.setattr("elastic.bench.convergence.MODEL", MODEL.model_copy(update={"vocab_size": 2048}))
    monkeypatch.setattr("elastic.bench.convergence.INNER_STEPS", 2)
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged that numbers need tests. " * 300)
    monkeypatch.setattr("elastic.bench.convergence.recipes", lambda quick, tokens: recipes(True, 600)[:2])
    rows = run(True, 0, [text], kept, said.append)
    # when it is run again with one row more
    monkeypatch.setattr("elastic.bench.convergence.recipes", lambda quick, tokens: recipes(True, 600)[:3])
    again = run(True, 0, [text], kept, said.append)
    # then only that one is trained
    assert again[:2] == rows and len(again) == 3
    assert sum("held out" in line for line in said) == 3
    # and a file of something else is left alone
    kept.write_text('[{"name": 1}]')
    with pytest.raises(ConfigError, match="choose another"):
        run(True, 0, [text], kept, said.append)


def test_the_table_compares_with_the_rival_in_the_same_setting():
    def row(name, loss, sent):
        return Row(name, name, 0, loss, sent, 100, 1.0, [(100, loss)])

    text = table(
        [
            row("AdamW, data-parallel", 4.0, 1000),
            row("SparseLoCo", 4.1, 10),
            row("AdamW, data-parallel, 16 peers", 5.0, 1000),
            row("SparseLoCo, 16 peers", 5.0, 20),
        ]
    )
    assert "| SparseLoCo | 4.100 | +2.5 % | 0.00 MB | 100 |" in text
    assert "| SparseLoCo, 16 peers | 5.000 | +0.0 % | 0.00 MB | 50 |" in text


def test_some_thousand_mutated_payloads_are_refused_or_decoded():
    outcomes = fuzz(3000, seed=1, thorough=8)
    assert sum(outcomes.values()) == 3000
    assert outcomes["decoded"] > 100


def outcomes(violations):
    for seed, violation in enumerate(violations):
        yield Outcome(seed, violation, seconds=50.0, lives=3, trace="")


def test_a_long_simulation_tells_how_far_it_is_and_what_it_found():
    # given a clock that goes on by 3 s at each look
    said, clock = [], count(0, 3)
    # when
    figures = collect(outcomes([None, None, "two final manifests", None]), 100, said.append, now=lambda: next(clock))
    # then
    assert said[0].startswith("2 of 100 schedules, 0 violations, 0.2 schedules/s, ")
    assert "seed 2: two final manifests" in said
    assert (figures.schedules, figures.lives, figures.virtual_seconds) == (4, 12, 200.0)
    assert [outcome.seed for outcome in figures.violations] == [2]


def test_ctrl_c_ends_a_simulation_with_the_figures_so_far():
    def interrupted():
        yield from outcomes([None, "lost"])
        raise KeyboardInterrupt

    # when
    said = []
    figures = collect(interrupted(), 10, said.append)
    # then
    assert (figures.schedules, len(figures.violations)) == (2, 1)
    assert said == ["seed 1: lost", "stopped: 8 of 10 schedules were not simulated"]


def test_the_worker_that_is_measured_has_the_key_that_its_spans_are_signed_for(tmp_path: Path) -> None:
    assert _config(tmp_path, 3).key_path.is_file()
