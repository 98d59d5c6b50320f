"""An evaluator: which anchors it measures, that it waits for none of it, and where the results go."""

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from elastic.actors import evaluating as room
from elastic.actors.evaluating import KEPT_FILE, Evaluating, EvaluatorActor, last_evaluated
from elastic.actors.journal import Journal
from elastic.actors.launch import start_peer
from elastic.check import check_plugins, check_values, notes
from elastic.config import RunConfig, parse_config
from elastic.contracts import TrainerState
from elastic.errors import ConfigError, MissingExtraError, StateError
from elastic.evals.due import is_due
from elastic.messages import Digest, RoundIndex
from elastic.metrics import Meters
from elastic.reports import EVALUATIONS_FILE, Evaluation, Measured
from elastic.view import status_table
from elastic.wire.dense import encode_state
from elastic.wire.signing import Identity
from elastic.wire.tree import blob_digest
from model_zoo.llama import Llama

EVERY = 2


def config(folder: Path, **evaluator: Any) -> RunConfig:
    key = Identity.load_or_create(folder / "someone.key").peer
    tree = {
        "shared": {"run": "demo", "agreement": {"validators": [key]}, "model": {"name": "llama", "layers": 1}},
        "local": {"state_dir": "state", "evaluator": {"every": EVERY, **evaluator}},
    }
    return parse_config(tree, base=folder)


class FakeEvaluator:
    """Stands for the actor, which is Ray's: it measures when it is told to."""

    made: list["FakeEvaluator"] = []  # noqa: RUF012 (cleared by the fixture)

    def __init__(self, config: RunConfig) -> None:
        self.go, self.fails, self.closed = asyncio.Event(), None, False  # type: ignore[var-annotated]
        self.read: dict[RoundIndex, bytes] = {}
        self.made.append(self)

    async def evaluate(self, state: TrainerState, path: Path) -> Evaluation:
        await self.go.wait()
        if self.fails is not None:
            raise self.fails
        self.read[state.round] = path.read_bytes()  # noqa: ASYNC240
        found = Measured(task="facts", metric="acc", value=0.25, stderr=0.05, samples=84)
        return Evaluation(run="demo", round=state.round, anchor=state.anchor, seconds=1.0, results=(found,))

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def evaluators(monkeypatch: pytest.MonkeyPatch) -> list[FakeEvaluator]:
    monkeypatch.setattr(room, "RemoteEvaluator", FakeEvaluator)
    FakeEvaluator.made.clear()
    return FakeEvaluator.made


class Evaluator:
    """One life of an evaluator, and what it wrote down."""

    def __init__(self, folder: Path, **evaluator: Any) -> None:
        self.config, self.meters = config(folder, **evaluator), Meters()
        self.config.local.state_dir.mkdir(exist_ok=True)
        self.journal = Journal(self.config, Identity.generate().peer, meters=self.meters)
        self.evaluating = Evaluating(self.config, self.journal, self.meters)

    def holds(self, round_: int) -> None:
        """It has the anchor of that round; the trainer keeps no older one."""
        path = self.config.local.state_dir / f"anchor-{round_}"
        for old in path.parent.glob("anchor-*"):
            old.unlink()
        path.write_bytes(b"%d" % round_)
        self.evaluating.offer(TrainerState(RoundIndex(round_), Digest("ab" * 32), 1, str(path)))

    def written(self) -> list[int]:
        path = self.config.local.state_dir / EVALUATIONS_FILE
        return [Evaluation.from_bytes(line).round for line in path.read_bytes().splitlines()] if path.exists() else []

    async def idle(self) -> None:
        """Until nothing is being measured."""
        running = self.evaluating._running
        assert running is not None
        await running


@pytest.mark.parametrize(
    ("holds", "last", "due"),
    [(0, None, False), (1, None, True), (2, None, False), (3, 1, True), (3, 3, False), (4, 1, False), (5, 3, True)],
)
def test_the_beginning_and_every_so_many_rounds_are_due(holds: int, last: int | None, due: bool) -> None:
    assert is_due(RoundIndex(holds), EVERY, None if last is None else RoundIndex(last)) is due


async def test_every_due_anchor_is_measured_and_told(tmp_path: Path, evaluators: list[FakeEvaluator]) -> None:
    one = Evaluator(tmp_path)
    for round_ in range(6):
        one.holds(round_)
        await asyncio.sleep(0)
        if evaluators:
            evaluators[0].go.set()
            await one.idle()

    assert one.written() == [1, 3, 5]
    assert evaluators[0].read == {1: b"1", 3: b"3", 5: b"5"}
    assert one.meters.numbers("swarm.evaluation.value") == {(("swarm.task", "facts"),): 0.25}
    assert one.meters.numbers("swarm.evaluation.round") == {(): 5}
    assert "evaluated before round 5: facts 0.2500 ± 0.0500" in status_table([one.journal.status], 110)
    assert not (one.config.local.state_dir / KEPT_FILE).exists()


async def test_no_round_waits_for_a_measurement_and_none_is_of_another_anchor(
    tmp_path: Path, evaluators: list[FakeEvaluator], caplog: pytest.LogCaptureFixture
) -> None:
    # given one that takes five rounds, in which the trainer removes the anchor
    one = Evaluator(tmp_path)
    one.holds(1)
    await asyncio.sleep(0)
    with caplog.at_level(logging.WARNING):
        for round_ in (2, 3, 4, 5, 6):
            one.holds(round_)
    # then those that were due meanwhile are left out, and it is said
    assert [line for line in caplog.messages if "raise local.evaluator.every" in line] == [
        f"the model before round {round_} is not evaluated: another one still is; raise local.evaluator.every"
        for round_ in (3, 5)
    ]
    # when it is done
    evaluators[0].go.set()
    await one.idle()
    one.holds(7)
    await one.idle()
    # then it was of the anchor that it was to be of, and the next one has its turn
    assert evaluators[0].read == {1: b"1", 7: b"7"} and one.written() == [1, 7]


@pytest.mark.parametrize("error", [StateError("no text\nhere"), RuntimeError("out of memory"), OSError()])
async def test_one_that_fails_is_a_line_in_the_log(
    tmp_path: Path, evaluators: list[FakeEvaluator], caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    one = Evaluator(tmp_path)
    one.holds(1)
    await asyncio.sleep(0)
    evaluators[0].fails = error
    evaluators[0].go.set()
    await one.idle()
    assert "the model before round 1 is not evaluated: " in caplog.messages[-1] and "\n" not in caplog.messages[-1]
    assert one.meters.numbers("swarm.evaluations.failed") == {(): 1}
    # and the next one is tried
    evaluators[0].fails = None
    one.holds(3)
    await one.idle()
    assert one.written() == [3]


async def test_an_anchor_that_is_gone_is_a_line_in_the_log(tmp_path: Path) -> None:
    one = Evaluator(tmp_path)
    one.evaluating.offer(TrainerState(RoundIndex(1), Digest("ab" * 32), 1, str(tmp_path / "nowhere")))
    assert one.meters.numbers("swarm.evaluations.failed") == {(): 1}
    await one.evaluating.close()


async def test_at_the_end_the_last_anchor_is_measured_whatever_its_turn(
    tmp_path: Path, evaluators: list[FakeEvaluator]
) -> None:
    one = Evaluator(tmp_path)
    for round_ in (1, 2, 3, 4):
        one.holds(round_)
    await asyncio.sleep(0)
    evaluators[0].go.set()
    await one.evaluating.finish()
    assert one.written() == [1, 4]
    await one.evaluating.finish()
    assert one.written() == [1, 4], "and once"


async def test_the_next_life_measures_nothing_twice(tmp_path: Path, evaluators: list[FakeEvaluator]) -> None:
    one = Evaluator(tmp_path)
    one.holds(3)
    await asyncio.sleep(0)
    evaluators[0].go.set()
    await one.idle()
    # when it is killed while it writes, and comes back
    path = one.config.local.state_dir / EVALUATIONS_FILE
    path.write_bytes(path.read_bytes() + b'{"run": "de')
    again = Evaluator(tmp_path)
    again.holds(3)
    # then
    assert len(evaluators) == 1 and last_evaluated(again.config) == 3
    path.write_bytes(b"")
    assert last_evaluated(again.config) is None


async def test_it_ends_in_the_middle_of_something(tmp_path: Path, evaluators: list[FakeEvaluator]) -> None:
    one = Evaluator(tmp_path)
    one.holds(1)
    await asyncio.sleep(0)
    await one.evaluating.close()
    assert evaluators[0].closed and one.written() == []


async def test_who_is_no_evaluator_measures_nothing(tmp_path: Path, evaluators: list[FakeEvaluator]) -> None:
    one = Evaluator(tmp_path, every=0)
    one.holds(1)
    await one.evaluating.finish()
    await one.evaluating.close()
    assert not evaluators and one.meters.numbers("swarm.evaluations.failed") == {}


def test_the_actor_measures_the_model_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    # given an anchor of the run
    monkeypatch.setattr(os, "nice", lambda more: more)
    settings = config(tmp_path, tasks=["bits_per_byte"], limit=2)
    model = Llama(Llama.Config(layers=1))
    model.initialize(0)
    data = encode_state({name: param.detach() for name, param in model.named_parameters()})
    path = tmp_path / "anchor.bin"
    path.write_bytes(data)
    actor = EvaluatorActor(settings)
    # when
    found = actor.evaluate(RoundIndex(1), blob_digest(data), path)
    # then
    (bits,) = found.results
    assert (bits.task, bits.samples) == ("bits_per_byte", 2) and 7 < bits.value < 10, bits
    # and another digest than was agreed is none of the run's
    with pytest.raises(StateError, match="damaged"):
        actor.evaluate(RoundIndex(1), Digest("ab" * 32), path)


# --- the run file ---------------------------------------------------------------------------------------------------


def test_a_validators_key_is_no_evaluators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path)
    local = settings.local.model_copy(update={"key": tmp_path / "someone.key"})
    with pytest.raises(ConfigError, match="an evaluator decides nothing"):
        start_peer(settings.model_copy(update={"local": local}))
    # and `elastic check` knows it, too
    with pytest.raises(ConfigError, match="an evaluator decides nothing"):
        check_values(settings.model_copy(update={"local": local}))


def test_check_says_that_this_peer_takes_no_part(tmp_path: Path) -> None:
    assert any("local.evaluator: this peer watches" in note for note in notes(config(tmp_path)))
    assert not any("evaluator" in note for note in notes(config(tmp_path, every=0)))


def test_an_evaluator_needs_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elastic.check.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'elastic\[eval\]'"):
        check_plugins(config(tmp_path))
    check_plugins(config(tmp_path, every=0))


@pytest.mark.parametrize(
    ("evaluator", "says"),
    [({"tasks": ["hellaswag"]}, "tasks"), ({"tasks": []}, "tasks"), ({"limit": 0}, "limit"), ({"every": -1}, "every")],
)
def test_what_an_evaluator_cannot_do_is_told_by_the_run_file(
    tmp_path: Path, evaluator: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=rf"local\.evaluator\.{says}"):
        config(tmp_path, **evaluator)
