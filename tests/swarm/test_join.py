"""Coming from elsewhere: joiners, peers that were away or that differ get to everyone's anchor by its digest."""

from pathlib import Path

import pytest
import torch
from builder import Swarm

DENSE = {"name": "sparseloco", "chunk": 256, "k": 128}
"""So many entries that a few rounds of payloads are more bytes than one anchor."""


async def test_a_joiner_fetches_the_anchor_that_the_head_names(tmp_path: Path) -> None:
    # given a swarm that is some rounds old, whose validator serves wrong bytes for its anchors
    async with Swarm(tmp_path, "ann", "bob", rounds=12, reducer=DENSE) as swarm:
        swarm.start()
        await swarm.rounds_done(8)
        for report in swarm["ann"].reports:
            swarm.network.corrupt(report.digest, swarm["ann"].id)
        # when
        joiner = swarm.add("joiner")
        swarm.start("joiner")
        await swarm.finish()
        # then it asked for one anchor, not for every round, and counts from its first full round
        assert set(joiner.fetched) & {report.digest for report in swarm["ann"].reports}
        assert joiner.reports[0].round > 8
        assert joiner.reports[-1].counted
        assert len(swarm.anchors()) == 1


async def test_nobody_waits_for_a_joiner_that_catches_up_slowly(tmp_path: Path) -> None:
    # given how long the rounds of two peers are
    names, rounds = ("ann", "bob"), range(1, 19)

    async def lengths(swarm: Swarm) -> list[float]:
        await swarm.finish()
        for name in names:
            assert all(report.counted and report.skipped is None for report in swarm[name].reports)
        return [max(swarm[name].report(round_).seconds["total"] for name in names) for round_ in rounds]

    async with Swarm(tmp_path / "alone", *names, rounds=len(rounds), reducer=DENSE) as swarm:
        swarm.start()
        alone = await lengths(swarm)
    # when a third joins in the middle, for whom fetching takes so long that it is too late again and again
    async with Swarm(tmp_path / "joined", *names, rounds=len(rounds), reducer=DENSE) as swarm:
        swarm.start()
        await swarm.rounds_done(8)
        joiner = swarm.add("joiner")
        joiner.lag = 1.5 * max(alone[8:])
        joiner.start()
        await swarm.rounds_done(13, *names)
        assert joiner.fetched and not joiner.reports
        joiner.lag = max(alone[8:]) / 4
        joined = await lengths(swarm)
        # then no round before its first was longer for it, and it counts in the end
        first = joiner.reports[0].round
        assert first > 13 and joiner.reports[-1].counted
        assert joined[: first - 1] == alone[: first - 1]
        assert len(swarm.anchors()) == 1


async def test_a_joiner_is_not_deceived_when_nobody_serves_the_anchor(tmp_path: Path) -> None:
    # given
    async with Swarm(tmp_path, "ann", "bob", rounds=12, reducer=DENSE) as swarm:
        swarm.start()
        await swarm.rounds_done(8)
        held = swarm["ann"].reports[-1]
        for report in swarm["ann"].reports:
            swarm.network.corrupt(report.digest)
        joiner = swarm.add("joiner")
        first = len(swarm["ann"].reports)
        # when
        swarm.start("joiner")
        await swarm.until(lambda: len(swarm["ann"].reports) > first)
        # then it waits with what it has, until there is a head whose anchor somebody gives
        assert joiner.peer.holds() <= 1 or joiner.peer.holds() > held.round
        await swarm.finish()
        assert len(swarm.anchors()) == 1


async def test_who_missed_a_few_rounds_applies_their_payloads(tmp_path: Path) -> None:
    # given
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=6) as swarm:
        cyd = swarm["cyd"]
        swarm.start()
        await swarm.rounds_done(1)
        await cyd.stop()
        away = cyd.peer.holds()
        await swarm.rounds_done(away + 1, "ann", "bob")
        # when
        cyd.start()
        await swarm.finish()
        # then no anchor was fetched
        assert not set(cyd.fetched) & {report.digest for report in swarm["ann"].reports}
        assert [round_ for round_, _ in cyd.settled] == list(range(7))
        assert len(swarm.anchors()) == 1


async def test_who_missed_rounds_whose_payloads_are_gone_takes_the_anchor(tmp_path: Path) -> None:
    # given cyd was away, and nobody keeps the payloads of that time
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=8) as swarm:
        cyd = swarm["cyd"]
        swarm.start()
        await swarm.rounds_done(1)
        await cyd.stop()
        away = cyd.peer.holds()
        await swarm.rounds_done(away + 1, "ann", "bob")
        for entry in swarm.check_chain("ann")[away].counted:
            swarm.network.corrupt(entry.payload)
        # when
        cyd.start()
        await swarm.finish()
        # then
        assert away not in [round_ for round_, _ in cyd.settled]
        assert cyd.reports[-1].counted
        assert len(swarm.anchors()) == 1


@pytest.mark.parametrize("name", ["bob", "ann"])
async def test_a_flipped_bit_is_noticed_and_mended(tmp_path: Path, name: str) -> None:
    # given one peer's memory errs by one bit after the second round; for ann, whose word counts, everyone follows
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=7) as swarm:
        node = swarm[name]
        swarm.start()
        await swarm.rounds_done(1)
        values = next(iter(node.session.anchor.values())).view(torch.int32).view(-1)
        values[7] ^= 1
        # when
        await swarm.finish()
        # then
        others = [other for other in swarm.nodes.values() if other is not node]
        wrong = node if name == "bob" else others[0]
        lost = [report for report in wrong.reports if "another anchor" in (report.skipped or "")]
        assert len(lost) == 1
        assert wrong.reports[-1].counted
        assert len(swarm.anchors()) == 1
        assert all(sum(residual.abs().sum() for residual in n.session.residual.values()) > 0 for n in others)


async def test_a_counted_payload_outlives_its_author(tmp_path: Path) -> None:
    # given cyd downloads slowly, and bob dies as soon as the validator has counted it
    async with Swarm(tmp_path, "ann", "bob", "cyd", rounds=4) as swarm:
        swarm["cyd"].lag = 0.4
        swarm["bob"].crash_at = "outer 2"
        # when
        swarm.start()
        await swarm.finish("bob")
        await swarm.finish("ann", "cyd")
        # then cyd got it from ann
        assert swarm.check_chain("cyd")[2].counts(swarm["bob"].id)
        assert swarm["cyd"].report(2).skipped is None
        assert len(swarm.anchors("ann", "cyd")) == 1
