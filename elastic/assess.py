"""A validator measures how much single contributions help, while it waits for others; see `train.assess`.

Its trainer has nothing else to do between its own payload and the outer step, so that is when it assesses, and nobody
waits for it. If a round leaves no such time, it takes a small part of the round's time after the round is decided:
then the others are at work already.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from elastic import trace
from elastic.errors import ElasticError
from elastic.messages import Assessment, ContributionHeader, PeerId, RoundPlan
from elastic.peer import Peer
from elastic.schedule.phases import Phases

logger = logging.getLogger(__name__)


class Assessor:
    """One round's assessments of one peer; nothing is assessed by who does not decide."""

    def __init__(self, peer: Peer, plan: RoundPlan, ours: bytes | None) -> None:
        self.found: dict[PeerId, Assessment] = {}
        self._peer, self._plan, self._seed = peer, plan, peer.draw_seed()
        # Averaging peers all send the same: nothing in it is anybody's own.
        decides, alike = plan.decides, peer.reducer.averages
        self.active = peer.shared.scoring.sequences > 0 and decides and not alike
        self._ours = ours
        self._waiting: dict[PeerId, tuple[ContributionHeader, bytes]] = {}
        self._more = asyncio.Event()
        self._decided = False

    def offer(self, header: ContributionHeader, payload: bytes) -> None:
        """Something to assess, accepted by the cheap checks."""
        if self.active and header.peer not in self.found:
            self._waiting[header.peer] = header, payload
            self._more.set()

    async def work(self) -> None:
        """Assess what comes, until the round is decided."""
        while not self._decided:
            self._more.clear()
            while self._waiting and not self._decided:
                await self._next()
            await self._more.wait()

    def decide(self) -> None:
        """No more time is free: `work` ends with what it is at."""
        self._decided = True
        self._more.set()

    async def finish(self, phases: Phases) -> None:
        """Assess what is left, for a small part of the time that the round took."""
        until = self._peer.clock.now() + self._peer.shared.scoring.budget * phases.elapsed()
        if self._waiting:
            with phases("assess"):
                while self._waiting and self._peer.clock.now() < until:
                    await self._next()

    async def _next(self) -> None:
        """Whoever was not assessed for longest."""
        sender = self._peer.ratings.order(list(self._waiting))[0]
        header, payload = self._waiting.pop(sender)
        try:
            with trace.span(trace.ASSESS, remote=trace.service_name(sender), peer_of=sender):
                found = await self._peer.trainer.assess(self._plan, header, payload, self._seed, self._ours)
                self.found[sender] = found
                trace.annotate(gain=found.gain_heldout, gain_assigned=found.gain_assigned)
        except ElasticError as error:  # of our own trainer, and the round will hear of it where it needs it
            logger.warning("round %d: %s was not assessed: %s", self._plan.round, sender, error)
            self._waiting.clear()


@asynccontextmanager
async def assessing(peer: Peer, plan: RoundPlan, ours: bytes | None, phases: Phases) -> AsyncIterator[Assessor]:
    """Assess beside the block, and a little after it. Then the trainer is free again.

    Args:
        ours: our own payload, which says how loud honest ones are.
    """
    assessor = Assessor(peer, plan, ours)
    if not assessor.active:
        yield assessor
        return
    working = asyncio.create_task(assessor.work())
    try:
        yield assessor
        assessor.decide()
        await working
        await assessor.finish(phases)
    finally:
        working.cancel()
