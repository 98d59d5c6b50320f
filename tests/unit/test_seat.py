"""A validator's seat: whose word it takes, and what it makes of lies."""

import logging

import pytest

from elastic.agreement import seat
from elastic.agreement.seat import Seat
from elastic.agreement.talk import Talk
from elastic.agreement.votes import Ballot, Vote, VoteKind
from elastic.contracts import Times
from elastic.errors import SignatureInvalidError
from elastic.exchange.memory import MemoryNetwork
from elastic.messages import NO_DIGEST, RoundIndex, Seconds, Signed, View, digest_of
from elastic.schedule.clock import ManualClock
from elastic.wire.signing import Identity, verify

KEYS = sorted((Identity.generate() for _ in range(4)), key=lambda key: key.peer)
NAMES = [key.peer for key in KEYS]
RUN, ROUND = "demo", RoundIndex(3)


def vote(key: Identity, what: bytes, view: int = 0) -> Vote:
    return key.sign(
        Vote(run=RUN, round=ROUND, view=View(view), kind=VoteKind.NOTARIZE, manifest=digest_of(what), peer=key.peer)
    )


def void(key: Identity, view: int) -> Vote:
    return key.sign(Vote(run=RUN, round=ROUND, view=View(view), kind=VoteKind.VOID, manifest=NO_DIGEST, peer=key.peer))


def seat_of(key: Identity) -> Seat:
    return Seat(key, RUN, ROUND, NAMES, memory=None, save=lambda ballot: None)


def test_a_forgery_spoils_its_ballot_and_costs_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    # given thousands of forged votes before genuine ones
    looks: list[Signed] = []
    monkeypatch.setattr(seat, "verify", lambda said: looks.append(said) or verify(said))
    sut, liar = seat_of(KEYS[0]), KEYS[1]
    forged = [vote(liar, b"%d" % view, view).model_copy(update={"peer": NAMES[2]}) for view in range(2000)]
    genuine = [vote(key, b"x", 2000) for key in KEYS[1:]]
    # when / then
    with pytest.raises(SignatureInvalidError, match=NAMES[2]):
        sut.hear(Ballot.of(RUN, ROUND, [*forged, *genuine]))
    assert len(looks) == 1
    assert sut.view == 0
    # and what is genuine is heard without it
    sut.hear(Ballot.of(RUN, ROUND, genuine))
    assert sut.view == 2001


def test_votes_of_strangers_spoil_a_ballot_too() -> None:
    with pytest.raises(SignatureInvalidError):
        seat_of(KEYS[0]).hear(Ballot.of(RUN, ROUND, [vote(Identity.generate(), b"x")]))


def test_who_contradicts_itself_is_named_once_a_round(caplog: pytest.LogCaptureFixture) -> None:
    # given
    sut, liar = seat_of(KEYS[0]), KEYS[1]
    sut.hear(Ballot.of(RUN, ROUND, [vote(liar, b"one")]))
    assert not caplog.records
    # when
    for what in (b"two", b"three"):
        sut.hear(Ballot.of(RUN, ROUND, [vote(liar, what)]))
    # then
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert liar.peer in caplog.text


@pytest.mark.parametrize(("view", "patient"), [(0, False), (1, True)])
def test_an_absent_first_proposer_is_no_reason_to_leave_a_later_view(view: int, patient: bool) -> None:
    # given a validator that was restarted in that view of a round whose first proposer is absent
    saved: list[Ballot] = []
    before = Seat(KEYS[0], RUN, ROUND, NAMES, memory=None, save=saved.append)
    if view:
        before.hear(Ballot.of(RUN, ROUND, [void(key, 0) for key in KEYS[1:]]))
    again = Seat(KEYS[0], RUN, ROUND, NAMES, memory=saved[-1] if saved else None, save=saved.append)
    assert again.view == view
    # when it does not wait for the first
    clock = ManualClock()
    times = Times(proposer=clock.now(), patience=Seconds(4.0), give_up=Seconds(20.0))
    talk = Talk(again, MemoryNetwork().join(NAMES[0]), clock, lambda manifest: None, times)
    said = again.changes
    talk._mind_the_time()
    # then it has given up the first one's turn, and no later one's
    assert (again.changes == said) is patient


async def test_an_absent_proposer_of_a_late_view_loses_its_turn_however_often_the_round_is_put_off() -> None:
    # given a validator in a view whose turn, twice as long with each view, outlasts what it stays for at a time
    clock, sut = ManualClock(), seat_of(KEYS[0])
    times = Times(proposer=clock.now(), patience=Seconds(4.0), give_up=Seconds(20.0))
    talk = Talk(sut, MemoryNetwork().join(NAMES[0]), clock, lambda manifest: None, times)
    sut.hear(Ballot.of(RUN, ROUND, [void(key, view) for view in range(6) for key in KEYS[1:]]))
    assert sut.view == 6
    talk._mind_the_time()
    said = sut.changes
    # when it stays and goes, again and again
    for _ in range(20):
        await clock.sleep(Seconds(20.0))
        talk.go_on()
        await clock.sleep(Seconds(20.0))
        talk._mind_the_time()
    # then it has given up
    assert sut.changes > said
