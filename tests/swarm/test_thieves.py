"""Who is copied counts, and who copies does not, however fast the one and the other are."""

from pathlib import Path
from typing import Any

from builder import Node, Swarm, identity

from elastic.errors import FetchError
from elastic.exchange.gather import CONTRIBUTION
from elastic.messages import ContributionHeader, Seconds

ROUNDS = 8
DOWNLOAD = 0.3
LOOK = Seconds(0.05)


def thief(swarm: Swarm, name: str, victim: str, download: float) -> Node:
    """Trains for no time, waits for the victim's bytes, and commits to them as its own."""

    async def copied(header: ContributionHeader, node: Node) -> bytes:
        exchange, give_up = node.peer.exchange, swarm.clock.now() + 4.0
        while swarm.clock.now() < give_up:
            records = await exchange.records(CONTRIBUTION, header.round)
            if swarm[victim].id in records:
                found = ContributionHeader.from_bytes(records[swarm[victim].id])
                try:
                    await exchange.fetch(found.payload, found.size_bytes, [found.peer])
                except FetchError:
                    pass
                else:
                    await swarm.clock.sleep(Seconds(download))
                    claims = {"payload": found.payload, "size_bytes": found.size_bytes}
                    return identity(name).sign(header.model_copy(update=claims)).canonical()
            await swarm.clock.sleep(LOOK)
        return header.canonical()

    node = swarm[name]
    node.pace, node.lie = 0.05, copied
    return node


async def copied_from(swarm: Swarm, download: float) -> tuple[list[int], list[int]]:
    """Rounds of the run that counted the fast peer "bob", and those that counted a thief instead."""
    swarm["bob"].pace = 0.2
    for name in ("ann", "cyd", "dan"):
        swarm[name].pace = 1.5
    for name in ("eve", "eli"):
        thief(swarm, name, "bob", download)
    swarm.start()
    await swarm.finish()
    chain = swarm.check_chain("ann")[1:]
    stolen = [
        manifest.round
        for manifest in chain
        for name in ("eve", "eli")
        if manifest.counts(swarm[name].id)
    ]  # fmt: skip
    return [manifest.round for manifest in chain if manifest.counts(swarm["bob"].id)], stolen


async def test_a_fast_peer_with_two_copiers_counts_in_every_round(tmp_path: Path) -> None:
    # given a peer that is ready long before the validators are, and two that have its bytes a moment later
    changes: dict[str, Any] = {"rounds": ROUNDS, "round": {"train_seconds": 4.0, "gather_seconds": 4.0}}
    async with Swarm(
        tmp_path, "ann", "bob", "cyd", "dan", "eve", "eli", validators=("ann", "cyd", "dan"), **changes
    ) as swarm:
        # when
        counted, stolen = await copied_from(swarm, DOWNLOAD)
        # then validators know who was first, though they were at work themselves
        assert counted == list(range(1, ROUNDS + 1))
        assert stolen == []
        assert len(swarm.anchors("ann", "bob", "cyd", "dan")) == 1
