"""The workers of a peer: one, two and four of them train alike, hold a part each, and fail together or not at all."""

import math
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from team import PEER, session, shared, team, two_rounds
from torch import nn

from elastic.agreement.manifests import genesis
from elastic.errors import ConfigError, DivergedError, ElasticError, MalformedError, StateError
from elastic.messages import ContributionHeader, Digest, RoundIndex
from elastic.schedule.plan import plan_round
from elastic.train.fitted import Fitted
from elastic.train.inner import Stop, make_optimizer, run_inner_steps
from elastic.train.pieces import pieces
from elastic.train.session import Session
from elastic.train.workers import Worker, owners
from elastic.wire.dense import decode_state
from elastic.wire.tree import blob_digest

INNER = {"steps": 3, "batch_size": 6, "sequence_length": 8, "warmup_steps": 1}
MUON = {"inner": {**INNER, "optimizer": "muon"}}


def alone(folder: Path, how: dict[str, Any] | None = None, **changes: Any) -> Session:
    return session(folder, shared(**changes), Worker(how=Worker().how.model_copy(update=how or {})))


def train(worker: Worker, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    one = session(folder / "state", shared(**changes), worker)
    return {**two_rounds(one), "held": sum(value.numel() for value in one.residual.values())}


def alike(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert found["losses"] == pytest.approx(expected["losses"], rel=tolerance)
    assert found["evaluated"] == pytest.approx(expected["evaluated"], rel=tolerance)


@pytest.mark.parametrize("changes", [{}, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_several_workers_train_like_one_and_hold_a_part_each(
    tmp_path: Path, world_size: int, changes: dict[str, Any]
) -> None:
    # given a batch that four workers cannot share evenly, and pieces of two sequences
    expected = two_rounds(alone(tmp_path / "alone", **changes))
    # when
    told = team(train, world_size, tmp_path / "several", {"micro_batch": 2, "recompute": world_size == 2}, changes)
    # then
    assert {each["anchor"] for each in told} == {told[0]["anchor"]}
    alike(told[0], expected, 1e-5)
    assert told[0]["generated"] == expected["generated"]
    num_params = sum(meta.numel() for meta in alone(tmp_path / "alone", **changes).like.values())
    held = [each["held"] for each in told]
    assert sum(held) == num_params and max(held) <= num_params / world_size + 24 * 2 * 16


def test_what_several_workers_wrote_is_read_by_any_number_of_them(tmp_path: Path) -> None:
    # given two workers' state, one file as a joiner would fetch it
    told = team(train, 2, tmp_path, {}, {})
    # when
    one = alone(tmp_path / "state")
    # then
    assert one.state().anchor == told[0]["anchor"]
    data = Path(one.state().state_path).read_bytes()
    assert blob_digest(data) == told[0]["anchor"] and decode_state(data, one.anchor).keys() == one.anchor.keys()
    # and four go on from there as one would
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    mine = one.evaluate(5)
    assert team(goes_on, 4, tmp_path) == [pytest.approx([mine, 3], rel=1e-5)] * 4


def goes_on(worker: Worker, folder: Path) -> list[float]:
    one = session(folder / "copy", shared(), worker)
    return [one.evaluate(5), float(one.state().round)]


def test_bf16_learns_alike_on_one_worker_and_on_two_and_about_what_fp32_does(tmp_path: Path) -> None:
    exact = two_rounds(alone(tmp_path / "fp32"))
    (one,) = team(train, 1, tmp_path / "one", {"precision": "bf16"}, {})
    two = team(train, 2, tmp_path / "two", {"precision": "bf16"}, {})
    for found in (one, *two):
        assert found["losses"] != exact["losses"]
        alike(found, exact, 1e-2)


@pytest.mark.parametrize("how", [{}, {"precision": "bf16"}], ids=["fp32", "bf16"])
def test_a_look_at_the_model_sees_all_of_what_it_is_now(tmp_path: Path, how: dict[str, Any]) -> None:
    # given a model that has been looked at, whose layers, and nothing else, then change
    one = alone(tmp_path, how)
    before = one.evaluate(5)
    for name, value in one.anchor.items():
        if name.startswith("blocks.") and value.ndim == 2:
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(3)))
    # when / then
    assert one.evaluate(5) != pytest.approx(before, rel=1e-3)


def test_bf16_finds_the_help_that_fp32_finds(tmp_path: Path) -> None:
    gains = []
    for precision in ("fp32", "bf16"):
        one = alone(tmp_path / precision, {"precision": precision}, inner={**INNER, "learning_rate": 0.03})
        head = genesis("demo", one.state().anchor, [PEER], PEER)
        one.outer_step(head, {})
        plan = plan_round(one.shared, head, one.state().anchor, PEER)
        payload = one.compress(plan, one.inner_steps(plan))
        header = ContributionHeader(
            run="demo", round=plan.round, peer=PEER, anchor=plan.anchor, proof=Digest("c" * 64), steps=3, loss=2.0,
            payload=blob_digest(payload), size_bytes=len(payload), tokens=144,
        )  # fmt: skip
        found = one.assess(plan, header, payload, 7)
        gains.append((found.gain_assigned, found.gain_heldout))
    assert gains[1] == pytest.approx(gains[0], rel=0.25) and min(gains[0]) > 0.01


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own, as it traces
def test_compiled_and_recomputed_layers_learn_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a compiler that traces as ever, and leaves the products as they are: C++ would take a minute
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    # when
    found = two_rounds(alone(tmp_path / "compiled", {"compile": True, "recompute": True, "micro_batch": 4}))
    # then
    alike(found, two_rounds(alone(tmp_path / "plain")), 1e-5)


def test_a_large_vocabulary_is_done_in_pieces_on_several_workers_too(tmp_path: Path) -> None:
    expected = two_rounds(alone(tmp_path / "alone"))
    told = team(train_in_pieces, 2, tmp_path, {})
    alike(told[0], expected, 1e-5)


def train_in_pieces(worker: Worker, folder: Path) -> dict[str, Any]:
    from model_zoo import llama

    llama.LOGITS_AT_ONCE = 16 * 5  # of 16 tokens: the loss of five positions at once
    return train(worker, folder, {})


# --- failing together ------------------------------------------------------------------------------------------------


def test_steps_that_diverge_on_one_worker_leave_everything_as_it_was(tmp_path: Path) -> None:
    told = team(diverges, 2, tmp_path)
    assert [each["raised"] for each in told] == [True, True]
    assert all(each["before"] == each["after"] for each in told)
    assert told[0]["anchor"] == told[1]["anchor"]


def diverges(worker: Worker, folder: Path) -> dict[str, Any]:
    one = session(folder / "state", shared(), worker)
    before = two_rounds(one) and {name: value.tolist() for name, value in one.residual.items()}
    plan = SimpleNamespace(round=one.state().round, train_seconds=100.0, slot=0)
    reducer, raised = one.reducer.compress, False
    if worker.rank == 1:  # its tensors only
        one.reducer.compress = lambda delta, *rest, **how: reducer(  # type: ignore[method-assign]
            {name: value * float("nan") for name, value in delta.items()}, *rest, **how
        )
    report = one.inner_steps(plan)  # type: ignore[arg-type]
    try:
        one.compress(plan, report)  # type: ignore[arg-type]
    except DivergedError:
        raised = True
    after = {name: value.tolist() for name, value in one.residual.items()}
    return {"raised": raised, "before": before, "after": after, "anchor": one.state().anchor}


@pytest.mark.parametrize("verb", ["inner_steps", "compress", "outer_step"])
def test_a_worker_that_dies_fails_the_others_and_the_state_is_one_of_before_or_after(tmp_path: Path, verb: str) -> None:
    # given two workers, of which one is killed in the middle of a verb
    (told,) = team(outlives, 2, tmp_path, {}, verb, killed=1)
    # then the other hears of it, as Ray Train must to start the group again
    assert told["heard"] == "RuntimeError"
    # and one, or any number, goes on from a round's beginning
    one = alone(tmp_path / "state")
    assert (one.state().anchor, one.state().round) == (told["anchor"], told["round"])
    assert (one.pending is not None) is (verb == "outer_step")
    assert one.inner_steps(told_plan(one)).steps == 3


def told_plan(one: Session) -> Any:
    return SimpleNamespace(round=one.state().round, train_seconds=100.0, slot=0)


def outlives(worker: Worker, folder: Path, verb: str) -> dict[str, Any]:
    one = session(folder / "state", shared(), worker)
    two_rounds(one)
    found = {"anchor": one.state().anchor, "round": one.state().round}
    plan = told_plan(one)
    dies = worker.rank == 1

    def die(*args: Any, **how: Any) -> Any:
        os._exit(9)

    try:
        if dies and verb == "inner_steps":
            one.on_step = die
        report = one.inner_steps(plan)
        if dies and verb == "compress":
            one.reducer.compress = die  # type: ignore[method-assign]
        one.compress(plan, report)
        assert one.pending is not None
        payload = one.pending.payload
        if dies:
            one.reducer.aggregate = die  # type: ignore[method-assign]
        one.outer_step(SimpleNamespace(void=False, round=plan.round, counted=[
            SimpleNamespace(payload=blob_digest(payload), share=1.0)], applies=lambda digest: True,
        ), {blob_digest(payload): payload})  # fmt: skip
    except RuntimeError:
        return {**found, "heard": "RuntimeError"}
    return {**found, "heard": ""}


def test_bytes_get_around_and_what_fails_on_one_fails_on_all_with_the_same_words(tmp_path: Path) -> None:
    told = team(talks, 3, tmp_path)
    assert told == [[["", "b", "cc"], "hello", [3.0, 6.0], "DivergedError: not on my watch"]] * 3


def talks(worker: Worker, folder: Path) -> list[Any]:
    def work() -> None:
        if worker.rank == 1:
            raise DivergedError("not on my watch")

    gathered = [each.decode() for each in worker.gather(b"abc"[worker.rank : worker.rank + 1] * worker.rank)]
    told = worker.tell(b"hello" if worker.rank == 0 else None).decode()
    sums = worker.sums([1.0, 2.0])
    try:
        worker.together(work)
    except ElasticError as error:
        return [gathered, told, sums, f"{type(error).__name__}: {error}"]
    return []


def test_of_two_faults_all_workers_hear_of_the_same_one(tmp_path: Path) -> None:
    assert team(fails_in_two_ways, 2, tmp_path) == ["StateError: disk full"] * 2


def fails_in_two_ways(worker: Worker, folder: Path) -> str:
    def work() -> None:
        raise [StateError("disk full"), DivergedError("not finite")][worker.rank]

    try:
        worker.together(work)
    except ElasticError as error:
        return f"{type(error).__name__}: {error}"
    return ""


# --- models of others, states of others ------------------------------------------------------------------------------


class Tied(nn.Module):  # type: ignore[misc]
    """A model whose output is its embedding, under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(16, 4), nn.Linear(4, 16, bias=False)
        self.output.weight = self.embedding.weight

    def loss(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        logits = self.output(self.embedding(tokens_BT[:, :-1]))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_parameter_with_two_names_stays_one(device: str) -> None:
    with torch.device(device):
        model = Tied()
    fitted = Fitted(model, Worker())
    assert list(fitted.params) == ["embedding.weight"] and model.output.weight is model.embedding.weight
    fitted.fill(lambda name: torch.ones(16, 4), {"embedding.weight": 0})
    assert float(fitted.look("loss", torch.zeros(1, 3, dtype=torch.int64))) == pytest.approx(math.log(16))


def test_a_parameter_with_two_names_cannot_be_sharded() -> None:
    with pytest.raises(ConfigError, match="Tied has one parameter under two names"):
        Fitted(Tied(), Worker(how=Worker().how.model_copy(update={"precision": "bf16"})))


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"0", lambda data: b"x" + data[1:]])
def test_a_state_of_another_model_changes_nothing(tmp_path: Path, damage: Any) -> None:
    one, other = alone(tmp_path / "one"), alone(tmp_path / "other", seed=1)
    before, files = one.state(), sorted((tmp_path / "one" / "files").iterdir())
    with pytest.raises(MalformedError):
        one.load(damage(Path(other.state().state_path).read_bytes()), RoundIndex(5))
    assert one.state() == before and alone(tmp_path / "one").state() == before
    assert sorted((tmp_path / "one" / "files").iterdir()) == files


def test_whoever_is_told_of_a_step_hears_its_mean_loss_whatever_part_of_the_batch_it_has() -> None:
    # given a worker with one of five sequences, so that its part of the mean weighs little
    told: list[float] = []
    model = nn.Linear(1, 1)
    batch = torch.ones(1, 3, dtype=torch.int64)
    batches = [pieces(batch, batch, 5, 4)]
    # when
    report = run_inner_steps(
        lambda tokens: model.weight.sum() * 0 + 2.0, make_optimizer(model, shared().inner), batches,
        learning_rates=lambda step: 0.0, clip_norm=1.0, stop=Stop(100.0),
        on_step=lambda step, loss: bool(told.append(float(loss))),
    )  # fmt: skip
    # then
    assert told == [2.0] and report.mean_loss == pytest.approx(2.0 * 4 / 5)


# --- who has what ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 9))
def test_every_tensor_has_one_owner_and_nobody_has_much_more_than_its_part(sizes: list[int], world_size: int) -> None:
    like = {f"w{number}": torch.empty(size, device="meta") for number, size in enumerate(sizes)}
    found = owners(like, world_size)
    assert found.keys() == like.keys() and set(found.values()) <= set(range(world_size))
    loads = [sum(like[name].numel() for name in found if found[name] == rank) for rank in range(world_size)]
    assert max(loads) <= sum(sizes) / world_size + max(sizes, default=0)
    assert found == owners(dict(reversed(like.items())), world_size)


@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 7))
def test_pieces_are_all_sequences_once_and_weigh_alike_on_any_number_of_workers(
    batch_size: int, world_size: int, most: int
) -> None:
    # given sequences with a loss of their own each
    batch = torch.arange(batch_size, dtype=torch.int64)[:, None].repeat(1, 4)
    # when
    each = [pieces(batch[rank::world_size], batch[:1], batch_size, world_size, most) for rank in range(world_size)]
    # then
    assert len({len(found) for found in each}) == 1
    seen = [row for found in each for piece in found if piece.weight for row in piece.tokens_BT[:, 0].tolist()]
    assert sorted(seen) == list(range(batch_size))
    assert sum(piece.num_tokens for found in each for piece in found) == batch_size * 3
    assert all(len(piece.tokens_BT) <= most for found in each for piece in found if most)
    mean = sum(piece.weight * float(piece.tokens_BT.double().mean()) for found in each for piece in found) / world_size
    assert mean == pytest.approx(float(batch.double().mean()))
