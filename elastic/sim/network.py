"""An internet that loses, delays, repeats and splits; what peers say of it is checked by the code under test.

Like a DHT it keeps each author's newest record under a key, and every reader gets it when it gets it: late, an older
one again, or, from a liar, another one than everybody else. From `heal` on it is good.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from elastic.contracts import Clock
from elastic.errors import FetchError, NetworkError
from elastic.exchange.blobs import Offer
from elastic.exchange.gather import CONTRIBUTION
from elastic.exchange.memory import MemoryExchange, MemoryNetwork
from elastic.messages import ContributionHeader, Digest, PeerCard, PeerId, RoundIndex, Seconds
from elastic.sim.trainer import encode
from elastic.wire.signing import Identity

GOOD_DELAY = 0.2
"""Seconds that a message takes at most when the network is good."""
CARD_SECONDS = 8.0
RECORD_SECONDS = 90.0
"""Records do not last; outside it is half an hour, of which a simulation would never see the end."""


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
    split: tuple[float, float]
    """From when until when it is in two halves."""
    sides: Mapping[PeerId, int]
    """Peer → its half."""


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
        self._versions: dict[tuple[str, RoundIndex], dict[PeerId, list[_Version]]] = {}
        self._private: dict[tuple[str, RoundIndex, PeerId, PeerId], bytes] = {}

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
        self._private[kind, round_, author, reader] = body

    def shown(self, reader: PeerId, kind: str, round_: RoundIndex) -> dict[PeerId, bytes]:
        """The records that this reader gets if it asks now."""
        found = {}
        for author, versions in self._versions.get((kind, round_), {}).items():
            seen = [each for each in versions if self._has_come(author, reader, each)]
            if seen:
                old = self.bad and self.rng.random() < self.faults.stale
                found[author] = self.rng.choice(seen).body if old else seen[-1].body
        whispered = {
            author: body for (k, r, author, hearer), body in self._private.items()
            if (k, r, hearer) == (kind, round_, reader)
        }  # fmt: skip
        return found | whispered

    def offered(self, holder: PeerId, digest: Digest) -> Offer | None:
        offer = super().offered(holder, digest)
        if offer is None or not self.bad or self.rng.random() >= self.faults.corrupt:
            return offer
        right = offer.read
        return replace(offer, read=lambda chunk: bytes([right(chunk)[0] ^ 1]) + right(chunk)[1:])

    def apart(self, one: PeerId, other: PeerId, since: float | None = None) -> bool:
        """Whether they are in different halves now, and were when something of that time was sent."""
        start, end = self.faults.split
        now = self.clock.now()
        split = start <= now <= end and (since is None or since >= start)
        return split and self.faults.sides.get(one, 0) != self.faults.sides.get(other, 0)

    def reaches(self, one: PeerId, other: PeerId) -> bool:
        return one == other or not self.apart(one, other)

    async def travel(self, what: str) -> None:
        """A message goes there and back.

        Raises:
            NetworkError: it was lost.
        """
        await self.clock.sleep(Seconds(self.rng.uniform(0.01, self._slowest())))
        if self.bad and self.rng.random() < self.faults.loss / 4:
            raise NetworkError(f"{what}: lost")

    def _slowest(self) -> float:
        return max(self.faults.delay, GOOD_DELAY) if self.bad else GOOD_DELAY

    def _has_come(self, author: PeerId, reader: PeerId, version: _Version) -> bool:
        if author == reader:
            return self.clock.now() <= version.posted + RECORD_SECONDS
        if self.apart(author, reader, version.posted) or self.clock.now() > version.posted + RECORD_SECONDS:
            return False
        if reader not in version.arrives:
            tries = 1
            while version.posted < self.faults.heal and self.rng.random() < self.faults.loss:
                tries += 1
            version.arrives[reader] = version.posted + tries * self.rng.uniform(0, self._slowest())
        return self.clock.now() >= version.arrives[reader]


class SimExchange(MemoryExchange):
    """One peer's end of it."""

    def __init__(self, network: SimNetwork, identity: Identity, run: str, fools: Sequence[PeerId] = ()) -> None:
        """`fools` are shown another contribution than everybody else."""
        super().__init__(network, identity.peer, run)
        self._sim, self._identity, self._fools = network, identity, fools

    async def announce(self, card: PeerCard) -> None:
        await self._sim.travel("announcing")
        await super().announce(card)

    async def cards(self) -> Sequence[PeerCard]:
        await self._sim.travel("reading cards")
        return await super().cards()

    async def post(self, kind: str, round_: RoundIndex, body: bytes) -> None:
        await self._sim.travel(f"posting {kind}")
        self._check_open()
        self._sim.publish(self.peer, kind, round_, body)
        if kind == CONTRIBUTION and self._fools:
            await self._show_another(ContributionHeader.from_bytes(body))

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
                await self._sim.travel(f"fetching {digest[:8]}")
            except NetworkError as error:
                raise FetchError(str(error)) from error
        return await super().fetch(digest, size_bytes, holders)
