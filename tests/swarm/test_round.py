"""The story of a round, told by whole swarms of real parts in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from builder import Node, Swarm, make_session

from elastic.look.gathering import Gathering
from elastic.messages import ContributionHeader


async def silent(header: ContributionHeader, node: Node) -> bytes:
    """A commitment that nobody can read."""
    return b"nothing"


async def test_three_peers_hold_the_same_anchor_after_every_round(tmp_path: Path) -> None:
    # given
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=6) as swarm:
        # when
        swarm.start()
        ended = await swarm.finish()
        # then
        assert set(ended.values()) == {"the run is complete after 6 rounds"}
        for round_ in range(1, 7):
            reports = [node.report(round_) for node in swarm.nodes.values()]
            assert len({report.digest for report in reports}) == 1
            assert len({report.manifest for report in reports}) == 1 and reports[0].manifest
            assert all(report.counted and report.skipped is None for report in reports)
        assert len(swarm.anchors()) == 1
        # and
        losses = [report.loss for report in swarm["ann"].reports]
        assert losses[-1] < losses[0] - 0.1
        for name in swarm.nodes:
            chain = swarm.check_chain(name)
            assert [manifest.round for manifest in chain] == list(range(7))
        assert swarm["bob"].session.evaluate(8) == swarm["cyd"].session.evaluate(8)


async def test_the_payloads_and_the_chain_replay_the_run_bit_for_bit(tmp_path: Path) -> None:
    # given a finished run, and someone who was never there
    async with Swarm(tmp_path, "ann", "bob", rounds=3) as swarm:
        swarm.start()
        await swarm.finish()
        held = swarm["ann"].peer.exchange.held
        # when
        replay = make_session(swarm.shared, tmp_path / "replay")
        for manifest in swarm.check_chain("ann"):
            assert manifest.anchor == replay.state().anchor
            replay.outer_step(manifest, {entry.payload: held(entry.payload) for entry in manifest.counted})
        # then
        assert {replay.state().anchor} == swarm.anchors()


@pytest.mark.parametrize("tellers", [("ann", "bob", "cyd"), ("ann",), ("bob",)], ids="+".join)
async def test_whose_contribution_came_late_is_in_everyones_report(tmp_path: Path, tellers: tuple[str, ...]) -> None:
    # given a node that is slower than the others, but not too slow
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=3) as swarm:
        swarm["cyd"].pace = 3.0
        # when
        swarm.start()
        await swarm.finish()
        # then reports tell when it came
        told = swarm["ann"].report(2)
        assert told.arrived.keys() == {node.id for node in swarm.nodes.values()}
        assert all(told.committed[peer] <= told.arrived[peer] for peer in told.arrived)
        assert told.arrived[swarm["cyd"].id] > told.arrived[swarm["bob"].id] + 1
        # and whoever puts them together finds it
        known = Gathering()
        for name in tellers:
            for report in swarm[name].reports:
                known.report(report)
        assert [each.late() for each in known.rounds()] == [[swarm["cyd"].id]] * 3


async def test_a_validator_that_all_need_and_that_is_much_too_slow_gets_more_time_until_the_run_goes_on(
    tmp_path: Path,
) -> None:
    # given two validators, who both must sign, and rounds that have become short
    bounds = {"gather_seconds": 60.0}
    async with Swarm(tmp_path, "ann", "bob", "cyd", validators=("ann", "bob"), rounds=6, round=bounds) as swarm:
        swarm.start()
        await swarm.until(lambda: len(swarm["cyd"].reports) >= 3)
        # when one of them needs longer for a payload than anybody is waited for
        deadline = swarm["bob"].peer.plan(swarm.check_chain("bob")[3]).gather_seconds
        swarm["bob"].lag = 2 * deadline
        await swarm.finish()
        # then the run went on to its end
        assert swarm.check_chain("cyd")[6].counts(swarm["cyd"].id)


async def test_a_late_contribution_is_kept_and_counted_later(tmp_path: Path) -> None:
    # given a node that needs longer than anyone waits
    async with Swarm(tmp_path, "ann", "bob", "slow", rounds=9) as swarm:
        slow = swarm["slow"]
        slow.pace = 8.0
        # when
        swarm.start()
        await swarm.rounds_done(1)
        slow.pace = 0.5
        # then its work is in its residual
        assert slow.report(1).contributed and not slow.report(1).counted
        assert slow.report(1).skipped == "arrived after the round was decided"
        assert slow.report(1).digest == swarm["ann"].report(1).digest
        kept = sum(residual.abs().sum() for residual in slow.session.residual.values())
        assert kept > 0 and slow.peer.state.pending is None
        # when it is quick again
        await swarm.finish()
        # then it follows the rounds it missed, and counts again
        assert slow.report(2).skipped is None and not slow.report(2).contributed
        assert slow.report(9).counted
        assert len(swarm.anchors()) == 1


async def test_one_that_takes_much_longer_than_everyone_still_finds_the_manifest(tmp_path: Path) -> None:
    # given
    async with Swarm(tmp_path, "ann", "bob", "slow", rounds=5) as swarm:
        swarm["ann"].pace = swarm["bob"].pace = 2.5
        swarm["slow"].pace = 12.0
        # when
        swarm.start()
        await swarm.rounds_done(1, "slow")
        # then
        assert swarm["slow"].report(1).skipped == "arrived after the round was decided"
        assert swarm["slow"].report(1).manifest == swarm["ann"].report(1).manifest


async def test_a_late_validator_counts_those_that_wait_for_it(tmp_path: Path) -> None:
    # given a validator that is later than its own deadline
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=2) as swarm:
        swarm["ann"].pace = 6.0
        # when
        swarm.start()
        await swarm.finish()
        # then
        manifest = swarm.check_chain("bob")[1]
        assert {swarm["bob"].id, swarm["cyd"].id} <= {entry.peer for entry in manifest.counted}
        assert len(swarm.anchors()) == 1


async def test_a_slower_peer_does_fewer_steps_and_has_a_smaller_share(tmp_path: Path) -> None:
    # given a machine on which the time for inner steps ends after the first
    async with Swarm(tmp_path, "ann", "bob", rounds=2, inner={"steps": 4}) as swarm:
        swarm["bob"].plan_changes = {"train_seconds": 0.0}
        # when
        swarm.start()
        await swarm.finish()
        # then
        assert (swarm["ann"].report(1).steps, swarm["bob"].report(1).steps) == (4, 1)
        shares = {entry.peer: entry.share for entry in swarm.check_chain("ann")[1].counted}
        # four times the tokens, but at most `cap` times the median of 1 and 4
        assert shares[swarm["ann"].id] == pytest.approx(0.8)
        assert shares[swarm["bob"].id] == pytest.approx(0.2)
        assert len(swarm.anchors()) == 1


async def test_a_void_round_moves_nothing_and_loses_nothing(tmp_path: Path) -> None:
    # given everyone's commitments of the first round are garbage
    async with Swarm(tmp_path, "ann", "bob", rounds=2) as swarm:
        for node in swarm.nodes.values():
            node.lie = silent
        # when
        swarm.start()
        await swarm.rounds_done(1)
        for node in swarm.nodes.values():
            node.lie = None
        # then
        genesis, void = swarm.check_chain("ann")[:2]
        assert void.void and swarm.anchors() == {genesis.anchor}
        assert all(node.report(1).skipped == "void: nobody's contribution counted" for node in swarm.nodes.values())
        for node in swarm.nodes.values():
            assert node.session.pending is None
            assert all(residual.abs().sum() > 0 for residual in node.session.residual.values())
        # and the next round counts again
        await swarm.finish()
        assert all(node.report(2).counted for node in swarm.nodes.values())
        assert len(swarm.anchors()) == 1 and swarm.anchors() != {genesis.anchor}


@pytest.mark.parametrize("how", ["the loss is not a number", "the last step was too far"])
async def test_a_peer_that_diverges_sits_out_and_comes_back(tmp_path: Path, how: str) -> None:
    # given
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=4) as swarm:
        cyd = swarm["cyd"]
        swarm.start()
        await swarm.rounds_done(1)
        session = cyd.session
        poisoned = session.optimizer
        poison(session, how)
        # when
        await swarm.rounds_done(2)
        # then
        assert "diverged" in (cyd.report(2).skipped or "") and not cyd.report(2).contributed
        assert swarm["ann"].report(2).counted and swarm["bob"].report(2).counted
        assert session.optimizer is not poisoned
        assert all(torch.isfinite(value).all() for value in session.residual.values())
        # and
        await swarm.finish()
        assert cyd.report(4).counted
        assert len(swarm.anchors()) == 1


def poison(session: Any, how: str) -> None:
    """Break the next inner steps of this session, once."""
    loss, optimizer = session.loss, session.optimizer
    step = optimizer.step

    def broken_loss(batch: Any) -> Any:
        session.loss = loss
        return loss(batch) * float("nan")

    def too_far(*args: Any, **kwargs: Any) -> None:
        step(*args, **kwargs)
        steps_left.pop()
        if not steps_left:
            with torch.no_grad():
                next(iter(session.fitted.params.values())).fill_(float("inf"))

    steps_left = list(range(session.shared.inner.steps))
    if how == "the loss is not a number":
        session.loss = broken_loss
    else:
        optimizer.step = too_far


async def test_a_silent_validator_makes_nobody_offer_two_contributions(tmp_path: Path) -> None:
    # given a validator that dies before it decides, and peers that wait in vain and try again
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=3) as swarm:
        swarm["ann"].crash_at = "gather 2"
        swarm.start()
        assert await swarm.finish("ann") == {"ann": "crashed at gather 2"}
        bob = swarm["bob"]
        await swarm.until(lambda: sum(report.round == 2 for report in bob.reports) >= 2)
        assert "cannot be heard" in (bob.reports[-1].skipped or "")
        # when
        swarm.start("ann")
        await swarm.finish()
        # then
        for node in swarm.nodes.values():
            assert len({payload for round_, payload in node.offered if round_ == 2}) == 1
            assert node.report(2).counted
        assert len(swarm.anchors()) == 1


async def test_every_manifest_tells_how_long_its_round_took(tmp_path: Path) -> None:
    # given one whose downloads end after the round is decided
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=3) as swarm:
        swarm["cyd"].lag = 0.4
        # when
        swarm.start()
        await swarm.finish()
        # then
        chain = swarm.check_chain("bob")
        assert [len(manifest.pace) for manifest in chain] == [0, 1, 2, 3]
        assert all(0.5 <= seconds < 3.0 for seconds in chain[-1].pace)


async def test_who_counted_is_not_called_missing_by_those_who_had_not_fetched_it_yet(tmp_path: Path) -> None:
    # given one whose downloads end after the round is decided
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=2) as swarm:
        swarm["cyd"].lag = 0.4
        # when
        swarm.start()
        await swarm.finish()
        # then it fetched and applied what counted, and its verdicts say so
        for round_ in (1, 2):
            assert set(swarm["cyd"].report(round_).verdicts.values()) == {"accepted"}
        # and it serves what it fetched, as everyone does
        counted = [entry.payload for manifest in swarm.check_chain("cyd") for entry in manifest.counted]
        assert len(counted) == 6 and all(swarm["cyd"].peer.exchange.held(payload) for payload in counted)
