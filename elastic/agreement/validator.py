"""The validator says: agreement with one validator, what the protocol of many collapses to for n = 1.

A manifest is final when the validator has signed it. It signs one per round, ever: whatever else may happen,
no two peers see different final manifests of one round.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from elastic.contracts import Exchange
from elastic.errors import MalformedError, SignatureInvalidError
from elastic.messages import GENESIS, NO_DIGEST, Counted, Digest, Manifest, PeerId, RoundIndex
from elastic.wire.signing import Identity, verify

logger = logging.getLogger(__name__)

KIND = "manifest"
"""The record kind under which manifests are posted."""
SHARE_TOLERANCE = 1e-6
"""Shares sum to 1 within this; float64 sums of 1024 shares stay far below it."""
LOOK_BACK = 4
"""Rounds below a validator's card where `head` looks for a manifest: the card's own round may not be over."""
LOOK_FORWARD = 32
"""Rounds above it: a card is renewed less often than short rounds end."""
REMEMBERED = 64
"""Manifests kept in memory, so that asking for a recent round again costs nothing."""


def genesis(run: str, anchor: Digest, roster: Iterable[PeerId], proposer: PeerId) -> Manifest:
    """Manifest 0, unsigned: names the first anchor and the first roster, and counts nobody."""
    return Manifest(
        run=run,
        round=GENESIS,
        previous=NO_DIGEST,
        anchor=anchor,
        roster=tuple(sorted(roster)),
        proposer=proposer,
    )


def draft(
    previous: Manifest, anchor: Digest, counted: Iterable[Counted], roster: Iterable[PeerId], proposer: PeerId
) -> Manifest:
    """The manifest of the round after `previous`, unsigned; nobody counted makes it void.

    Args:
        previous: the last final manifest.
        anchor: digest of the anchor that the new one applies to.
        counted: whose shares sum to 1, in any order.
        roster: who may contribute in the next round, in any order.
        proposer: the validator who will sign it.
    """
    return Manifest(
        run=previous.run,
        round=RoundIndex(previous.round + 1),
        previous=previous.digest(),
        anchor=anchor,
        counted=tuple(sorted(counted, key=lambda entry: entry.peer)),
        roster=tuple(sorted(roster)),
        proposer=proposer,
    )


def check_manifest(
    manifest: Manifest, *, run: str, validators: Iterable[PeerId], previous: Manifest | None = None
) -> None:
    """Whether a manifest may be applied, and, if the one before is known, whether it continues it.

    Raises:
        MalformedError: it is not a manifest of this run by one of its validators, or breaks a rule.
        SignatureInvalidError: its proposer did not sign it.
    """
    _require(manifest.run == run, manifest, f"is of run {manifest.run!r}, expected {run!r}")
    _require(manifest.proposer in set(validators), manifest, f"is by {manifest.proposer}, who is no validator")
    _require(_increasing(manifest.roster), manifest, "has a roster that is not in PeerId order")
    _require(_increasing([entry.peer for entry in manifest.counted]), manifest, "counts peers out of PeerId order")
    total = math.fsum(entry.share for entry in manifest.counted)
    _require(manifest.void or abs(total - 1) <= SHARE_TOLERANCE, manifest, f"has shares that sum to {total}")
    if manifest.round == GENESIS:
        _require(manifest.void and manifest.previous == NO_DIGEST, manifest, "is no genesis")
    if previous is not None:
        _check_continues(manifest, previous)
    verify(manifest)


class NamedValidator:
    """Agreement by the one validator that the run file names; every other peer reads what it posted."""

    def __init__(
        self,
        identity: Identity,
        validators: Sequence[PeerId],
        run: str,
        exchange: Exchange,
        journal: Callable[[Manifest], Manifest] | None = None,
    ) -> None:
        """One per peer.

        Args:
            identity: ours; only a validator's is ever used to sign.
            validators: who decides in this run.
            run: name of the run.
            exchange: where manifests are posted and found.
            journal: keeps a signed manifest durably unless one of its round is kept already, and returns the
                one that is kept. A validator needs it, so as not to decide a round twice when it restarts in
                its middle.
        """
        self._identity = identity
        self._validators = frozenset(validators)
        self._run = run
        self._exchange = exchange
        self._journal = journal
        self._known: dict[RoundIndex, Manifest] = {}
        self._refused: dict[PeerId, bytes] = {}
        """The last record of each validator that did not hold, so that it is judged and logged once."""
        self._last_signed = RoundIndex(GENESIS - 1)

    def validates(self, peer: PeerId) -> bool:
        """Whether this peer is one of those who decide."""
        return peer in self._validators

    async def propose(self, manifest: Manifest) -> Manifest:
        """Sign and post the manifest; a round that we decided earlier keeps its decision, which is posted
        again.

        Raises:
            MalformedError: it breaks a rule, or does not continue the round before; nothing was signed.
        """
        assert self.validates(self._identity.peer), "only a validator proposes"
        decided = self._known.get(manifest.round) or self._sign(manifest)
        if decided.digest() != manifest.digest():
            logger.warning("round %d was decided already; that decision stands", manifest.round)
        await self._exchange.post(KIND, decided.round, decided.canonical())
        return decided

    async def decided(self, round_: RoundIndex) -> Manifest | None:
        """The manifest of that round if it is there and holds; one that does not is logged, not returned."""
        if round_ in self._known:
            return self._known[round_]
        records = await self._exchange.records(KIND, round_)
        for author in sorted(self._validators & records.keys()):
            if records[author] == self._refused.get(author):
                continue
            manifest = self._read(records[author], author, round_)
            if manifest is not None:
                return self._remember(manifest)
            self._refused[author] = records[author]
        return None

    async def head(self) -> Manifest | None:
        """The newest final manifest, looked for around the rounds that validators are working on."""
        cards = [card for card in await self._exchange.cards() if self.validates(card.peer)]
        found = [manifest for card in cards if (manifest := await self._newest_near(card.round)) is not None]
        return max((*found, *self._known.values()), key=lambda manifest: manifest.round, default=None)

    async def _newest_near(self, round_: RoundIndex) -> Manifest | None:
        newest = None
        for index in range(round_, max(round_ - LOOK_BACK, GENESIS) - 1, -1):
            newest = await self.decided(RoundIndex(index))
            if newest is not None:
                break
        for index in range(round_ + 1, round_ + LOOK_FORWARD + 1) if newest is not None else ():
            later = await self.decided(RoundIndex(index))
            if later is None:
                break
            newest = later
        return newest

    def _sign(self, manifest: Manifest) -> Manifest:
        _require(manifest.round > self._last_signed, manifest, "is older than one that we signed")
        signed = self._identity.sign(manifest)
        self._check(signed)
        self._last_signed = signed.round
        return self._remember(signed if self._journal is None else self._journal(signed))

    def _read(self, body: bytes, author: PeerId, round_: RoundIndex) -> Manifest | None:
        try:
            manifest = Manifest.from_bytes(body)
            _require(manifest.proposer == author, manifest, f"was posted by {author}")
            _require(manifest.round == round_, manifest, f"was posted for round {round_}")
            self._check(manifest)
        except (MalformedError, SignatureInvalidError) as error:
            logger.warning("validator %s posted a manifest that does not hold: %s", author, error)
            return None
        return manifest

    def _check(self, manifest: Manifest) -> None:
        previous = self._known.get(RoundIndex(manifest.round - 1))
        check_manifest(manifest, run=self._run, validators=self._validators, previous=previous)

    def _remember(self, manifest: Manifest) -> Manifest:
        self._known[manifest.round] = manifest
        if len(self._known) > REMEMBERED:
            del self._known[min(self._known)]
        return manifest


def _check_continues(manifest: Manifest, previous: Manifest) -> None:
    _require(manifest.round == previous.round + 1, manifest, f"does not follow round {previous.round}")
    _require(manifest.previous == previous.digest(), manifest, "names another predecessor than ours")
    strangers = [entry.peer for entry in manifest.counted if entry.peer not in previous.roster]
    _require(not strangers, manifest, f"counts {', '.join(strangers)}, not in its roster")
    # A void round leaves the anchor as it is; the genesis is void and names the first one.
    _require(
        not previous.void or manifest.anchor == previous.anchor,
        manifest,
        "changes the anchor after a void round",
    )


def _require(holds: bool, manifest: Manifest, otherwise: str) -> None:
    if not holds:
        raise MalformedError(f"manifest of round {manifest.round} {otherwise}")


def _increasing(peers: Sequence[PeerId]) -> bool:
    return all(earlier < later for earlier, later in pairwise(peers))
