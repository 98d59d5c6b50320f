"""A peer's life: decide, do one thing, again, until the run is over. `elastic.round` is the one thing that matters.

Whatever the network or the trainer does, a life goes on: it ends when the run is complete, when its task is cancelled
(that is how a peer leaves), or with an error that only a person can mend.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from elastic.agreement.manifests import genesis
from elastic.agreement.simplex import max_liars
from elastic.amend import wishes_heard
from elastic.apply import catch_up
from elastic.config import Shared
from elastic.contracts import Clock, Exchange, Times
from elastic.errors import (
    BootstrapError,
    ClockSkewError,
    ElasticError,
    FetchError,
    NetworkError,
    NotThisRunError,
    PortTakenError,
    TrainerLostError,
)
from elastic.messages import (
    GENESIS,
    JSON,
    Manifest,
    PeerCard,
    PeerId,
    PeerStage,
    RoundIndex,
    RoundPlan,
    Seconds,
    View,
)
from elastic.peer import Peer
from elastic.propose import against_roster, live_peers
from elastic.reports import RoundReport
from elastic.round import run_round
from elastic.schedule.decide import CatchUp, Found, Leave, Train, Wait, decide_next
from elastic.schedule.plan import next_patience

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLL = Seconds(0.3)
"""Between two looks while there is nothing to do yet."""
RETRY = Seconds(1.0)
"""Before another try when the network failed."""
HEARTBEAT = Seconds(5.0)
"""At least so often a peer shows that it lives."""
GENESIS_SECONDS = Seconds(5.0)
"""For a validator to propose the beginning of a run."""
MAX_ADDRESSES = 16
"""As many as a card may carry."""
ASKED = "asked to leave"
"""Why a life ended that was told to."""
FAREWELL = Seconds(10.0)
"""How long a peer that finished the run stays to serve those who have not."""


class Watch(Protocol):
    """Who is told what a life does: `actors.journal` outside, a list in tests."""

    def note(self, **fields: Any) -> None:
        """Fields of `PeerStatus` that changed; none: we live."""
        ...

    def begin(self, plan: RoundPlan) -> None: ...

    def record(self, report: RoundReport, memories: Mapping[str, JSON]) -> None: ...


class Presence:
    """What the swarm sees of us: our card, renewed."""

    def __init__(self, peer: PeerId, name: str, shared: Shared, exchange: Exchange, *, watching: bool = False) -> None:
        """`watching`: we never want to contribute, so that nobody waits for us."""
        self._peer, self._name, self._shared, self._exchange = peer, name, shared, exchange
        self.there = PeerStage.WATCHING if watching else PeerStage.READY
        """Our stage while we follow the rounds."""
        self.stage = PeerStage.STARTING
        self.addresses: tuple[str, ...] = ()
        self.holds = RoundIndex(0)
        """The round whose anchor we hold."""

    async def become(self, stage: PeerStage) -> None:
        """Tell the others at what stage we are."""
        self.stage = stage
        await self.renew()

    async def renew(self) -> None:
        """Announce our card as it is now."""
        card = PeerCard(
            peer=self._peer, run=self._shared.run, shared=self._shared.digest(), name=self._name, stage=self.stage,
            addresses=self.addresses, round=self.holds,
        )  # fmt: skip
        await self._exchange.announce(card)

    async def refuse_other_runs(self) -> None:
        """Raises NotThisRunError if the validators run another [shared] section; strangers' cards prove nothing."""
        mine, validators = self._shared.digest(), self._shared.agreement.validators
        if self._peer in validators:
            return  # it is the others who have the wrong file
        deciding = [card for card in await self._exchange.cards() if card.peer in validators]
        enough = len(deciding) > max_liars(len(validators))  # fewer may all be liars
        if enough and all(card.shared != mine for card in deciding):
            raise NotThisRunError(
                f'the swarm runs "{self._shared.run}" with another [shared] section (digest '
                f"{deciding[0].shared[:12]}…, yours is {mine[:12]}…): get the current run file from its organiser"
            )


class Life:
    """One life of a peer, from its first record in the DHT to the end of the run."""

    def __init__(
        self, presence: Presence, clock: Clock, watch: Watch, card_seconds: float, was_in_swarm: bool = False
    ) -> None:
        """Before the peer is put together, only `patiently` is of use.

        Args:
            presence: our card.
            clock: of the peer.
            watch: who is told.
            card_seconds: how long a card lasts; it is renewed four times as often.
            was_in_swarm: in an earlier life, which died.
        """
        self._presence, self._clock, self._watch = presence, clock, watch
        self._beat_seconds = Seconds(min(card_seconds / 4, HEARTBEAT))
        self._in_swarm = was_in_swarm
        """Whether the network was ever good: what fails before may be the user's mistake, and is not tried again."""
        self._trainer_restarted = False
        """Whether the trainer may hold something else than we think."""
        self._unsure = True
        """Whether the swarm may be ahead of what we know."""
        self.leaving = False
        """Whether we were told to: what is done of the round under way is handed in, and no other begins."""
        self._contributing = False

    async def patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do something until the network and the trainer let us; what only a person can mend is raised."""
        while True:
            try:
                return await step()
            except (BootstrapError, PortTakenError, ClockSkewError) as error:
                if not self._in_swarm:
                    raise
                self._try_again(error)
            except NetworkError as error:
                self._try_again(error)
            except TrainerLostError as error:
                logger.warning("%s; going on from the state on disk", error)
                self._trainer_restarted = True
            self._unsure = True
            await self._clock.sleep(RETRY)

    def leave(self) -> bool:
        """Begin no other round; returns whether the one under way may count us, and is worth waiting for."""
        self.leaving = True
        return self._contributing

    async def live(self, peer: Peer) -> str:
        """Take part until the run is complete or we shall leave; returns why life is over."""
        self._in_swarm = True
        await self.patiently(peer.refresh)
        await self.patiently(lambda: self._repeat_last_word(peer))
        while (reason := await self.patiently(lambda: self._next(peer))) is None:
            pass
        return reason

    @asynccontextmanager
    async def heartbeat(self, peer: Peer) -> AsyncIterator[None]:
        """While this lasts, the card is renewed before it expires."""
        beating = asyncio.create_task(self._beat(peer))
        try:
            yield
        finally:
            beating.cancel()

    async def _next(self, peer: Peer) -> str | None:
        """Decide and do one thing; returns why life is over, if it is."""
        if self.leaving:
            return ASKED
        if self._trainer_restarted:
            await peer.refresh()
            self._trainer_restarted = False
        head = await self._head(peer)
        await peer.exchange.heed(self._worth_hearing(peer, head))
        validator = peer.id in peer.shared.agreement.validators
        match decide_next(holds=peer.holds(), head=head, rounds=peer.shared.rounds, validator=validator):
            case Train(head):
                await self._round(peer, head)
            case CatchUp(head):
                await self._catch_up(peer, head)
            case Found():
                await self._found(peer)
            case Wait(because):
                self._watch.note(phase=because)
                await self._become(peer, self._presence.there)
                await peer.clock.sleep(POLL)
            case Leave(because):
                await self._see_others_off(peer)
                return because
        return None

    async def _round(self, peer: Peer, head: Manifest) -> None:
        await self._become(peer, self._presence.there)
        await peer.follow_terms(RoundIndex(head.round + 1))
        plan = peer.plan(head)
        self._watch.begin(plan)
        self._contributing = plan.slot is not None
        try:
            report = await run_round(peer, plan)
        finally:
            self._contributing = False
        self._watch.record(report, peer.memories())
        self._unsure = report.manifest is None
        peer.patience = next_patience(peer.patience, report.manifest is not None, report.seconds["total"], plan)

    async def _catch_up(self, peer: Peer, head: Manifest) -> None:
        self._watch.note(phase=f"catching up to round {head.round}")
        if head.round > 0:
            await self._become(peer, PeerStage.CATCHING_UP)
        try:
            await catch_up(peer, head)
            self._unsure = head.round > 0  # others went on while we caught up
        except FetchError as error:
            logger.warning("catching up: %s; trying again", error)
            self._unsure = True
            await peer.clock.sleep(RETRY)

    async def _found(self, peer: Peer) -> None:
        """As a validator of a run that has no manifest: agree on the genesis once enough peers are ready."""
        await self._become(peer, self._presence.there)
        self._unsure = True  # the other validators may begin without us
        mine, needed = peer.shared.digest(), peer.shared.round.min_peers
        # Who holds a later anchor belongs to a run that began long ago, whatever we have lost.
        ready = live_peers([card for card in await peer.exchange.cards() if card.round <= 1], mine)
        roster = peer.incentive.select(RoundIndex(1), sorted(ready), peer.shared.round.max_peers)
        if len(roster) < needed:
            self._watch.note(phase=f"waiting for peers ({len(roster)} of {needed})")
            await peer.clock.sleep(POLL)
            return
        self._watch.note(phase="agreeing on the beginning")
        now = peer.clock.now()

        async def drafts(_: View) -> Manifest:
            return genesis(peer.shared.run, peer.state.anchor, sorted(roster), proposer=peer.id)

        async def accepts(other: Manifest) -> bool:
            live = live_peers(await peer.exchange.cards(), mine)
            enough = needed <= len(other.roster) <= peer.shared.round.max_peers
            fitting = other.anchor == peer.state.anchor and enough
            return fitting and against_roster(other.roster, roster, live) is None

        times = Times(Seconds(now + GENESIS_SECONDS), GENESIS_SECONDS, give_up=Seconds(now + 4 * GENESIS_SECONDS))
        manifest = await peer.agreement.decide(GENESIS, drafts, accepts, times)
        if manifest is not None:
            await catch_up(peer, manifest)

    async def _head(self, peer: Peer) -> Manifest | None:
        """The newest manifest: ours, unless we have reason to think that the swarm has a newer one."""
        own = peer.chain.head()
        if own is not None and not self._unsure:
            return own
        known = await peer.agreement.head()
        for manifest in peer.agreement.amendments():
            peer.chain.append(manifest)  # those that we jump over: who decides later rounds follows from them
        self._unsure = False
        return max((m for m in (own, known) if m is not None), key=lambda m: m.round, default=None)

    def _worth_hearing(self, peer: Peer, head: Manifest | None) -> list[PeerId]:
        """Who decides or decided, and who may contribute."""
        if head is None:
            return list(peer.shared.agreement.validators)
        deciding = peer.agreement.terms(RoundIndex(head.round + 1)).validators
        return list(dict.fromkeys([*head.roster, *peer.shared.agreement.validators, *deciding]))

    async def _repeat_last_word(self, peer: Peer) -> None:
        """The DHT may have forgotten the head, if the whole swarm was down."""
        head = peer.chain.head()
        if head is not None:
            await peer.agreement.repeat(head)

    async def _see_others_off(self, peer: Peer) -> None:
        """After the last round: serve its payloads until everyone has moved on, or for a bounded time."""
        await self._become(peer, self._presence.there)
        deadline = peer.clock.now() + FAREWELL
        while peer.clock.now() < deadline:
            if all(card.round >= peer.holds() for card in await peer.exchange.cards()):
                return
            await peer.clock.sleep(POLL)

    async def _become(self, peer: Peer, stage: PeerStage) -> None:
        self._watch.note(stage=stage.value)
        self._presence.holds = peer.holds()
        await self._presence.become(stage)

    async def _beat(self, peer: Peer) -> None:
        """Renew the card before it expires, and count who is there."""
        while True:
            try:
                self._watch.note()
                self._presence.holds = peer.holds()
                await self._presence.renew()
                bytes_out, bytes_in = await peer.exchange.traffic()
                cards = await peer.exchange.cards()
                ready = sum(card.stage is PeerStage.READY for card in cards)
                self._watch.note(
                    peers=len(cards), ready=ready, bytes_out=bytes_out, bytes_in=bytes_in, digest=peer.state.anchor
                )
                if peer.on_wishes is not None and (heard := await wishes_heard(peer, cards)) is not None:
                    peer.on_wishes(heard)
            except ElasticError as error:
                logger.warning("heartbeat: %s", error)
            await peer.clock.sleep(self._beat_seconds)

    def _try_again(self, error: NetworkError) -> None:
        logger.warning("%s; trying again", error)
        self._watch.note(phase=f"network: {error}"[:200])


def announced(addresses: Sequence[str]) -> tuple[str, ...]:
    """What goes on our card: no loopback address, unless there is no other one to dial."""
    outside = [each for each in addresses if not each.startswith("/ip4/127.")]
    dialled = any(each.startswith("/") for each in outside)  # a bucket's URL is not
    return tuple((outside if dialled else addresses)[:MAX_ADDRESSES])
