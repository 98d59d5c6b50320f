"""An incentive that fails costs fairness, and not the run."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from elastic.errors import StateError
from elastic.guard import Guarded
from elastic.messages import PeerId, RoundIndex, Scoreboard
from elastic.wire.signing import Identity
from incentives.uniform import Uniform
from tests.contract.test_incentive import header

ANN, BOB, CYD = sorted(Identity.generate().peer for _ in range(3))
ONE = RoundIndex(1)


def answering(method: str, answer: Callable[..., Any]) -> Guarded:
    """A uniform incentive with one method of somebody else's."""
    broken = Uniform(Uniform.Config())
    setattr(broken, method, answer)
    return Guarded("broken", broken, Uniform(Uniform.Config()))


def fails(*_: object) -> Any:
    raise ZeroDivisionError("division by zero")


async def afails(*_: object) -> Any:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    "answer",
    [
        fails,
        lambda *_: None,
        lambda accepted: {each.peer: float("nan") for each in accepted},
        lambda accepted: {each.peer: 1.0 for each in accepted},
        lambda accepted: {CYD: 1.0},
        lambda accepted: {},
        lambda accepted: {ANN: 0.0, BOB: 0.0},
        lambda accepted: {ANN: 1.5, BOB: -0.5},
        lambda accepted: {ANN: "much"},
    ],
)
def test_shares_that_are_none_are_equal(answer: Callable[..., Any]) -> None:
    guarded = answering("shares", answer)
    assert guarded.shares([header(ANN, 100), header(BOB, 100)]) == {ANN: 0.5, BOB: 0.5}


@pytest.mark.parametrize(
    "answer", [fails, lambda *_: None, lambda *_: [CYD], lambda r, c, n: [*c, *c], lambda r, c, n: c]
)
def test_a_selection_that_is_none_is_everyones(answer: Callable[..., Any]) -> None:
    guarded = answering("select", answer)
    chosen = guarded.select(ONE, [ANN, BOB], 1)
    assert len(chosen) == 1
    assert set(chosen) < {ANN, BOB}


@pytest.mark.parametrize("answer", [fails, lambda *_: None, lambda *_: {ANN: float("inf")}])
def test_trust_that_is_none_leaves_the_validators(answer: Callable[..., Any]) -> None:
    assert answering("trust", answer).trust(ONE, [ANN, BOB]) == {ANN: 0.0, BOB: 0.0}


@pytest.mark.parametrize("answer", [fails, lambda *_: None, lambda *_: Scoreboard(round=RoundIndex(9), scores={})])
def test_scores_that_are_none_are_nobodys(answer: Callable[..., Any]) -> None:
    assert answering("score", answer).score(ONE, []) == Scoreboard(round=ONE, scores={})


async def test_nothing_else_it_does_ends_the_peer_and_each_fault_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    # given an incentive of which nothing works
    broken = answering("hear", fails)
    broken.within.settle, broken.within.state = afails, fails  # type: ignore[method-assign]
    # when a swarm uses it for two rounds
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            broken.hear([])
            await broken.settle(Scoreboard(round=ONE, scores={}))
            assert broken.state() is None, "what was saved before must stay"
    # then
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "the incentive broken fails at hear", "the incentive broken fails at settle",
        "the incentive broken fails at state",
    ]  # fmt: skip


@pytest.mark.parametrize("saved", [{}, {"round": "x", "memory": {}}, {"round": 3}])
def test_a_memory_that_is_none_is_an_error_that_says_so(saved: dict[str, Any]) -> None:
    with pytest.raises(StateError):
        answering("restore", lambda state: None).restore(saved)
    with pytest.raises(StateError, match="ZeroDivisionError"):
        answering("restore", fails).restore({"round": 3, "memory": {}})


def test_who_is_no_more_there_is_no_part_of_the_memory() -> None:
    guarded = answering("hear", fails)
    guarded.score(RoundIndex(7), [])
    again = Guarded("again", Uniform(Uniform.Config()), Uniform(Uniform.Config()))
    saved = guarded.state()
    assert saved is not None
    again.restore(saved)
    assert again.round == 7


def test_a_peer_that_is_nobody_is_no_candidate() -> None:
    guarded = answering("select", lambda *_: [PeerId("nobody")])
    assert set(guarded.select(ONE, [ANN, BOB], 4)) == {ANN, BOB}
