"""What came in a round, and what we think of it: the cheap checks, and what only the whole round shows."""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elastic import trace
from elastic.exchange.gather import Arrival, Checks, Gathered
from elastic.messages import ContributionHeader, Digest, PeerId, RejectReason, RoundIndex, RoundPlan, Verdict
from elastic.peer import Peer
from elastic.schedule.decide import Commit, Skip
from elastic.verify.checks import (
    Sample,
    check_fresh,
    check_header,
    check_payload,
    check_proof,
    mark_copies,
    mark_diverged,
    mark_loud,
    mark_near_copies,
)
from elastic.verify.proof import prove

REPLAY_ROUNDS = 128
"""No payload of so many rounds before counts again."""
SAMPLED_PLACES = 1024
"""So many entries of each contribution are compared with everyone else's, a little more than a whole tensor's."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What came from others (and ourselves), in order of arrival, and what we think of it."""

    arrivals: Mapping[PeerId, Arrival]
    verdicts: Mapping[PeerId, Verdict]

    def accepted(self) -> list[ContributionHeader]:
        """Headers of the contributions that may count, in PeerId order."""
        return [self.arrivals[sender].header for sender in sorted(self.arrivals) if self.verdicts[sender].accepted]

    def corrected(self, decision: Commit | Skip) -> "Seen":
        """Who counted was there: that the round was decided before we had their bytes is no fault of theirs."""
        if isinstance(decision, Skip):
            return self
        manifest = decision.manifest
        unseen = [entry.peer for entry in manifest.counted if entry.peer not in self.arrivals]
        found = {peer: Verdict(peer=peer, round=manifest.round) for peer in unseen}
        return Seen(self.arrivals, {**self.verdicts, **found})

    def payloads(self) -> dict[Digest, bytes]:
        """The bytes that we hold."""
        return {each.header.payload: each.payload for each in self.arrivals.values() if each.payload is not None}


def judge(peer: Peer, plan: RoundPlan, gathered: Gathered) -> Seen:
    """Verdicts on the whole round: what can only be seen by comparing contributions, and who is missing."""
    with trace.span(trace.VERIFY):
        seen = _judged(peer, plan, gathered)
        refused = {sender: verdict for sender, verdict in sorted(seen.verdicts.items()) if not verdict.accepted}
        trace.annotate(accepted=len(seen.verdicts) - len(refused), refused=len(refused))
        for sender, verdict in refused.items():
            trace.event("refused", peer=sender, reason=verdict.rejected, because=verdict.detail)
        return seen


def _judged(peer: Peer, plan: RoundPlan, gathered: Gathered) -> Seen:
    arrivals = gathered.arrivals
    verdicts = {sender: arrival.verdict for sender, arrival in arrivals.items()}
    headers = {sender: arrival.header for sender, arrival in arrivals.items()}
    if peer.reducer.averages:
        verdicts = mark_diverged(verdicts, headers)
    else:
        committed = {sender: arrival.committed for sender, arrival in arrivals.items()}
        verdicts = mark_copies(verdicts, headers, committed)
        # Who does not decide need not look so closely: what it would find changes nothing.
        samples = _samples(peer, arrivals, verdicts) if plan.decides else {}
        verdicts = mark_near_copies(mark_loud(verdicts, samples), headers, samples, committed)
    for absent in set(plan.roster) - set(arrivals):
        reason = RejectReason.UNFETCHABLE if absent in gathered.unfetched else RejectReason.MISSING
        verdicts[absent] = Verdict(peer=absent, round=plan.round, rejected=reason)
    return Seen(arrivals, verdicts)


def _samples(
    peer: Peer, arrivals: Mapping[PeerId, Arrival], verdicts: Mapping[PeerId, Verdict]
) -> dict[PeerId, Sample]:
    """Accepted sender → what it says of tensors that nobody else knows we look at."""
    payloads = {
        sender: peer.reducer.decode(arrival.payload, peer.like)
        for sender, arrival in arrivals.items()
        if verdicts[sender].accepted and arrival.payload is not None
    }
    names, most = sorted(peer.like), 0
    random.Random(peer.draw_seed()).shuffle(names)
    glances: dict[PeerId, list[tuple[npt.NDArray[np.int64], float]]] = {sender: [] for sender in payloads}
    for number, name in enumerate(names):
        if most >= SAMPLED_PLACES:
            break
        for sender, payload in payloads.items():
            places, energy = peer.reducer.glance(payload, name)
            glances[sender].append((places + (number << 40), energy))  # places of two tensors are never the same
        most = max((sum(len(places) for places, _ in each) for each in glances.values()), default=SAMPLED_PLACES)
    return {
        sender: Sample(np.concatenate([places for places, _ in each]), sum(energy for _, energy in each))
        for sender, each in glances.items()
        if each
    }


def _counted_before(peer: Peer, plan: RoundPlan) -> dict[Digest, RoundIndex]:
    """Payload → the last round that counted it, of the rounds that are looked back on."""
    rounds = range(max(1, plan.round - REPLAY_ROUNDS), plan.round)
    known = [manifest for each in rounds if (manifest := peer.chain.get(RoundIndex(each))) is not None]
    return {entry.payload: manifest.round for manifest in known for entry in manifest.counted}


def checks_of(
    peer: Peer, plan: RoundPlan, on_accepted: Callable[[ContributionHeader, bytes], None] = lambda header, payload: None
) -> Checks:
    """The cheap checks of this round; `on_accepted` is told what passes them."""

    def check_work(header: ContributionHeader, payload: bytes) -> Verdict:
        verdict = check_proof(header, prove(peer.state.state_path, plan, header.peer))
        if not verdict.accepted:
            return verdict
        return check_payload(header, payload, lambda data: peer.reducer.decode(data, peer.like))

    async def check(header: ContributionHeader, payload: bytes) -> Verdict:
        verdict = await asyncio.to_thread(check_work, header, payload)
        if verdict.accepted:
            await peer.exchange.provide(payload)  # its author may be slow, or die once it counts
            on_accepted(header, payload)
        return verdict

    counted = _counted_before(peer, plan)

    def check_first(sender: PeerId, header: ContributionHeader) -> Verdict:
        verdict = check_header(
            header, sender=sender, plan=plan, max_bytes=peer.max_payload_bytes, max_tokens=peer.max_tokens
        )
        return check_fresh(header, counted) if verdict.accepted else verdict

    return Checks(check_first, check)
