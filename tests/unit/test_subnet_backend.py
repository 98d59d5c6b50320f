"""The subnet as an incentive: who is bound may contribute, work becomes scores, boards go to the settler."""

from typing import Any

import pytest
from pydantic import ValidationError

from elastic.errors import StateError
from elastic.messages import Evidence, PeerId, RejectReason, RoundIndex, Scoreboard, Verdict
from incentives.subnet.backend import Subnet

PEERS = [PeerId("12D3KooW" + letter * 44) for letter in "ABCDEFGH"]
GOOD = {"peers": {}, "heard": [], "invited": [], "two_faced": [], "out": []}
"""A state of reputation."""
MEMBER = {"stake": 5, "validator_permit": True}


def subnet(**settings: Any) -> Subnet:
    return Subnet(Subnet.Config(netuid=3, **settings))


def news(*bound: PeerId, block: int | None = 9, **stakes: int) -> dict[str, Any]:
    return {
        "block": block,
        "roster": {peer: {"hotkey": f"5{uid}", "uid": uid, **MEMBER} for uid, peer in enumerate(bound)},
    }


def seen(peer: PeerId, round_: int, rejected: RejectReason | None = None, **more: Any) -> Evidence:
    return Evidence(verdict=Verdict(peer=peer, round=RoundIndex(round_), rejected=rejected), **more)


def test_who_is_bound_may_contribute_and_stake_buys_nothing() -> None:
    incentive = subnet()
    heard = news(*PEERS[:3])
    heard["roster"][PEERS[0]]["stake"] = 2**62
    incentive.learn(heard)
    assert incentive.select(RoundIndex(1), PEERS, 8) == PEERS[:3]
    chosen = {peer for round_ in range(60) for peer in incentive.select(RoundIndex(round_), PEERS, 1)}
    assert chosen == set(PEERS[:3])


def test_no_chain_keeps_nobody_out() -> None:
    incentive = subnet()
    assert incentive.select(RoundIndex(1), PEERS, 8) == PEERS
    incentive.learn(news())
    assert incentive.select(RoundIndex(1), PEERS, 8) == PEERS


def test_when_the_chain_falls_silent_those_bound_before_stay() -> None:
    incentive = subnet()
    incentive.learn(news(*PEERS[:2]))
    incentive.learn({"block": None, "alarms": [{"level": "warning", "text": "unreachable"}]})
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
    incentive.learn(news(PEERS[0]))
    before = incentive.state()
    with pytest.raises(StateError, match="not news of the subnet's settler"):
        incentive.learn(heard)
    assert incentive.state() == before


def test_weights_follow_opinion_and_rating() -> None:
    incentive = subnet()
    for round_ in range(1, 11):
        board = incentive.score(
            RoundIndex(round_),
            [seen(PEERS[0], round_, score=4.0), seen(PEERS[1], round_, score=1.0), seen(PEERS[2], round_)],
        )
    weights = incentive.weights(board).scores
    assert weights[PEERS[0]] == pytest.approx(4 * weights[PEERS[1]]) and weights[PEERS[1]] > 0
    assert weights[PEERS[2]] == 0  # it was never assessed, and others were


def test_without_assessments_weights_are_opinions() -> None:
    incentive = subnet()
    board = incentive.score(RoundIndex(1), [seen(PEERS[0], 1), seen(PEERS[1], 1, RejectReason.COPY)])
    assert incentive.weights(board).scores == board.scores


def test_who_is_shut_out_earns_nothing_and_is_not_asked() -> None:
    incentive = subnet()
    for round_ in (1, 2):
        board = incentive.score(
            RoundIndex(round_), [seen(peer, round_, score=1.0, helped=peer != PEERS[0]) for peer in PEERS]
        )
    assert incentive.weights(board).scores[PEERS[0]] == 0
    assert incentive.select(RoundIndex(3), PEERS, 8) == PEERS[1:]


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
        {"ratings": 3, "news": {}, "reputation": GOOD},
        {"ratings": {}, "news": {"block": "x"}, "reputation": GOOD},
        {"ratings": {}, "news": 7, "reputation": GOOD},
        {"ratings": {"a": "x"}, "news": {}, "reputation": GOOD},
        {"ratings": {}, "news": {}, "reputation": {"peers": {}, "heard": [3]}},
        {"ratings": {}, "news": {}},
    ],
    ids=repr,
)
def test_another_state_is_refused_and_changes_nothing(state: dict[str, Any]) -> None:
    incentive = subnet()
    incentive.score(RoundIndex(1), [seen(PEERS[0], 1)])
    before = incentive.state()
    with pytest.raises(StateError, match=r"not a state of the (subnet|reputation) incentive"):
        incentive.restore(state)
    assert incentive.state() == before


@pytest.mark.parametrize("rating", [float("nan"), float("inf"), -3.0])
def test_a_rating_that_is_no_number_counts_as_none(rating: float) -> None:
    incentive = subnet()
    incentive.restore({"ratings": {PEERS[0]: rating}, "news": {}, "reputation": GOOD})
    assert incentive.state()["ratings"] == {PEERS[0]: 0.0}


@pytest.mark.parametrize(
    "settings", [{"burn": 0.5}, {"burn": 1.5, "burn_uid": 0}, {"burn_uid": -1}, {"reputation": {"earn": 2}}]
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        subnet(**settings)


@pytest.mark.parametrize("endpoint", ["https://node", "ws://", "wss://user:secret@node", "wss://a b"])
def test_an_endpoint_is_a_websocket_and_holds_no_password(endpoint: str) -> None:
    with pytest.raises(ValidationError):
        Subnet.Local(endpoint=endpoint)


def test_seats_by_stake_are_for_those_whom_the_chain_permits() -> None:
    # given two with a permit, one of them shut out of the run, one without, and one who is not bound at all
    incentive = Subnet(Subnet.Config(netuid=3, seats="stake"))
    assert incentive.trust(RoundIndex(5), PEERS[:4]) == dict.fromkeys(PEERS[:4], 0.0), "no chain was heard of yet"
    members = [(100, True), (50, True), (100, False), (10, True)]
    roster = {
        peer: {"hotkey": f"5{uid}", "uid": uid, "stake": stake, "validator_permit": permit}
        for uid, (peer, (stake, permit)) in enumerate(zip(PEERS, members, strict=False))
    }
    incentive.learn({"block": 7, "roster": {peer: roster[peer] for peer in PEERS[:3]}})
    for round_ in (1, 2):
        verdict = Verdict(peer=PEERS[1], round=RoundIndex(round_), rejected=RejectReason.MALFORMED)
        incentive.score(RoundIndex(round_), [Evidence(verdict=verdict)])
    # then
    trust = incentive.trust(RoundIndex(5), PEERS[:4])
    assert trust == {PEERS[0]: 1.0, PEERS[1]: -1.0, PEERS[2]: -1.0, PEERS[3]: -1.0}


def test_a_payout_is_what_the_publisher_would_set_and_the_rest_is_burnt() -> None:
    # given three who do equally well, one of which sets the weights
    incentive = subnet(burn=0.2, burn_uid=1)
    board = incentive.score(RoundIndex(1), [seen(peer, 1) for peer in PEERS[:3]])
    # then
    assert incentive.payout(board, PEERS[0]) == pytest.approx({PEERS[1]: 0.4, PEERS[2]: 0.4})
    # and if nobody has a score all is burnt
    assert incentive.payout(Scoreboard(round=RoundIndex(2), scores={PEERS[0]: 1.0, PEERS[1]: -1.0}), PEERS[0]) == {}
