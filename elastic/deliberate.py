"""A validator's mind in one round: what it proposes, and whether it signs what another proposes.

Who contributes can show its commitment to some validators only, or a different one to each. Each manifest would then
count what some of the others cannot sign, and no round would ever be decided. So validators publish the commitments
that they have seen, with their authors' signatures: what was withheld from one is found with another, and who
committed to two payloads has proven itself a liar.
"""

import logging
from collections.abc import Iterable, Mapping

from elastic.errors import FetchError, MalformedError, SignatureInvalidError
from elastic.exchange.gather import Gathered, Until, gather
from elastic.messages import (
    BlobRef,
    ContributionHeader,
    Digest,
    Manifest,
    Notes,
    PeerId,
    RejectReason,
    RoundPlan,
    Seconds,
    Verdict,
    View,
)
from elastic.peer import Peer
from elastic.propose import objection, own_manifest
from elastic.seen import Seen, checks_of, judge
from elastic.wire.signing import verify

logger = logging.getLogger(__name__)

NOTES = "notes"
"""Record kind: which commitments a validator has seen."""


class Deliberation:
    """What one validator makes of one round; it learns as it goes."""

    def __init__(self, peer: Peer, plan: RoundPlan, seen: Seen) -> None:
        """`seen` is what was gathered."""
        self.seen = seen
        self._peer, self._plan = peer, plan

    async def publish(self) -> None:
        """Let the other validators know which commitments we have seen."""
        if len(self._peer.shared.agreement.validators) == 1:
            return
        body = Notes(headers=tuple(self.seen.accepted())).canonical()
        digest = await self._peer.exchange.provide(body)
        reference = BlobRef(digest=digest, size_bytes=len(body))
        await self._peer.exchange.post(NOTES, self._plan.round, reference.canonical())

    async def draft(self, view: View) -> Manifest:
        """What we propose. When an earlier proposal came to nothing, the others' notes may say why."""
        if view > 0:
            self._expose(await self._others_notes())
        return own_manifest(self._peer, self._plan, self.seen, await self._peer.exchange.cards())

    async def accepts(self, manifest: Manifest) -> bool:
        """Whether we sign another's; what it counts and we lack is fetched first."""
        disputed = {
            entry.peer: entry.payload for entry in manifest.counted if not self._holds(entry.peer, entry.payload)
        }
        if disputed:
            notes = await self._others_notes()
            await self._fetch(disputed, notes)
            self._expose(notes)
        cards = await self._peer.exchange.cards()
        against = objection(self._peer, self._plan, self.seen, cards, manifest)
        if against is not None:
            logger.warning("round %d: not signed, by %s: %s", manifest.round, manifest.proposer, against)
        return against is None

    def _holds(self, sender: PeerId, payload: Digest) -> bool:
        arrival = self.seen.arrivals.get(sender)
        return arrival is not None and arrival.header.payload == payload

    async def _fetch(self, disputed: Mapping[PeerId, Digest], notes: Iterable[ContributionHeader]) -> None:
        """Gather what others saw and we did not."""
        missing = tuple(sorted(disputed.keys() - self.seen.arrivals.keys()))
        if not missing:
            return
        late = await gather(
            self._peer.exchange, self._peer.clock, self._plan.model_copy(update={"roster": missing}),
            checks=checks_of(self._peer, self._plan),
            until=Until(Seconds(self._peer.clock.now() + self._plan.gather_seconds)),
            noted={each.peer: each.canonical() for each in notes if disputed.get(each.peer) == each.payload},
        )  # fmt: skip
        refused = {sender: verdict for sender, verdict in self.seen.verdicts.items() if sender in self._liars()}
        judged = judge(self._peer, self._plan, Gathered({**self.seen.arrivals, **late.arrivals}, late.unfetched))
        self.seen = Seen(judged.arrivals, {**judged.verdicts, **refused})

    def _liars(self) -> set[PeerId]:
        verdicts = self.seen.verdicts.items()
        return {sender for sender, verdict in verdicts if verdict.rejected is RejectReason.EQUIVOCAL}

    def _expose(self, notes: list[ContributionHeader]) -> None:
        """Refuse who committed to another payload elsewhere: nobody can know which one the others hold."""
        found = {
            header.peer: Verdict(
                peer=header.peer, round=self._plan.round, rejected=RejectReason.EQUIVOCAL,
                detail="committed to two payloads",
            )
            for header in notes
            if header.peer in self.seen.arrivals and not self._holds(header.peer, header.payload)
        }  # fmt: skip
        self.seen = Seen(self.seen.arrivals, {**self.seen.verdicts, **found})

    async def _others_notes(self) -> list[ContributionHeader]:
        """Genuine commitments of this round that other validators have seen."""
        found: dict[bytes, ContributionHeader] = {}
        records = await self._peer.exchange.records(NOTES, self._plan.round)
        for author in sorted(records.keys() & set(self._peer.shared.agreement.validators) - {self._peer.id}):
            try:
                reference = BlobRef.from_bytes(records[author])
                body = await self._peer.exchange.fetch(reference.digest, reference.size_bytes, [author])
                headers = Notes.from_bytes(body).headers
            except (FetchError, MalformedError) as error:
                logger.warning("round %d: the notes of %s: %s", self._plan.round, author, error)
                continue
            found |= {header.canonical(): header for header in headers if self._is_genuine(header)}
        return list(found.values())

    def _is_genuine(self, header: ContributionHeader) -> bool:
        if (header.run, header.round) != (self._plan.run, self._plan.round) or header.peer not in self._plan.roster:
            return False
        try:
            verify(header)
        except SignatureInvalidError:
            return False
        return True
