"""A peer that watches: it follows every anchor that is agreed on, and nobody counts on it."""

from pathlib import Path

import pytest
from builder import Swarm

from elastic.contracts import TrainerState
from elastic.errors import ConfigError
from elastic.messages import Amendment, Digest, PeerStage, RoundIndex, Seconds
from elastic.wire.tree import blob_digest


def watcher(swarm: Swarm, name: str = "eve") -> list[tuple[RoundIndex, Digest]]:
    """One more node, which watches; what it is told of anchors goes into the list."""
    node, told = swarm.add(name), list[tuple[RoundIndex, Digest]]()

    def note(state: TrainerState) -> None:
        told.append((state.round, state.anchor))

    node.watching = True
    node.on_start = lambda peer: setattr(peer, "on_anchor", note)
    return told


async def test_it_holds_every_agreed_anchor_and_contributes_to_none(tmp_path: Path) -> None:
    # given two that train, and one that watches from the beginning
    async with Swarm(tmp_path, "ann", "bob") as swarm:
        told = watcher(swarm)
        swarm.start()
        # when
        reasons = await swarm.finish()
        # then the run is what it would be without
        assert set(reasons.values()) == {"the run is complete after 4 rounds"}
        assert len(swarm.anchors()) == 1
        chain = swarm.check_chain("eve")
        assert [manifest.round for manifest in chain] == [0, 1, 2, 3, 4]
        assert all(set(manifest.roster) == {swarm["ann"].id, swarm["bob"].id} for manifest in chain)
        assert all(report.counted for report in swarm["bob"].reports)
        # and the watcher was told of every anchor on which a round was agreed
        agreed = [(manifest.round, manifest.anchor) for manifest in chain[1:]] + [(5, swarm["ann"].anchor)]
        assert [each for each in dict.fromkeys(told) if each[0] > 0] == agreed
        assert swarm["eve"].offered == []
        assert all(report.tokens == 0 and not report.contributed for report in swarm["eve"].reports)


async def test_nobody_waits_for_it(tmp_path: Path) -> None:
    # given a run that wants two to begin with, one that trains, and one that watches and is slow
    async with Swarm(tmp_path, "ann", "bob") as swarm:
        watcher(swarm)
        swarm["eve"].lag = 1.5
        swarm.start("ann", "eve")
        await swarm.until(lambda: any(each.get("stage") == "watching" for each in swarm["eve"].notes))
        await swarm.clock.sleep(Seconds(5))
        # then it does not begin
        assert swarm["ann"].peer.holds() == 0
        # when the second one comes
        swarm.start("bob")
        await swarm.finish("ann", "bob")
        # then no round took longer than the two of them
        assert all(report.seconds["total"] < 1.5 for report in swarm["ann"].reports)


async def test_it_may_come_late_and_is_not_asked_to_contribute(tmp_path: Path) -> None:
    async with Swarm(tmp_path, "ann", "bob", rounds=8) as swarm:
        swarm.start()
        await swarm.rounds_done(3)
        # when
        told = watcher(swarm)
        swarm.start("eve")
        await swarm.finish()
        # then it got to the anchor by the digest that the others agreed on, and went on from there
        agreed = {manifest.anchor for manifest in swarm.check_chain("ann")} | swarm.anchors("ann")
        assert {anchor for round_, anchor in told if round_ > 0} <= agreed
        assert len(swarm.anchors()) == 1 and told[-1] == (9, swarm["ann"].anchor)
        assert all(swarm["eve"].id not in manifest.roster for manifest in swarm.check_chain("ann"))


async def test_it_says_what_it_is_and_serves_what_it_holds(tmp_path: Path) -> None:
    async with Swarm(tmp_path, "ann", "bob", rounds=6) as swarm:
        watcher(swarm)
        swarm.start()
        await swarm.rounds_done(2)
        cards = {card.peer: card for card in await swarm["ann"].peer.exchange.cards()}
        assert cards[swarm["eve"].id].stage is PeerStage.WATCHING
        assert cards[swarm["eve"].id].round >= 2
        held = swarm["eve"].peer.state
        data = await swarm["bob"].peer.exchange.fetch(held.anchor, held.size_bytes, [swarm["eve"].id])
        assert blob_digest(data) == held.anchor
        await swarm.finish()


async def test_a_contributor_that_comes_back_to_watch_contributes_no_more(tmp_path: Path) -> None:
    # given one that trains, is expected in the round under way, and dies
    async with Swarm(tmp_path, "ann", "bob", "eve", rounds=7) as swarm:
        swarm.start()
        await swarm.rounds_done(2)
        await swarm["eve"].stop()
        trained = max(round_ for round_, _ in swarm["eve"].offered)
        # when it comes back as an evaluator
        swarm["eve"].watching = True
        swarm["eve"].start()
        reasons = await swarm.finish()
        # then it makes nothing more, though the roster still named it, and stays on no roster
        assert set(reasons.values()) == {"the run is complete after 7 rounds"}
        assert max(round_ for round_, _ in swarm["eve"].offered) == trained
        chain = swarm.check_chain("ann")
        assert swarm["eve"].id in chain[trained - 1].roster
        assert all(swarm["eve"].id not in manifest.roster for manifest in chain if manifest.round > trained)
        assert len(swarm.anchors()) == 1


async def test_one_that_the_run_has_agreed_on_as_a_validator_leaves_and_says_why(tmp_path: Path) -> None:
    # given a contributor that became a validator
    async with Swarm(tmp_path, "ann", "bob", "eve", rounds=20) as swarm:
        both = tuple(sorted([swarm["ann"].id, swarm["eve"].id]))
        swarm["ann"].ordered = Amendment(validators=both, incentive=None)
        swarm.start()
        await swarm.until(lambda: bool(swarm["eve"].peer and swarm["eve"].peer.agreement.amendments()))
        await swarm["eve"].stop()
        # when it comes back as an evaluator
        swarm["eve"].watching = True
        swarm["eve"].start()
        # then it casts no vote
        with pytest.raises(ConfigError, match="an evaluator decides nothing, and the run has agreed on"):
            await swarm.finish("eve")
