"""What came in a round, and what we think of it: the cheap checks, and what only the whole round shows."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from elastic.contracts import Arrival
from elastic.exchange.gather import Checks, Gathered
from elastic.messages import ContributionHeader, Digest, PeerId, RejectReason, RoundPlan, Verdict
from elastic.peer import Peer
from elastic.schedule.decide import Commit, Skip
from elastic.verify.checks import check_header, check_payload, check_proof, mark_copies, mark_diverged
from elastic.verify.proof import prove


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
    arrivals = gathered.arrivals
    verdicts = {sender: arrival.verdict for sender, arrival in arrivals.items()}
    headers = {sender: arrival.header for sender, arrival in arrivals.items()}
    if peer.reducer.averages:
        verdicts = mark_diverged(verdicts, headers)
    else:
        verdicts = mark_copies(verdicts, headers, {sender: arrival.committed for sender, arrival in arrivals.items()})
    for absent in set(plan.roster) - set(arrivals):
        reason = RejectReason.UNFETCHABLE if absent in gathered.unfetched else RejectReason.MISSING
        verdicts[absent] = Verdict(peer=absent, round=plan.round, rejected=reason)
    return Seen(arrivals, verdicts)


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

    def check_first(sender: PeerId, header: ContributionHeader) -> Verdict:
        return check_header(
            header, sender=sender, plan=plan, max_bytes=peer.max_payload_bytes, max_tokens=peer.max_tokens
        )

    return Checks(check_first, check)
