"""A life: what is tried again and what is told, other runs' files, an orderly goodbye, a disk that fills."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from builder import CARD_SECONDS, RUN, Swarm, identity, make_shared

from elastic.config import Shared
from elastic.errors import (
    BootstrapError,
    ElasticError,
    FetchError,
    NetworkError,
    NotThisRunError,
    PortTakenError,
    StateError,
    TrainerLostError,
)
from elastic.exchange.memory import MemoryNetwork
from elastic.life import ASKED, Life, Presence
from elastic.messages import Seconds
from elastic.peer import Peer
from elastic.schedule.clock import ManualClock


class Notes:
    """A `Watch` that only remembers."""

    def __init__(self) -> None:
        self.fields: list[dict[str, Any]] = []

    def note(self, **fields: Any) -> None:
        self.fields.append(fields)

    def begin(self, plan: object) -> None: ...

    def record(self, report: object, incentive_state: object) -> None: ...


class Steps:
    """A step that fails with each of these errors, then succeeds."""

    def __init__(self, *errors: ElasticError) -> None:
        self.errors = list(errors)

    async def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def make_life() -> tuple[Life, Notes]:
    clock, notes, bob = ManualClock(), Notes(), identity("bob").peer
    exchange = MemoryNetwork(clock.now, CARD_SECONDS, clock.sleep).join(bob, RUN)
    return Life(Presence(bob, "bob", make_shared("ann"), exchange), clock, notes, CARD_SECONDS), notes


async def test_what_passes_by_itself_is_tried_again_from_the_very_start() -> None:
    # given a network and a trainer that both fail while the peer is put together
    life, notes = make_life()
    step = Steps(NetworkError("no answer"), FetchError("nobody"), TrainerLostError("restarted"))
    # when
    assert await life.patiently(step) == "done"
    # then the person was told of the network
    assert [fields["phase"] for fields in notes.fields] == ["network: no answer", "network: nobody"]


@pytest.mark.parametrize("error", [BootstrapError("x"), PortTakenError("x"), StateError("x"), NotThisRunError("x")])
async def test_what_only_a_person_can_mend_is_told(error: ElasticError) -> None:
    life, _ = make_life()
    with pytest.raises(type(error)):
        await life.patiently(Steps(error))


async def test_a_member_of_the_swarm_waits_for_its_entry_points(tmp_path: Path) -> None:
    # given a swarm that trains
    async with Swarm(tmp_path, "ann", "bob", rounds=5) as swarm:
        swarm.start()
        await swarm.rounds_done(1)
        # when bob's network is restarted and finds nobody at first
        announce, errors = swarm["bob"].peer.exchange.announce, [BootstrapError("nobody answered")] * 3

        async def failing(card: Any) -> None:
            if errors:
                raise errors.pop()
            await announce(card)

        swarm["bob"].peer.exchange.announce = failing
        await swarm.finish()
        # then it did not give up
        assert not errors
        assert len(swarm.anchors()) == 1


async def test_another_run_file_is_refused_and_strangers_prove_nothing() -> None:
    # given a validator with one [shared] section, and a stranger with a third
    network = MemoryNetwork(ManualClock().now)
    ann, eve = (network.join(identity(name).peer, RUN) for name in ("ann", "eve"))
    await Presence(identity("eve").peer, "eve", make_shared("ann", rounds=77), eve).renew()
    bob = Presence(identity("bob").peer, "bob", make_shared("ann"), network.join(identity("bob").peer, RUN))
    await bob.refuse_other_runs()
    # when the validator is there
    theirs = make_shared("ann", rounds=9)
    await Presence(identity("ann").peer, "ann", theirs, ann).renew()
    # then
    with pytest.raises(NotThisRunError, match=theirs.digest()[:12]):
        await bob.refuse_other_runs()


async def test_a_card_is_renewed_while_its_peer_is_busy(tmp_path: Path) -> None:
    # given a peer whose inner steps take three times as long as a card lasts
    slow = {"train_seconds": 20.0, "gather_seconds": 20.0}
    async with Swarm(tmp_path, "ann", "bob", rounds=1, round=slow) as swarm:
        swarm["bob"].pace = 3 * CARD_SECONDS
        swarm.start()
        await swarm.until(lambda: swarm["bob"].peer is not None and swarm["bob"].peer.holds() == 1)
        # when that time passes
        seen: list[bool] = []
        observer = swarm.network.join(identity("eve").peer, RUN)
        while swarm["bob"].peer.holds() == 1:
            await swarm.clock.sleep(Seconds(1.0))
            seen.append(any(card.peer == swarm["bob"].id for card in await observer.cards()))
        # then it was seen alive all the while
        assert len(seen) >= 2 * CARD_SECONDS and all(seen)


@pytest.mark.parametrize("file", ["state.json", "anchor-", "residual-", "payload-", "chain.jsonl"])
async def test_a_full_disk_ends_a_life_in_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    # given a swarm that trains, and a disk that takes no such file of bob's after the first round
    async with Swarm(tmp_path, "ann", "bob", rounds=6) as swarm:
        ann, bob = swarm["ann"], swarm["bob"]
        swarm.start()
        await swarm.rounds_done(1)
        _fill_disk(monkeypatch, str(bob.directory), file)
        with pytest.raises(StateError, match="free some space"):
            await swarm.finish("bob")
        held = bob.anchor
        # when there is room again
        monkeypatch.undo()
        before = len(bob.reports)
        bob.start()
        await swarm.finish()
        # then it went on from what it had, and no round of it was offered in two versions
        assert len(bob.reports) > before
        assert held in {report.digest for report in ann.reports}
        assert len(swarm.anchors()) == 1
        assert len(dict(bob.offered)) == len(set(bob.offered))


def _fill_disk(monkeypatch: pytest.MonkeyPatch, folder: str, file: str) -> None:
    sync = os.fsync

    def full(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(folder) and file in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)


async def test_one_validator_that_may_lie_drives_nobody_away() -> None:
    # given four validators, of which one may lie, and says that the run is another one
    names = ["ann", "bob", "cyd", "dan"]
    ours, theirs = make_shared(*names), make_shared(*names, rounds=9)
    network = MemoryNetwork(ManualClock().now)

    def presence(name: str, shared: Shared) -> Presence:
        return Presence(identity(name).peer, name, shared, network.join(identity(name).peer, RUN))

    await presence("ann", theirs).renew()
    newcomer = presence("eve", ours)
    # when / then
    await newcomer.refuse_other_runs()
    # but two of them cannot both lie
    await presence("bob", theirs).renew()
    with pytest.raises(NotThisRunError):
        await newcomer.refuse_other_runs()


@pytest.mark.parametrize("phase", ["inner", "compress", "commit", "publish", "gather", "agree", "outer"])
async def test_leaving_takes_no_time_in_any_phase_and_can_be_undone(tmp_path: Path, phase: str) -> None:
    # given a swarm that trains
    async with Swarm(tmp_path, "ann", "bob", rounds=5) as swarm:
        bob = swarm["bob"]
        left_at: list[float] = []

        def leave(peer: Peer) -> None:
            def on_phase(name: str) -> None:
                if name == phase and peer.holds() == 2 and not left_at:
                    left_at.append(swarm.clock.now())
                    assert bob.task is not None
                    bob.task.cancel()

            peer.on_phase = on_phase

        bob.on_start = leave
        swarm.start()
        # when bob is told to leave in that phase
        assert bob.task is not None
        await asyncio.wait([bob.task])
        # then it goes at once
        assert bob.task.cancelled()
        assert swarm.clock.now() - left_at[0] < 0.1
        # and comes back to everyone's anchor, its work counted once
        bob.start()
        await swarm.finish()
        assert len(swarm.anchors()) == 1
        assert [round_ for round_, _ in bob.settled] == list(range(6))
        assert len(dict(bob.offered)) == len(set(bob.offered))


async def test_who_is_asked_to_leave_hands_in_what_is_done_of_the_round(tmp_path: Path) -> None:
    # given a swarm that trains three inner steps a round
    async with Swarm(tmp_path, "ann", "bob", rounds=8) as swarm:
        bob = swarm["bob"]
        worth_waiting: list[bool] = []

        def on_start(peer: Peer) -> None:
            def on_phase(name: str) -> None:
                if (name, peer.holds()) == ("inner", 2) and not worth_waiting:
                    worth_waiting.append(bob.life.leave())

            peer.on_phase = on_phase

        bob.on_start = on_start
        swarm.start()
        # when bob is asked to leave while it trains
        assert (await swarm.finish("bob"))["bob"] == ASKED
        # then it does one more step, which counts, and begins no other round
        assert worth_waiting == [True]
        last = bob.reports[-1]
        assert (last.round, last.counted, last.steps) == (2, True, 1)
        # and the others go on, and it finds them when it comes back
        await swarm.rounds_done(4, "ann")
        bob.start()
        await swarm.finish()
        assert len(swarm.anchors()) == 1


async def test_who_is_asked_to_leave_outside_a_round_goes_at_once(tmp_path: Path) -> None:
    # given a peer that waits for a swarm to begin
    async with Swarm(tmp_path, "ann", "bob", validators=["ann"]) as swarm:
        swarm.start("bob")
        await swarm.until(lambda: swarm["bob"].peer is not None)
        # when / then
        assert swarm["bob"].life.leave() is False
        assert (await swarm.finish("bob"))["bob"] == ASKED
