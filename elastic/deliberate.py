"""A validator's mind in one round: what it proposes, and whether it signs what another proposes.

Who contributes can show its commitment to some validators only, or a different one to each. Each manifest would then
count what some of the others cannot sign, and no round would ever be decided. So validators publish the commitments
that they have seen, with their authors' signatures: what was withheld from one is found with another, and who
committed to two payloads has proven that it counts nowhere.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf

from elastic import trace
from elastic.agreement.errands import Errands
from elastic.agreement.votes import Notes
from elastic.amend import is_shared
from elastic.errors import MalformedError, SignatureInvalidError
from elastic.exchange.gather import CONTRIBUTION, Gathered, Until, gather
from elastic.messages import (
    Amendment,
    BlobRef,
    ContributionHeader,
    Digest,
    Manifest,
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
PATIENCE, MOST_PATIENCE = Seconds(5.0), 8.0
"""After each so many seconds without agreement twice as much is borne of what is each validator's own view, up to so
many times."""
NOTES_SECONDS = Seconds(1.0)
"""So long we wait for another's notes: the second proposer has two seconds in all."""


class Deliberation:
    """What one validator makes of one round; it learns as it goes."""

    def __init__(self, peer: Peer, plan: RoundPlan, seen: Seen, wish: Amendment | None) -> None:
        """`seen` is what was gathered, and `wish` what we would change about the run."""
        self.seen, self._wish, self._began = seen, wish, peer.clock.now()
        self._peer, self._plan = peer, plan
        self._commitments: dict[PeerId, dict[Digest, ContributionHeader]] = {}
        """Sender → payload → its signed commitment; two prove that it cannot be trusted, and more prove no more."""
        self._notes = Errands(peer.exchange, peer.clock, f"round {plan.round}: the notes")
        self._heard: dict[PeerId, bytes] = {}
        """Validator → its record whose notes we read last."""

    def close(self) -> None:
        """Wait for nobody's notes any more."""
        self._notes.cancel()

    async def prepare(self) -> None:
        """Let the other validators know which commitments we have seen, also before we were interrupted."""
        if self._alone:
            return
        self._learn(self.seen.accepted())
        self._learn(await self._notes_of([self._peer.id]))
        await self._publish()

    async def draft(self, view: View) -> Manifest:
        """What we propose. When an earlier proposal came to nothing, the others' notes may say why."""
        if view > 0:
            await self._compare_notes()
        shared = self._wish is not None and await is_shared(self._peer, self._plan, self._wish)
        amendment, cards = self._wish if shared else None, await self._peer.exchange.cards()
        trace.event("drafts", view=int(view))
        manifest = own_manifest(self._peer, self._plan, self.seen, cards, amendment)
        trace.event("proposes", view=int(view))
        return manifest

    async def accepts(self, manifest: Manifest) -> bool:
        """Whether we sign another's; what it counts and we lack is fetched first."""
        disputed = {each.peer: each.payload for each in manifest.counted if not self._holds(each.peer, each.payload)}
        left_out = len(manifest.counted) < len(self.seen.accepted())
        if disputed or left_out:
            await self._compare_notes()
            await self._fetch(disputed)
        cards = await self._peer.exchange.cards()
        trace.event("looks at", proposer=manifest.proposer)
        against = objection(self._peer, self._plan, self.seen, cards, manifest, self._wish, self._patience())
        trace.event("looked at", proposer=manifest.proposer, counted=len(manifest.counted), against=against)
        if against is not None:
            logger.warning("round %d: not signed, by %s: %s", manifest.round, manifest.proposer, against)
        return against is None

    def _patience(self) -> float:
        """Who was told other scores than we, by a liar or by bad luck, must not keep a round from ending for ever."""
        waited = self._peer.clock.now() - self._began
        return float(min(2 ** int(waited / PATIENCE), MOST_PATIENCE))

    @property
    def _alone(self) -> bool:
        return len(self._plan.validators) == 1

    def _holds(self, sender: PeerId, payload: Digest) -> bool:
        arrival = self.seen.arrivals.get(sender)
        return arrival is not None and arrival.header.payload == payload

    async def _fetch(self, disputed: Mapping[PeerId, Digest]) -> None:
        """Gather what others saw and we did not: the payload that counts, from whoever has it."""
        noted = {
            sender: self._commitments[sender][payload].canonical()
            for sender, payload in disputed.items()
            if sender not in self.seen.arrivals and payload in self._commitments.get(sender, {})
        }
        if not noted:
            return
        late = await gather(
            self._peer.exchange, self._peer.clock, self._plan, noted=noted,
            checks=checks_of(self._peer, self._plan),
            until=Until(Seconds(self._peer.clock.now() + self._plan.gather_seconds)),
        )  # fmt: skip
        # Seen after everything else: no copy becomes the original, and no round longer, by being late.
        arrivals = {sender: replace(arrival, committed=inf, seconds=inf) for sender, arrival in late.arrivals.items()}
        self.seen = judge(self._peer, self._plan, Gathered({**self.seen.arrivals, **arrivals}, late.unfetched))
        self._refuse_liars()

    async def _compare_notes(self) -> None:
        """Learn what the other validators saw, and let them know what we learned."""
        if self._alone:
            return
        shown = await self._peer.exchange.records(CONTRIBUTION, self._plan.round)
        bodies = [shown[sender] for sender in sorted(shown.keys() & set(self._plan.roster))]
        ours = [header for body in bodies if (header := _read(body)) is not None]
        others = [peer for peer in self._plan.validators if peer != self._peer.id]
        if self._learn([*ours, *await self._notes_of(others)]):
            await self._publish()

    def _learn(self, headers: Iterable[ContributionHeader]) -> bool:
        """Note genuine commitments of this round; gives whether there was a new one."""
        before = sum(map(len, self._commitments.values()))
        for header in headers:
            known = self._commitments.setdefault(header.peer, {}) if header.peer in self._plan.roster else {}
            if len(known) < 2 and header.payload not in known and self._is_genuine(header):
                known[header.payload] = header
        self._refuse_liars()
        return sum(map(len, self._commitments.values())) > before

    def _refuse_liars(self) -> None:
        """Who committed to two payloads: nobody can know which one the others hold."""
        found = {
            sender: Verdict(
                peer=sender, round=self._plan.round, rejected=RejectReason.EQUIVOCAL,
                detail="committed to two payloads",
            )
            for sender, known in self._commitments.items()
            if len(known) > 1
        }  # fmt: skip
        self.seen = Seen(self.seen.arrivals, {**self.seen.verdicts, **found})

    async def _publish(self) -> None:
        headers = tuple(header for known in self._commitments.values() for header in known.values())
        body = Notes(headers=headers).canonical()
        reference = BlobRef(digest=await self._peer.exchange.provide(body), size_bytes=len(body))
        await self._peer.exchange.post(NOTES, self._plan.round, reference.canonical())

    async def _notes_of(self, authors: Iterable[PeerId]) -> list[ContributionHeader]:
        """Commitments that these validators say they have seen, and that we have not heard of; who is slow is heard
        the next time."""
        records = await self._peer.exchange.records(NOTES, self._plan.round)
        asked = sorted(records.keys() & set(authors))
        for author in asked:
            if self._heard.get(author) != records[author]:
                self._notes.send(author, records[author])
        await self._notes.wait(asked, NOTES_SECONDS)
        found: list[ContributionHeader] = []
        for author, (record, notes) in self._notes.back().items():
            self._heard[author] = record
            try:
                found += Notes.from_bytes(notes).headers
            except MalformedError as error:
                logger.info("round %d: the notes of %s: %s", self._plan.round, author, error)
        return found

    def _is_genuine(self, header: ContributionHeader) -> bool:
        if (header.run, header.round, header.anchor) != (self._plan.run, self._plan.round, self._plan.anchor):
            return False
        try:
            verify(header)
        except SignatureInvalidError:
            return False
        return True


def _read(body: bytes) -> ContributionHeader | None:
    try:
        return ContributionHeader.from_bytes(body)
    except MalformedError:
        return None
