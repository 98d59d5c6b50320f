"""Agreement by a quorum of validators, from one up: `simplex` over the signed records of an exchange.

Records, by (kind, round), one per author:

    draft      a validator's own manifest, once it has proposed it
    ballot     a validator's votes and proposals, and the votes that led it where it is
    manifest   the final manifest with the votes that prove it, by anyone who has it

A validator reads and posts all three. Everyone else needs the last kind only: what proves itself may come from anyone.
With one validator its own vote is the quorum, and nothing but the final manifest is ever posted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elastic.agreement.manifests import check_final, check_manifest
from elastic.agreement.seat import Seat
from elastic.agreement.talk import BALLOT, DRAFT, MANIFEST, Talk
from elastic.agreement.votes import Ballot
from elastic.contracts import Accepts, Clock, Drafts, Exchange, Times
from elastic.errors import MalformedError, SignatureInvalidError, StateError
from elastic.messages import GENESIS, Manifest, PeerId, RoundIndex, Seconds, View
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
REMEMBERED = 64
"""Manifests kept in memory, so that asking for a recent round again costs nothing."""


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
        validators: Sequence[PeerId],
        run: str,
        exchange: Exchange,
        clock: Clock,
        memory: Memory,
    ) -> None:
        """One per peer.

        Args:
            identity: ours; only a validator's is ever used to sign.
            validators: who decides in this run.
            run: name of the run.
            exchange: where records are posted and found.
            clock: of the peer.
            memory: of what we said. A validator that forgets it becomes a liar.

        Raises:
            StateError: what was saved is damaged.
        """
        self._identity, self._run, self._exchange, self._clock = identity, run, exchange, clock
        self._validators = tuple(sorted(set(validators)))
        self._save, self._memory = memory.save, None if memory.said is None else _remembered_ballot(memory.said)
        self._talk: Talk | None = None
        self._known: dict[RoundIndex, Manifest] = {}
        self._refused: dict[tuple[RoundIndex, PeerId], bytes] = {}
        """The last record of each author that did not hold, so that it is judged and logged once."""

    def validates(self, peer: PeerId) -> bool:
        """Whether this peer is one of those who decide."""
        return peer in self._validators

    async def decide(self, round_: RoundIndex, drafts: Drafts, accepts: Accepts, times: Times) -> Manifest | None:
        """As a validator: take part in agreeing on a round; see `contracts.Agreement`.

        Raises:
            MalformedError: what `drafts` made breaks a rule, or does not continue the round before.
        """
        assert self.validates(self._identity.peer), "only a validator decides"
        talk = await self._talk_about(round_, times)
        if talk is None:
            return await self.decided(round_)

        async def sound(view: View) -> Manifest:
            draft = await drafts(view)
            self._check_sound(self._identity.sign(draft), round_)
            return draft

        try:
            while True:
                manifest = await talk.speak(sound) or await self.decided(round_)
                if manifest is not None:
                    await talk.tell(manifest)
                    return self._remembered(manifest)
                if self._clock.now() >= times.give_up:
                    return None
                await self._clock.sleep(POLL)
                await talk.listen(accepts)
        finally:
            talk.hush()

    async def decided(self, round_: RoundIndex) -> Manifest | None:
        """The final manifest of that round if it is there and holds; one that does not is logged, not returned."""
        if round_ in self._known:
            return self._known[round_]
        for author, body in sorted((await self._exchange.records(MANIFEST, round_)).items()):
            if self._refused.get((round_, author)) == body:
                continue
            try:
                manifest = Manifest.from_bytes(body)
                self._check(manifest, round_)
            except (MalformedError, SignatureInvalidError) as error:
                logger.warning("%s posted a manifest that does not hold: %s", author, error)
                self._refuse(round_, author, body)
                continue
            return self._remembered(manifest)
        return None

    async def head(self) -> Manifest | None:
        """The newest final manifest, looked for around the rounds that validators are working on."""
        cards = [card for card in await self._exchange.cards() if self.validates(card.peer)]
        rounds = sorted({card.round for card in cards}, reverse=True)
        found = [manifest for round_ in rounds if (manifest := await self._newest_near(round_)) is not None]
        return max((*found, *self._known.values()), key=lambda manifest: manifest.round, default=None)

    async def repeat(self, manifest: Manifest) -> None:
        """Post a final manifest again, if nobody else's can be found: a swarm that was down was forgotten."""
        if manifest.finality is None:
            return
        self._known.pop(manifest.round, None)
        if await self.decided(manifest.round) is None:
            self._check(manifest, manifest.round)
            await self._exchange.post(MANIFEST, manifest.round, manifest.canonical())
            self._remembered(manifest)

    async def _talk_about(self, round_: RoundIndex, times: Times) -> Talk | None:
        if self._talk is not None and self._talk.seat.round == round_:
            return self._talk
        memory = self._memory
        if memory is not None and memory.round > round_:
            logger.warning("round %d is older than one that we voted in: others must know how it ended", round_)
            return None
        if memory is None or memory.round < round_:
            memory = await self._heard_of_us(round_)
        seat = Seat(self._identity, self._run, round_, self._validators, memory=memory, save=self._keep)

        def check(manifest: Manifest) -> None:
            self._check_sound(manifest, round_)

        self._talk = Talk(seat, self._exchange, self._clock, check, times)
        return self._talk

    async def _heard_of_us(self, round_: RoundIndex) -> Ballot | None:
        """What the network still knows that we said, if our disk was lost; nobody else can have written it."""
        if len(self._validators) == 1:
            return None  # it never posts a ballot
        mine = self._identity.peer
        body = (await self._exchange.records(BALLOT, round_)).get(mine)
        if body is None:
            return None
        draft = (await self._exchange.records(DRAFT, round_)).get(mine)
        return Ballot.from_bytes(body).model_copy(update={"draft": Manifest.from_bytes(draft) if draft else None})

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

    def _check(self, manifest: Manifest, round_: RoundIndex) -> None:
        self._check_sound(manifest, round_)
        check_final(manifest, self._validators)

    def _check_sound(self, manifest: Manifest, round_: RoundIndex) -> None:
        if manifest.round != round_:
            raise MalformedError(f"manifest of round {manifest.round}, posted for round {round_}")
        previous = self._known.get(RoundIndex(round_ - 1))
        check_manifest(manifest, run=self._run, validators=self._validators, previous=previous)

    def _remembered(self, manifest: Manifest | None) -> Manifest | None:
        if manifest is not None:
            self._known[manifest.round] = manifest
            if len(self._known) > REMEMBERED:
                del self._known[min(self._known)]
        return manifest

    def _refuse(self, round_: RoundIndex, author: PeerId, body: bytes) -> None:
        self._refused[round_, author] = body
        while len(self._refused) > REMEMBERED * len(self._validators):
            del self._refused[next(iter(self._refused))]


def _remembered_ballot(said: bytes) -> Ballot:
    try:
        return Ballot.from_bytes(said)
    except MalformedError as error:
        raise StateError(
            f"{BALLOT_FILE} in the state directory is damaged ({error}); remove it only when the swarm has decided "
            "the round that this validator last voted in"
        ) from error
