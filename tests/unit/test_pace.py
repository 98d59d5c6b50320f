"""Deadlines over many rounds: what slow peers, stallers and liars make of them, and who is left out."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.agreement.manifests import check_manifest, genesis
from elastic.agreement.simplex import max_liars, proposer_of
from elastic.config import Shared
from elastic.errors import MalformedError
from elastic.messages import (
    MAX_VALIDATORS,
    PACE_ROUNDS,
    Manifest,
    PeerId,
    RejectReason,
    RoundIndex,
    RoundPlan,
    Verdict,
    View,
    digest_of,
)
from elastic.round import PROPOSER_SECONDS, _turns, talk_seconds
from elastic.schedule.absences import LONGEST, REMEMBERED, Absences
from elastic.schedule.clock import ManualClock
from elastic.schedule.phases import Phases
from elastic.schedule.plan import MOST_PATIENCE, next_pace, next_patience, plan_round, round_deadline
from elastic.seen import Seen
from elastic.wire.signing import Identity

ME = Identity.generate()
PEERS = sorted(Identity.generate().peer for _ in range(6))
ANCHOR = digest_of(b"anchor")
SHARED = Shared.model_validate({"run": "demo", "agreement": {"validators": (ME.peer,)}})
FAST = 10.0
"""Seconds that a whole set of inner steps takes, and the way to the others."""

Behaviour = Callable[[RoundPlan], float]
"""Plan → when the contribution is there; inf: never."""


def honest(slowness: float) -> Behaviour:
    """Trains until it is done or its time is up."""
    return lambda plan: min(FAST * slowness, plan.train_seconds)


def planned(pace: tuple[float, ...], roster: list[PeerId]) -> RoundPlan:
    head = genesis("demo", ANCHOR, roster, ME.peer).model_copy(update={"pace": pace, "round": RoundIndex(4)})
    return plan_round(SHARED, head, ANCHOR, roster[0])


def lived(behaviours: Mapping[PeerId, Behaviour], rounds: int = 40) -> list[tuple[float, RoundPlan]]:
    """(length of the round, its plan) for each round; everyone is on every roster."""
    pace: tuple[float, ...] = ()
    history = []
    for _ in range(rounds):
        plan = planned(pace, sorted(behaviours))
        there = {peer: behaviour(plan) for peer, behaviour in behaviours.items()}
        in_time = {peer: seconds for peer, seconds in there.items() if seconds <= plan.gather_seconds}
        everyone = len(in_time) == len(there)
        history.append((max(in_time.values()) if everyone else plan.gather_seconds, plan))
        pace = next_pace(plan, in_time)
    return history


def test_a_peer_four_times_slower_contributes_what_it_has_and_slows_nobody_for_ever() -> None:
    # given three peers, of which one is four times slower
    history = lived({PEERS[0]: honest(1), PEERS[1]: honest(1), PEERS[2]: honest(4)})
    # then rounds settle at what the others need, and the slow one does a part of its steps in each
    lengths = [length for length, _ in history[3:]]
    assert max(lengths) < 2 * FAST
    assert all(1.5 * FAST < plan.train_seconds < 4 * FAST for _, plan in history[3:])


def test_who_always_commits_at_the_last_moment_does_not_drive_the_deadline() -> None:
    # given one of three that is there just before nobody waits any more
    last = lived({PEERS[0]: honest(1), PEERS[1]: honest(1), PEERS[2]: lambda plan: 0.97 * plan.gather_seconds})
    # then the deadline is that of the honest ones
    assert all(plan.gather_seconds == round_deadline(SHARED.round, [FAST]) for _, plan in last[2:])


def test_a_minority_of_proposers_that_lie_moves_nothing_far() -> None:
    honest_ones, lies = [9.0, 10.0, 10.0, 11.0, 12.0, 10.0], [86_400.0, 0.001]
    deadline = round_deadline(SHARED.round, [*honest_ones, *lies])
    assert round_deadline(SHARED.round, [min(honest_ones)]) <= deadline <= round_deadline(SHARED.round, [12.0])


def test_when_everyone_becomes_slower_the_deadline_follows() -> None:
    # given a swarm whose inner steps take five times as long from one round to the next
    pace = (FAST,) * PACE_ROUNDS
    for _ in range(30):
        plan = planned(pace, PEERS)
        pace = next_pace(plan, {peer: min(5 * FAST, plan.train_seconds) for peer in PEERS})
    # then after some rounds with less than all steps they have time for all of them
    assert planned(pace, PEERS).train_seconds > 5 * FAST


@given(st.lists(st.floats(0, 1e4), max_size=6), st.lists(st.floats(0.001, 1e4), max_size=PACE_ROUNDS))
def test_a_pace_is_that_of_half_the_roster_or_as_before(came: list[float], before: list[float]) -> None:
    plan = planned(tuple(before), PEERS)
    after = next_pace(plan, dict(zip(PEERS, came, strict=False)))
    if len(came) < 3:
        assert after == plan.pace
    else:
        assert after[-1] == pytest.approx(max(sorted(came)[2], 0.001), abs=0.001)
        assert after[:-1] == (*plan.pace, 0.0)[-PACE_ROUNDS:-1]


def test_rounds_in_vain_make_patient_and_what_patience_was_of_use_for_keeps_it() -> None:
    plan = planned((FAST,), PEERS)
    soon, late = plan.gather_seconds - 1, plan.gather_seconds + 1
    # given a swarm in which a validator that all others need is too late three times
    known = [1.0]
    for _ in range(3):
        known.append(next_patience(known[-1], False, late, plan))
    assert known == [1.0, 2.0, 4.0, 8.0]
    # then it stays patient as long as that is of use, and forgets it when it is not
    assert next_patience(8.0, True, late, plan) == 8.0
    assert next_patience(8.0, True, soon, plan) == 4.0
    assert next_patience(1.0, True, soon, plan) == 1.0
    # and never waits for ever
    assert next_patience(MOST_PATIENCE, False, late, plan) == MOST_PATIENCE


def test_strangers_and_who_came_too_late_have_no_pace() -> None:
    plan = planned((5.0,), PEERS[:3])
    assert next_pace(plan, {PEERS[0]: 1.0, PEERS[5]: 1.0, PEERS[4]: 1.0}) == (5.0,)
    assert next_pace(plan, {PEERS[0]: 1.0, PEERS[1]: inf}) == (5.0,)


@pytest.mark.parametrize(
    ("before", "after", "holds"),
    [
        ((), (), True), ((), (3.0,), True), ((1.0,), (1.0,), True), ((1.0,), (1.0, 3.0), True),
        ((1.0,), (3.0,), False), ((1.0, 2.0), (1.0,), False), ((1.0,), (1.0, 2.0, 3.0), False),
        ((1.0,) * 8, (1.0,) * 7 + (2.0,), True), ((1.0,) * 7 + (2.0,), (1.0,) * 8, False),
    ],
)  # fmt: skip
def test_a_manifest_cannot_forget_how_long_rounds_took(
    before: tuple[float, ...], after: tuple[float, ...], holds: bool
) -> None:
    previous = genesis("demo", ANCHOR, [ME.peer], ME.peer).model_copy(update={"pace": before, "round": RoundIndex(3)})
    later = Manifest(
        run="demo", round=RoundIndex(4), previous=previous.digest(), anchor=ANCHOR, roster=(), proposer=ME.peer,
        pace=after,
    )  # fmt: skip
    try:
        check_manifest(ME.sign(later), run="demo", validators=[ME.peer], previous=previous)
    except MalformedError as error:
        assert "forgets how long" in str(error)
        assert not holds
    else:
        assert holds


def test_who_does_not_come_is_left_out_for_longer_each_time() -> None:
    # given one who shows its card in every round, and never contributes
    absences, waited = Absences(), []
    for number in range(1, 200):
        round_ = RoundIndex(number)
        roster = [peer for peer in PEERS[:3] if peer not in absences.left_out(round_)]
        if PEERS[2] in roster:
            waited.append(number)
        absences.note(round_, roster, PEERS[:2])
    # then it delays ever fewer rounds
    gaps = [later - sooner for sooner, later in pairwise(waited)]
    assert gaps == [2, 3, 5, 9, 17, 33, LONGEST + 1]


def test_who_comes_is_forgiven_and_nobody_is_blamed_for_a_void_round() -> None:
    absences = Absences()
    for number in (1, 3):
        absences.note(RoundIndex(number), PEERS[:2], [PEERS[0]])
    assert absences.left_out(RoundIndex(5)) == {PEERS[1]}
    absences.note(RoundIndex(6), PEERS[:2], PEERS[:2])
    assert not absences.left_out(RoundIndex(7))
    absences.note(RoundIndex(7), PEERS, [])
    assert not absences.left_out(RoundIndex(8))


def test_the_memory_of_absences_is_bounded() -> None:
    absences = Absences()
    for number in range(REMEMBERED + 50):
        absences.note(RoundIndex(1), [PeerId(f"stranger{number}"), PEERS[0]], [PEERS[0]])
    assert len(absences.left_out(RoundIndex(2))) == REMEMBERED


@pytest.mark.parametrize(
    ("rejected", "waits"),
    [(None, True), (RejectReason.UNFETCHABLE, True), (RejectReason.MALFORMED, True), (RejectReason.MISSING, False)],
)
def test_only_a_proposer_of_whom_nothing_was_heard_is_not_waited_for(
    rejected: RejectReason | None, waits: bool
) -> None:
    # given what was heard of the first proposer by the deadline
    first = proposer_of("demo", RoundIndex(3), View(0), PEERS)
    seen = Seen({}, {first: Verdict(peer=first, round=RoundIndex(3), rejected=rejected)})
    clock = ManualClock()
    one: Any = SimpleNamespace(clock=clock)
    plan: Any = SimpleNamespace(
        run="demo", round=RoundIndex(3), gather_seconds=0.0, roster=tuple(PEERS), validators=tuple(PEERS)
    )
    # then
    times = _turns(one, plan, seen, Phases(clock, lambda phase: None))
    assert (times.proposer > clock.now()) is waits


@pytest.mark.parametrize(
    ("validators", "turns"), [(1, 3), (4, 3), (7, 3), (9, 3), (10, 4), (12, 4), (13, 5), (MAX_VALIDATORS, 6)]
)
def test_a_round_is_waited_for_until_one_who_is_there_has_had_its_turn(validators: int, turns: int) -> None:
    # given that as many proposers in a row are dead as may be
    assert turns > max_liars(validators)
    # then their turns fit, each twice as long as the one before, and the next one's
    assert talk_seconds(validators) == sum(PROPOSER_SECONDS * 2**turn for turn in range(turns))
