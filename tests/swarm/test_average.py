"""Swarms that trust each other: everyone commits to the same all-reduced mean, or the round is void."""

from pathlib import Path
from typing import Any

import torch
from builder import Swarm

from elastic.train.outer import MOMENTUM

AVERAGE: dict[str, Any] = {
    "reducer": {"name": "average"},
    "outer": {"learning_rate": 0.7, "nesterov": 0.9},
}


def average(folder: Path, *names: str, **changes: Any) -> Swarm:
    swarm = Swarm(folder, *names, **changes)
    swarm.shared = swarm.shared.model_validate({**swarm.shared.model_dump(), **AVERAGE})
    return swarm


async def test_everyone_holds_the_same_mean_and_the_same_momentum(tmp_path: Path) -> None:
    # given
    async with average(tmp_path, "ann", "bob", "cyd", rounds=5) as swarm:
        # when
        swarm.start()
        await swarm.finish()
        # then
        for round_ in range(1, 6):
            reports = [node.report(round_) for node in swarm.nodes.values()]
            assert len({report.digest for report in reports}) == 1
            assert all(report.counted for report in reports)
        losses = [report.loss for report in swarm["ann"].reports]
        assert losses[-1] < losses[0] - 0.1
        # and momentum is part of what the digest covers
        anchors = [node.session.anchor for node in swarm.nodes.values()]
        momenta = [name for name in anchors[0] if name.startswith(MOMENTUM)]
        assert len(momenta) == len(anchors[0]) // 2
        assert all(anchors[0][name].abs().sum() > 0 for name in momenta)
        assert all(torch.equal(anchors[0][name], other[name]) for other in anchors for name in anchors[0])


async def test_a_joiner_takes_the_momentum_too(tmp_path: Path) -> None:
    # given
    async with average(tmp_path, "ann", "bob", rounds=9) as swarm:
        swarm.start()
        await swarm.rounds_done(6)
        # when
        joiner = swarm.add("joiner")
        swarm.start("joiner")
        await swarm.finish()
        # then
        assert set(joiner.fetched) & {report.digest for report in swarm["ann"].reports}
        assert joiner.reports[-1].counted
        assert len(swarm.anchors()) == 1


async def test_a_broken_average_voids_the_round_and_loses_nothing(tmp_path: Path) -> None:
    # given cyd is cut off while it trains
    async with average(tmp_path, "ann", "bob", "cyd", rounds=8) as swarm:
        cyd = swarm["cyd"]
        swarm.start()
        await swarm.rounds_done(1)
        swarm.network.cut(cyd.id)
        # when
        await swarm.until(lambda: any(report.round == 2 for report in swarm["ann"].reports))
        # then
        chain = swarm.check_chain("ann")
        assert chain[2].void and chain[2].anchor == swarm["ann"].report(2).digest
        for name in ("ann", "bob"):
            node = swarm[name]
            assert all(residual.abs().sum() > 0 for residual in node.session.residual.values())
        # when it is back
        await swarm.rounds_done(4, "ann", "bob")
        assert swarm.check_chain("ann")[4].counted
        swarm.network.heal(cyd.id)
        await swarm.finish()
        # then
        assert cyd.reports[-1].counted
        assert len(swarm.anchors()) == 1


async def test_a_peer_killed_in_the_middle_of_an_average_comes_back(tmp_path: Path) -> None:
    # given
    async with average(tmp_path, "ann", "bob", "cyd", rounds=6) as swarm:
        bob = swarm["bob"]
        bob.crash_at = "average 2"
        swarm.start()
        await swarm.finish("bob")
        # when
        await swarm.rounds_done(2, "ann", "cyd")
        bob.start()
        await swarm.finish()
        # then
        assert swarm.check_chain("ann")[2].void
        assert bob.reports[-1].counted
        assert [round_ for round_, _ in bob.settled] == list(range(7))
        assert len(swarm.anchors()) == 1


async def test_who_dies_with_the_average_in_hand_has_its_work_counted_once(tmp_path: Path) -> None:
    # given bob's part is in everyone's mean, but bob never said so
    async with average(tmp_path, "ann", "bob", "cyd", rounds=6) as swarm:
        bob = swarm["bob"]
        bob.crash_at = "commit 2"
        swarm.start()
        await swarm.finish("bob")
        # when
        await swarm.rounds_done(2, "ann", "cyd")
        left = {name: value.clone() for name, value in bob.session.residual.items()}
        bob.start()
        await swarm.until(lambda: bob.peer.holds() > 2 and bob.peer.state.pending is None)
        # then what is left is the rounding alone
        assert not swarm.check_chain("ann")[2].void
        assert all(torch.equal(bob.session.residual[name], left[name]) for name in left)
        await swarm.finish()
        assert len(swarm.anchors()) == 1
