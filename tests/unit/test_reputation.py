"""Reputation: opinions that shut out who does damage, and a median that liars cannot move far."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.messages import Evidence, PeerId, RejectReason, RoundIndex, SignedScoreboard, Verdict
from incentives.opinion import SHUT_OUT, OpinionConfig, Opinions
from incentives.reputation import FRESH_ROUNDS, Reputation

PEERS = [PeerId("12D3KooW" + letter * 44) for letter in "ABCDEFGHJKLMNPQR"]
ANN, BEN, CAT, DAN = PEERS[:4]
HARM: dict[str, Any] = {"helped": False}


def seen(round_: int, peer: PeerId, rejected: RejectReason | None = None, **more: Any) -> Evidence:
    return Evidence(verdict=Verdict(peer=peer, round=RoundIndex(round_), rejected=rejected), **more)


def opinions(**changes: Any) -> Opinions:
    return Opinions(OpinionConfig(**changes))


def live(found: Any, rounds: int, *peers: PeerId, first: int = 1, **more: Any) -> Any:
    for round_ in range(first, first + rounds):
        take = found.take_in if isinstance(found, Opinions) else found.score
        take(RoundIndex(round_), [seen(round_, peer, **more) for peer in peers])
    return found


def said(by: PeerId, round_: int, **scores: float) -> SignedScoreboard:
    names = {"ann": ANN, "ben": BEN, "cat": CAT, "dan": DAN}
    return SignedScoreboard(
        run="demo", round=RoundIndex(round_), peer=by, scores={names[name]: score for name, score in scores.items()}
    )


@pytest.mark.parametrize("fault", [HARM, {"rejected": RejectReason.MALFORMED}])
def test_damage_twice_in_a_row_shuts_out(fault: dict[str, Any]) -> None:
    found = live(opinions(), 30, ANN)
    live(found, 1, ANN, first=31, **fault)
    assert found.of(RoundIndex(32), ANN) > 0
    live(found, 1, ANN, first=32, **fault)
    assert found.of(RoundIndex(33), ANN) == SHUT_OUT


def test_who_never_proves_its_work_is_shut_out_and_a_streak_of_bad_luck_is_not_enough() -> None:
    found = live(opinions(), 30, ANN)
    live(found, 6, ANN, first=31, works=False)
    assert found.of(RoundIndex(37), ANN) > 0
    live(found, 6, ANN, first=37, works=False)
    assert found.of(RoundIndex(43), ANN) == SHUT_OUT


def test_bad_luck_now_and_then_does_not() -> None:
    found = opinions()
    for start in range(1, 200, 8):
        live(found, 7, ANN, first=start)
        live(found, 1, ANN, first=start + 7, **HARM)
        assert found.of(RoundIndex(start + 8), ANN) >= 0


def test_who_was_shut_out_may_try_again_and_is_out_for_longer_the_next_time() -> None:
    found = live(opinions(shut_rounds=10), 2, ANN, **HARM)
    assert found.of(RoundIndex(12), ANN) == SHUT_OUT and found.of(RoundIndex(13), ANN) == 0
    live(found, 2, ANN, first=13, **HARM)
    assert found.of(RoundIndex(34), ANN) == SHUT_OUT and found.of(RoundIndex(35), ANN) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_victim_of_a_thief_is_not_shut_out_and_the_thief_is(seed: int) -> None:
    # given a victim that loses one draw in three, and a thief that loses the others
    chance, found = random.Random(seed), opinions()
    thief_out = 0
    for round_ in range(1, 201):
        loser = ANN if chance.random() < 1 / 3 else BEN
        evidence = [seen(round_, peer, RejectReason.COPY if peer == loser else None) for peer in (ANN, BEN)]
        found.take_in(RoundIndex(round_), evidence)
        assert found.of(RoundIndex(round_ + 1), ANN) >= 0
        thief_out += found.of(RoundIndex(round_ + 1), BEN) == SHUT_OUT
    assert thief_out > 0


def test_absence_costs_little_and_shuts_out_nobody() -> None:
    found = live(opinions(), 30, ANN, BEN, CAT)
    before = found.of(RoundIndex(31), ANN)
    for round_ in range(31, 61):
        evidence = [seen(round_, ANN, RejectReason.MISSING), seen(round_, BEN), seen(round_, CAT)]
        found.take_in(RoundIndex(round_), evidence)
    assert 0 < found.of(RoundIndex(61), ANN) < before / 2


def reputation(**changes: Any) -> Reputation:
    return Reputation(Reputation.Config(**changes))


def test_what_validators_say_counts_and_not_what_we_think() -> None:
    found = live(reputation(), 5, *PEERS)
    found.hear([said(ANN, 5, ann=0.9, ben=-1.0, cat=0.5)])
    chosen = found.select(RoundIndex(6), PEERS[:4], 4)
    assert set(chosen) == {ANN, CAT, DAN}
    # and an older word does not replace a newer one
    found.hear([said(ANN, 4, ben=0.9)])
    assert BEN not in found.select(RoundIndex(6), PEERS[:4], 4)


def test_old_words_count_no_more() -> None:
    found = live(reputation(), 5, *PEERS)
    found.hear([said(ANN, 5, ben=-1.0)])
    assert BEN in found.select(RoundIndex(5 + FRESH_ROUNDS), PEERS[:4], 4)


@given(
    honest=st.lists(st.floats(0, 1), min_size=3, max_size=11),
    lies=st.lists(st.sampled_from([-1e9, -1.0, 0.0, 1.0, 1e9]), max_size=5),
)
def test_fewer_liars_than_honest_validators_move_nobody_out_of_what_honest_ones_think(
    honest: list[float], lies: list[float]
) -> None:
    # given that most voices are honest; of those who decide more than two thirds must be
    lies = lies[: (len(honest) - 1) // 2]
    found = reputation()
    for number, score in enumerate([*honest, *lies]):
        found.hear([said(PEERS[number], 7, ann=score)])
    standing = found._standing(RoundIndex(8), [ANN])[ANN]
    assert min(honest) <= standing <= max(honest)


def test_never_are_more_than_half_left_out() -> None:
    # given that everyone seems to do damage
    found = live(reputation(), 3, *PEERS, **HARM)
    assert len(found.select(RoundIndex(4), PEERS, 20)) == len(PEERS) // 2


def test_a_crowd_of_new_names_gets_the_newcomers_places_and_no_more() -> None:
    # given four known peers and a crowd that nobody has heard of
    found = live(reputation(newcomers=0.25), 30, *PEERS[:4])
    crowd = [PeerId("12D3KooW" + "z" * 41 + f"{number:03d}".replace("0", "x")) for number in range(200)]
    for round_ in range(31, 51):
        chosen = set(found.select(RoundIndex(round_), [*PEERS[:4], *crowd], 8))
        assert set(PEERS[:4]) <= chosen
    scores = found.score(RoundIndex(51), []).scores
    assert set(scores) == set(PEERS[:4])


def test_whom_the_validators_shut_out_stays_out_with_one_that_becomes_a_validator() -> None:
    # given a peer that saw dan's contributions arrive, and heard from those who measured them
    incentive = live(Reputation(Reputation.Config()), 20, ANN, DAN)
    for by in (BEN, CAT):
        incentive.hear([said(by, 20, dan=-1.0, ann=0.7)])
    live(incentive, 1, ANN, DAN, first=21)
    # when it speaks for itself
    told = incentive.score(RoundIndex(22), [seen(22, ANN)]).scores
    # then
    assert told[DAN] == SHUT_OUT
    assert told[ANN] > 0.5
    # and that ends for it as it would have if it had found out itself
    for round_ in range(23, 90):
        told = incentive.score(RoundIndex(round_), [seen(round_, ANN)]).scores
    assert told[DAN] == 0


def test_a_validator_with_two_words_for_one_round_is_heard_no_more_and_shut_out() -> None:
    # given three validators
    incentive = live(Reputation(Reputation.Config()), 20, ANN, BEN, CAT, DAN)
    incentive.hear([said(BEN, 20, ann=0.5), said(CAT, 20, ann=0.5), said(DAN, 20, ann=0.5)])
    # when the other word of one is shown
    incentive.hear([said(DAN, 20, ann=0.5), said(DAN, 20, ann=-1.0)])
    incentive.hear([said(DAN, 21, ann=-1.0), said(BEN, 21, ann=-1.0)])
    live(incentive, 1, ANN, BEN, CAT, DAN, first=21)
    # then its later words move nothing, it may decide nothing, and that survives a restart
    again = Reputation(Reputation.Config())
    again.restore(incentive.state())
    for each in (incentive, again):
        assert each.trust(RoundIndex(22), [ANN])[ANN] == 0, "one of two shuts nobody out, two of three would"
        assert each.score(RoundIndex(22), []).scores[DAN] == SHUT_OUT
        assert each.state() == incentive.state()


def test_a_restart_in_the_round_in_which_a_peer_comes_back_shuts_it_out_no_longer() -> None:
    # given a peer that others shut out, heard of in every round until it may come back
    incentive = live(Reputation(Reputation.Config(shut_rounds=5)), 20, ANN, DAN)
    for round_ in range(21, 28):
        for by in (BEN, CAT):
            incentive.hear([said(by, round_ - 1, dan=-1.0, ann=0.7)])
        live(incentive, 1, ANN, first=round_)
    # when a validator is restarted then
    again = Reputation(Reputation.Config(shut_rounds=5))
    again.restore(incentive.state())
    for each in (incentive, again):
        live(each, 1, ANN, first=28)
    # then it thinks as if it had not been
    assert again.state() == incentive.state()
    assert again.score(RoundIndex(29), []).scores[DAN] == 0
