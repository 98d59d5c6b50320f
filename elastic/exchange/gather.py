"""Gathering a round's contributions: commitments appear in the DHT, payloads are fetched by digest as they do."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from elastic import trace
from elastic.contracts import Clock, Exchange
from elastic.errors import FetchError, MalformedError
from elastic.messages import ContributionHeader, PeerId, PeerStage, RejectReason, RoundPlan, Seconds, Verdict

logger = logging.getLogger(__name__)

CONTRIBUTION = "contribution"
"""Record kind of a commitment."""
POLL_SECONDS = Seconds(0.15)
"""Between two looks at the DHT; a look costs about 30 ms there and must stay small beside a round."""

MUCH = 3
"""At least one in so many that are expected committed and is still on its way: fewer may be liars."""
MAX_NAMED = 16
"""Missing peers named in a trace."""

HeaderCheck = Callable[[PeerId, ContributionHeader], Verdict]
PayloadCheck = Callable[[ContributionHeader, bytes], Awaitable[Verdict]]
Decided = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One peer's contribution as gathered: what it committed to, and its bytes if they could be had."""

    header: ContributionHeader
    payload: bytes | None
    verdict: Verdict
    committed: float
    """When its commitment was first seen, and"""
    seconds: float
    """when it was complete: seconds since the round began."""


@dataclass(frozen=True, slots=True)
class Checks:
    """The cheap checks, given by the story so that this room judges nothing itself."""

    header: HeaderCheck
    payload: PayloadCheck


async def never() -> bool:
    """Nothing is decided but by the deadline."""
    return False


@dataclass(frozen=True, slots=True)
class Until:
    """When gathering ends though not everyone has arrived."""

    deadline: Seconds
    """Instant on the clock."""
    decided: Decided = never
    began: Seconds | None = None
    """Instant from which arrivals are counted; None: when the gathering begins."""
    patience: float = 0.0
    """Seconds beyond the deadline, as long as much of it is being carried or checked: our line or our machine is slow.
    Who commits and serves nothing holds up nobody."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a round brought."""

    arrivals: dict[PeerId, Arrival]
    """In order of arrival."""
    unfetched: frozenset[PeerId]
    """Who committed, but their bytes were not to be had in time: a slow link, or a lie."""


async def gather(
    exchange: Exchange,
    clock: Clock,
    plan: RoundPlan,
    *,
    checks: Checks,
    until: Until,
    noted: Mapping[PeerId, bytes] | None = None,
) -> Gathered:
    """Collect contributions until everyone on the roster has arrived, the round is decided, or the deadline.

    Args:
        checks: of what comes.
        until: when to stop waiting.
        noted: commitments that others have seen; if given, only these are waited for.

    Nobody's garbage raises.
    """
    expected = set(plan.roster) if noted is None else set(plan.roster) & set(noted)
    arrivals: dict[PeerId, Arrival] = {}
    tasks: dict[PeerId, asyncio.Task[Arrival]] = {}
    began = clock.now()
    receiver = _Receiver(exchange, clock, plan, checks, began if until.began is None else until.began, began)
    try:
        while True:
            shown = await exchange.records(CONTRIBUTION, plan.round) if noted is None else noted
            committed = clock.now() - receiver.start  # one look shows no order
            for sender, body in shown.items():
                if sender in expected and sender not in tasks:
                    tasks[sender] = asyncio.create_task(receiver.receive(sender, body, committed))
            _collect(tasks, arrivals)
            missing = expected - set(arrivals)
            slow = MUCH * len(missing & set(tasks)) >= len(expected)
            deadline = until.deadline + (until.patience if slow else 0.0)
            over = not missing or clock.now() >= deadline or await until.decided()
            if over or missing <= await leaving(exchange):
                for late in sorted(missing)[:MAX_NAMED]:
                    trace.event("missing", peer=late, committed=late in tasks)
                trace.annotate(arrived=len(arrivals), missing=len(missing), late=clock.now() >= until.deadline)
                return Gathered(arrivals, frozenset(missing & set(tasks)))
            await clock.sleep(POLL_SECONDS)
    finally:
        for task in tasks.values():
            task.cancel()


async def leaving(exchange: Exchange) -> set[PeerId]:
    """Who said goodbye: nobody waits for them."""
    return {card.peer for card in await exchange.cards() if card.stage is PeerStage.LEAVING}


def _collect(tasks: Mapping[PeerId, asyncio.Task[Arrival]], arrivals: dict[PeerId, Arrival]) -> None:
    for peer, task in tasks.items():
        if task.done() and peer not in arrivals:
            arrivals[peer] = task.result()


@dataclass(frozen=True, slots=True)
class _Receiver:
    exchange: Exchange
    clock: Clock
    plan: RoundPlan
    checks: Checks
    start: Seconds
    """When arrivals are counted from,"""
    began: Seconds
    """and when we began to look."""

    async def receive(self, sender: PeerId, body: bytes, committed: float) -> Arrival:
        """From a commitment's bytes to an arrival; waits for the payload as long as the caller lets it."""
        remote, waited = trace.service_name(sender), self.clock.now() - self.began
        with trace.span(trace.FETCH, remote=remote, peer_from=sender, committed_s=committed, waited_s=waited):
            header, verdict, payload = self._read(sender, body), None, None
            if header is not None:
                verdict = self.checks.header(sender, header)
                if verdict.accepted:
                    payload = await self._fetch(header)
                    begin = self.clock.now()
                    verdict = await self.checks.payload(header, payload)
                    trace.annotate(verify_s=self.clock.now() - begin)
            verdict = verdict or self._unreadable(sender)
            trace.annotate(bytes=len(payload or b""), verdict=verdict.rejected or "accepted")
            if verdict.rejected:
                trace.failed(f"{verdict.rejected}: {verdict.detail}")
            kept = payload if verdict.accepted else None
            return Arrival(header or self._blank(sender), kept, verdict, committed, self.clock.now() - self.start)

    async def _fetch(self, header: ContributionHeader) -> bytes:
        """Try until it is there: a payload becomes fetchable only after its commitment, and links fail.

        Everyone on the roster fetches it too; who else may have it is asked from the second try on.
        """
        holders = dict.fromkeys((header.peer, *self.plan.roster))
        pause, begin = POLL_SECONDS, self.clock.now()
        try:
            while True:
                try:
                    return await self.exchange.fetch(header.payload, header.size_bytes, list(holders))
                except FetchError as error:
                    trace.event("failed", because=error)
                    await self.clock.sleep(pause)
                    pause = Seconds(min(2 * pause, 5.0))
                holders |= dict.fromkeys(card.peer for card in await self.exchange.cards())
        finally:
            trace.annotate(transfer_s=self.clock.now() - begin)

    def _read(self, sender: PeerId, body: bytes) -> ContributionHeader | None:
        try:
            return ContributionHeader.from_bytes(body)
        except MalformedError as error:
            logger.info("round %d: the commitment of %s: %s", self.plan.round, sender, error)
            return None

    def _unreadable(self, sender: PeerId) -> Verdict:
        reason = RejectReason.MALFORMED
        return Verdict(peer=sender, round=self.plan.round, rejected=reason, detail="its commitment cannot be read")

    def _blank(self, sender: PeerId) -> ContributionHeader:
        """Stands in for a commitment that could not be read."""
        return ContributionHeader(
            run=self.plan.run, round=self.plan.round, peer=sender, anchor=self.plan.anchor,
            proof=self.plan.previous, payload=self.plan.previous, size_bytes=0, steps=0, tokens=0, loss=0.0,
        )  # fmt: skip
