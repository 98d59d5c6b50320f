"""THE STORY: one round of one peer, top to bottom.

plan → inner steps → compress → commit digest → publish → gather → verdicts → agree → outer step or restore → report.
Start reading at `run_round`; every line is one jump deep. A peer's misbehaviour is a Verdict, an unlucky round is a
Skip, and neither is an exception: exceptions mean that our own side is broken.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from math import isfinite
from typing import cast

from elastic import trace
from elastic.agreement.simplex import max_liars, proposer_of
from elastic.amend import wish_of
from elastic.apply import apply_manifest, missing_payloads
from elastic.assess import Assessor, assessing
from elastic.contracts import AveragingReducer, Times
from elastic.deliberate import Deliberation
from elastic.errors import AveragingError, DivergedError
from elastic.exchange.gather import CONTRIBUTION, Gathered, Until, gather
from elastic.firsts import may_reveal, noting
from elastic.messages import (
    Amendment,
    Assessment,
    ContributionHeader,
    Digest,
    Evidence,
    InnerReport,
    Manifest,
    PeerId,
    RejectReason,
    RoundPlan,
    Scoreboard,
    Seconds,
    View,
)
from elastic.peer import Peer
from elastic.reports import RoundReport
from elastic.schedule.decide import Commit, Skip, decide_commit
from elastic.schedule.phases import Phases
from elastic.schedule.plan import TRAIN_PART
from elastic.seen import Seen, checks_of, judge
from elastic.tell import tell_round
from elastic.testify import testifying
from elastic.verify.proof import prove
from elastic.wire.tree import blob_digest

PROPOSER_SECONDS = Seconds(2.0)
"""After the deadline of a round, for its proposer to be heard; then the next one's turn comes, which lasts twice as
long, and so on."""
MIN_TURNS = 3
"""So many are waited for after the deadline of a round, at least; more where more proposers in a row may be dead."""
MANIFEST_POLL = Seconds(0.1)
"""Between two looks for the manifest; it ends the round for everyone, so it is looked for often."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What we put into the round: nothing if we sit out, a reason if we could not."""

    inner: InnerReport | None = None
    payload: bytes | None = None
    failed: str | None = None


async def run_round(peer: Peer, plan: RoundPlan) -> RoundReport:
    """One round: train, share, agree on what counts, and move the anchor exactly as everyone else does."""
    phases, began = Phases(peer.clock, peer.on_phase), trace.now_ns()
    before = await peer.exchange.traffic()
    with trace.round_span(plan):
        wish = wish_of(peer, plan)
        async with testifying(peer, plan, wish):
            async with noting(peer, plan, phases) as firsts:
                offer = await contribute(peer, plan, phases)
            async with assessing(peer, plan, offer.payload, phases) as assessor:
                seen = judge(peer, plan, firsts.date(await collect(peer, plan, phases, assessor)))
                manifest, seen = await agree(peer, plan, seen, wish, phases)
            decision = await conclude(peer, plan, manifest, seen, phases)
        seen = seen.corrected(decision)
        await tell_round(peer, manifest, _why_skipped(peer, offer, seen, decision))
    if manifest is not None and manifest.proposer == peer.id:
        about = {"counted": len(manifest.counted), "proposer": peer.id}
        trace.root_span(plan.run, plan.round, began, trace.now_ns(), **about)
    await peer.incentive.settle(remember(peer, plan, seen, decision, assessor.found))
    return await report(peer, plan, (offer, seen, decision), before, phases)


async def contribute(peer: Peer, plan: RoundPlan, phases: Phases) -> Offer:
    """Inner steps → payload; its digest is committed before anyone can fetch its bytes."""
    if plan.slot is None:
        return Offer()
    try:
        inner, payload = await _trained(peer, plan, phases)
        if peer.reducer.averages:
            payload = await _averaged(peer, plan, payload, phases)
    except (DivergedError, AveragingError) as error:
        return Offer(failed=str(error))
    header = _header(peer, plan, inner, payload)
    with phases("commit"):
        await peer.exchange.post(CONTRIBUTION, plan.round, header.canonical())
    with phases("publish"):
        await may_reveal(peer, plan, phases)
        await peer.exchange.provide(payload)
    return Offer(inner, payload)


async def collect(peer: Peer, plan: RoundPlan, phases: Phases, assessor: Assessor) -> Gathered:
    """Everyone's contributions, each through the cheap checks as it arrives, and then to be assessed."""
    # Who is late itself, and decides, must not find everyone missing: what is left after the inner steps is its least.
    least = plan.gather_seconds * (1 - TRAIN_PART)
    deadline = Seconds(max(phases.start + plan.gather_seconds, peer.clock.now() + least))
    patience = (peer.patience - 1) * plan.gather_seconds

    async def decided() -> bool:
        return await peer.agreement.decided(plan.round) is not None

    with phases("gather"):
        return await gather(
            peer.exchange,
            peer.clock,
            plan,
            checks=checks_of(peer, plan, assessor.offer),
            until=Until(deadline, decided, phases.start, patience),
        )


async def agree(
    peer: Peer, plan: RoundPlan, seen: Seen, wish: Amendment | None, phases: Phases
) -> tuple[Manifest | None, Seen]:
    """The one manifest of this round: decided with the other validators if we are one, waited for if not.

    Returns:
        The manifest, if there is one yet; and what we saw, with what the other validators had to show.
    """
    with phases("agree"):
        first = proposer_of(plan.run, plan.round, View(0), plan.validators) if plan.validators else None
        trace.annotate(decides=plan.decides, validators=len(plan.validators), first=first)
        if not plan.decides:
            return await _await_manifest(peer, plan, phases), seen
        with closing(Deliberation(peer, plan, seen, wish)) as mind:
            await mind.prepare()
            times = _turns(peer, plan, seen, phases)
            return await peer.agreement.decide(plan.round, mind.draft, mind.accepts, times), mind.seen


async def conclude(peer: Peer, plan: RoundPlan, manifest: Manifest | None, seen: Seen, phases: Phases) -> Commit | Skip:
    """The outer step on everything that counted, or none at all."""
    with phases("outer"):
        payloads: dict[Digest, bytes] = {}
        missing: list[Digest] = []
        if manifest is not None:
            payloads, missing = await missing_payloads(peer, manifest, seen.payloads())
        decision = decide_commit(plan, manifest, missing)
        if isinstance(decision, Commit):
            await apply_manifest(peer, decision.manifest, payloads)
        return decision


def remember(
    peer: Peer, plan: RoundPlan, seen: Seen, decision: Commit | Skip, assessments: Mapping[PeerId, Assessment]
) -> Scoreboard:
    """What later rounds learn from this one: who did not come, who did what, and who helped."""
    if isinstance(decision, Commit):
        peer.absences.note(plan.round, plan.roster, [entry.peer for entry in decision.manifest.counted])
    tokens = {sender: arrival.header.tokens for sender, arrival in seen.arrivals.items()}
    evidence = [
        Evidence(verdict=verdict, tokens=tokens.get(sender, 0), assessment=assessments.get(sender))
        for sender, verdict in sorted(seen.verdicts.items())
    ]
    return peer.learn(plan.round, evidence)


async def report(
    peer: Peer,
    plan: RoundPlan,
    outcome: tuple[Offer, Seen, Commit | Skip],
    before: tuple[int, int],
    phases: Phases,
) -> RoundReport:
    """The round in one line."""
    offer, seen, decision = outcome
    manifest = decision.manifest if isinstance(decision, Commit) else None
    bytes_out, bytes_in = await peer.exchange.traffic()
    return RoundReport(
        run=plan.run, round=plan.round, peer=peer.id, name=peer.name,
        contributed=offer.payload is not None,
        counted=manifest is not None and manifest.counts(peer.id),
        skipped=_why_skipped(peer, offer, seen, decision),
        loss=offer.inner.mean_loss if offer.inner else None,
        tokens=offer.inner.tokens if offer.inner else 0,
        steps=offer.inner.steps if offer.inner else 0,
        bytes_out=bytes_out - before[0], bytes_in=bytes_in - before[1],
        payload_bytes=len(offer.payload or b""),
        digest=peer.state.anchor, manifest=manifest.digest() if manifest else None,
        verdicts={sender: verdict.rejected or "accepted" for sender, verdict in sorted(seen.verdicts.items())},
        last=max(seen.arrivals, key=lambda sender: seen.arrivals[sender].seconds, default=None),
        committed=_moments({sender: arrival.committed for sender, arrival in seen.arrivals.items()}),
        arrived=_moments({sender: arrival.seconds for sender, arrival in seen.arrivals.items()}),
        seconds=phases.totals(),
    )  # fmt: skip


async def _trained(peer: Peer, plan: RoundPlan, phases: Phases) -> tuple[InnerReport, bytes]:
    """This round's work, made once: after a crash, or a round that found no manifest, the same is offered again."""
    pending = (await peer.trainer.state()).pending
    if pending is not None and pending.round == plan.round:
        return pending.inner, pending.payload
    with phases("inner"):
        inner = await peer.trainer.inner_steps(plan)
        trace.annotate(tokens=inner.tokens, steps=inner.steps, of_steps=plan.inner_steps, loss=inner.mean_loss)
    with phases("compress"):
        return inner, await peer.trainer.compress(plan, inner)


async def _averaged(peer: Peer, plan: RoundPlan, payload: bytes, phases: Phases) -> bytes:
    """For swarms that trust each other: the mean of everyone's payload, which all then hold bit for bit."""
    reducer = cast(AveragingReducer, peer.reducer)
    with phases("average"):
        mean = await peer.exchange.average(
            f"{plan.run}-{plan.round}",
            reducer.arrays(payload, peer.like),
            len(plan.roster),
            Seconds(plan.gather_seconds),
        )
        return reducer.from_arrays(mean)


def _header(peer: Peer, plan: RoundPlan, inner: InnerReport, payload: bytes) -> ContributionHeader:
    header = ContributionHeader(
        run=plan.run, round=plan.round, peer=peer.id, anchor=plan.anchor,
        proof=prove(peer.state.state_path, plan, peer.id), payload=blob_digest(payload),
        size_bytes=len(payload), steps=inner.steps, tokens=inner.tokens, loss=inner.mean_loss,
    )  # fmt: skip
    return peer.identity.sign(header)


def _turns(peer: Peer, plan: RoundPlan, seen: Seen, phases: Phases) -> Times:
    """How long whose turn to propose lasts. Who has not even contributed in time is hardly there to propose."""
    now = peer.clock.now()
    turn = Seconds(max(phases.start + plan.gather_seconds, now) + PROPOSER_SECONDS)
    first = proposer_of(plan.run, plan.round, View(0), plan.validators)
    verdict = seen.verdicts.get(first)
    return Times(
        proposer=now if verdict is not None and verdict.rejected is RejectReason.MISSING else turn,
        patience=Seconds(2 * PROPOSER_SECONDS),
        give_up=Seconds(max(phases.start + _longest(plan), now + plan.gather_seconds)),
    )


def _longest(plan: RoundPlan) -> float:
    """Seconds from the beginning of a round after which nobody waits for its manifest."""
    return plan.gather_seconds + max(plan.gather_seconds, talk_seconds(len(plan.validators)))


def talk_seconds(num_validators: int) -> Seconds:
    """What validators may need after the deadline of a round: turns of those who may be dead, and of one who is not."""
    return Seconds((2 ** max(MIN_TURNS, max_liars(num_validators) + 1) - 1) * PROPOSER_SECONDS)


async def _await_manifest(peer: Peer, plan: RoundPlan, phases: Phases) -> Manifest | None:
    """Until the validators have spoken, or it is much too late."""
    while True:
        manifest = await peer.agreement.decided(plan.round)
        if manifest is not None or phases.elapsed() >= _longest(plan):
            return manifest
        await peer.clock.sleep(MANIFEST_POLL)


def _moments(seconds: Mapping[PeerId, float]) -> dict[PeerId, float]:
    """To the millisecond; what another validator had to show us came at no moment of this round."""
    return {sender: round(value, 3) for sender, value in seconds.items() if isfinite(value)}


def _why_skipped(peer: Peer, offer: Offer, seen: Seen, decision: Commit | Skip) -> str | None:
    if isinstance(decision, Skip):
        return decision.because
    if offer.failed:
        return offer.failed
    if decision.manifest.void:
        return "void: nobody's contribution counted"
    if offer.payload is None or decision.manifest.counts(peer.id):
        return None
    verdict = seen.verdicts[peer.id]
    late = verdict.accepted or peer.id not in seen.arrivals
    return "arrived after the round was decided" if late else verdict.rejected
