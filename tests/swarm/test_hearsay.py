"""A validator that tells different peers different things is found out by what they tell each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from builder import RUN, Swarm, identity

from elastic.errors import StateError
from elastic.hearsay import LIAR, MOST_SHOWN, Hearsay
from elastic.messages import PeerId, RoundIndex, SignedScoreboard, digest_of
from elastic.testify import SCORES, WITNESS, _tell

NAMES = ("ann", "bob", "cyd", "eve", "fay")
EVE = identity("eve").peer
ALL = {identity(name).peer for name in NAMES}
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
    word = said("ann", 2, 0.5).model_copy(update={"heard": theirs.digests(RoundIndex(1), ALL)})
    assert mine.questions(word, ALL) == set()
    assert mine.convict([said("eve", 1, 0.5)]) == []
    assert mine.answers(RoundIndex(1), []) == []


def test_who_heard_something_else_shows_it_and_two_words_are_a_proof() -> None:
    # given a peer that eve told one thing, and another that she told something else
    mine, theirs = Hearsay(), Hearsay()
    honest, lie = said("eve", 1, 0.5), said("eve", 1, -1.0)
    mine.take([honest])
    theirs.take([lie])
    # when the other says what it heard
    word = said("ann", 2, 0.5).model_copy(update={"heard": theirs.digests(RoundIndex(1), ALL)})
    # then
    assert mine.questions(word, ALL) == {EVE}
    assert mine.answers(RoundIndex(1), {EVE}) == [honest]
    assert mine.convict([lie]) == [honest, lie]
    # and she is heard no more
    assert mine.take([said("eve", 2, 0.5), said("ann", 2, 0.5)]) == [said("ann", 2, 0.5)]
    assert mine.questions(word, ALL) == set()
    assert mine.convict([lie]) == []


def test_who_comes_later_believes_two_words_too() -> None:
    # given one that knows a liar
    mine, late = Hearsay(), Hearsay()
    mine.take([said("eve", 1, 0.5)])
    mine.convict([said("eve", 1, -1.0)])
    # when another hears it say so
    word = said("ann", 2, 0.5).model_copy(update={"heard": mine.digests(RoundIndex(1), ALL)})
    assert late.questions(word, ALL) == {EVE}
    late.convict(mine.proof(RoundIndex(7), ALL))
    # then
    assert late.liars == {EVE}


def test_a_claim_alone_convicts_nobody() -> None:
    mine = Hearsay()
    mine.take([said("eve", 1, 0.5)])
    assert mine.questions(said("ann", 2, 0.5, eve="invented"), ALL) == {EVE}
    assert mine.questions(said("ann", 2, 0.5).model_copy(update={"heard": {EVE: LIAR}}), ALL) == {EVE}
    assert mine.convict([said("eve", 1, 0.5), said("eve", 2, -1.0)]) == []
    assert mine.liars == set()


def test_of_former_validators_nothing_is_said() -> None:
    mine = Hearsay()
    mine.take([said("eve", 1, 0.5)])
    mine.convict([said("eve", 1, -1.0)])
    others = ALL - {EVE}
    assert mine.digests(RoundIndex(1), others) == {}
    assert mine.proof(RoundIndex(2), others) == []
    assert Hearsay().questions(said("ann", 2, 0.5).model_copy(update={"heard": {EVE: LIAR}}), others) == set()


def test_words_of_another_run_of_the_same_name_prove_nothing() -> None:
    # given honest words on the same round of a run that was begun anew
    first, second = (
        said("ann", 1, 0.5),
        identity("ann").sign(said("ann", 1, -1.0).model_copy(update={"previous": "b" * 64})),
    )
    mine = Hearsay()
    mine.take([first])
    assert mine.convict([first, second]) == []


def test_who_knows_a_liar_finds_the_next_one_too() -> None:
    mine = Hearsay()
    mine.take([said("eve", 1, 0.5), said("cyd", 1, 0.5)])
    mine.convict([said("eve", 1, -1.0)])
    assert mine.answers(RoundIndex(1), {identity("cyd").peer}) == [said("cyd", 1, 0.5)]
    mine.convict([said("cyd", 1, -1.0)])
    assert mine.liars == {EVE, identity("cyd").peer}


def test_whoever_is_asked_for_is_shown_within_a_few_rounds_by_all_alike() -> None:
    # given two that heard of many, and were asked for different ones
    names = [f"validator {number}" for number in range(12)]
    everyone = {identity(name).peer for name in names}
    one, other = Hearsay(), Hearsay()
    met = set()
    for round_ in range(1, 25):
        for each in (one, other):
            each.take([said(name, round_, 0.5) for name in names])
        shown = one.answers(RoundIndex(round_), everyone)
        asked = {word.peer for word in shown} | {identity("validator 3").peer}
        assert len(shown) == MOST_SHOWN
        assert [word.peer for word in other.answers(RoundIndex(round_), asked)][:MOST_SHOWN] != []
        met |= {word.peer for word in shown}
    assert met == everyone


def test_what_proves_a_lie_survives_a_restart() -> None:
    mine, later = Hearsay(), Hearsay()
    mine.take([said("eve", 1, 0.5)])
    mine.convict([said("eve", 1, -1.0)])
    later.restore(mine.state())
    assert later.proofs() == mine.proofs() and later.liars == {EVE}
    for garbage in ({}, {"proofs": [1]}, {"proofs": [{}]}):
        with pytest.raises(StateError):
            Hearsay().restore(garbage)


def test_old_words_are_forgotten() -> None:
    mine = Hearsay()
    for round_ in range(1, 9):
        mine.take([said("eve", round_, 0.5)])
    assert mine.convict([said("eve", 3, -1.0)]) == []
    assert mine.digests(RoundIndex(3), ALL) == {}


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


async def test_a_liar_that_speaks_alone_is_not_heard(tmp_path: Path) -> None:
    # given four validators of whom three have lost what they measured, and say nothing
    changes: dict[str, Any] = {"incentive": {"name": "reputation"}, "rounds": 6}
    async with Swarm(tmp_path, *NAMES, validators=DECIDING, **changes) as swarm:
        honest = swarm.network.seen_by

        def seen_by(reader: PeerId, run: str, kind: str, round_: RoundIndex) -> Mapping[PeerId, bytes]:
            seen = honest(reader, run, kind, round_)
            return {peer: body for peer, body in seen.items() if kind != SCORES or peer == EVE}

        swarm.network.seen_by = seen_by  # type: ignore[method-assign]
        swarm.start()
        await swarm.finish()
        # then nobody who hears her alone takes her word for the validators'
        for name in ("ann", "bob", "cyd"):
            assert EVE not in {word["peer"] for word in swarm[name].peer.incentive.state()["heard"]}


async def test_another_incentive_hears_at_once_who_lied(tmp_path: Path) -> None:
    async with Swarm(tmp_path, "ann", "eve", validators=("ann",), incentive={"name": "reputation"}) as swarm:
        swarm.start()
        await swarm.finish()
        peer = swarm["ann"].peer
        peer.hearsay.convict([said("eve", 1, 0.5), said("eve", 1, -1.0)])
        # when the incentive is made anew, as after a change or a restart
        await peer.follow_terms(RoundIndex(4), anew=True)
        # then
        assert peer.incentive.state()["two_faced"] == [EVE]
        assert peer.incentive.trust(RoundIndex(200), [EVE])[EVE] < 0, "and for good"
        assert "hearsay" in peer.memories()
