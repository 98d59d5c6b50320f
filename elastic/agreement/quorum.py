"""Agreement by a quorum of validators, from one up: `simplex` over the signed records of an exchange.

Records, by (kind, round), one per author:

    draft      the manifest that others need from a validator: what it proposes, or what is notarized already
    ballot     a validator's votes and proposals, and the votes that led it where it is
    manifest   the final manifest with the votes that prove it, by anyone who has it

A validator reads and posts all three. Everyone else needs the last kind only: what proves itself may come from anyone.
With one validator its own vote is the quorum, and nothing but the final manifest is ever posted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from elastic.agreement.charter import Charter, UnknownTermsError
from elastic.agreement.manifests import check_final, check_manifest
from elastic.agreement.seat import Seat
from elastic.agreement.talk import BALLOT, DRAFT, MANIFEST, REPEAT, Talk
from elastic.agreement.votes import Ballot
from elastic.contracts import Accepts, Clock, Drafts, Exchange, Times
from elastic.errors import MalformedError, NetworkError, SignatureInvalidError, StateError
from elastic.messages import GENESIS, Manifest, PeerCard, PeerId, RoundIndex, Seconds, Terms, View
from elastic.wire.signing import Identity

logger = logging.getLogger(__name__)

POLL = Seconds(0.1)
"""Between two looks at what the others say."""
LOOK_BACK = 4
"""Rounds below a validator's card where `head` looks for a manifest: the card's own round may not be over."""
LOOK_FORWARD = 32
"""Rounds above it: a card is renewed less often than short rounds end."""
BALLOT_FILE = "ballot.json"
"""Its name in a peer's state directory."""
KNOWN = 64
"""Manifests kept in memory, so that asking for a recent round again costs nothing."""
STRANGERS = 8
"""Records of others than validators that are looked at at a time: anyone may repeat a final manifest, or garbage."""
REFUSED = 1024
"""Authors of garbage that are remembered in a round."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A validator's last ballot, wherever it is kept."""

    said: bytes | None
    """What an earlier life kept."""
    save: Callable[[bytes], None]
    """Keeps these bytes in place of those before; they are durable when it returns."""


class Quorum:
    """One peer's view of what is agreed, and its own voice if it is a validator."""

    def __init__(
        self,
        identity: Identity,
        charter: Charter,
        run: str,
        exchange: Exchange,
        clock: Clock,
        memory: Memory,
    ) -> None:
        """One per peer.

        Args:
            identity: ours; only a validator's is ever used to sign.
            charter: who decides in this run.
            run: name of the run.
            exchange: where records are posted and found.
            clock: of the peer.
            memory: of what we said. A validator that forgets it becomes a liar.

        Raises:
            StateError: what was saved is damaged.
        """
        self._identity, self._run, self._exchange, self._clock = identity, run, exchange, clock
        self._charter, self._in_the_dark = charter, False
        self._save, self._memory = memory.save, _remembered(memory.said, run)
        self._talk: Talk | None = None
        self._known: dict[RoundIndex, Manifest] = {}
        self._told: tuple[RoundIndex, Seconds] = (RoundIndex(-1), Seconds(0.0))
        """The final manifest that we posted last, and when."""
        self._refused: dict[RoundIndex, dict[PeerId, int]] = {}
        """Hashes of records that did not hold, so that each is judged and logged once."""

    def terms(self, round_: RoundIndex) -> Terms:
        """Those of that round, as far as we know."""
        return self._charter.of(round_)

    def amendments(self) -> Sequence[Manifest]:
        """Every manifest that changed the terms, as far as we know, in order."""
        return self._charter.amendments()

    async def decide(self, round_: RoundIndex, drafts: Drafts, accepts: Accepts, times: Times) -> Manifest | None:
        """As a validator: take part in agreeing on a round; see `contracts.Agreement`.

        Raises:
            MalformedError: what `drafts` made breaks a rule, or does not continue the round before.
        """
        assert self._identity.peer in self.terms(round_).validators, "only a validator decides"

        async def sound(view: View) -> Manifest:
            draft = await drafts(view)
            self._check_sound(self._identity.sign(draft), round_)
            return draft

        talk: Talk | None = None
        try:
            while True:
                with self._tolerant(round_):
                    talk = talk or await self._talk_about(round_, times)
                    manifest = (await talk.speak(sound) if talk else None) or await self.decided(round_)
                    if manifest is not None:
                        self._remembered(manifest)
                        await self._tell(manifest)
                        return manifest
                    await self._remind(RoundIndex(round_ - 1))
                if self._clock.now() >= times.give_up:
                    return None
                await self._clock.sleep(POLL)
                with self._tolerant(round_):
                    if talk is not None:
                        await talk.listen(accepts)
        finally:
            if talk is not None:
                talk.hush()

    async def decided(self, round_: RoundIndex) -> Manifest | None:
        """The final manifest of that round if it is there and holds; one that does not is not returned."""
        if round_ in self._known:
            return self._known[round_]
        records = await self._exchange.records(MANIFEST, round_)
        for author in self._worth_a_look(round_, records):
            manifest = self._read(author, records[author], round_)
            if manifest is not None:
                return self._remembered(manifest)
        return None

    async def head(self) -> Manifest | None:
        """The newest final manifest, looked for around the rounds that validators are working on."""
        cards, self._in_the_dark = await self._exchange.cards(), False
        found = await self._newest_of(cards)
        # Those whom we know may be gone, or left behind; a card that says so falsely costs one look.
        lost = any(card.round > (found.round if found is not None else 0) + 1 for card in cards)
        if (lost or self._in_the_dark) and await self._charter.learn(self._exchange):
            found = await self._newest_of(cards)
        return found

    async def _newest_of(self, cards: Sequence[PeerCard]) -> Manifest | None:
        deciding = set(self._charter.newest().validators)
        rounds = sorted({card.round for card in cards if card.peer in deciding}, reverse=True)
        found = [manifest for round_ in rounds if (manifest := await self._newest_near(round_)) is not None]
        return max((*found, *self._known.values()), key=lambda manifest: manifest.round, default=None)

    async def repeat(self, manifest: Manifest) -> None:
        """Post a final manifest again: records do not last, and a swarm that was down was forgotten."""
        if manifest.finality is not None:
            self._check(manifest, manifest.round)
            await self._tell(manifest)
            self._remembered(manifest)

    async def _tell(self, manifest: Manifest) -> None:
        """Whoever showed it to us may show it to nobody else."""
        await self._exchange.post(MANIFEST, manifest.round, manifest.canonical())
        self._told = manifest.round, self._clock.now()
        await self._charter.tell(self._exchange, self._clock)

    async def _remind(self, round_: RoundIndex) -> None:
        """Who is still in the round before needs its manifest to come to us, however long ago that was posted."""
        manifest, (told, when) = self._known.get(round_), self._told
        if manifest is not None and (told != round_ or self._clock.now() >= when + REPEAT):
            await self._tell(manifest)

    @contextmanager
    def _tolerant(self, round_: RoundIndex) -> Iterator[None]:
        """One call that the network fails costs a turn, not the round."""
        try:
            yield
        except NetworkError as error:
            logger.info("round %d: %s; trying again", round_, error)

    async def _talk_about(self, round_: RoundIndex, times: Times) -> Talk | None:
        if self._talk is not None and self._talk.seat.round == round_:
            self._talk.go_on()
            return self._talk
        memory = self._memory
        if memory is not None and memory.round > round_:
            return None  # we voted in a later one: others know how this one ended
        if memory is None:
            memory = await self._heard_of_us(round_)
        elif memory.round < round_:
            memory = None
        validators = self.terms(round_).validators
        seat = Seat(self._identity, self._run, round_, validators, memory=memory, save=self._keep)

        def check(manifest: Manifest) -> None:
            self._check_sound(manifest, round_)

        self._talk = Talk(seat, self._exchange, self._clock, check, times)
        return self._talk

    async def _heard_of_us(self, round_: RoundIndex) -> Ballot | None:
        """What the network still knows that we said, if our disk was lost; nobody else can have written it."""
        if len(self.terms(round_).validators) == 1:
            return None  # it never posts a ballot
        mine = self._identity.peer
        body = (await self._exchange.records(BALLOT, round_)).get(mine)
        text = (await self._exchange.records(DRAFT, round_)).get(mine)
        try:
            ballot = None if body is None else Ballot.from_bytes(body)
            texts = () if text is None else (Manifest.from_bytes(text),)
        except MalformedError as error:
            logger.warning("round %d: what we said before our disk was lost cannot be read: %s", round_, error)
            return None
        return None if ballot is None else ballot.model_copy(update={"texts": texts})

    def _keep(self, ballot: Ballot) -> None:
        self._save(ballot.canonical())
        self._memory = ballot

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

    def _worth_a_look(self, round_: RoundIndex, records: Mapping[PeerId, bytes]) -> list[PeerId]:
        """Authors of records that we have not refused, validators first; strangers may be many, and get few looks."""
        refused = self._refused.get(round_, {})
        fresh = [author for author in sorted(records) if refused.get(author) != hash(records[author])]
        deciding = set(self.terms(round_).validators)
        strangers = [author for author in fresh if author not in deciding]
        return [author for author in fresh if author in deciding] + strangers[:STRANGERS]

    def _read(self, author: PeerId, body: bytes, round_: RoundIndex) -> Manifest | None:
        try:
            manifest = Manifest.from_bytes(body)
            self._check(manifest, round_)
        except UnknownTermsError as error:
            logger.debug("%s posted a manifest that cannot be judged yet: %s", author, error)
            self._in_the_dark = True
            return None
        except (MalformedError, SignatureInvalidError) as error:
            refused = self._refused.setdefault(round_, {})
            first = author in self.terms(round_).validators and author not in refused
            level = logging.WARNING if first else logging.DEBUG
            logger.log(level, "%s posted a manifest that does not hold: %s", author, error)
            if len(refused) < REFUSED or author in refused:
                refused[author] = hash(body)
            while len(self._refused) > KNOWN:
                del self._refused[min(self._refused)]
            return None
        return manifest

    def _check(self, manifest: Manifest, round_: RoundIndex) -> None:
        self._check_sound(manifest, round_)
        check_final(manifest, self._charter.behind(manifest).validators)

    def _check_sound(self, manifest: Manifest, round_: RoundIndex) -> None:
        if manifest.round != round_:
            raise MalformedError(f"manifest of round {manifest.round}, posted for round {round_}")
        previous = self._known.get(RoundIndex(round_ - 1))
        validators = self._charter.behind(manifest).validators
        check_manifest(manifest, run=self._run, validators=validators, previous=previous)

    def _remembered(self, manifest: Manifest | None) -> Manifest | None:
        if manifest is not None:
            self._charter.admit(manifest)
            self._known[manifest.round] = manifest
            if len(self._known) > KNOWN:
                del self._known[min(self._known)]
        return manifest


def _remembered(said: bytes | None, run: str) -> Ballot | None:
    """What we said last in this run."""
    try:
        ballot = None if said is None else Ballot.from_bytes(said)
    except MalformedError as error:
        raise StateError(
            f"{BALLOT_FILE} in the state directory is damaged ({error}); remove it only when the swarm has decided "
            "the round that this validator last voted in"
        ) from error
    return ballot if ballot is not None and ballot.run == run else None
