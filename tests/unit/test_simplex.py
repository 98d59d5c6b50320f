"""Simplex, rule by rule; what it does as a whole is told by tests/sim."""

from elastic.agreement.simplex import AHEAD, Cast, Enter, Final, Keep, Propose, Simplex, proposer_of
from elastic.agreement.votes import VoteKind
from elastic.messages import NO_DIGEST, PeerId, View
from tests.sim.agreement import NAMES, ROUND, RUN, manifest_of, proposal, vote

FOUR = NAMES[:4]
NOTARIZE, VOID, FINALIZE = VoteKind


def turn(view: int) -> PeerId:
    return proposer_of(RUN, ROUND, View(view), FOUR)


def others(view: int) -> list[PeerId]:
    return [peer for peer in FOUR if peer != turn(view)]


def test_alone_one_validator_decides_at_once() -> None:
    # given
    sut, mine = Simplex(NAMES[0], RUN, ROUND, NAMES[:1]), manifest_of(NAMES[0])
    # when it hears itself
    actions = sut.have(mine)
    assert actions == [Propose(View(0), mine, None)]
    actions = sut.hear(proposals=[proposal(NAMES[0], 0, mine)])
    assert actions == [Cast(View(0), NOTARIZE, mine)]
    actions = sut.hear([vote(NAMES[0], 0, NOTARIZE, mine)])
    assert Cast(View(0), FINALIZE, mine) in actions
    actions = sut.hear([vote(NAMES[0], 0, FINALIZE, mine)])
    # then
    assert sut.final == actions[-1] == Final(mine, (vote(NAMES[0], 0, FINALIZE, mine),))


def test_what_is_notarized_must_be_repeated_until_it_is_skipped() -> None:
    # given view 0 ended with a notarized manifest
    me, old, new = others(1)[0], manifest_of(turn(0)), manifest_of(turn(1))
    sut = Simplex(me, RUN, ROUND, FOUR)
    sut.hear([vote(peer, 0, NOTARIZE, old) for peer in FOUR[:3]])
    sut.find_good(new)
    # when the next proposer proposes another, as if there were none / then nobody votes for it
    assert sut.hear(proposals=[proposal(turn(1), 1, new, None)]) == []
    # unless the view was skipped as well
    actions = sut.hear([vote(peer, 0, VOID) for peer in FOUR[1:]])
    assert actions == [Cast(View(1), NOTARIZE, new)]


def test_a_repeated_manifest_needs_no_second_look() -> None:
    # given
    me, old = others(1)[0], manifest_of(turn(0))
    sut = Simplex(me, RUN, ROUND, FOUR)
    sut.hear([vote(peer, 0, NOTARIZE, old) for peer in FOUR[:3]])
    # when / then
    assert sut.hear(proposals=[proposal(turn(1), 1, old, 0)]) == [Cast(View(1), NOTARIZE, old)]
    assert sut.wanted() == set()


def test_who_said_final_can_show_why_after_a_restart() -> None:
    # given one who saw a quorum that nobody else saw, and said final
    me, mine = others(0)[0], manifest_of(turn(0))
    votes = [vote(peer, 0, NOTARIZE, mine) for peer in FOUR[:3]]
    sut = Simplex(me, RUN, ROUND, FOUR)
    actions = sut.hear(votes)
    # then what it saw is kept before it says so
    kept, said, entered = actions
    assert isinstance(kept, Keep) and said == Cast(View(0), FINALIZE, mine) and entered == Enter(View(1))
    # when it is restarted
    again = Simplex(me, RUN, ROUND, FOUR, [said])
    assert again.time_out(View(0)) == []  # it may not skip the view any more
    assert again.hear(kept.votes)[-1] == Enter(View(1))
    # then it shows others the way
    late = Simplex(others(0)[1], RUN, ROUND, FOUR)
    assert Enter(View(1)) in late.hear(again.proof())


def test_a_proposer_passes_on_what_justifies_its_proposal() -> None:
    # given one that proposed because view 0 was skipped, and then hears that it was notarized too
    me, late = turn(1), Simplex(others(1)[0], RUN, ROUND, FOUR)
    sut = Simplex(me, RUN, ROUND, FOUR)
    sut.hear([vote(peer, 0, VOID) for peer in FOUR[:3]])
    assert Propose(View(1), manifest_of(me), None) in sut.have(manifest_of(me))
    sut.hear([vote(peer, 0, NOTARIZE, manifest_of(turn(0))) for peer in FOUR[1:]])
    # when / then
    late.find_good(manifest_of(me))
    actions = late.hear(sut.proof(), [proposal(me, 1, manifest_of(me), None)])
    assert Cast(View(1), NOTARIZE, manifest_of(me)) in actions


def test_a_quorum_is_heard_from_however_far_ahead_and_single_votes_are_not() -> None:
    # given
    far, mine = 3 * AHEAD, manifest_of(NAMES[0])
    sut = Simplex(NAMES[0], RUN, ROUND, FOUR)
    # when / then
    for peer in FOUR:
        assert sut.hear([vote(peer, far, NOTARIZE, mine)]) == []
    assert sut.view == 0
    assert Enter(View(far + 1)) in sut.hear([vote(peer, far, NOTARIZE, mine) for peer in FOUR[1:]])


def test_a_liar_fills_no_memory_and_is_named() -> None:
    # given
    sut, liar = Simplex(NAMES[0], RUN, ROUND, FOUR), NAMES[3]
    # when it votes for a thousand manifests
    for number in range(1000):
        sut.hear([vote(liar, 0, NOTARIZE, manifest_of(liar, number))])
    # then
    assert len(list(sut._tally.each())) == 2
    assert sut.liars() == {liar}
    # and who said void and final
    sut.hear([vote(NAMES[2], 0, VOID), vote(NAMES[2], 0, FINALIZE, manifest_of(liar))])
    assert sut.liars() == {liar, NAMES[2]}


def test_strangers_do_not_count() -> None:
    sut = Simplex(NAMES[0], RUN, ROUND, FOUR)
    strangers = NAMES[4:9]
    assert sut.hear([vote(peer, 0, VOID, NO_DIGEST) for peer in strangers]) == [] and sut.view == 0
