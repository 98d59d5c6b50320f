"""Every incentive keeps the promises of `elastic.contracts.Incentive`; then what is special about each."""

import json
import random
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic import messages
from elastic.contracts import Incentive
from elastic.errors import StateError
from elastic.guard import Guarded
from elastic.messages import (
    ContributionHeader,
    Digest,
    Evidence,
    PeerId,
    RejectReason,
    RoundIndex,
    Scoreboard,
    SignedScoreboard,
    Verdict,
)
from elastic.registry import build
from elastic.sections import PluginChoice
from incentives.reputation import Reputation
from incentives.subnet.backend import Subnet
from incentives.uniform import Uniform

PEERS = [PeerId("12D3KooW" + letter * 44) for letter in "ABCDEFGHJK"]
CHOICES: list[dict[str, Any]] = [
    {"name": "uniform"},
    {"name": "uniform", "by": "peer"},
    {"name": "uniform", "cap": 1.0},
    {"name": "reputation"},
    {"name": "reputation", "trial_rounds": 1, "newcomers": 0.0, "decay": 1.0},
    {"name": "reputation", "lose": 1.0, "earn": 1.0, "floor": 1.0},
    {"name": "subnet", "netuid": 3},
    {"name": "subnet", "netuid": 3, "burn": 0.1, "burn_uid": 0},
    {"name": "subnet", "netuid": 3, "burn": 0.2, "burn_uid": 0, "seats": "stake"},
    {"name": "examples.your_incentive:YourIncentive"},
    {"name": "reputation", "guarded": True},
]

peers = st.sampled_from(PEERS)
history = st.lists(st.dictionaries(peers, st.none() | st.sampled_from(RejectReason), min_size=1), max_size=30)
tokens = st.dictionaries(peers, st.integers(1, 2**53), min_size=1)
every_incentive = pytest.mark.parametrize("choice", CHOICES, ids=lambda each: "-".join(map(str, each.values())))


def made(choice: dict[str, Any]) -> Incentive:
    """A fresh one; a subnet that burns has heard that everyone is bound, another one has heard of no chain yet."""
    settings = {name: value for name, value in choice.items() if name != "guarded"}
    incentive: Incentive = build("incentive", PluginChoice.model_validate(settings))
    if "guarded" in choice:
        return Guarded("guarded", incentive, Uniform(Uniform.Config()))
    if isinstance(incentive, Subnet) and "burn" in choice:
        bound = {"stake": 0, "validator_permit": False}
        roster = {peer: {"hotkey": f"5{uid}", "uid": uid, **bound} for uid, peer in enumerate(PEERS)}
        incentive.learn({"block": 7, "roster": roster})
    return incentive


def evidence(peer: PeerId, round_: int, rejected: RejectReason | None = None) -> Evidence:
    return Evidence(verdict=Verdict(peer=peer, round=RoundIndex(round_), rejected=rejected))


def header(peer: PeerId, tokens: int, round_: int = 50) -> ContributionHeader:
    return ContributionHeader(
        run="demo",
        round=RoundIndex(round_),
        peer=peer,
        anchor=Digest("a" * 64),
        proof=Digest("c" * 64),
        payload=Digest("b" * 64),
        size_bytes=1,
        steps=1,
        tokens=tokens,
        loss=1.0,
    )


def live(incentive: Incentive, rounds: list[dict[PeerId, RejectReason | None]]) -> Scoreboard:
    board = Scoreboard(round=RoundIndex(0), scores={})
    for round_, verdicts in enumerate(rounds, start=1):
        board = incentive.score(
            RoundIndex(round_), [evidence(peer, round_, rejected) for peer, rejected in verdicts.items()]
        )
    return board


@every_incentive
@settings(max_examples=40, deadline=None)
@given(past=history, claimed=tokens)
def test_shares_are_positive_and_sum_to_1(
    choice: dict[str, Any], past: list[dict[PeerId, RejectReason | None]], claimed: dict[PeerId, int]
) -> None:
    incentive = made(choice)
    live(incentive, past)
    shares = incentive.shares([header(peer, amount) for peer, amount in claimed.items()])
    assert set(shares) == set(claimed)
    assert all(0 < share <= 1 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1, abs=1e-9)


@every_incentive
@settings(max_examples=40, deadline=None)
@given(past=history, claimed=tokens, seed=st.integers())
def test_the_order_of_things_does_not_matter(
    choice: dict[str, Any],
    past: list[dict[PeerId, RejectReason | None]],
    claimed: dict[PeerId, int],
    seed: int,
) -> None:
    one, other, chance = made(choice), made(choice), random.Random(seed)
    shuffled = [dict(chance.sample(sorted(each.items()), len(each))) for each in past]
    assert live(one, past) == live(other, shuffled)
    headers = [header(peer, amount) for peer, amount in claimed.items()]
    assert list(one.shares(headers).items()) == list(other.shares(chance.sample(headers, len(headers))).items())
    candidates = chance.sample(PEERS, len(PEERS))
    assert one.select(RoundIndex(50), PEERS, 4) == other.select(RoundIndex(50), candidates, 4)


@every_incentive
@settings(max_examples=40, deadline=None)
@given(past=history, candidates=st.lists(peers, unique=True), limit=st.integers(0, 12))
def test_a_selection_is_part_of_the_candidates_and_fills_the_places(
    choice: dict[str, Any],
    past: list[dict[PeerId, RejectReason | None]],
    candidates: list[PeerId],
    limit: int,
) -> None:
    incentive = made(choice)
    live(incentive, past)
    chosen = incentive.select(RoundIndex(50), candidates, limit)
    assert min(limit, ceil(len(candidates) / 2)) <= len(chosen) <= min(limit, len(candidates))
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(candidates)


@every_incentive
@settings(max_examples=40, deadline=None)
@given(past=history, claimed=tokens)
def test_a_restored_incentive_behaves_the_same(
    choice: dict[str, Any], past: list[dict[PeerId, RejectReason | None]], claimed: dict[PeerId, int]
) -> None:
    one, other = made(choice), made(choice)
    live(one, past)
    other.restore(json.loads(json.dumps(one.state())))
    assert other.state() == one.state()
    headers = [header(peer, amount) for peer, amount in claimed.items()]
    assert other.shares(headers) == one.shares(headers)
    assert other.select(RoundIndex(60), PEERS, 3) == one.select(RoundIndex(60), PEERS, 3)
    new = [evidence(peer, 60) for peer in claimed]
    assert other.score(RoundIndex(60), new) == one.score(RoundIndex(60), new)


@every_incentive
async def test_nobody_at_all_is_no_trouble(choice: dict[str, Any]) -> None:
    incentive = made(choice)
    assert incentive.shares([]) == {}
    assert list(incentive.select(RoundIndex(1), [], 5)) == []
    await incentive.settle(incentive.score(RoundIndex(1), []))


def test_uniform_follows_tokens_up_to_the_cap() -> None:
    shares = Uniform(Uniform.Config(cap=2.0)).shares(
        [header(PEERS[0], 100), header(PEERS[1], 100), header(PEERS[2], 10_000)]
    )
    assert shares == pytest.approx({PEERS[0]: 0.25, PEERS[1]: 0.25, PEERS[2]: 0.5})


def test_uniform_by_peer_ignores_tokens() -> None:
    shares = Uniform(Uniform.Config(by="peer")).shares([header(PEERS[0], 1), header(PEERS[1], 10_000)])
    assert shares == {PEERS[0]: 0.5, PEERS[1]: 0.5}


@pytest.mark.parametrize("name", ["uniform", "reputation"])
def test_with_too_few_places_everyone_gets_a_turn(name: str) -> None:
    incentive = made({"name": name})
    chosen = {peer for round_ in range(60) for peer in incentive.select(RoundIndex(round_), PEERS, 3)}
    assert chosen == set(PEERS)


def reputation(**settings: Any) -> Reputation:
    return Reputation(Reputation.Config(**settings))


def test_reputation_is_slow_to_earn_and_fast_to_lose() -> None:
    incentive = reputation()
    earned = [live(incentive, [{PEERS[0]: None}] * rounds).scores[PEERS[0]] for rounds in (10, 50)]
    assert earned[0] < 0.5 < earned[1]
    after = incentive.score(RoundIndex(51), [evidence(PEERS[0], 51, RejectReason.WRONG_DIGEST)])
    assert after.scores[PEERS[0]] == pytest.approx(earned[1] / 2)


def test_reputation_fades_when_unused_and_is_forgotten_at_last() -> None:
    incentive = reputation(memory_rounds=100)
    before = live(incentive, [{PEERS[0]: None}] * 20).scores[PEERS[0]]
    assert incentive.score(RoundIndex(71), []).scores[PEERS[0]] == pytest.approx(before * 0.99**50)
    assert incentive.score(RoundIndex(120), []).scores == {}


def test_an_outage_that_hits_most_is_charged_to_nobody() -> None:
    incentive = reputation()
    before = live(incentive, [dict.fromkeys(PEERS)] * 10).scores
    outage = [evidence(peer, 11, RejectReason.MISSING) for peer in PEERS[1:]] + [evidence(PEERS[0], 11)]
    assert incentive.score(RoundIndex(11), outage).scores[PEERS[1]] == before[PEERS[1]]
    one = [evidence(peer, 12) for peer in PEERS[1:]] + [evidence(PEERS[0], 12, RejectReason.MISSING)]
    held = incentive.score(RoundIndex(12), []).scores[PEERS[0]]
    assert incentive.score(RoundIndex(12), one).scores[PEERS[0]] == pytest.approx(0.9 * held)


def test_who_was_not_invited_is_not_judged() -> None:
    assert live(reputation(), [{PEERS[0]: RejectReason.NOT_IN_ROSTER}]).scores == {}


def test_a_victim_of_a_copier_loses_little() -> None:
    incentive = reputation()
    before = live(incentive, [dict.fromkeys(PEERS)] * 10).scores[PEERS[0]]
    after = incentive.score(RoundIndex(11), [evidence(PEERS[0], 11, RejectReason.COPY)]).scores[PEERS[0]]
    assert after == pytest.approx(0.9 * before)


def test_a_round_counts_once() -> None:
    incentive = reputation()
    once = incentive.score(RoundIndex(1), [evidence(PEERS[0], 1)])
    assert incentive.score(RoundIndex(1), [evidence(PEERS[0], 1)]) == once


def test_the_dependable_are_chosen_and_newcomers_have_their_places() -> None:
    incentive = reputation(trial_rounds=5, newcomers=0.25)
    live(incentive, [dict.fromkeys(PEERS[:5])] * 10)
    for round_ in range(20):
        chosen = set(incentive.select(RoundIndex(round_ + 11), PEERS, 4))
        assert len(chosen & set(PEERS[:5])) == 3
    assert set(incentive.select(RoundIndex(11), PEERS[:5], 4)) <= set(PEERS[:5])


def test_reputation_weighs_shares_without_silencing_newcomers() -> None:
    incentive = reputation(floor=0.25)
    live(incentive, [{PEERS[0]: None}] * 49)
    shares = incentive.shares([header(PEERS[0], 100), header(PEERS[1], 100)])
    assert 0.1 < shares[PEERS[1]] < shares[PEERS[0]]


def heard(incentive: Reputation, *scores: float) -> Reputation:
    """So many validators said that of the first peer."""
    for validator, score in zip(PEERS[1:], scores, strict=False):
        said = messages.SignedScoreboard(run="demo", round=RoundIndex(49), peer=validator, scores={PEERS[0]: score})
        incentive.hear([said])
    return incentive


@pytest.mark.parametrize(
    ("scores", "inside"),
    [((-1, -1, 0.5, 0.5), True), ((-1, -1, -1, 1), False), ((-1, 0.5, 0.5), True), ((-1, -1, 0.5), False)],
    ids=str,
)
def test_only_more_than_half_of_the_validators_shut_out(scores: tuple[float, ...], inside: bool) -> None:
    # given, of four, a liar and one that luck misled
    chosen = heard(reputation(), *scores).select(RoundIndex(50), PEERS, 48)
    assert (PEERS[0] in chosen) is inside


def shares_after(rounds: int, parts: dict[PeerId, float | None], **settings: Any) -> dict[PeerId, float]:
    """Shares at equal tokens, against the largest, of peers that help these parts of what is usual."""
    incentive = reputation(**settings)
    for round_ in range(1, rounds + 1):
        seen = [evidence(peer, round_).model_copy(update={"part": part}) for peer, part in parts.items()]
        incentive.score(RoundIndex(round_), seen)
    shares = incentive.shares([header(peer, 100, rounds + 1) for peer in [*parts, PEERS[9]]])
    return {peer: share / max(shares.values()) for peer, share in shares.items()}


@pytest.mark.parametrize("rounds", [1, 40])
def test_shares_follow_how_much_a_peer_helps(rounds: int) -> None:
    # given peers that help as is usual, or more, or nobody knows how much; three quarters of it; half; and do harm
    parts = dict(zip(PEERS, [1.0, 1.9, None, 0.92, 0.75, 0.5, -1.0], strict=False))
    found = shares_after(rounds, parts, floor=0.25)
    # then the share is between a newcomer's and that of the best, from the first round on
    newcomer = pytest.approx(0.2)
    assert list(found.values()) == [pytest.approx(1)] * 4 + [pytest.approx(0.6)] + [newcomer] * 3


@pytest.mark.parametrize("seed", range(20))
def test_who_did_not_hear_one_validator_gives_nearly_the_same_shares(seed: int) -> None:
    # given four validators that find how much peers help to two or three hundredths, as they do
    chance, helped = (
        random.Random(seed),
        dict(zip(PEERS, [1.1, 1.0, 0.95, 0.9, 0.85, 0.75, 0.7, 0.62, 0.5], strict=False)),
    )
    words = []
    for number in range(4):
        one = reputation()
        for round_ in (1, 2):
            seen = [evidence(peer, round_).model_copy(update={"part": part}) for peer, part in helped.items()]
            seen = [each.model_copy(update={"part": chance.gauss(each.part or 0, 0.02)}) for each in seen]
            board = one.score(RoundIndex(round_), seen)
        words.append(SignedScoreboard(run="demo", round=board.round, peer=PEERS[number], scores=board.scores))
    # then whoever lacks the word of one of them has shares that the others would sign
    views = []
    for lacks in range(5):
        one = reputation()
        one.hear([word for number, word in enumerate(words) if number != lacks])
        views.append(one.shares([header(peer, 100, 3) for peer in helped]))
    assert all(view[peer] / views[4][peer] < 1.5 > views[4][peer] / view[peer] for view in views for peer in helped)


def test_who_helps_little_is_not_shut_out_for_it_and_keeps_what_it_earned() -> None:
    incentive = reputation()
    live(incentive, [dict.fromkeys(PEERS[:3])] * 30)
    before = incentive.score(RoundIndex(31), []).scores[PEERS[0]]
    little = evidence(PEERS[0], 32).model_copy(update={"part": 0.6})
    assert incentive.score(RoundIndex(32), [little]).scores[PEERS[0]] == 0
    assert PEERS[0] in incentive.select(RoundIndex(33), PEERS[:3], 3)
    again = evidence(PEERS[0], 33).model_copy(update={"part": 1.0})
    assert incentive.score(RoundIndex(33), [again]).scores[PEERS[0]] > before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3, 7])
def test_numbers_out_of_range_are_not_taken_over(value: float) -> None:
    incentive = reputation()
    record = {
        "reputation": value, "help": value, "rounds": 3, "last": 3, "strikes": value, "shut": 0, "until": 0,
    }  # fmt: skip
    incentive.restore({"peers": {PEERS[0]: record}, "heard": [], "invited": [], "two_faced": [], "out": []})
    (score,) = incentive.score(RoundIndex(4), []).scores.values()
    assert 0 <= score <= 1
    assert sum(incentive.shares([header(PEERS[0], 1), header(PEERS[1], 1)]).values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "state",
    [{}, {"peers": 3}, {"peers": {"a": 3}}, {"peers": {"a": {"reputation": "x", "rounds": 1, "last": 1}}}],
)
def test_another_state_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(StateError, match="not a state of the reputation incentive"):
        reputation().restore(state)


@every_incentive
@settings(max_examples=20, deadline=None)
@given(past=history)
def test_trust_is_of_those_asked_about_and_never_of_who_is_shut_out(
    choice: dict[str, Any], past: list[dict[PeerId, RejectReason | None]]
) -> None:
    incentive = made(choice)
    board = live(incentive, past)
    trust = incentive.trust(RoundIndex(len(past) + 1), PEERS)
    assert set(trust) <= set(PEERS)
    assert all(-1 <= each <= 1 for each in trust.values())
    assert incentive.trust(RoundIndex(len(past) + 1), PEERS) == trust
    assert all(trust.get(peer, 0.0) <= 0 for peer, score in board.scores.items() if score < 0)
    assert incentive.trust(RoundIndex(len(past) + 1), []) == {}


def test_who_has_earned_it_may_decide_and_who_is_shut_out_may_not_stay() -> None:
    incentive = reputation()
    bad = [{PEERS[0]: None, PEERS[1]: None}] * 20 + [{PEERS[0]: None, PEERS[1]: RejectReason.WRONG_DIGEST}] * 2
    live(incentive, [*bad, {PEERS[0]: None, PEERS[2]: None}])
    trust = incentive.trust(RoundIndex(24), PEERS[:4])
    assert trust[PEERS[0]] > 0.5
    assert trust[PEERS[1]] < 0
    assert trust[PEERS[2]] == trust[PEERS[3]] == 0
