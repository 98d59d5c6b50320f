"""Who is killed by `quickstart --chaos`, and when nobody is."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from elastic.actors import chaos as module
from elastic.actors.chaos import BOOTSTRAP, KINDS, Chaos
from elastic.messages import RoundIndex

PEERS = ("peer-1", "peer-2", "peer-3")
BOOTSTRAP_PID = 7
SECONDS = 20.0


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Peers with a process of each kind; killing them does nothing."""
    monkeypatch.setattr(module, "processes", lambda handle: dict.fromkeys(KINDS, 100))
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    return [SimpleNamespace(config=SimpleNamespace(local=SimpleNamespace(name=name))) for name in PEERS]


def reports(round_: int, *, counted: bool = True) -> list[Any]:
    return [SimpleNamespace(peer=name, name=name, round=RoundIndex(round_), counted=counted) for name in PEERS]


def killed(chaos: Chaos) -> list[tuple[str, str | None]]:
    return [(kill.kind, kill.peer) for kill in chaos.kills]


def run(seed: int, handles: list[Any], looks: int, rounds: int = 90) -> Chaos:
    """Looks at every time a kill may be due, in round 1."""
    chaos = Chaos(SECONDS, seed, rounds, lambda line: None)
    for number in range(looks + 1):
        chaos.look(handles, BOOTSTRAP_PID, reports(1), number * SECONDS)
    return chaos


def test_each_kind_has_its_turn_and_the_bootstrap_only_once(handles: list[Any]) -> None:
    # when
    chaos = run(0, handles, 2 * len(KINDS) + 1)
    # then
    kinds = [kind for kind, _ in killed(chaos)]
    assert sorted(kinds[: len(KINDS) + 1]) == sorted([*KINDS, BOOTSTRAP])
    assert sorted(kinds[len(KINDS) + 1 :]) == sorted(KINDS)


def test_a_seed_chooses_the_same_victims_again(handles: list[Any]) -> None:
    assert killed(run(1, handles, 12)) == killed(run(1, handles, 12)) != killed(run(2, handles, 12))


def test_nobody_is_killed_before_all_have_finished_a_round_nor_too_often_nor_near_the_end(handles: list[Any]) -> None:
    chaos = Chaos(SECONDS, 0, 30, lambda line: None)
    # before all have finished a round
    chaos.look(handles, BOOTSTRAP_PID, reports(1)[:2], 0.0)
    chaos.look(handles, BOOTSTRAP_PID, reports(1)[:2], 10 * SECONDS)
    assert not chaos.kills
    # nor before its time
    chaos.look(handles, BOOTSTRAP_PID, reports(1), 11 * SECONDS)
    chaos.look(handles, BOOTSTRAP_PID, reports(1), 11.9 * SECONDS)
    assert not chaos.kills
    # nor in the last third
    chaos.look(handles, BOOTSTRAP_PID, reports(20), 20 * SECONDS)
    assert not chaos.kills
    # nor more than one for three rounds
    assert len(run(0, handles, 100, rounds=30).kills) == 10


def test_a_victim_is_back_with_the_first_report_that_counts_it(handles: list[Any]) -> None:
    # given
    chaos = run(0, handles, 1)
    kill = chaos.kills[0]
    at = kill.at
    # when a round does not count it, and the next one does
    chaos.look(handles, BOOTSTRAP_PID, [*reports(1), *reports(2, counted=False)], at + 5.0)
    assert kill.back_after is None
    chaos.look(handles, BOOTSTRAP_PID, [*reports(1), *reports(2, counted=False), *reports(3)], at + 9.0)
    chaos.look(handles, BOOTSTRAP_PID, [*reports(1), *reports(2, counted=False), *reports(3)], at + 11.0)
    # then
    assert kill.back_after == 9.0


def test_what_has_not_started_is_left_for_later(handles: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # given peers of which nothing runs
    monkeypatch.setattr(module, "processes", lambda handle: {})
    # when
    chaos = run(0, handles, 3)
    # then only the bootstrap can be killed
    assert killed(chaos) == [(BOOTSTRAP, None)]
