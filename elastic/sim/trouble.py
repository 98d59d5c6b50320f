"""What befalls the peers: deaths of one, power cuts of all, and links that break when it hurts.

Single deaths come at any time. Worse things wait for a peer to come to a certain point, such as having kept a ballot
that nobody has seen yet, or a final manifest that nobody else knows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elastic.messages import PeerId, Seconds
from elastic.sim.network import Faults, Split

if TYPE_CHECKING:
    from elastic.sim.node import SimNode
    from elastic.sim.world import World

FIRST = "the first to know"
"""A moment: nobody else has this round's final manifest yet."""
MOMENTS = ("after the ballot", "before it is told", "after the outer step", "agree", "gather")
"""Boundaries of a peer's life that trouble waits for."""


@dataclass(slots=True)
class Strike:
    """Trouble that comes when peers have reached a boundary so often."""

    moment: str
    after: int
    power: bool
    """Everyone else is restarted, and the network forgets what it carried."""
    spared: bool
    """Whoever came so far stays up, and is cut off; else it is restarted too, and comes back last."""


class Trouble:
    """All that happens to the peers of one world until the network heals."""

    def __init__(self, world: World, rng: random.Random, spare: int) -> None:
        """Draw it.

        Args:
            world: whose peers.
            rng: for this alone.
            spare: so many validators may lose their disk, and with it what they said: that makes them liars too.
        """
        self._world, self._rng, self._spare = world, rng, spare
        self.crash_rate = rng.choice([0.0, 0.02, 0.1, 0.2])
        self._kills = rng.choice([0, 0, 3, 8])
        self._strikes = [_strike(rng) for _ in range(rng.choice([0, 1, 1, 2]))]

    def dies(self) -> bool:
        """Whether a peer dies at the boundary that it has reached."""
        return self._world.network.bad and self._rng.random() < self.crash_rate

    def pause(self) -> float:
        """Seconds until a peer that died is back; the others may have moved on by some rounds."""
        return self._rng.uniform(30, 100) if self._rng.random() < 0.1 else self._rng.uniform(0, 10)

    def strike(self, node: SimNode, boundary: str) -> None:
        """A peer has reached that boundary."""
        for strike in self._strikes:
            if strike.moment == boundary and self._world.network.bad:
                strike.after -= 1
                if strike.after == 0:
                    self._world.spawn(self._hit(node, strike))

    async def kill_some(self) -> None:
        """SIGKILL at any moment; sometimes the disk goes too."""
        for _ in range(self._kills):
            await self._world.clock.sleep(Seconds(self._rng.uniform(0, self._world.network.faults.heal / self._kills)))
            node = self._rng.choice(self._world.nodes)
            if node.alive and self._world.network.bad:
                await self._kill(node, self.pause(), disk=self._keeps_disk(node))

    async def _hit(self, node: SimNode, strike: Strike) -> None:
        if strike.spared or not strike.power:
            self._cut_off(node)
        if not strike.power:
            return
        for other in self._world.nodes:
            if other.alive and other is not node:
                await self._kill(other, self._rng.uniform(0, 5), disk=True)
        if node.alive and not strike.spared:
            await self._kill(node, self._rng.uniform(10, 40), disk=True)
        self._world.network.forget()

    def _cut_off(self, node: SimNode) -> None:
        network, now = self._world.network, self._world.clock.now()
        end = min(now + self._rng.uniform(5, 25), network.faults.heal)
        network.splits.append(Split(now, end, {node.id: 1}, one_way=self._rng.random() < 0.5))

    async def _kill(self, node: SimNode, seconds: float, *, disk: bool) -> None:
        await node.kill(disk=disk)
        node.done = False
        self._world.start(node, seconds)

    def _keeps_disk(self, node: SimNode) -> bool:
        if self._rng.random() < 0.8:
            return True
        validators = self._world.deciding
        lost = sum(other.lost_disk for other in self._world.nodes if other.id in validators)
        return node.id in validators and not node.lost_disk and lost >= self._spare


def _strike(rng: random.Random) -> Strike:
    power, spared = rng.random() < 0.7, rng.random() < 0.3
    if rng.random() < 0.5:
        return Strike(FIRST, rng.choice([1, 2, 2, 3]), power, spared)
    return Strike(rng.choice(MOMENTS), rng.randrange(1, 12), power, spared)


def draw_faults(rng: random.Random, peers: list[PeerId], heal: float) -> Faults:
    """How bad the network is."""
    return Faults(
        heal=heal, loss=rng.choice([0.0, 0.1, 0.4]), delay=rng.choice([0.1, 0.5, 3.0]),
        stale=rng.choice([0.0, 0.2]), corrupt=rng.choice([0.0, 0.2]), blind=rng.choice([0.0, 0.0, 0.1, 0.4]),
        splits=tuple(_splits(rng, peers, heal)),
    )  # fmt: skip


def _splits(rng: random.Random, peers: list[PeerId], heal: float) -> list[Split]:
    """Mostly none; else one or more, each of other halves, with or without a pause between them."""
    splits, start = list[Split](), rng.choice([0.0, rng.uniform(0, 20)])  # from birth, or later
    for _ in range(rng.choice([0, 0, 0, 1, 1, 3])):
        end = start + rng.uniform(1, 20)
        sides = {peer: rng.randrange(2) for peer in peers}
        splits.append(Split(min(start, heal), min(end, heal), sides, one_way=rng.random() < 0.2))
        start = end + rng.choice([0.0, rng.uniform(0, 5)])
    return splits
