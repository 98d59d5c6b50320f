"""A swarm in one process: the real parts of every peer, on a clock and a network that belong to the test.

Each `Node` lives the life of `elastic.life`, without Ray and Hivemind.
Time is virtual, so that deadlines cost nothing; computing takes none of it unless a node is given a `pace`.
"""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from elastic.agreement.charter import Charter
from elastic.agreement.manifests import check_final, check_manifest
from elastic.agreement.quorum import BALLOT_FILE, Memory, Quorum
from elastic.config import Shared
from elastic.data.corpus import of_text
from elastic.errors import NetworkError
from elastic.exchange.gather import CONTRIBUTION
from elastic.exchange.memory import MemoryExchange, MemoryNetwork
from elastic.life import Life, Presence
from elastic.messages import (
    Amendment,
    ContributionHeader,
    Digest,
    InnerReport,
    Manifest,
    PeerId,
    RoundIndex,
    RoundPlan,
    Seconds,
)
from elastic.peer import Peer
from elastic.registry import build
from elastic.reports import Order, RoundReport
from elastic.schedule.assignment import assigned_sequences
from elastic.schedule.clock import ManualClock
from elastic.sections import PluginChoice
from elastic.sim.loop import InlineExecutor
from elastic.state.chain import Chain
from elastic.state.files import read_if_there, write_durably
from elastic.state.store import StateStore
from elastic.train.local import LocalTrainer
from elastic.train.session import Parts, Session
from elastic.train.workers import Worker
from elastic.wire.signing import Identity
from model_zoo.corpus import read_corpus

RUN = "demo"
MODEL = PluginChoice(name="llama", preset="nano", layers=1, dim=32, heads=2, kv_heads=1, ffn_dim=64)  # type: ignore[call-arg]
CARD_SECONDS = 4.0
PATIENCE = 200.0
"""Virtual seconds in which everything a test waits for has happened."""
PACE = 0.5
"""Virtual seconds that a node trains in each round."""
TOKENS = np.frombuffer(read_corpus("pride_and_prejudice")[10_000:40_000], np.uint8).astype(np.uint16)
TOKENIZER = SimpleNamespace(encode=lambda text: list(text.encode()), decode=lambda ids: bytes(ids).decode("latin-1"))

Lie = Callable[[ContributionHeader, "Node"], Awaitable[bytes]]
"""The header that a node would post → what it posts instead."""


class CrashError(Exception):
    """The process dies here: nothing after it happens."""


def identity(name: str) -> Identity:
    """The same key for the same name, in every test."""
    return Identity(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


def make_shared(*validators: str, **changes: Any) -> Shared:
    """A run so small that a round takes milliseconds."""
    tree = {
        "run": RUN, "rounds": 4, "model": MODEL, "reducer": {"name": "sparseloco", "chunk": 256, "k": 16},
        "inner": {"steps": 3, "batch_size": 2, "sequence_length": 16, "warmup_steps": 2, "learning_rate": 3e-3},
        "round": {"train_seconds": 2.0, "gather_seconds": 3.0},
        "agreement": {"validators": tuple(identity(name).peer for name in validators)},
    }  # fmt: skip
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(tree.get(key), dict) else value  # type: ignore[dict-item]
    return Shared.model_validate(tree)


def make_session(shared: Shared, directory: Path) -> Session:
    """A real session on the CPU over the shipped text."""
    corpus = of_text(TOKENS, shared.data.held_out, TOKENIZER)
    (total,) = corpus.sizes(shared.inner.sequence_length)

    def assign(plan: RoundPlan) -> Any:
        assert plan.slot is not None
        count = plan.inner_steps * shared.inner.batch_size
        return assigned_sequences(total, plan.seed, plan.run, plan.round, plan.slot, count, len(plan.roster))

    parts = Parts(build("model", shared.model), corpus, assign, build("reducer", shared.reducer), StateStore(directory))
    return Session(shared, parts, worker=Worker())


class PacedTrainer(LocalTrainer):
    """Inner steps take virtual time; the node's hooks run before and after each verb."""

    def __init__(self, session: Session, node: "Node") -> None:
        super().__init__(session)
        self.session, self.node = session, node

    async def inner_steps(self, plan: RoundPlan) -> InnerReport:
        await self.node.swarm.clock.sleep(Seconds(self.node.pace))
        return await super().inner_steps(plan.model_copy(update=self.node.plan_changes))

    async def outer_step(self, manifest: Manifest, payloads: Mapping[Digest, bytes]) -> Digest:
        self.node.reach(f"before outer step {manifest.round}")
        digest = await super().outer_step(manifest, payloads)
        self.node.settled.append((manifest.round, manifest.counts(self.node.id)))
        self.node.reach(f"after outer step {manifest.round}")
        return digest


class NodeExchange(MemoryExchange):
    """Posts the node's lies, and remembers what it really posted."""

    node: "Node"

    async def post(self, kind: str, round_: RoundIndex, body: bytes) -> None:
        if f"{kind} {round_}" in self.node.unheard:
            self.node.unheard.remove(f"{kind} {round_}")
            raise NetworkError("no node of the DHT took the record")
        if kind == CONTRIBUTION:
            header = ContributionHeader.from_bytes(body)
            self.node.offered.append((header.round, header.payload))
            if self.node.lie is not None:
                body = await self.node.lie(header, self.node)
        await super().post(kind, round_, body)

    async def fetch(self, digest: Digest, size_bytes: int, holders: Sequence[PeerId]) -> bytes:
        await self.node.swarm.clock.sleep(Seconds(self.node.lag))
        self.node.fetched.append(digest)
        return await super().fetch(digest, size_bytes, holders)


@dataclass
class Node:
    """One peer of the swarm, over all its lives."""

    swarm: "Swarm"
    name: str
    pace: float = PACE
    watching: bool = False
    """It never wants to contribute."""
    lag: float = 0.0
    """Virtual seconds that each of its downloads takes."""
    plan_changes: dict[str, Any] = field(default_factory=dict)
    """What its trainer makes of a plan, for instance a train_seconds of its own."""
    lie: Lie | None = None
    unheard: list[str] = field(default_factory=list)
    """Records, as "<kind> <round>", whose next posting fails."""
    crash_at: str | None = None
    """A boundary: "<phase> <round>", "before outer step <round>" or "after outer step <round>"."""
    ordered: Amendment | None = None
    """What its operator wants changed."""
    on_start: Callable[[Peer], None] = lambda peer: None
    reports: list[RoundReport] = field(default_factory=list)
    offered: list[tuple[RoundIndex, Digest]] = field(default_factory=list)
    """(round, payload digest) of every commitment it made, in all its lives."""
    settled: list[tuple[RoundIndex, bool]] = field(default_factory=list)
    """(round, counted) of every outer step."""
    fetched: list[Digest] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    task: asyncio.Task[str] | None = None
    peer: Any = None
    life: Any = None
    store: StateStore | None = None

    @property
    def id(self) -> PeerId:
        return identity(self.name).peer

    @property
    def directory(self) -> Path:
        return self.swarm.folder / self.name

    @property
    def session(self) -> Session:
        session: Session = self.peer.trainer.session
        return session

    @property
    def anchor(self) -> Digest:
        anchor: Digest = self.peer.state.anchor
        return anchor

    def report(self, round_: int) -> RoundReport:
        """Its last report of that round."""
        return [report for report in self.reports if report.round == round_][-1]

    def reach(self, boundary: str) -> None:
        """Die here, if that is what the test wants, once."""
        if boundary == self.crash_at:
            self.crash_at = None
            raise CrashError(boundary)

    # --- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a life: everything is built from the directory."""
        self.task = asyncio.create_task(self._live(), name=self.name)

    async def stop(self) -> None:
        """Die between two instructions: only what is on disk remains."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])
        self.task = None

    async def _live(self) -> str:
        exchange = NodeExchange(self.swarm.network, self.id, RUN)
        exchange.node = self
        self.swarm.network.peers[self.id] = exchange
        presence = Presence(self.id, self.name, self.swarm.shared, exchange, watching=self.watching)
        self.life = life = Life(presence, self.swarm.clock, self, CARD_SECONDS)
        try:
            peer = await life.patiently(lambda: self._assemble(exchange))
            async with life.heartbeat(peer):
                return await life.live(peer)
        except CrashError as crash:
            return f"crashed at {crash}"
        finally:
            if self.store is not None:
                self.store.flush()  # no thread of this life writes in the next one
            await exchange.close()

    async def _assemble(self, exchange: MemoryExchange) -> Peer:
        shared, me = self.swarm.shared, identity(self.name)
        chain = Chain(self.directory / "chain.jsonl")
        session = make_session(shared, self.directory / "state")
        session.on_step, self.store = lambda step, loss: self.life.leaving, session.store
        trainer = PacedTrainer(session, self)
        ballot = self.directory / BALLOT_FILE
        agreement = Quorum(
            me, Charter(RUN, shared.terms(), chain.amendments()), RUN, exchange, self.swarm.clock,
            Memory(read_if_there(ballot), partial(write_durably, ballot)),
        )  # fmt: skip
        self.peer = peer = Peer(
            identity=me, name=self.name, shared=shared, clock=self.swarm.clock, trainer=trainer,
            reducer=build("reducer", shared.reducer), like=session.like, exchange=exchange, agreement=agreement,
            incentive=build("incentive", shared.incentive), chain=chain, state=await trainer.state(),
            on_phase=lambda phase: self.reach(f"{phase} {self._round}"),
            draw_seed=partial(random.Random(self.name).getrandbits, 64), watching=self.watching,
        )  # fmt: skip
        peer.ordered = self._order
        self.on_start(peer)
        await peer.follow_terms(peer.state.round, anew=True)
        return peer

    def _order(self) -> Order | None:
        if self.ordered is None:
            return None
        known = self.peer.agreement.amendments()
        return Order(run=RUN, amended=known[-1].round if known else RoundIndex(0), amendment=self.ordered)

    # --- as the `Watch` of its life ----------------------------------------------------------------------------------

    def note(self, **fields: Any) -> None:
        self.notes.append(fields)

    def begin(self, plan: RoundPlan) -> None:
        self._round = plan.round

    def record(self, report: RoundReport, memories: Mapping[str, Any]) -> None:
        self.reports.append(report)


class Swarm:
    """Nodes that share a network and a clock; use it as an async context, which ends all lives."""

    def __init__(self, folder: Path, *names: str, validators: Sequence[str] = ("ann",), **changes: Any) -> None:
        changes["round"] = {"min_peers": len(names), **changes.get("round", {})}
        self.folder, self.shared, self.clock = folder, make_shared(*validators, **changes), ManualClock()
        self.new_network()
        self.nodes = {name: Node(self, name) for name in names}
        self.validator = self.nodes[validators[0]]

    def new_network(self) -> None:
        """An empty DHT that has never heard of anyone."""
        self.network = MemoryNetwork(self.clock.now, CARD_SECONDS, self.clock.sleep)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def add(self, name: str) -> Node:
        """One more node, not started."""
        self.nodes[name] = Node(self, name)
        return self.nodes[name]

    async def __aenter__(self) -> "Swarm":
        asyncio.get_running_loop().set_default_executor(InlineExecutor(1))
        torch.set_num_threads(1)
        return self

    async def __aexit__(self, *error: object) -> None:
        for node in self.nodes.values():
            if node.task is not None and not node.task.done():
                await node.stop()

    def start(self, *names: str) -> None:
        """Begin the lives of these nodes, or of all."""
        for name in names or self.nodes:
            self.nodes[name].start()

    async def finish(self, *names: str) -> dict[str, str]:
        """Why each of these lives (or all that began) ended; a failure raises."""
        tasks = {name: node.task for name, node in self.nodes.items() if node.task and (not names or name in names)}
        await self.until(lambda: all(task.done() for task in tasks.values()))
        return {name: task.result() for name, task in tasks.items()}

    async def until(self, holds: Callable[[], bool]) -> None:
        """Let virtual time pass until something holds; raises what killed a node, or that it takes too long."""
        deadline = self.clock.now() + PATIENCE
        while not holds():
            for node in self.nodes.values():
                if node.task is not None and node.task.done():
                    node.task.result()
            assert self.clock.now() < deadline, "it never came to that"
            await self.clock.sleep(Seconds(0.05))

    async def rounds_done(self, num: int, *names: str) -> None:
        """Until these nodes (or all) hold the anchor after that many rounds."""
        nodes = [self.nodes[name] for name in names or self.nodes]
        await self.until(lambda: all(node.peer is not None and node.peer.holds() > num for node in nodes))

    def anchors(self, *names: str) -> set[Digest]:
        """Digests of the anchors that these nodes (or all) hold now."""
        return {self.nodes[name].anchor for name in names or self.nodes}

    def check_chain(self, name: str) -> list[Manifest]:
        """The manifests on this node's disk; each must continue the one before."""
        chain = Chain(self.nodes[name].directory / "chain.jsonl")
        head = chain.head()
        assert head is not None
        known = [manifest for index in range(head.round + 1) if (manifest := chain.get(RoundIndex(index)))]
        charter = Charter(RUN, self.shared.terms())
        for manifest in known:
            validators = charter.behind(manifest).validators
            check_manifest(manifest, run=RUN, validators=validators, previous=chain.get(RoundIndex(manifest.round - 1)))
            check_final(manifest, validators)
            charter.admit(manifest)
        return known
