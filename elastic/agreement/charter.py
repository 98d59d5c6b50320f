"""Under which terms a round was decided: those of the run file, and every change that a quorum made since.

Who may sign a manifest follows from the manifests before it. A peer that has just come, and jumps over most of them,
needs those that changed the terms: whoever decides posts where they are to be had. Each must be final by the
validators that the one before it left, from the run file on; so none of it needs to be believed, and every validator
that the run began with may be gone.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Iterable

from elastic.agreement.manifests import check_final, check_manifest
from elastic.contracts import Clock, Exchange
from elastic.errors import ElasticError, MalformedError
from elastic.messages import GENESIS, BlobRef, Manifest, PeerId, RoundIndex, Seconds, Terms

logger = logging.getLogger(__name__)

AMENDMENTS = "amendments"
"""Record kind: where the manifests are that changed the terms."""
TELL_AGAIN = Seconds(300.0)
"""Records of the DHT do not last."""
PAGE = 32
"""So many to a blob, which then has half a megabyte at most."""
WITNESSES = 8
"""So many new records are followed at a time; strangers can post any number."""
REMEMBERED = 1024
"""Records that are not read again."""


class UnknownTermsError(MalformedError):
    """A manifest was decided under terms that we have not heard of."""


class Charter:
    """The terms of a run as far as one peer knows them."""

    def __init__(self, run: str, first: Terms, known: Iterable[Manifest] = ()) -> None:
        """Begin.

        Args:
            run: name of the run.
            first: the terms of its run file.
            known: manifests that changed them since, from our own disk.
        """
        self._run = run
        self._terms = {GENESIS: first}
        """By the round whose manifest brought them."""
        self._amendments: dict[RoundIndex, Manifest] = {}
        self._rounds = [GENESIS]
        """Their keys, in order."""
        self._vain: dict[PeerId, int] = {}
        """How often what somebody posted could not be had, or did not hold."""
        self._read: dict[tuple[int, PeerId], bytes] = {}
        """Records that were read."""
        self._told = Seconds(float("-inf"))
        for manifest in sorted(known, key=lambda each: each.round):
            self.admit(manifest)

    def of(self, round_: RoundIndex) -> Terms:
        """Those that this round is decided under."""
        return self._terms[self._rounds[max(0, bisect_left(self._rounds, round_) - 1)]]

    def newest(self) -> Terms:
        """The last ones."""
        return self._terms[self._rounds[-1]]

    def behind(self, manifest: Manifest) -> Terms:
        """Those that this manifest says it was decided under.

        Raises:
            UnknownTermsError: we have not heard of them.
            MalformedError: there were others by then.
        """
        terms = self._terms.get(manifest.amended)
        if terms is None:
            raise UnknownTermsError(f"round {manifest.round} is under terms of round {manifest.amended}, unknown here")
        if self.of(manifest.round) is not terms:
            raise MalformedError(f"manifest of round {manifest.round} is under terms that were changed before it")
        return terms

    def admit(self, manifest: Manifest) -> None:
        """Take note of a final manifest that was checked, if it changes the terms."""
        if manifest.amendment is None or manifest.round in self._terms:
            return
        self._terms[manifest.round] = manifest.amendment.applied(self.behind(manifest))
        self._amendments[manifest.round] = manifest
        self._rounds = sorted(self._terms)
        self._told = Seconds(float("-inf"))

    def amendments(self) -> list[Manifest]:
        """Manifests that changed the terms, in order."""
        return [self._amendments[round_] for round_ in self._rounds[1:]]

    async def tell(self, exchange: Exchange, clock: Clock) -> None:
        """Post where the amendments are to be had, now and then; nothing if there are none.

        Raises:
            NetworkError: it could not be posted.
        """
        if clock.now() < self._told + TELL_AGAIN:
            return
        amendments = self.amendments()
        for page, start in enumerate(range(0, len(amendments), PAGE)):
            body = b"\n".join(each.canonical() for each in amendments[start : start + PAGE])
            reference = BlobRef(digest=await exchange.provide(body), size_bytes=len(body))
            await exchange.post(AMENDMENTS, RoundIndex(page), reference.canonical())
        self._told = clock.now()

    async def learn(self, exchange: Exchange) -> bool:
        """Read what others posted, as far as it proves itself; whether there was anything new."""
        before = len(self._amendments)
        while await self._learn_page(exchange, len(self._amendments) // PAGE):
            pass
        return len(self._amendments) > before

    async def _learn_page(self, exchange: Exchange, page: int) -> bool:
        """Whether it brought us to the next one."""
        records = await exchange.records(AMENDMENTS, RoundIndex(page))
        validators = set(self.newest().validators)
        fresh = [author for author in sorted(records) if self._read.get((page, author)) != records[author]]
        fresh = sorted(fresh, key=lambda author: (author not in validators, self._vain.get(author, 0)))[:WITNESSES]
        found = await asyncio.gather(*(self._fetched(exchange, author, records[author]) for author in fresh))
        for author, manifests in found:
            try:
                for manifest in manifests or ():
                    self._take(manifest)
            except ElasticError as error:
                logger.info("the amendments that %s posted do not hold: %s", author, error)
                manifests = []
            if not manifests:  # who was not asked yet, or not in vain, comes first the next time
                self._vain[author] = self._vain.get(author, 0) + 1
            if manifests is None:
                continue
            if len(self._read) >= REMEMBERED:
                self._read.clear()
                self._vain.clear()
            self._read[page, author] = records[author]
        return len(self._amendments) // PAGE > page

    async def _fetched(self, exchange: Exchange, author: PeerId, record: bytes) -> tuple[PeerId, list[Manifest] | None]:
        try:
            reference = BlobRef.from_bytes(record)
            blob = await exchange.fetch(reference.digest, reference.size_bytes, [author])
            return author, [Manifest.from_bytes(line) for line in blob.split(b"\n")[:PAGE]]
        except MalformedError as error:
            logger.info("the amendments that %s posted: %s", author, error)
            return author, []
        except ElasticError as error:
            logger.info("the amendments that %s posted: %s", author, error)
            return author, None

    def _take(self, manifest: Manifest) -> None:
        known = self._amendments.get(manifest.round)
        if known is not None and known.digest() == manifest.digest():
            return
        validators = self.behind(manifest).validators
        check_manifest(manifest, run=self._run, validators=validators)
        check_final(manifest, validators)
        self.admit(manifest)
