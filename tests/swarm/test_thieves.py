"""Who is copied counts, and who copies does not, however fast the one and the other are."""

from pathlib import Path

from builder import Node, Swarm, identity

from elastic.errors import FetchError
from elastic.exchange.gather import CONTRIBUTION
from elastic.messages import ContributionHeader, Seconds

ROUNDS = 8
NAMES = ("ann", "bob", "cyd", "dan", "eve", "eli")
DECIDE = ("ann", "cyd", "dan")
LIMITS = {"train_seconds": 4.0, "gather_seconds": 4.0}
LOOK = Seconds(0.05)


def thief(swarm: Swarm, name: str, victim: str, download: float, leads: list[float]) -> None:
    """Trains for no time, waits for the victim's bytes, and commits to them as its own.

    `leads` gets the seconds between the two commitments.
    """

    async def copied(header: ContributionHeader, node: Node) -> bytes:
        while swarm[victim].id not in (records := await node.peer.exchange.records(CONTRIBUTION, header.round)):
            await swarm.clock.sleep(LOOK)
        found, seen = ContributionHeader.from_bytes(records[swarm[victim].id]), swarm.clock.now()
        while not await fetched(node, found):
            await swarm.clock.sleep(LOOK)
        await swarm.clock.sleep(Seconds(download))
        leads.append(swarm.clock.now() - seen)
        claims = {"payload": found.payload, "size_bytes": found.size_bytes}
        return identity(name).sign(header.model_copy(update=claims)).canonical()

    swarm[name].pace, swarm[name].lie = 0.05, copied


async def fetched(node: Node, header: ContributionHeader) -> bool:
    try:
        await node.peer.exchange.fetch(header.payload, header.size_bytes, [header.peer])
    except FetchError:
        return False
    return True


async def copied_from(swarm: Swarm, download: float) -> tuple[list[int], list[int], list[float]]:
    """Rounds that counted the fast peer "bob", those that counted its work as a thief's, and the leads that it had."""
    leads: list[float] = []
    swarm["bob"].pace = 0.2
    for name in ("ann", "cyd", "dan"):
        swarm[name].pace = 1.5
    for name in ("eve", "eli"):
        thief(swarm, name, "bob", download, leads)
    swarm.start()
    await swarm.finish()
    chain = swarm.check_chain("ann")[1:]
    bobs = {payload for _, payload in swarm["bob"].offered}
    thieves = {swarm[name].id for name in ("eve", "eli")}
    stolen = [
        each.round for each in chain for entry in each.counted if entry.peer in thieves and entry.payload in bobs
    ]  # fmt: skip
    return [manifest.round for manifest in chain if manifest.counts(swarm["bob"].id)], stolen, leads


async def test_a_fast_peer_with_two_copiers_counts_in_every_round(tmp_path: Path) -> None:
    # given a peer that is ready long before the validators are, and two that have its bytes a moment later
    async with Swarm(tmp_path, *NAMES, validators=DECIDE, rounds=ROUNDS, round=LIMITS) as swarm:
        # when
        counted, stolen, leads = await copied_from(swarm, download=0.3)
        # then validators know who was first, though they were at work themselves
        assert leads
        assert counted == list(range(1, ROUNDS + 1))
        assert stolen == []
        assert len(swarm.anchors("ann", "bob", "cyd", "dan")) == 1


async def test_where_payloads_are_kept_back_no_copy_can_be_made_in_time(tmp_path: Path) -> None:
    # given thieves that need no time at all for a download
    async with Swarm(tmp_path, *NAMES, validators=DECIDE, rounds=4, round={**LIMITS, "reveal": True}) as swarm:
        # when
        counted, stolen, leads = await copied_from(swarm, download=0.0)
        # then everyone saw the original long before there was a copy
        assert leads and min(leads) > 1.5
        assert counted == [1, 2, 3, 4]
        assert stolen == []
        # and where everybody commits nobody waits for half of the deadline
        assert swarm["bob"].report(3).seconds["total"] < swarm["bob"].report(1).seconds["total"]
