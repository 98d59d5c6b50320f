"""An internet that loses, delays, repeats, forgets and splits; what peers say of it is checked by the code under test.

Like a DHT it keeps each author's newest record under a key, and every reader gets it when it gets it: late, an older
one again, or, from a liar, another one than everybody else. From `heal` on it is good.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from elastic.contracts import Clock
from elastic.errors import FetchError, NetworkError
from elastic.exchange.blobs.store import Offer
from elastic.exchange.gather import CONTRIBUTION
from elastic.exchange.memory import MemoryExchange, MemoryNetwork
from elastic.messages import ContributionHeader, Digest, PeerCard, PeerId, RoundIndex, Seconds
from elastic.sim.trainer import encode
from elastic.wire.signing import Identity

GOOD_DELAY = 0.2
"""Seconds that a message takes at most when the network is good."""
CARD_SECONDS = 8.0
STALL_SECONDS = 20.0
"""So long a fetch lasts from someone who takes the stream and says nothing: to open it, and to give it up."""
RECORD_SECONDS = 90.0
"""Records do not last; outside it is half an hour, of which a simulation would never see the end."""


@dataclass(frozen=True, slots=True)
class Split:
    """A time in which it is in two halves."""

    start: float
    end: float
    sides: Mapping[PeerId, int]
    """Peer → its half, 0 or 1; 0 if it is not named."""
    one_way: bool = False
    """Whether half 1 still hears half 0: its uplink is dead, its downlink is not."""

    def parts(self, author: PeerId, reader: PeerId, now: float, posted: float | None = None) -> bool:
        """Whether nothing gets from one to the other now; if `posted` is given, of what was sent then."""
        if not self.start <= now <= self.end or (posted is not None and posted < self.start):
            return False
        mine, theirs = self.sides.get(author, 0), self.sides.get(reader, 0)
        return mine > theirs if self.one_way else mine != theirs


@dataclass(frozen=True, slots=True)
class Faults:
    """How bad the network is until it heals; all drawn from the seed."""

    heal: float
    """Second from which it is good."""
    loss: float
    """Part of the messages that are lost: a call fails, or a record comes only after it was sent again."""
    delay: float
    """Seconds that a message takes at most."""
    stale: float
    """Part of the reads that get an older record."""
    corrupt: float
    """Part of the blobs that are served with a wrong bit."""
    blind: float
    """Part of the cards that a look at them does not show."""
    splits: tuple[Split, ...]


@dataclass(slots=True)
class _Version:
    body: bytes
    posted: float
    arrives: dict[PeerId, float] = field(default_factory=dict)


class SimNetwork(MemoryNetwork):
    """What all peers of one simulation share."""

    def __init__(self, rng: random.Random, clock: Clock, faults: Faults) -> None:
        super().__init__(clock.now, CARD_SECONDS)
        self.rng, self.clock, self.faults = rng, clock, faults
        self.splits = list(faults.splits)
        self.shy: dict[PeerId, Callable[[PeerId], bool]] = {}
        """Liar → who sees its card."""
        self.silent: set[PeerId] = set()
        """Liars that let themselves be asked for blobs, and send nothing."""
        self._versions: dict[tuple[str, RoundIndex], dict[PeerId, list[_Version]]] = {}
        self._private: dict[tuple[str, RoundIndex], dict[tuple[PeerId, PeerId], _Version]] = {}
        """Kind and round → author and reader → what only this reader sees."""

    @property
    def bad(self) -> bool:
        """Whether it still has faults."""
        return self.clock.now() < self.faults.heal

    def publish(self, author: PeerId, kind: str, round_: RoundIndex, body: bytes) -> None:
        """A record for everyone."""
        versions = self._versions.setdefault((kind, round_), {}).setdefault(author, [])
        versions.append(_Version(body, self.clock.now()))

    def whisper(self, author: PeerId, kind: str, round_: RoundIndex, body: bytes, reader: PeerId) -> None:
        """A record that only this reader sees, in place of the one that everyone does."""
        self._private.setdefault((kind, round_), {})[author, reader] = _Version(body, self.clock.now())

    def forget(self) -> None:
        """Records and cards are kept in the memory of those who carry the network: all were restarted at once."""
        self.cards.clear()
        self._versions.clear()
        self._private.clear()

    def shown(self, reader: PeerId, kind: str, round_: RoundIndex) -> dict[PeerId, bytes]:
        """The records that this reader gets if it asks now."""
        found = {}
        for author, versions in self._versions.get((kind, round_), {}).items():
            seen = [each for each in versions if self._has_come(author, reader, each)]
            if seen:
                old = self.bad and self.rng.random() < self.faults.stale
                found[author] = self.rng.choice(seen).body if old else seen[-1].body
        since = self.clock.now() - RECORD_SECONDS
        return found | {
            author: version.body for (author, hearer), version in self._private.get((kind, round_), {}).items()
            if hearer == reader and version.posted >= since
        }  # fmt: skip

    def shows_card(self, author: PeerId, reader: PeerId) -> bool:
        """Whether this look at the cards finds that one."""
        if author == reader:
            return True
        if self.bad and self.rng.random() < self.faults.blind:
            return False
        return self.shy[author](reader) if author in self.shy else True

    def offered(self, holder: PeerId, digest: Digest) -> Offer | None:
        offer = super().offered(holder, digest)
        if offer is None or not self.bad or self.rng.random() >= self.faults.corrupt:
            return offer
        right = offer.read
        return replace(offer, read=lambda chunk: bytes([right(chunk)[0] ^ 1]) + right(chunk)[1:])

    def reaches(self, one: PeerId, other: PeerId) -> bool:
        """Who asks must be heard, and so must who answers. Each half has a network of its own, which is nobody's."""
        now = self.clock.now()
        return (
            one == other
            or not other
            or not any(split.parts(one, other, now) or split.parts(other, one, now) for split in self.splits)
        )

    async def travel(self, what: str, *, many: bool = False) -> None:
        """A message goes there and back, or many do, any of which may be lost.

        Raises:
            NetworkError: it was lost.
        """
        await self.clock.sleep(Seconds(self.rng.uniform(0.01, self._slowest())))
        if self.bad and self.rng.random() < self.faults.loss / (1 if many else 4):
            raise NetworkError(f"{what}: lost")

    def _slowest(self) -> float:
        return max(self.faults.delay, GOOD_DELAY) if self.bad else GOOD_DELAY

    def _has_come(self, author: PeerId, reader: PeerId, version: _Version) -> bool:
        now = self.clock.now()
        if now > version.posted + RECORD_SECONDS:
            return False
        if author == reader:
            return True
        if any(split.parts(author, reader, now, version.posted) for split in self.splits):
            return False
        if reader not in version.arrives:
            tries = 1
            while version.posted < self.faults.heal and self.rng.random() < self.faults.loss:
                tries += 1
            version.arrives[reader] = version.posted + tries * self.rng.uniform(0, self._slowest())
        return now >= version.arrives[reader]


class SimExchange(MemoryExchange):
    """One peer's end of it."""

    def __init__(
        self, network: SimNetwork, identity: Identity, run: str, fools: Sequence[PeerId] = (), thief: bool = False
    ) -> None:
        """`fools` are shown another contribution than everybody else; a thief commits to what others committed to."""
        super().__init__(network, identity.peer, run)
        self._sim, self._identity, self._fools, self._thief = network, identity, fools, thief

    async def announce(self, card: PeerCard) -> None:
        await self._sim.travel("announcing")
        await super().announce(card)

    async def cards(self) -> Sequence[PeerCard]:
        await self._sim.travel("reading cards")
        return [card for card in await super().cards() if self._sim.shows_card(card.peer, self.peer)]

    async def post(self, kind: str, round_: RoundIndex, body: bytes) -> None:
        await self._sim.travel(f"posting {kind}")
        if kind == CONTRIBUTION and self._thief:
            body = await self._stolen(ContributionHeader.from_bytes(body))
        self._check_open()
        self._sim.publish(self.peer, kind, round_, body)
        if kind == CONTRIBUTION and self._fools:
            await self._show_another(ContributionHeader.from_bytes(body))

    async def _stolen(self, header: ContributionHeader) -> bytes:
        """The first commitment of another that it sees, in its own name; its own if there is none for long."""
        for _ in range(10):
            for author, body in self._sim.shown(self.peer, CONTRIBUTION, header.round).items():
                if author != self.peer:
                    other = ContributionHeader.from_bytes(body)
                    changes = {"payload": other.payload, "size_bytes": other.size_bytes}
                    return self._identity.sign(header.model_copy(update=changes)).canonical()
            await self._sim.clock.sleep(Seconds(0.3))
        return header.canonical()

    async def _show_another(self, header: ContributionHeader) -> None:
        other = encode([f"{self.peer[-6:]}/{header.round}/other"])
        changes = {"payload": await self.provide(other), "size_bytes": len(other)}
        lie = self._identity.sign(header.model_copy(update=changes)).canonical()
        for reader in self._fools:
            self._sim.whisper(self.peer, CONTRIBUTION, header.round, lie, reader)

    async def records(self, kind: str, round_: RoundIndex) -> Mapping[PeerId, bytes]:
        await self._sim.travel(f"reading {kind}")
        self._check_open()
        return self._sim.shown(self.peer, kind, round_)

    async def fetch(self, digest: Digest, size_bytes: int, holders: Sequence[PeerId]) -> bytes:
        if self.held(digest) is None:
            try:
                await self._sim.travel(f"fetching {digest[:8]}", many=True)
            except NetworkError as error:
                raise FetchError(str(error)) from error
            if holders and self._sim.silent.issuperset(holders):
                await self._sim.clock.sleep(Seconds(STALL_SECONDS))
        return await super().fetch(digest, size_bytes, holders)
