"""One peer of the benchmark's swarm: the real parts of a peer, in memory, led by its conduct."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic.agreement.charter import Charter
from elastic.agreement.quorum import Memory, Quorum
from elastic.bench.attack.conduct import PACE, Body, Conduct
from elastic.contracts import Clock
from elastic.exchange.gather import CONTRIBUTION
from elastic.exchange.memory import MemoryExchange, MemoryNetwork
from elastic.life import Life, Presence
from elastic.messages import (
    JSON,
    Assessment,
    ContributionHeader,
    Digest,
    InnerReport,
    Manifest,
    PeerId,
    RoundIndex,
    RoundPlan,
    Scoreboard,
    Seconds,
    SignedScoreboard,
)
from elastic.peer import Peer
from elastic.registry import build
from elastic.reports import RoundReport
from elastic.state.chain import Chain
from elastic.testify import SCORES, WITNESS
from elastic.train.local import LocalTrainer
from elastic.train.session import Session
from elastic.wire.signing import Identity
from elastic.wire.tree import blob_digest

CARD_SECONDS = 20.0
ASSESS_SECONDS = 0.045 * PACE
"""Simulated time of one assessment: what its 4 · 8 sequences forward are of 30 steps of 8 sequences, forward and back
(the defaults of a run file). It is not of this swarm's own rounds, which are shorter than real ones."""


class ZooTrainer(LocalTrainer):
    """Inner steps and payload as the conduct would have them; keeps account of the CPU's time."""

    def __init__(self, body: Body, conduct: Conduct) -> None:
        super().__init__(body.session)
        self._body, self._conduct = body, conduct
        self.work_seconds = 0.0
        """CPU time of inner steps and compression, and"""
        self.assess_seconds = 0.0
        """of assessments."""
        self._forged = False

    async def inner_steps(self, plan: RoundPlan) -> InnerReport:
        begin = time.process_time()
        report = await self._conduct.train(self._body, plan)
        self.work_seconds += time.process_time() - begin
        return report

    async def compress(self, plan: RoundPlan, inner: InnerReport) -> bytes:
        payload = await self._conduct.contribute(self._body, plan, inner)
        pending = self._body.session.pending
        self._forged = pending is not None and pending.payload != payload
        return payload

    async def outer_step(self, manifest: Manifest, payloads: Mapping[Digest, bytes]) -> Digest:
        if self._forged:
            self._body.session.pending = None  # who forges wants none of its honest work back
        return await super().outer_step(manifest, payloads)

    async def assess(
        self, plan: RoundPlan, header: ContributionHeader, payload: bytes, seed: int, beside: bytes | None = None
    ) -> Assessment:
        await self._body.clock.sleep(Seconds(ASSESS_SECONDS))
        begin = time.process_time()
        found = await super().assess(plan, header, payload, seed, beside)
        self.assess_seconds += time.process_time() - begin
        return found


class ZooExchange(MemoryExchange):
    """Posts and serves what the conduct lets it, and remembers what was said of others."""

    def __init__(self, network: MemoryNetwork, identity: Identity, run: str, conduct: Conduct) -> None:
        super().__init__(network, identity.peer, run)
        self._identity, self._conduct = identity, conduct
        self.body: Body
        self.said: dict[RoundIndex, dict[PeerId, float]] = {}
        """Round → what we testified after it, if we did."""

    async def post(self, kind: str, round_: RoundIndex, body: bytes) -> None:
        if kind == SCORES:
            said = self._conduct.testimony(self.body, SignedScoreboard.from_bytes(body))
            self.said[round_] = said.scores
            other, readers = self._conduct.whispered(self.body, said)
            self._network.show(self.peer, SCORES, round_, self._identity.sign(other).canonical(), *readers)
            body = self._identity.sign(said).canonical()
        if kind in WITNESS and self._conduct.lies and SignedScoreboard.from_bytes(body).peer == self.peer:
            return
        if kind != CONTRIBUTION:
            await super().post(kind, round_, body)
            return
        header = self._conduct.commitment(self.body, ContributionHeader.from_bytes(body))
        await super().post(kind, round_, self._identity.sign(header).canonical())
        self._conduct.posted(self.body, header)

    async def provide(self, blob: bytes) -> Digest:
        return await super().provide(blob) if self._conduct.serves else blob_digest(blob)

    async def fetch(self, digest: Digest, size_bytes: int, holders: Sequence[PeerId]) -> bytes:
        if self._conduct.lag and self.held(digest) is None:
            await self.body.clock.sleep(Seconds(self._conduct.lag))
        return await super().fetch(digest, size_bytes, holders)


class Books:
    """In a settler's place: keeps the board that would go to the chain."""

    def __init__(self) -> None:
        self.weights: Mapping[PeerId, float] = {}

    async def settle(self, board: Scoreboard) -> None:
        self.weights = board.scores


class Member:
    """A peer and its life; also the `Watch` of that life."""

    def __init__(  # noqa: PLR0913 - what the swarm shares, and what makes this one of it
        self, identity: Identity, conduct: Conduct, session: Session, folder: Path, clock: Clock,
        network: MemoryNetwork, gang: frozenset[PeerId], rng: Any, news: JSON | None,
    ) -> None:  # fmt: skip
        """`rng`: a numpy generator of its own; what it draws follows from its seed alone. `news`: of a settler."""
        shared, me = session.shared, identity.peer
        self.id, self.bad, self.session, self.clock = me, me in gang, session, clock
        self.exchange = ZooExchange(network, identity, shared.run, conduct)
        self.exchange.body = body = Body(me, shared, clock, network, self.exchange, session, gang, rng)
        network.peers[me] = self.exchange
        self.trainer = ZooTrainer(body, conduct)
        self.agreement = Quorum(
            identity, Charter(shared.run, shared.terms()), shared.run, self.exchange, clock,
            Memory(None, lambda said: None),
        )  # fmt: skip
        self.chain = Chain(folder / "chain.jsonl")
        self.books = Books()
        self._identity, self._news = identity, news
        self._luck = random.Random(int(rng.integers(2**62)))
        self.reports: list[RoundReport] = []

    def start(self) -> asyncio.Task[str]:
        """Live until the run is complete."""
        return asyncio.create_task(self._live(), name=self.id)

    async def _live(self) -> str:
        presence = Presence(self.id, self.id[-6:], self.session.shared, self.exchange)
        life = Life(presence, self.clock, self, CARD_SECONDS)
        shared = self.session.shared
        incentive = build("incentive", shared.incentive)
        if self._news is not None:
            incentive.learn(self._news)
            incentive.attach(self.books)
        peer = Peer(
            identity=self._identity, name=self.id[-6:], shared=shared, clock=self.clock, trainer=self.trainer,
            reducer=self.session.reducer, like=self.session.like, exchange=self.exchange, agreement=self.agreement,
            incentive=incentive, chain=self.chain, state=self.session.state(),
            draw_seed=lambda: self._luck.getrandbits(62),
        )  # fmt: skip
        async with life.heartbeat(peer):
            return await life.live(peer)

    def note(self, **fields: Any) -> None:
        """Nobody watches."""

    def begin(self, plan: RoundPlan) -> None:
        """Nobody watches."""

    def record(self, report: RoundReport, memories: Mapping[str, Any]) -> None:
        self.reports.append(report)


def opinions(members: Sequence[Member], round_: RoundIndex) -> list[Mapping[PeerId, float]]:
    """What validators testified after that round, liars included."""
    return [each.exchange.said[round_] for each in members if round_ in each.exchange.said]
