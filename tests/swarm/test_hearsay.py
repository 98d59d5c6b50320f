"""A validator that tells different peers different things is found out by what they tell each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from builder import RUN, Swarm, identity

from elastic.hearsay import LIAR, Hearsay
from elastic.messages import MAX_VALIDATORS, PeerId, RoundIndex, SignedScoreboard, digest_of
from elastic.testify import SCORES, WITNESS, _tell

NAMES = ("ann", "bob", "cyd", "eve", "fay")
EVE = identity("eve").peer
DECIDING = ("ann", "bob", "cyd", "eve")


def said(by: str, round_: int, score: float, **heard: str) -> SignedScoreboard:
    """Somebody's word about bob, and digests of what it heard others say."""
    board = SignedScoreboard(
        run=RUN, round=RoundIndex(round_), peer=identity(by).peer, scores={identity("bob").peer: score},
        heard={identity(name).peer: digest_of(word.encode()) for name, word in heard.items()},
    )  # fmt: skip
    return identity(by).sign(board)


def test_who_heard_the_same_asks_nothing() -> None:
    mine, theirs = Hearsay(), Hearsay()
    for each in (mine, theirs):
        each.take([said("eve", 1, 0.5)])
    word = said("ann", 2, 0.5).model_copy(update={"heard": theirs.digests(RoundIndex(1))})
    assert mine.questions(word) == set()
    assert mine.convict([said("eve", 1, 0.5)]) == []
    assert mine.shows(RoundIndex(3), []) == []


def test_who_heard_something_else_shows_it_and_two_words_are_a_proof() -> None:
    # given a peer that eve told one thing, and another that she told something else
    mine, theirs = Hearsay(), Hearsay()
    honest, lie = said("eve", 1, 0.5), said("eve", 1, -1.0)
    mine.take([honest])
    theirs.take([lie])
    # when the other says what it heard
    word = said("ann", 2, 0.5).model_copy(update={"heard": theirs.digests(RoundIndex(1))})
    # then
    assert mine.questions(word) == {EVE}
    assert mine.shows(RoundIndex(3), {EVE}) == [honest]
    assert mine.convict([lie]) == [honest, lie]
    # and she is heard no more
    assert mine.take([said("eve", 2, 0.5), said("ann", 2, 0.5)]) == [said("ann", 2, 0.5)]
    assert mine.questions(word) == set()
    assert mine.convict([lie]) == []


def test_who_comes_later_believes_two_words_too() -> None:
    # given one that knows a liar
    mine, late = Hearsay(), Hearsay()
    mine.take([said("eve", 1, 0.5)])
    mine.convict([said("eve", 1, -1.0)])
    # when another hears it say so
    word = said("ann", 2, 0.5).model_copy(update={"heard": mine.digests(RoundIndex(1))})
    assert late.questions(word) == {EVE}
    late.convict(mine.shows(RoundIndex(7), []))
    # then
    assert late.liars == {EVE}


def test_a_claim_alone_convicts_nobody() -> None:
    mine = Hearsay()
    mine.take([said("eve", 1, 0.5)])
    assert mine.questions(said("ann", 2, 0.5, eve="invented")) == {EVE}
    assert mine.questions(said("ann", 2, 0.5).model_copy(update={"heard": {EVE: LIAR}})) == {EVE}
    assert mine.convict([said("eve", 1, 0.5), said("eve", 2, -1.0)]) == []
    assert mine.liars == set()


def test_very_many_liars_fit_into_a_word() -> None:
    mine = Hearsay()
    for number in range(MAX_VALIDATORS + 3):
        mine.convict([said(f"liar {number}", 1, 0.5), said(f"liar {number}", 1, 0.7)])
    assert list(mine.digests(RoundIndex(1)).values()) == [LIAR] * MAX_VALIDATORS
    assert len({word.peer for round_ in range(40) for word in mine.shows(RoundIndex(round_), [])}) == MAX_VALIDATORS + 3


def test_old_words_are_forgotten() -> None:
    mine = Hearsay()
    for round_ in range(1, 9):
        mine.take([said("eve", round_, 0.5)])
    assert mine.convict([said("eve", 3, -1.0)]) == []
    assert mine.digests(RoundIndex(3)) == {}


def two_faces(swarm: Swarm, victims: set[PeerId]) -> None:
    """From now on eve tells these peers that bob does damage, and everyone else what she thinks."""
    network, eve = swarm.network, identity("eve")
    honest = network.seen_by

    def seen_by(reader: PeerId, run: str, kind: str, round_: RoundIndex) -> Mapping[PeerId, bytes]:
        seen = honest(reader, run, kind, round_)
        if kind == SCORES and eve.peer in seen and reader in victims:
            word = SignedScoreboard.from_bytes(seen[eve.peer])
            lie = word.model_copy(update={"scores": {**word.scores, identity("bob").peer: -1.0}})
            return {**seen, eve.peer: eve.sign(lie).canonical()}
        return seen

    network.seen_by = seen_by  # type: ignore[method-assign]


@pytest.mark.parametrize("victims", [("cyd",), ("ann", "bob"), ("ann", "fay")], ids=str)
async def test_two_faces_are_seen_and_cost_a_validator_its_voice(tmp_path: Path, victims: tuple[str, ...]) -> None:
    # given four validators of which one tells some peers something else
    changes: dict[str, Any] = {"incentive": {"name": "reputation"}, "rounds": 9}
    async with Swarm(tmp_path, *NAMES, validators=DECIDING, **changes) as swarm:
        two_faces(swarm, {identity(name).peer for name in victims})
        swarm.start()
        await swarm.finish()
        eve = swarm["eve"].id
        # then every honest peer knows, and hears her no more
        for name in ("ann", "bob", "cyd", "fay"):
            peer = swarm[name].peer
            assert peer.hearsay.liars == {eve}
            assert peer.incentive.state()["two_faced"] == [eve]
            assert peer.incentive.trust(RoundIndex(10), [eve])[eve] < 0
        # and nobody else is out, and no round was lost
        last = swarm.check_chain("ann")[-1]
        assert set(last.roster) == {swarm[name].id for name in NAMES} - {eve}
        assert len(swarm.anchors("ann", "bob", "cyd", "fay")) == 1


async def test_nobody_shows_anything_where_nobody_lies(tmp_path: Path) -> None:
    async with Swarm(tmp_path, *NAMES, validators=DECIDING, incentive={"name": "reputation"}, rounds=5) as swarm:
        swarm.start()
        await swarm.finish()
        assert not any(kind in WITNESS for _, kind, _ in swarm.network.records)
        assert all(node.peer.hearsay.liars == set() for node in swarm.nodes.values())


async def test_who_begins_a_round_again_says_the_same(tmp_path: Path) -> None:
    # given a validator that said what it thinks, and has learned of a liar since
    async with Swarm(tmp_path, "ann", "bob", validators=("ann", "bob"), incentive={"name": "reputation"}) as swarm:
        swarm.start()
        await swarm.finish()
        peer, last = swarm["ann"].peer, swarm["ann"].peer.holds() - 1
        head = peer.chain.get(RoundIndex(last))
        assert head is not None
        plan, peer.exchange = peer.plan(head), swarm.network.join(peer.id, RUN)
        assert peer.board is not None and peer.board.round == last
        await _tell(peer, plan)
        first = swarm.network.records[RUN, SCORES, RoundIndex(last)][peer.id]
        peer.hearsay.convict([said("liar", last - 1, 0.5), said("liar", last - 1, 0.7)])
        # when it begins the round again
        await _tell(peer, plan)
        # then
        assert swarm.network.records[RUN, SCORES, RoundIndex(last)][peer.id] == first
