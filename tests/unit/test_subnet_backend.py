"""The subnet as an incentive: who is bound may contribute, work becomes scores, boards go to the settler."""

from typing import Any

import pytest
from pydantic import ValidationError

from elastic.errors import StateError
from elastic.messages import Evidence, PeerId, RejectReason, RoundIndex, Scoreboard, Verdict
from incentives.subnet.backend import Subnet

PEERS = [PeerId("12D3KooW" + letter * 44) for letter in "ABCDEFGH"]
MEMBER = {"stake": 5, "validator_permit": True}


def subnet(**settings: Any) -> Subnet:
    return Subnet(Subnet.Config(netuid=3, **settings))


def news(*bound: PeerId, block: int | None = 9, **stakes: int) -> dict[str, Any]:
    return {
        "block": block,
        "roster": {peer: {"hotkey": f"5{uid}", "uid": uid, **MEMBER} for uid, peer in enumerate(bound)},
    }


def evidence(peer: PeerId, round_: int, tokens: int = 0, rejected: RejectReason | None = None) -> Evidence:
    return Evidence(verdict=Verdict(peer=peer, round=RoundIndex(round_), rejected=rejected), tokens=tokens)


def worked(incentive: Subnet, round_: int, **tokens: int) -> dict[PeerId, float]:
    peers = dict(zip("abcdefgh", PEERS, strict=True))
    return incentive.score(
        RoundIndex(round_), [evidence(peers[name], round_, each) for name, each in tokens.items()]
    ).scores


def test_who_is_bound_may_contribute_and_stake_buys_nothing() -> None:
    incentive = subnet()
    heard = news(*PEERS[:3])
    heard["roster"][PEERS[0]]["stake"] = 2**62
    incentive.hear(heard)
    assert incentive.select(RoundIndex(1), PEERS, 8) == PEERS[:3]
    chosen = {peer for round_ in range(60) for peer in incentive.select(RoundIndex(round_), PEERS, 1)}
    assert chosen == set(PEERS[:3])


def test_no_chain_keeps_nobody_out() -> None:
    incentive = subnet()
    assert incentive.select(RoundIndex(1), PEERS, 8) == PEERS
    incentive.hear(news())
    assert incentive.select(RoundIndex(1), PEERS, 8) == PEERS


def test_when_the_chain_falls_silent_those_bound_before_stay() -> None:
    incentive = subnet()
    incentive.hear(news(*PEERS[:2]))
    incentive.hear({"block": None, "alarms": [{"level": "warning", "text": "unreachable"}]})
    assert incentive.select(RoundIndex(1), PEERS, 8) == PEERS[:2]


@pytest.mark.parametrize(
    "heard",
    [
        {"block": -1},
        {"block": 2**60},
        {"block": 1, "roster": {"not a peer": {"hotkey": "5", "uid": 1, **MEMBER}}},
        {"block": 1, "roster": {PEERS[0]: {"hotkey": "5", "uid": "1", **MEMBER}}},
        {"block": 1, "roster": {PEERS[0]: {"hotkey": "5", "uid": 1, "stake": float("nan"), "validator_permit": True}}},
        {"block": 1, "more": 1},
        {"block": object()},
        {1: 2},
    ],
    ids=repr,
)
def test_other_news_are_refused_and_change_nothing(heard: dict[str, Any]) -> None:
    incentive = subnet()
    incentive.hear(news(PEERS[0]))
    before = incentive.state()
    with pytest.raises(StateError, match="not news of the subnet's settler"):
        incentive.hear(heard)
    assert incentive.state() == before


def test_scores_follow_the_accepted_work_of_the_last_rounds() -> None:
    incentive = subnet(memory=0.5)
    assert worked(incentive, 1, a=100, b=100, c=50) == {PEERS[0]: 0.5, PEERS[1]: 0.5, PEERS[2]: 0.25}
    assert worked(incentive, 2, a=100, b=100)[PEERS[0]] == 0.75
    assert worked(incentive, 5, b=1)[PEERS[0]] == pytest.approx(0.75 / 8)


def test_nobody_scores_by_claiming_tokens() -> None:
    scores = worked(subnet(memory=0.0, cap=4.0), 1, a=100, b=100, c=2**50)
    assert scores == {PEERS[0]: 1.0, PEERS[1]: 1.0, PEERS[2]: 4.0}


def test_what_is_refused_scores_nothing_and_a_round_counts_once() -> None:
    incentive = subnet(memory=0.5)
    refused = [evidence(PEERS[0], 1, 100, RejectReason.COPY), evidence(PEERS[1], 1, 100)]
    once = incentive.score(RoundIndex(1), refused)
    assert once.scores == {PEERS[0]: 0.0, PEERS[1]: 0.5}
    assert incentive.score(RoundIndex(1), refused) == once


def test_the_memory_that_strangers_can_fill_is_bounded() -> None:
    incentive = subnet(forget_rounds=10)
    worked(incentive, 1, a=5)
    assert worked(incentive, 11, b=5).keys() == {PEERS[1]}


async def test_boards_go_to_the_settler_if_there_is_one() -> None:
    class Mailbox:
        def __init__(self) -> None:
            self.boards: list[Scoreboard] = []

        async def settle(self, board: Scoreboard) -> None:
            self.boards.append(board)

    incentive, mailbox, board = subnet(), Mailbox(), Scoreboard(round=RoundIndex(1), scores={PEERS[0]: 1.0})
    await incentive.settle(board)
    incentive.attach(mailbox)
    await incentive.settle(board)
    assert mailbox.boards == [board]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"standings": 3, "news": {}},
        {"standings": {}, "news": {"block": "x"}},
        {"standings": {}, "news": 7},
        {"standings": {"a": {"score": "x", "last": 1}}, "news": {}},
        {"standings": {"a": {"score": 1, "last": float("inf")}}, "news": {}},
        {"standings": {"a": []}, "news": {}},
    ],
    ids=repr,
)
def test_another_state_is_refused_and_changes_nothing(state: dict[str, Any]) -> None:
    incentive = subnet()
    worked(incentive, 1, a=1)
    before = incentive.state()
    with pytest.raises(StateError, match="not a state of the subnet incentive"):
        incentive.restore(state)
    assert incentive.state() == before


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -3.0])
def test_a_score_that_is_no_number_counts_as_none(score: float) -> None:
    incentive = subnet()
    incentive.restore({"standings": {PEERS[0]: {"score": score, "last": 1}}, "news": {}})
    assert incentive.score(RoundIndex(2), []).scores == {PEERS[0]: 0.0}


@pytest.mark.parametrize("settings", [{"burn": 0.5}, {"burn": 1.5, "burn_uid": 0}, {"burn_uid": -1}, {"memory": 1.0}])
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        subnet(**settings)


@pytest.mark.parametrize("endpoint", ["https://node", "ws://", "wss://user:secret@node", "wss://a b"])
def test_an_endpoint_is_a_websocket_and_holds_no_password(endpoint: str) -> None:
    with pytest.raises(ValidationError):
        Subnet.Local(endpoint=endpoint)
