"""Ratings: from assessments to who helps."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.errors import StateError
from elastic.messages import Assessment, Evidence, PeerId, RejectReason, RoundIndex, Verdict
from elastic.verify.ratings import FADE, MEMORY_ROUNDS, WORK_TRIAL, Ratings, who_helped

PEERS = [PeerId("12D3KooW" + letter * 44) for letter in "ABCDEFGH"]
ANN, BEN, CAT, DAN = PEERS[:4]
SEED = 20261125


def seen(
    round_: int, peer: PeerId, gain: float | None = None, assigned: float | None = None, rejected: Any = None
) -> Evidence:
    assessment = None
    if gain is not None:
        own = 2 * gain if assigned is None else assigned
        assessment = Assessment(peer=peer, round=RoundIndex(round_), gain_assigned=own, gain_heldout=gain)
    verdict = Verdict(peer=peer, round=RoundIndex(round_), rejected=rejected)
    return Evidence(verdict=verdict, assessment=assessment)


def after(rounds: int, gains: dict[PeerId, float], ratings: Ratings | None = None, first: int = 1) -> Ratings:
    ratings = ratings or Ratings()
    for round_ in range(first, first + rounds):
        ratings.take_in(RoundIndex(round_), [seen(round_, peer, gain) for peer, gain in gains.items()])
    return ratings


def test_who_helps_more_is_rated_higher() -> None:
    ratings = after(20, {ANN: 0.03, BEN: 0.02, CAT: 0.01})
    scores = [ratings[peer].score(20) for peer in (ANN, BEN, CAT)]
    assert scores[0] > scores[1] > scores[2] >= 0
    assert ratings[DAN].score(20) == 0


def test_a_copy_cannot_show_that_it_works_where_it_was_told_to() -> None:
    # given one whose gains are as good, on whatever tokens
    print(f"seed {SEED}")  # noqa: T201
    rng, ratings = random.Random(SEED), Ratings()
    for round_ in range(1, 41):
        lucky = rng.choice([0.01, 0.03])
        ratings.take_in(RoundIndex(round_), [seen(round_, ANN, 0.02), seen(round_, BEN, 0.02, assigned=lucky)])
    # then the coin flips come to nothing, and honest work does not
    assert ratings[ANN].works is True and ratings[ANN].work > 0.8
    assert abs(ratings[BEN].work) < 0.5
    # and whoever is always found to help others' tokens more has no score at all
    for round_ in range(41, 81):
        ratings.take_in(RoundIndex(round_), [seen(round_, ANN, 0.02), seen(round_, BEN, 0.02, assigned=0.01)])
    assert ratings[BEN].works is False and ratings[BEN].score(80) == 0


def test_too_few_assessments_prove_nothing() -> None:
    assert after(WORK_TRIAL - 1, {ANN: 0.02, BEN: 0.01})[ANN].works is None
    assert after(WORK_TRIAL, {ANN: 0.02, BEN: 0.01})[ANN].works is True


@pytest.mark.parametrize("reason", [RejectReason.MALFORMED, RejectReason.EQUIVOCAL, RejectReason.MISSING])
def test_who_sends_nothing_of_use_plays_last(reason: RejectReason) -> None:
    ratings = after(10, {ANN: 0.02, BEN: 0.01})
    before = ratings[ANN].mean
    ratings.take_in(
        RoundIndex(11), [seen(11, ANN, rejected=reason), seen(11, BEN, -5.0), seen(11, CAT, 0.01), seen(11, DAN, 0.01)]
    )
    assert ratings[ANN].mean < before


@pytest.mark.parametrize("reason", [RejectReason.MISSING, RejectReason.UNFETCHABLE])
def test_an_outage_rates_nobody(reason: RejectReason) -> None:
    ratings = after(10, {ANN: 0.02, BEN: 0.01, CAT: 0.01})
    before = ratings[ANN].mean
    gone = [seen(11, peer, rejected=reason) for peer in (ANN, BEN)]
    ratings.take_in(RoundIndex(11), [*gone, seen(11, CAT, 0.01)])
    assert ratings[ANN].mean == before


@pytest.mark.parametrize("reason", [RejectReason.COPY, RejectReason.NOT_IN_ROSTER, RejectReason.STALE])
def test_what_may_be_anothers_fault_plays_no_match(reason: RejectReason) -> None:
    ratings = after(10, {ANN: 0.02, BEN: 0.01})
    before = ratings[ANN].mean
    ratings.take_in(RoundIndex(11), [seen(11, ANN, rejected=reason), seen(11, BEN, 0.01), seen(11, CAT, 0.01)])
    assert ratings[ANN].mean == before


def test_a_round_counts_once() -> None:
    one, other = after(5, {ANN: 0.02, BEN: 0.01}), after(5, {ANN: 0.02, BEN: 0.01})
    after(5, {ANN: 0.02, BEN: 0.01}, other)
    assert one.state() == other.state()


def test_scores_fade_and_the_absent_are_forgotten() -> None:
    ratings = after(10, {ANN: 0.02, BEN: 0.01})
    assert ratings[ANN].score(30) == pytest.approx(ratings[ANN].score(10) * FADE**20)
    after(1, {CAT: 0.02, DAN: 0.01}, ratings, first=10 + MEMORY_ROUNDS)
    assert set(ratings.state()) == {CAT, DAN}


def test_whoever_was_not_assessed_for_longest_comes_first() -> None:
    ratings = after(10, {ANN: 0.02, BEN: 0.01})
    after(1, {BEN: 0.02, CAT: 0.01}, ratings, first=11)
    assert ratings.order([CAT, BEN, ANN, DAN]) == [DAN, ANN, CAT, BEN]


@given(
    st.lists(
        st.dictionaries(st.sampled_from(PEERS), st.none() | st.floats(-10, 1), min_size=1),
        min_size=1, max_size=10,
    )
)  # fmt: skip
def test_a_restored_validator_thinks_the_same_whatever_order_things_come_in(history: list[dict[PeerId, Any]]) -> None:
    one, other = Ratings(), Ratings()
    for round_, gains in enumerate(history, start=1):
        evidence = [
            seen(round_, peer, gain, rejected=RejectReason.MALFORMED if gain is None else None)
            for peer, gain in gains.items()
        ]
        rated = one.take_in(RoundIndex(round_), evidence)
        restored = Ratings()
        restored.restore(json.loads(json.dumps(other.state())))
        other = restored
        assert other.take_in(RoundIndex(round_), evidence[::-1]) == rated[::-1]
    assert one.state() == other.state()
    assert all(one[peer].score(len(history)) >= 0 for peer in PEERS)


@pytest.mark.parametrize(
    "state",
    [
        {ANN: 3},
        {ANN: {"mean": 1}},
        {ANN: {"mean": float("nan"), "spread": 1.0, "work": 0.0, "assessed": 1, "last": 1, "played": 1}},
        {ANN: {"mean": 1.0, "spread": 0.0, "work": 0.0, "assessed": 1, "last": 1, "played": 1}},
        {ANN: {"mean": 1.0, "spread": 1.0, "work": 7.0, "assessed": 1, "last": 1, "played": 1}},
    ],
)
def test_another_state_is_refused(state: Any) -> None:
    with pytest.raises(StateError, match="not a state of ratings"):
        Ratings().restore(state)


def gains(*pairs: tuple[float, float]) -> list[Assessment]:
    return [
        Assessment(peer=peer, round=RoundIndex(1), gain_heldout=held, gain_assigned=own)
        for peer, (held, own) in zip(PEERS, pairs, strict=False)
    ]


def test_who_helped_is_told_by_what_is_usual() -> None:
    # given four who help, one who idles, one who does harm
    found = who_helped(gains((0.02, 0.03), (0.01, 0.02), (0.02, 0.02), (0.015, 0.02), (0.001, 0.0), (-0.02, -0.01)))
    assert [found[peer] for peer in PEERS[:6]] == [True, True, True, True, False, False]


def test_when_nobody_helps_only_harm_can_be_told() -> None:
    found = who_helped(gains((-0.001, 0.002), (-0.002, -0.001), (0.001, -0.001), (-0.001, 0.001)))
    assert found == {BEN: False, CAT: True}
    assert who_helped([]) == {}
