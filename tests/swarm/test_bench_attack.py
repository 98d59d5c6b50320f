"""Small swarms with bad peers, from the first round to the figures."""

from dataclasses import replace

import pytest

from elastic.bench.attack.measure import Cell, Outcome, measure
from elastic.bench.attack.swarm import Setting

SETTING = Setting(peers=8, bad=0.25)


def cell(kind: str, defence: str = "reputation", rounds: int = 6) -> Outcome:
    return replace(measure(Cell(kind, defence, 0, replace(SETTING, rounds=rounds))), validator_cost=0.0)


@pytest.mark.parametrize("kind", ["sign flip", "scale x100", "late copy", "nan"])
def test_gross_attacks_are_found_and_nobody_honest_is_shut_out(kind: str) -> None:
    found = cell(kind)
    assert (found.detected, found.bad) == (2, 2)
    assert (found.slashed, found.honest) == (0, 6)


def test_of_sybils_one_counts() -> None:
    assert cell("sybils", rounds=3).detected == 1


def test_half_the_work_is_not_shut_out_and_gets_little_for_it() -> None:
    # given two peers of eight that do half of their steps
    found, free = cell("sandbag 50 %"), cell("sandbag 50 %", "none")
    assert (found.detected, found.slashed) == (0, 0)
    # then they get less than half of what they claim to be worth, which without a defence they get
    assert free.gets > 0.25
    assert found.gets < 0.5 * free.gets
    assert found.held_out < free.held_out


def test_on_a_chain_who_does_harm_would_earn_nothing_and_who_trains_something() -> None:
    harmful, honest = cell("sign flip", "subnet"), cell("honest", "subnet")
    assert (harmful.detected, harmful.gets) == (2, 0.0)
    assert 0 < honest.gets < 0.5
    # and all else is as without one
    assert harmful.held_out == cell("sign flip").held_out


def test_honest_peers_in_the_places_of_bad_ones_are_not_found() -> None:
    found = cell("honest")
    assert (found.detected, found.slashed) == (0, 0)


def test_without_a_defence_harm_is_done_and_the_same_seed_does_the_same() -> None:
    alone, harmed = cell("absent", "none", 3), cell("sign flip", "none", 3)
    assert harmed.held_out > 1.02 * alone.held_out
    assert harmed.detected == 0
    assert cell("sign flip", "none", 3) == harmed
