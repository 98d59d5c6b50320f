"""Operators who hand the decision over, again and again, while everything else goes wrong.

Each change is wished for by all honest validators, not quite at the same time. Who decided before may then leave for
good: what is left of the run is its manifests, and those who hold them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elastic.agreement.simplex import max_liars
from elastic.messages import Amendment, PeerId, RoundIndex, Seconds
from elastic.reports import Order

if TYPE_CHECKING:
    from elastic.sim.node import SimNode
    from elastic.sim.world import World

LAST_CHANGE = 50.0
"""Seconds."""
SKEW = 6.0
"""Seconds between the first operator's order and the last one's."""
FAR = RoundIndex(2**40)


@dataclass(frozen=True, slots=True)
class Change:
    """One hand-over."""

    at: float
    validators: tuple[PeerId, ...]
    ends_lives: bool
    """Whether those who do not decide any more leave for good."""


class Changes:
    """All of one schedule."""

    def __init__(self, world: World, liars: list[PeerId], rng: random.Random) -> None:
        """Draw them; each set of validators has no more liars than it bears."""
        self._world = world
        honest = [node.id for node in world.nodes]
        self._skew = {peer: rng.uniform(0, SKEW) for peer in honest}
        self._changes = []
        for _ in range(rng.choice([1, 2, 3])):
            chosen = rng.sample(honest, rng.randint(1, len(honest)))
            if max_liars(len(chosen) + len(liars)) >= len(liars):
                chosen += liars
            at = rng.uniform(0, LAST_CHANGE)
            self._changes.append(Change(at, tuple(sorted(chosen)), ends_lives=rng.random() < 0.4))
        self._changes.sort(key=lambda change: change.at)

    def order(self, node: SimNode) -> Order | None:
        """What that peer's operator wants now."""
        due = [each for each in self._changes if each.at + self._skew[node.id] <= self._world.clock.now()]
        if not due or node.peer is None:
            return None
        amendments = node.peer.agreement.amendments()
        amended = amendments[-1].round if amendments else RoundIndex(0)
        return Order(
            run=self._world.shared.run, amended=amended,
            amendment=Amendment(validators=due[-1].validators, incentive=None),
        )  # fmt: skip

    async def end_lives(self) -> None:
        """Who was replaced leaves, once all who replace it hold what it leaves to them."""
        last = self._changes[-1]
        if not last.ends_lives:
            return
        while not all(self._took_over(node, last) for node in self._world.nodes if node.id in last.validators):
            await self._world.clock.sleep(Seconds(1.0))
        for node in [each for each in self._world.nodes if each.id not in last.validators]:
            node.left = True
            self._world.nodes.remove(node)
            await node.kill(disk=True)

    @staticmethod
    def _took_over(node: SimNode, change: Change) -> bool:
        peer = node.peer
        amendments = peer.agreement.amendments() if peer is not None and node.alive else ()
        if peer is None or not amendments or peer.agreement.terms(FAR).validators != change.validators:
            return False
        return peer.holds() > amendments[-1].round
