"""Who made a round slow, told from spans alone: one thing is planted, everything else is as usual."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_cases import RUN, Case, Times, usual

from elastic.tracing.culprit import NOBODY, Finding, find, findings, tally
from elastic.tracing.links import Links, Phase
from elastic.tracing.model import Event
from elastic.tracing.rounds import offsets, rounds_of

NAMES = ("ann", "bob", "cyd", "dan", "eve")


def slow(case: Case) -> Finding:
    (round_,) = rounds_of(case.spans())
    return find(round_)


def blamed(case: Case) -> tuple[str, Phase | None]:
    found = slow(case)
    return found.name, found.phase


def case(validators: int = 1, **changes: dict[str, float]) -> Case:
    peers = usual(*NAMES, validators=validators)
    return Case({name: replace(own, **changes.get(name, {})) for name, own in peers.items()})  # type: ignore[arg-type]


def test_nothing_planted_is_nobody_in_particular() -> None:
    found = slow(case())
    assert (found.peer, found.name, found.phase, found.lost) == (None, NOBODY, None, 0.0)
    assert "usually" in found.evidence


@pytest.mark.parametrize("who", NAMES)
@pytest.mark.parametrize(
    ("what", "phase"),
    [
        ({"inner": 5.0}, Phase.COMPUTE),
        ({"compress": 3.0}, Phase.COMPUTE),
        ({"ray": 2.0}, Phase.RAY),
        ({"disk": 2.0}, Phase.DISK),
        ({"commit": 3.0}, Phase.DHT),
    ],
)
def test_whoever_is_slow_before_its_commitment(who: str, what: dict[str, float], phase: Phase) -> None:
    assert blamed(case(**{who: what})) == (who, phase)


def test_a_commitment_that_is_long_on_its_way_over_one_bad_line_is_that_lines_fault() -> None:
    made = case(ann={"commit": 3.0})
    made.transfers = {pair: 0.2 for other in NAMES for pair in ((other, "dan"), ("dan", other))}
    assert blamed(made) == ("dan", Phase.UPLINK)


def test_what_it_cost_is_the_excess_and_the_evidence_says_of_what() -> None:
    found = slow(case(cyd={"inner": 6.0}))
    assert 3.8 < found.lost < 4.0
    assert found.evidence == "inner steps: 6.00 s, usually 2.10 s, 166 tokens/s"


def test_a_slow_outer_step_behind_the_manifest() -> None:
    assert blamed(case(dan={"outer": 3.0})) == ("dan", Phase.COMPUTE)


def test_a_validator_that_checks_slowly() -> None:
    assert blamed(case(ann={"verify": 2.0})) == ("ann", Phase.VALIDATION)


def test_a_validator_that_votes_slowly() -> None:
    assert blamed(case(ann={"vote": 3.0})) == ("ann", Phase.VALIDATION)


def test_another_validator_that_is_waited_for_by_a_quorum() -> None:
    made = case(validators=4, bob={"vote": 4.0}, cyd={"vote": 4.1})  # three of four are needed
    assert slow(made).name in ("bob", "cyd")
    assert slow(made).phase is Phase.VALIDATION


def test_another_validator_whose_downloads_are_slow() -> None:
    made = case(validators=3)
    for maker in NAMES:
        for receiver in ("bob", "cyd"):
            made.transfers[maker, receiver] = 3.0
    assert slow(made).phase is Phase.DOWNLINK
    assert slow(made).name in ("bob", "cyd")


def test_a_slow_uplink_is_slow_to_everyone() -> None:
    made = case()
    made.transfers = {("cyd", other): 3.0 for other in NAMES}
    assert blamed(made) == ("cyd", Phase.UPLINK)


def test_a_slow_downlink_is_slow_from_everyone() -> None:
    made = case()
    made.transfers = {(other, "ann"): 3.0 for other in NAMES}
    assert blamed(made) == ("ann", Phase.DOWNLINK)


def test_a_full_uplink_slows_what_comes_in_too_and_a_full_downlink_hardly_what_goes_out() -> None:
    made = case()
    made.transfers = {pair: 3.0 for other in NAMES for pair in ((other, "bob"), ("bob", other))}
    assert blamed(made) == ("bob", Phase.UPLINK)
    made.transfers = {
        pair: seconds for other in NAMES for pair, seconds in (((other, "bob"), 3.0), (("bob", other), 0.6))
    }
    assert blamed(made) == ("bob", Phase.DOWNLINK)
    made.transfers |= {("bob", "ann"): 2.5, ("bob", "dan"): 2.5, ("bob", "eve"): 2.5, ("bob", "cyd"): 0.2}
    assert blamed(made) == ("bob", Phase.DOWNLINK)


def test_one_bad_pair() -> None:
    made = case()
    made.transfers = {("dan", "ann"): 3.0}
    assert blamed(made) == ("dan", Phase.PAIR)
    assert "on its way to ann" in slow(made).evidence


def test_who_sends_slowly_to_one_only_because_its_downlink_is_full() -> None:
    made = case()
    made.transfers = {(other, "bob"): 3.0 for other in NAMES} | {("bob", "ann"): 2.5}
    assert blamed(made) == ("bob", Phase.DOWNLINK)


def test_who_receives_slowly_from_one_only_because_its_uplink_is_full() -> None:
    made = case()
    made.transfers = {("ann", other): 3.0 for other in NAMES} | {("bob", "ann"): 2.5}
    assert blamed(made) == ("ann", Phase.UPLINK)


@pytest.mark.parametrize("whose", NAMES)
def test_votes_that_take_long_over_one_bad_line_are_its_fault(whose: str) -> None:
    # given validators that think fast and hear of each other late, and a line on which payloads take a little longer
    made = case(validators=2, bob={"vote": 4.0})
    made.transfers = {pair: 0.2 for other in NAMES for pair in ((other, whose), (whose, other))}
    assert blamed(made) == (whose, Phase.UPLINK)


@pytest.mark.parametrize("who", ["ann", "bob"])
def test_who_thinks_for_long_has_no_line_to_blame(who: str) -> None:
    made = case(validators=2, **{who: {"vote": 4.0, "think": 3.9}})
    made.transfers = {pair: 0.2 for other in NAMES for pair in ((other, "dan"), ("dan", other))}
    assert blamed(made) == (who, Phase.VALIDATION)


@pytest.mark.parametrize("who", ["ann", "bob"])
def test_whose_ballots_take_long_to_be_on_disk(who: str) -> None:
    made = case(validators=2, **{who: {"vote": 4.0, "ballots": 3.8}})
    made.transfers = {pair: 0.2 for other in NAMES for pair in ((other, "dan"), ("dan", other))}
    assert blamed(made) == (who, Phase.DISK)


def test_a_bad_way_between_two_is_not_taken_for_the_line_of_one_with_some_bad_luck_besides() -> None:
    made = case(validators=2, bob={"vote": 4.0})
    made.transfers = {("dan", "bob"): 0.9, ("bob", "dan"): 0.8, ("dan", "eve"): 0.2, ("cyd", "dan"): 0.1}
    assert slow(made).phase is Phase.PAIR
    assert slow(made).name in ("dan", "bob")


@pytest.mark.parametrize("names", [NAMES[:3], NAMES])
def test_a_line_that_is_a_little_slower_explains_nothing(names: tuple[str, ...]) -> None:
    # given peers that are next to each other, of which one needs 10 ms for a payload instead of 4
    peers = usual(*names, validators=2)
    made = Case(peers | {"bob": replace(peers["bob"], vote=4.0)})
    made.transfers = {(maker, receiver): 0.01 if "cyd" in (maker, receiver) else 0.004
                      for maker in names for receiver in names}  # fmt: skip
    assert blamed(made) == ("bob", Phase.VALIDATION)


def test_in_a_large_swarm_some_way_is_always_slow_and_explains_nothing() -> None:
    # given fifty peers with transfers as they are on the internet, and a vote that came late
    names, rng = tuple(f"peer{number}" for number in range(50)), random.Random(1)
    peers = usual(*names, validators=4)
    late = {name: replace(peers[name], vote=4.0) for name in names[1:3]}
    made = Case(peers | late)
    made.transfers = {(maker, receiver): rng.lognormvariate(-1.5, 0.5) for maker in names for receiver in names}
    assert slow(made).name in late
    assert slow(made).phase is Phase.VALIDATION


def test_with_three_peers_a_line_that_is_slow_both_ways_is_found() -> None:
    made = Case(usual(*NAMES[:3]))
    made.transfers = {pair: 3.0 for other in ("ann", "cyd") for pair in ((other, "bob"), ("bob", other))}
    assert blamed(made) == ("bob", Phase.UPLINK)


def test_who_is_alone_is_compared_with_nobody() -> None:
    assert slow(Case(usual("ann"))).peer is None


def test_who_began_early_is_not_slow_because_others_were_not_there_yet() -> None:
    made = case(**{name: {"late": 1.5} for name in NAMES[1:]})
    assert slow(made).name != "ann"


def test_a_dead_validator_whose_turn_was_first_makes_nobody_else_guilty() -> None:
    # given four validators, of which the one whose turn was first is dead and left no spans
    made = case(validators=4)
    dead = replace(made, silent=("dan",), missing=("dan",))
    spans = [
        replace(
            span,
            attributes={**span.attributes, "swarm.validators": 4, "swarm.first": "dan"},
            events=(*span.events, Event("proposes", span.start, {"swarm.view": "1"})),
            end=span.end + 6 * 10**9,
        )
        if span.name == "round.agree"
        else span
        for span in dead.spans()
    ]
    (round_,) = rounds_of(spans)
    assert find(round_).name in ("dan", NOBODY)


def test_votes_between_two_with_a_bad_way_between_them() -> None:
    made = case(validators=2, bob={"vote": 4.0})
    made.transfers = {("ann", "bob"): 0.6, ("bob", "ann"): 0.6}
    assert slow(made).phase is Phase.PAIR
    assert slow(made).name in ("ann", "bob")


def test_a_commitment_that_one_reader_saw_late_is_not_its_makers_fault() -> None:
    made = case()
    made.unseen = {("cyd", "ann"): 3.0}
    assert blamed(made) == ("ann", Phase.DHT)


def test_a_commitment_that_everyone_saw_late_is_that_of_a_late_maker_or_of_a_bad_line() -> None:
    made = case()
    made.unseen = {("cyd", reader): 3.0 for reader in NAMES}
    assert blamed(made) == ("cyd", Phase.COMPUTE)
    made.transfers = {pair: 0.2 for other in NAMES for pair in ((other, "dan"), ("dan", other))}
    assert blamed(made) == ("dan", Phase.UPLINK)


def test_who_is_still_busy_at_the_deadline() -> None:
    made = replace(case(eve={"inner": 9.0}), missing=("eve",))
    assert blamed(made) == ("eve", Phase.COMPUTE)


def test_who_is_gone() -> None:
    made = replace(case(eve={"inner": 99.0}), missing=("eve",), silent=("eve",))
    assert blamed(made) == ("eve", Phase.ABSENT)


def test_whose_payload_never_came() -> None:
    made = replace(case(), missing=("eve",), transfers={("eve", other): 9.0 for other in NAMES})
    assert blamed(made) == ("eve", Phase.UPLINK)


def test_who_leaves_no_spans_and_commits_late_is_named_by_what_others_saw() -> None:
    made = replace(case(eve={"inner": 6.0}), silent=("eve",))
    assert slow(made).peer == "eve"


def test_who_began_late_is_blamed_for_what_it_did_in_the_round_before() -> None:
    first = case(dan={"outer": 3.0})
    second = replace(case(dan={"late": 2.8}), index=2)
    found = findings(rounds_of([*first.spans(), *second.spans()]))
    assert [(each.name, each.phase) for each in found] == [("dan", Phase.COMPUTE)] * 2
    assert found[1].evidence.startswith("began late: the outer step")
    assert tally(found) == [("dan", "compute", 2, pytest.approx(found[0].lost + found[1].lost))]


@settings(deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=5, max_size=5))
def test_clocks_that_are_seconds_apart_change_nothing(errors: list[float]) -> None:
    for plant in ({"cyd": {"inner": 5.0}}, {"ann": {"verify": 2.0}}, {"dan": {"outer": 3.0}}, {}):
        right, wrong = case(**plant), case(**plant)
        for own, error in zip(wrong.peers.values(), errors, strict=True):
            own.clock = error
        assert blamed(wrong) == blamed(right)


@settings(deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=5, max_size=5))
def test_put_right_nobody_sees_a_commitment_before_it_was_made(errors: list[float]) -> None:
    made = case()
    for own, error in zip(made.peers.values(), errors, strict=True):
        own.clock = error
    (round_,) = rounds_of(made.spans())
    shifts = offsets(round_)
    base = round_.decider
    assert base is not None and shifts[base.peer] == 0
    for peer, other in round_.peers.items():
        commit = other.phase("commit")
        assert commit is not None
        for span in base.all("round.fetch"):
            if span.text("peer_from") == peer:
                assert commit.end / 1e9 + shifts[peer] <= span.start / 1e9 + 1e-3


def test_clocks_that_can_be_right_are_left_alone() -> None:
    (round_,) = rounds_of(case(bob={"clock": 0.05}).spans())
    assert set(offsets(round_).values()) == {0.0}


def test_two_peers_alone_have_a_link_between_them() -> None:
    made = Case({"ann": Times(decides=True), "bob": Times()}, transfers={("bob", "ann"): 3.0})
    assert blamed(made)[1] is Phase.PAIR


def test_without_any_other_transfer_nothing_is_usual() -> None:
    assert Links({}).usual() == 0.0
    assert Links({}).blame("a", "b", 1.0) == ("a", Phase.PAIR, 0.0)


def test_spans_that_claim_to_be_of_a_round_in_another_trace_are_left_out() -> None:
    spans = case().spans()
    forged = [replace(span, trace="0" * 31 + "1") for span in spans]
    assert len(rounds_of(spans + forged)) == 1
    assert rounds_of(forged) == []
    assert rounds_of(spans)[0].run == RUN


def test_a_round_of_which_only_the_root_is_known_says_so() -> None:
    made = case()
    found = slow(replace(made, silent=NAMES))
    assert (found.peer, found.evidence) == (None, "no spans to tell")


@settings(deadline=None)
@given(st.sets(st.integers(0, 200), max_size=120))
def test_spans_may_be_missing(lost: set[int]) -> None:
    spans = [span for at, span in enumerate(case(cyd={"inner": 5.0}).spans()) if at not in lost]
    for each in findings(rounds_of(spans)):
        assert each.lost >= 0 and each.evidence
