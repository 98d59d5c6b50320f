"""What goes to and fro between a validator's seat and the others, in one round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from elastic.agreement.seat import Seat
from elastic.agreement.votes import Ballot
from elastic.contracts import Accepts, Clock, Drafts, Exchange, Times
from elastic.errors import MalformedError, NetworkError, SignatureInvalidError
from elastic.messages import Digest, Manifest, PeerId, Seconds, View

logger = logging.getLogger(__name__)

DRAFT, BALLOT, MANIFEST = "draft", "ballot", "manifest"
"""Kinds of records; see `agreement.quorum`."""
REPEAT = Seconds(60.0)
"""What we said is posted again after so long: a network that was split may have lost it."""
LONGEST_VIEW = Seconds(60.0)
"""Each view waits twice as long as the one before, up to this."""
MAX_BALLOT_BYTES = 16 * 1024
"""No record is larger."""

Check = Callable[[Manifest], None]


class Talk:
    """One round's conversation among validators, seen from one seat."""

    def __init__(
        self,
        seat: Seat,
        exchange: Exchange,
        clock: Clock,
        check: Check,
        times: Times,
    ) -> None:
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
        self._said: dict[str, tuple[bytes, float]] = {}
        """Kind → what we posted last, and when."""
        self._heard: dict[PeerId, bytes] = {}
        self._texts: dict[Digest, Manifest] = {}
        self._refused: dict[PeerId, bytes] = {}
        self._looks: dict[Digest, tuple[View, asyncio.Task[bool]]] = {}
        """Proposed manifest → the view in which we began to look at it, and the look."""

    async def speak(self, drafts: Drafts) -> Manifest | None:
        """Propose if it is our turn, and post what is new.

        Returns:
            The final manifest, once it is decided and we know its text.
        """
        if self.seat.final is None and self.seat.our_turn:
            self.seat.have(await drafts(self.seat.view))
        final, finality = self.seat.final, self.seat.finality
        text = None if final is None else await self._text_of(final)
        if text is not None:
            return text.model_copy(update={"finality": finality})
        if self.seat.proposes_own and self.seat.draft is not None:  # before the proposal that names it
            await self._post(DRAFT, self.seat.draft.canonical())
        await self._post(BALLOT, _fitting(self.seat.ballot()))
        return None

    async def tell(self, final: Manifest) -> None:
        """Post the final manifest: whoever showed it to us may show it to nobody else."""
        await self._post(MANIFEST, final.canonical())

    async def listen(self, accepts: Accepts) -> None:
        """Hear the others, look at what they propose, and mind the time."""
        for author, body in (await self._exchange.records(BALLOT, self.seat.round)).items():
            if author in self.seat.validators and self._heard.get(author) != body:
                self._heard[author] = body
                self._hear(author, body)
        for digest in self.seat.wanted():
            await self._look_at(digest, accepts)
        for digest, (_, look) in self._looks.items():
            if look.done() and look.result():
                self.seat.find_good(digest)
        self._mind_the_time()

    def hush(self) -> None:
        """Stop looking at others' manifests."""
        for _, look in self._looks.values():
            look.cancel()
        self._looks.clear()

    def _hear(self, author: PeerId, body: bytes) -> None:
        try:
            self.seat.hear(Ballot.from_bytes(body))
        except MalformedError as error:
            logger.warning("round %d: the ballot of %s: %s", self.seat.round, author, error)

    async def _look_at(self, digest: Digest, accepts: Accepts) -> None:
        """Once in every view in which it is proposed: what was to be had from nobody may be there later."""
        view, look = self._looks.get(digest, (None, None))
        if view == self.seat.view or (look is not None and not look.done()):
            return
        text = await self._text_of(digest)
        if text is not None:
            self._looks[digest] = self.seat.view, asyncio.create_task(self._judge(text, accepts))

    async def _judge(self, text: Manifest, accepts: Accepts) -> bool:
        try:
            return await accepts(text)
        except NetworkError as error:
            logger.warning("round %d: looking at the manifest of %s: %s", self.seat.round, text.proposer, error)
            return False

    async def _text_of(self, digest: Digest) -> Manifest | None:
        """A manifest: ours, or as its proposer posted it."""
        if self.seat.draft is not None and self.seat.draft.digest() == digest:
            return self.seat.draft
        if digest not in self._texts:
            records = await self._exchange.records(DRAFT, self.seat.round)
            for author in sorted(self.seat.validators & records.keys()):
                manifest = self._read(author, records[author])
                if manifest is not None and manifest.digest() == digest:
                    self._texts[digest] = manifest
        return self._texts.get(digest)

    def _read(self, author: PeerId, body: bytes) -> Manifest | None:
        if self._refused.get(author) == body:
            return None
        try:
            manifest = Manifest.from_bytes(body)
            self._check(manifest)
        except (MalformedError, SignatureInvalidError) as error:
            logger.warning("round %d: the draft of %s: %s", self.seat.round, author, error)
            self._refused[author] = body
            return None
        return manifest

    def _mind_the_time(self) -> None:
        now = self._clock.now()
        if self.seat.entered > self._entered:
            self._entered = self.seat.entered
            self._rings = Seconds(now + min(self._patience * 2.0 ** (self.seat.view - 1), LONGEST_VIEW))
        if now >= self._rings:
            self.seat.time_out()

    async def _post(self, kind: str, body: bytes) -> None:
        said, when = self._said.get(kind, (b"", 0.0))
        if body != said or self._clock.now() >= when + REPEAT:
            await self._exchange.post(kind, self.seat.round, body)
            self._said[kind] = body, self._clock.now()


def _fitting(ballot: Ballot) -> bytes:
    """As many tallies as fit into a record, the newest first: old views are over, and their voters still say so."""
    body = ballot.canonical()
    while len(body) > MAX_BALLOT_BYTES and ballot.tallies:
        ballot = ballot.model_copy(update={"tallies": ballot.tallies[1:]})
        body = ballot.canonical()
    return body
