"""Ratings: from assessments to who helps."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.errors import StateError
from elastic.messages import Assessment, Evidence, PeerId, RejectReason, RoundIndex, Verdict
from elastic.verify.ratings import (
    AGAIN,
    FADE,
    HELP_TRIAL,
    MEMORY_ROUNDS,
    USEFUL,
    WARM_UP,
    WORK_FLOOR,
    WORK_PACE,
    WORK_TRIAL,
    Ratings,
    helps,
)

PEERS = [PeerId("12D3KooW" + letter * 44) for letter in "ABCDEFGH"]
ANN, BEN, CAT, DAN = PEERS[:4]
SEED = 20261125
WHOLE = {
    "mean": 1.0, "spread": 1.0, "work": 0.0, "help": 0.0, "weight": 0.5, "gained": 1.0, "asked": 1.0, "assessed": 1,
    "warm": 1, "last": 1, "played": 1,
}  # fmt: skip
"""A standing as it is kept."""


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


@pytest.mark.parametrize(
    "reason", [RejectReason.MALFORMED, RejectReason.NO_PROOF, RejectReason.EQUIVOCAL, RejectReason.MISSING]
)
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
        {ANN: WHOLE | {"mean": float("nan")}},
        {ANN: WHOLE | {"spread": 0.0}},
        {ANN: WHOLE | {"work": 7.0}},
        {ANN: WHOLE | {"help": float("inf")}},
        {ANN: WHOLE | {"weight": -1.0}},
        {ANN: WHOLE | {"gained": 3.0}},
        {ANN: WHOLE | {"gained": float("nan")}},
        {ANN: WHOLE | {"asked": float("inf")}},
        {ANN: {name: value for name, value in WHOLE.items() if name != "help"}},
    ],
)
def test_another_state_is_refused(state: Any) -> None:
    with pytest.raises(StateError, match="not a state of ratings"):
        Ratings().restore(state)


def test_luck_seldom_makes_an_honest_peer_look_idle() -> None:
    """In the swarm of `elastic bench attack` four in five proofs of honest peers are good."""
    print(f"seed {SEED}")  # noqa: T201
    rng, below, peers = random.Random(SEED), 0, 2000
    for _ in range(peers):
        work = 0.0
        for _ in range(WORK_TRIAL):
            work = (1 - WORK_PACE) * work + WORK_PACE * (1 if rng.random() < 0.8 else -1)
        below += work < WORK_FLOOR
    assert below / peers < 0.02


def round_of(*gains: float, tokens: dict[PeerId, int] | None = None) -> list[Evidence]:
    found = [seen(1, peer, gain) for peer, gain in zip(PEERS, gains, strict=False)]
    amounts = tokens or {}
    return [each.model_copy(update={"tokens": amounts.get(each.verdict.peer, 100)}) for each in found]


def test_who_is_far_below_the_others_is_found_at_once() -> None:
    # given six who help about alike, one who idles, one who does harm
    found = helps(round_of(0.020, 0.019, 0.021, 0.018, 0.022, 0.020, 0.0, -0.02))
    assert [found[peer].clear for peer in PEERS] == [False] * 6 + [True] * 2


def test_where_gains_drown_in_noise_one_round_proves_nothing() -> None:
    # given honest peers late in a run: some seem to do harm
    found = helps(round_of(0.002, 0.004, -0.001, 0.001, 0.003, 0.002, 0.0, 0.005))
    assert not any(each.clear for each in found.values())


def test_who_does_not_help_over_the_rounds_is_found_in_the_noise() -> None:
    # given gains as noisy as that, and one peer that never helps
    print(f"seed {SEED}")  # noqa: T201
    rng, ratings, idle, wrong = random.Random(SEED), Ratings(), PEERS[7], 0
    for round_ in range(1, 201):
        gains = [rng.gauss(0.002, 0.001) for _ in PEERS[:7]]
        evidence = [seen(round_, peer, gain) for peer, gain in zip(PEERS, [*gains, 0.0], strict=True)]
        rated = {each.verdict.peer: each.helped for each in ratings.take_in(RoundIndex(round_), evidence)}
        # then it is found when there is enough to tell
        assert rated[idle] is (round_ < HELP_TRIAL)
        wrong += sum(rated[peer] is False for peer in PEERS[:7])
    # and hardly ever anyone else
    assert wrong / (200 * 7) < 0.01


def test_how_much_a_peer_helps_is_learnt_where_there_is_much_to_gain() -> None:
    # given gains that shrink to a twentieth while their noise stays, and two peers that do half and four fifths
    print(f"seed {SEED}")  # noqa: T201
    rng, ratings, rated = random.Random(SEED), Ratings(), []
    does = dict(zip(PEERS, [0.5, 0.8, *[1.0] * 6], strict=True))
    for round_ in range(1, 25):
        usual = 0.02 * 0.88**round_
        evidence = [seen(round_, peer, rng.gauss(part * usual, 0.0006)) for peer, part in does.items()]
        rated = ratings.take_in(RoundIndex(round_), evidence)
    # then it is known well enough, though the last rounds alone show nothing
    assert all(each.part == pytest.approx(does[each.verdict.peer], abs=0.15) for each in rated)
    lasts = [found.part for found in helps(evidence).values()]
    assert max(lasts) - min(lasts) > 1


def test_of_a_peer_that_was_never_assessed_no_part_is_known() -> None:
    ratings = after(3, {ANN: 0.02, BEN: 0.02, CAT: 0.01})
    rated = ratings.take_in(RoundIndex(4), [seen(4, ANN), seen(4, DAN), seen(4, CAT, rejected=RejectReason.MISSING)])
    assert [each.part for each in rated] == [pytest.approx(1.0), None, pytest.approx(0.5)]


def test_one_round_says_no_more_of_a_peers_part_than_its_bound() -> None:
    ratings = after(1, {ANN: 0.02, BEN: 0.02, CAT: 0.02, DAN: -9.0})
    assert ratings[DAN].part == pytest.approx(-2)
    assert after(30, {ANN: 0.02, BEN: 0.02, CAT: 0.02, DAN: 0.02}, ratings, first=2)[DAN].part > 0.8


def test_who_turns_against_the_run_when_little_is_left_to_gain_is_found() -> None:
    # given four that helped when there was much to gain
    ratings = after(15, dict.fromkeys((ANN, BEN, CAT, DAN), 0.05))
    # when one does harm in rounds in which gains drown in noise, so that no single one shows it
    told = []
    for round_ in range(16, 24):
        gains = {ANN: 0.004, BEN: 0.001, CAT: 0.0025, DAN: -0.002}
        told.append(ratings.take_in(RoundIndex(round_), [seen(round_, who, gain) for who, gain in gains.items()]))
    # then it is found within a few rounds, although it had helped so much, and the unlucky one is not
    assert [each[3].helped for each in told] == [True] * 2 + [False] * 6
    assert told[-1][3].part is not None and told[-1][3].part > USEFUL
    assert all(each[1].helped for each in told)


def test_a_newcomer_that_warms_up_is_not_held_against_those_who_were_there() -> None:
    # given three that have helped for a while, and one that comes: cold optimizer, empty residual
    gains = {ANN: 0.010, BEN: 0.0101, CAT: 0.0102}
    ratings = after(10, gains)
    warming = [0.0017, 0.0029, 0.0048, 0.0063, 0.0089, 0.0100, 0.0100]
    # when
    told = [
        ratings.take_in(RoundIndex(round_), [seen(round_, who, gain) for who, gain in {**gains, DAN: mine}.items()])[-1]
        for round_, mine in enumerate(warming, start=11)
    ]
    # then nothing is said of it at first, and later what it does then
    assert [each.helped for each in told] == [None] * WARM_UP + [True, True]
    assert [each.part for each in told[:WARM_UP]] == [None] * WARM_UP
    assert told[-1].part == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("rounds", "spared"), [(AGAIN, True), (AGAIN - 1, False)])
def test_who_was_away_warms_up_again_but_not_every_time(rounds: int, spared: bool) -> None:
    # given four that helped for so long, of whom one loses a round, as its machine was restarted
    gains = dict.fromkeys((ANN, BEN, CAT, DAN), 0.01)
    ratings = after(rounds, gains)
    away = [seen(rounds + 1, who, 0.01) for who in (ANN, BEN, CAT)]
    ratings.take_in(RoundIndex(rounds + 1), [*away, seen(rounds + 1, DAN, rejected=RejectReason.MISSING)])
    # when its optimizer is cold
    cold = [seen(rounds + 2, who, 0.001 if who == DAN else 0.01) for who in gains]
    told = ratings.take_in(RoundIndex(rounds + 2), cold)
    # then that is not held against it, unless it was away not long ago too
    assert told[-1].helped is (None if spared else False)


def test_a_newcomer_that_does_harm_is_found_at_once() -> None:
    gains = {ANN: 0.010, BEN: 0.0101, CAT: 0.0102}
    ratings = after(10, gains)
    told = ratings.take_in(RoundIndex(11), [seen(11, who, gain) for who, gain in {**gains, DAN: -0.01}.items()])
    assert told[-1].helped is False


def test_where_all_are_new_all_are_judged() -> None:
    told = Ratings().take_in(
        RoundIndex(1), [seen(1, who, gain) for who, gain in {ANN: 0.01, BEN: 0.0101, CAT: 0.0102, DAN: 0.0001}.items()]
    )
    assert [each.helped for each in told] == [True, True, True, False]


def test_who_has_helped_is_not_charged_for_unlucky_rounds_where_gains_drown_in_noise() -> None:
    # given honest peers whose gains shrink to a quarter of their noise, in a few runs
    print(f"seed {SEED}")  # noqa: T201
    rng, charged = random.Random(SEED), 0
    for _ in range(20):
        ratings = Ratings()
        for round_ in range(1, 25):
            evidence = [seen(round_, peer, rng.gauss(0.02 * 0.8**round_, 0.0004)) for peer in PEERS]
            charged += sum(each.helped is False for each in ratings.take_in(RoundIndex(round_), evidence))
    # then one in two hundred contributions is (it was one in seventy-five)
    assert charged / (20 * 24 * len(PEERS)) < 0.007


@pytest.mark.parametrize("gain", [0.0, -0.002])
def test_who_helped_and_no_longer_does_is_found_in_the_noise(gain: float) -> None:
    # given a peer that worked honestly for thirty rounds
    print(f"seed {SEED}")  # noqa: T201
    rng, ratings, changed = random.Random(SEED), Ratings(), PEERS[7]
    found = []
    for round_ in range(1, 51):
        gains = [rng.gauss(0.002, 0.001) for _ in PEERS[:7]]
        gains.append(rng.gauss(0.002 if round_ <= 30 else gain, 0.001))
        evidence = [seen(round_, peer, each) for peer, each in zip(PEERS, gains, strict=True)]
        rated = {each.verdict.peer: each.helped for each in ratings.take_in(RoundIndex(round_), evidence)}
        found += [round_] * (rated[changed] is False)
    # then it is, within ten rounds, and nearly always from then on
    assert 30 < found[0] <= 40
    assert len(found) >= 0.9 * (51 - found[0])


def test_who_trained_on_half_the_tokens_is_asked_for_half() -> None:
    slow = {DAN: 50}
    gains = (0.020, 0.020, 0.020, 0.008)
    assert helps(round_of(*gains, tokens=slow))[DAN].part == pytest.approx(0.8)
    assert helps(round_of(*gains))[DAN].part == pytest.approx(0.4)
    # and who claims next to nothing is still asked for something
    assert helps(round_of(0.020, 0.020, 0.020, 0.0, tokens={DAN: 1}))[DAN].clear


@pytest.mark.parametrize("gains", [(), (0.01,), (0.01, -0.01), (-0.001, -0.002, 0.001, -0.001)], ids=str)
def test_nothing_is_usual_among_too_few_or_where_nobody_helps(gains: tuple[float, ...]) -> None:
    assert helps(round_of(*gains)) == {}
