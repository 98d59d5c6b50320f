"""When each commitment was first seen: a validator looks from the beginning of a round, beside its inner steps.

Gathering begins when our own work is done. Who was ready long before would then be seen together with those who copied
it in the meantime, and a draw would have to tell them apart.

Where the run wants that (`shared.round.reveal`), a payload is also kept back until no copy of it can be first.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from elastic import trace
from elastic.errors import MalformedError, NetworkError
from elastic.exchange.gather import CONTRIBUTION, POLL_SECONDS, Gathered, leaving
from elastic.messages import ContributionHeader, Digest, PeerId, RoundPlan, Seconds
from elastic.peer import Peer
from elastic.schedule.phases import Phases

logger = logging.getLogger(__name__)

REST = 20.0
"""Times what a look took, at least, until the next one: inner steps take long, and looking is not free."""


class Firsts:
    """The first commitment of each peer of a roster, and when it was seen, in seconds since the round began."""

    def __init__(self, roster: Collection[PeerId]) -> None:
        self.missing = set(roster)
        """Whose commitment was not seen yet."""
        self._seen: dict[PeerId, tuple[Digest, float]] = {}

    def note(self, records: Mapping[PeerId, bytes], seconds: float) -> None:
        """Take in a look at the records; a peer's later ones change nothing, and of one that is no commitment no time
        is known."""
        for sender in self.missing & records.keys():
            try:
                self._seen[sender] = ContributionHeader.from_bytes(records[sender]).payload, seconds
            except MalformedError:
                logger.info("%s posted what is no commitment", sender)
        self.missing -= records.keys()

    def date(self, gathered: Gathered) -> Gathered:
        """The same, each commitment dated from when it was first seen, if it is still to the same payload."""
        arrivals = dict(gathered.arrivals)
        for sender, arrival in gathered.arrivals.items():
            payload, seconds = self._seen.get(sender, (None, arrival.committed))
            if payload == arrival.header.payload:
                arrivals[sender] = replace(arrival, committed=min(seconds, arrival.committed))
        return Gathered(arrivals, gathered.unfetched)


@asynccontextmanager
async def noting(peer: Peer, plan: RoundPlan, phases: Phases) -> AsyncIterator[Firsts]:
    """During the block note who commits to what, if we decide; what the network loses is seen the next time."""
    firsts = Firsts(plan.roster)
    wanted = peer.shared.scoring.sequences > 0 or peer.shared.round.reveal
    if not wanted or not plan.decides:
        yield firsts
        return
    looking = asyncio.create_task(_look(peer, plan, phases, firsts))
    try:
        yield firsts
    finally:
        looking.cancel()  # not waited for: it would swallow our own end


async def may_reveal(peer: Peer, plan: RoundPlan, phases: Phases) -> None:
    """Where payloads are kept back, wait until all on the roster have committed, or half of the deadline has gone."""
    begin = peer.clock.now()
    while peer.shared.round.reveal and phases.elapsed() < plan.gather_seconds / 2:
        try:
            missing = set(plan.roster) - set(await peer.exchange.records(CONTRIBUTION, plan.round))
            if missing <= await leaving(peer.exchange):
                break
        except NetworkError as error:
            logger.info("round %d: commitments: %s", plan.round, error)
        await peer.clock.sleep(POLL_SECONDS)
    trace.annotate(waited_s=peer.clock.now() - begin)


async def _look(peer: Peer, plan: RoundPlan, phases: Phases, firsts: Firsts) -> None:
    while firsts.missing:
        begin = peer.clock.now()
        try:
            firsts.note(await peer.exchange.records(CONTRIBUTION, plan.round), phases.elapsed())
        except NetworkError as error:
            logger.info("round %d: commitments: %s", plan.round, error)
        await peer.clock.sleep(Seconds(max(POLL_SECONDS, REST * (peer.clock.now() - begin))))
