"""What goes to and fro between a validator's seat and the others, in one round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from elastic import trace
from elastic.agreement.errands import Errands
from elastic.agreement.seat import Seat
from elastic.agreement.votes import Ballot
from elastic.contracts import Accepts, Clock, Drafts, Exchange, Times
from elastic.errors import ElasticError, MalformedError, SignatureInvalidError
from elastic.messages import BlobRef, Digest, Manifest, PeerId, Seconds

logger = logging.getLogger(__name__)

DRAFT, BALLOT, MANIFEST = "draft", "ballot", "manifest"
"""Kinds of records; see `agreement.quorum`."""
REPEAT = Seconds(60.0)
"""What we said is posted again after so long: a network that was split may have lost it."""
LOOK_AGAIN = Seconds(1.0)
"""A manifest that we would not sign is looked at again: what was to be had from nobody may be there by now."""
LONGEST_VIEW = Seconds(600.0)
"""Each view waits twice as long as the one before, up to this."""
MAX_RECORD_BYTES = 16 * 1024
"""A larger ballot, after very many views, travels as a blob."""
QUICK_BALLOTS = 20
"""So many ballots of one author are heard as fast as they come, and one a second from then on."""

Check = Callable[[Manifest], None]


class Talk:
    """One round's conversation among validators, seen from one seat."""

    def __init__(self, seat: Seat, exchange: Exchange, clock: Clock, check: Check, times: Times) -> None:
        """Nothing is posted or read yet.

        Args:
            seat: ours.
            exchange: where records are posted and found.
            clock: of the peer.
            check: raises MalformedError or SignatureInvalidError if a manifest is unsound.
            times: how long proposers are waited for.
        """
        self.seat = seat
        self._exchange, self._clock, self._check = exchange, clock, check
        self._rings, self._patience, self._entered = times.proposer, times.patience, seat.entered
        if seat.view > 0:  # restarted in a later one, whose proposer may be there though the first is not
            self._rings = Seconds(max(self._rings, clock.now() + self._patience))
        self._began = clock.now()
        self._said: dict[str, tuple[int, Seconds]] = {}
        """Kind → the seat's changes when we posted it last, and when."""
        self._ballots = Errands(exchange, clock, f"round {seat.round}: the ballot")
        """Those too large for a record."""
        self._heard: dict[PeerId, bytes] = {}
        self._times_heard: dict[PeerId, int] = {}
        self._drafts: dict[PeerId, tuple[bytes, Manifest | None]] = {}
        """Author → what it posted last, and the sound manifest that it is, if it is one."""
        self._looks: dict[Digest, tuple[Seconds, asyncio.Task[bool]]] = {}
        """Proposed manifest → when we last began to look at it, and the look."""

    def go_on(self) -> None:
        """After a pause in which nobody minded the time: whoever's turn it is gets another chance.

        It does not double with the view: one that outlasts what lies between two pauses would begin again for ever, and
        who is absent would keep its turn.
        """
        self._rings = Seconds(max(self._rings, self._clock.now() + self._patience))

    async def speak(self, drafts: Drafts) -> Manifest | None:
        """Propose if it is our turn, and post what is new.

        Returns:
            The final manifest, once it is decided and we know its text.
        """
        if self.seat.may_propose():
            self.seat.have(await drafts(self.seat.view))
        final, finality = self.seat.final, self.seat.finality
        text = None if final is None else await self._text_of(final)
        if text is not None:
            return text.model_copy(update={"finality": finality})
        needed = self.seat.needed()
        if needed is not None and self._is_due(DRAFT):  # before the ballot that names it
            await self._post(DRAFT, needed.canonical())
        if self._is_due(BALLOT):
            await self._post(BALLOT, await self._record_of(self.seat.ballot()))
        return None

    async def listen(self, accepts: Accepts) -> None:
        """Hear the others, look at what they propose, and mind the time."""
        self._hear_all(await self._exchange.records(BALLOT, self.seat.round))
        for digest in self.seat.wanted():
            await self._look_at(digest, accepts)
        self._mind_the_time()

    def hush(self) -> None:
        """Stop looking at others' manifests, and fetching what they say."""
        self._ballots.cancel()
        for _, look in self._looks.values():
            look.cancel()
        self._looks.clear()

    def _hear_all(self, records: Mapping[PeerId, bytes]) -> None:
        for author, (record, ballot) in self._ballots.back().items():
            self._hear(author, record, ballot)
        quick = QUICK_BALLOTS + self._clock.now() - self._began
        for author in sorted(self.seat.validators & records.keys()):
            record, times = records[author], self._times_heard.get(author, 0)
            if self._heard.get(author) == record or times > quick:
                continue
            if b'"tallies"' in record:
                self._hear(author, record, record)
            else:
                self._ballots.send(author, record)

    def _hear(self, author: PeerId, record: bytes, ballot: bytes) -> None:
        self._heard[author] = record
        times = self._times_heard[author] = self._times_heard.get(author, 0) + 1
        if times == 1:
            trace.event("heard", peer=author)
        try:
            self.seat.hear(Ballot.from_bytes(ballot))
        except ElasticError as error:
            level = logging.WARNING if times == 1 else logging.DEBUG
            logger.log(level, "round %d: the ballot of %s: %s", self.seat.round, author, error)

    async def _record_of(self, ballot: Ballot) -> bytes:
        body = ballot.canonical()
        if len(body) <= MAX_RECORD_BYTES:
            return body
        return BlobRef(digest=await self._exchange.provide(body), size_bytes=len(body)).canonical()

    async def _look_at(self, digest: Digest, accepts: Accepts) -> None:
        began, look = self._looks.get(digest, (Seconds(float("-inf")), None))
        text = await self._text_of(digest)
        if text is None:
            return
        if look is not None and look.done() and look.result():
            self.seat.find_good(text)
        elif (look is None or look.done()) and self._clock.now() >= began + LOOK_AGAIN:
            self._looks[digest] = self._clock.now(), asyncio.create_task(self._judge(text, accepts))

    async def _judge(self, text: Manifest, accepts: Accepts) -> bool:
        try:
            return await accepts(text)
        except ElasticError as error:
            logger.warning("round %d: looking at the manifest of %s: %s", self.seat.round, text.proposer, error)
            return False

    async def _text_of(self, digest: Digest) -> Manifest | None:
        """A manifest: ours, or as any validator posted it."""
        if (text := self.seat.text_of(digest)) is not None:
            return text
        records = await self._exchange.records(DRAFT, self.seat.round)
        for author in sorted(self.seat.validators & records.keys()):
            if self._drafts.get(author, (None, None))[0] != records[author]:
                self._drafts[author] = records[author], self._read(author, records[author])
        posted = [manifest for _, manifest in self._drafts.values() if manifest is not None]
        return next((manifest for manifest in posted if manifest.digest() == digest), None)

    def _read(self, author: PeerId, body: bytes) -> Manifest | None:
        try:
            manifest = Manifest.from_bytes(body)
            self._check(manifest)
        except (MalformedError, SignatureInvalidError) as error:
            level = logging.DEBUG if author in self._drafts else logging.WARNING
            logger.log(level, "round %d: the draft of %s: %s", self.seat.round, author, error)
            return None
        return manifest

    def _mind_the_time(self) -> None:
        now = self._clock.now()
        if self.seat.entered > self._entered:
            self._entered = self.seat.entered
            doubled = self._patience * 2.0 ** min(self.seat.view - 1, 30)
            self._rings = Seconds(now + min(doubled, LONGEST_VIEW))
        if now >= self._rings:
            self.seat.time_out()

    def _is_due(self, kind: str) -> bool:
        changes, when = self._said.get(kind, (-1, Seconds(0.0)))
        return changes != self.seat.changes or self._clock.now() >= when + REPEAT

    async def _post(self, kind: str, body: bytes) -> None:
        changes = self.seat.changes
        await self._exchange.post(kind, self.seat.round, body)
        self._said[kind] = changes, self._clock.now()
