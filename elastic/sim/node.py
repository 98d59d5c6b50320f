"""One honest peer of a simulation, over all its lives: it is killed anywhere, with or without its disk."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic.agreement.charter import Charter
from elastic.agreement.quorum import BALLOT_FILE, Memory, Quorum
from elastic.contracts import Accepts, Drafts, Times
from elastic.errors import NetworkError
from elastic.exchange.blobs.store import BlobStore
from elastic.life import Life, Presence
from elastic.messages import JSON, Manifest, PeerId, RoundIndex, RoundPlan, Seconds
from elastic.peer import Peer
from elastic.registry import build
from elastic.reports import RoundReport
from elastic.sim.network import CARD_SECONDS, RECORD_SECONDS, SimExchange
from elastic.sim.trainer import LedgerReducer, LedgerTrainer
from elastic.state.chain import CHAIN_FILE, Chain
from elastic.state.files import read_if_there, write_durably
from elastic.wire.signing import Identity

if TYPE_CHECKING:
    from elastic.sim.world import World


class CrashError(Exception):
    """The process dies here: nothing after it happens."""


class WatchedChain(Chain):
    """Every manifest that a peer holds for final is shown to the world."""

    def __init__(self, path: Path, show: Callable[[Any], None]) -> None:
        super().__init__(path)
        self._show = show

    def append(self, manifest: Any) -> None:
        self._show(manifest)
        super().append(manifest)


class WatchedQuorum(Quorum):
    """Liars know what an honest validator would propose; it may die, or lose its link, when it alone knows the end."""

    drafts: Drafts | None = None

    def __init__(self, *args: Any, reach: Callable[[str], None]) -> None:
        super().__init__(*args)
        self.reach = reach

    async def decide(self, round_: RoundIndex, drafts: Drafts, accepts: Accepts, times: Times) -> Manifest | None:
        self.drafts = drafts
        return await super().decide(round_, drafts, accepts, times)

    async def _tell(self, manifest: Manifest) -> None:
        self.reach("before it is told")
        await super()._tell(manifest)


class SimNode:
    """Its disk, its present life, and how it is killed."""

    def __init__(self, world: World, identity: Identity, directory: Path, pace: float) -> None:
        self.world, self.identity, self.directory, self.pace = world, identity, directory, pace
        self.peer: Peer | None = None
        self.trainer: LedgerTrainer | None = None
        self.lives, self.done = 0, False
        self.fools: list[PeerId] = []
        """Who is shown another contribution than everybody else."""
        self.thief = False
        """Whether it commits to what others committed to."""
        self.left = False
        """Whether it will never come back."""
        self.lost_disk = False
        """Whether its disk was ever lost, and its residual with it."""
        self._blobs = BlobStore()
        """On its disk, outside."""
        self._task: asyncio.Task[None] | None = None

    @property
    def id(self) -> PeerId:
        return self.identity.peer

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """A life: everything is built from the disk. One at a time, as `state.claim.claim` has it outside."""
        if self.alive or self.left:
            return  # two blows fell at once, and both let it come back
        self.lives += 1
        self._task = asyncio.create_task(self._live())

    async def kill(self, *, disk: bool) -> None:
        """Die between two instructions; without `disk` its state is gone as well."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if not disk:
            shutil.rmtree(self.directory, ignore_errors=True)
            self._blobs, self.lost_disk = BlobStore(), True

    def check(self) -> None:
        """Raise what ended its life, if that was not the end of the run or a crash."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    def reach(self, boundary: str) -> None:
        """A place where a process may die, while things go wrong."""
        self.world.trouble.strike(self, boundary)
        if self.world.trouble.dies():
            raise CrashError(boundary)

    def knows(self, round_: RoundIndex) -> bool:
        """Whether it need not ask how that round ended."""
        if self.peer is None:
            return False
        agreement = self.peer.agreement
        return self.peer.chain.get(round_) is not None or round_ in getattr(agreement, "_known", {})

    async def _live(self) -> None:
        exchange = SimExchange(self.world.network, self.identity, self.world.shared.run, self.fools, self.thief)
        exchange.store = self._blobs
        self.world.network.peers[self.id] = exchange
        presence = Presence(self.id, self.id[-6:], self.world.shared, exchange)
        life = Life(presence, self.world.clock, self, CARD_SECONDS)
        try:
            peer = await life.patiently(lambda: self._assemble(exchange))
            async with life.heartbeat(peer):
                await life.live(peer)
                self.done = True
                await self._serve(peer)
        except CrashError:
            self.world.start(self, self.world.trouble.pause())
        finally:
            if self.world.network.peers.get(self.id) is exchange:
                await exchange.close()

    async def _serve(self, peer: Peer) -> None:
        """A peer that finished stays for those who have not; what was final they find as if it had just come back."""
        while True:
            await self.world.clock.sleep(Seconds(RECORD_SECONDS / 2))
            head = peer.chain.head()
            if head is not None:
                with suppress(NetworkError):
                    await peer.agreement.repeat(head)

    async def _assemble(self, exchange: SimExchange) -> Peer:
        shared, clock = self.world.shared, self.world.clock
        self.directory.mkdir(parents=True, exist_ok=True)
        chain = WatchedChain(self.directory / CHAIN_FILE, lambda manifest: self.world.decided(self, manifest))
        self.trainer = LedgerTrainer(self)
        ballot = self.directory / BALLOT_FILE

        def save(said: bytes) -> None:
            self.reach("before the ballot")
            write_durably(ballot, said)
            self.reach("after the ballot")

        agreement = WatchedQuorum(
            self.identity, Charter(shared.run, shared.terms(), chain.amendments()), shared.run, exchange, clock,
            Memory(read_if_there(ballot), save), reach=self.reach,
        )  # fmt: skip
        self.peer = Peer(
            identity=self.identity, name=self.id[-6:], shared=shared, clock=clock, trainer=self.trainer,
            reducer=LedgerReducer(), like={}, exchange=exchange,  # type: ignore[arg-type]
            agreement=agreement, incentive=build("incentive", shared.incentive), chain=chain,
            state=await self.trainer.state(), on_phase=self.reach,
        )  # fmt: skip
        changes = self.world.changes
        if changes is not None:
            self.peer.ordered = lambda: changes.order(self)
        return self.peer

    # --- as the `Watch` of its life ----------------------------------------------------------------------------------

    def note(self, **fields: Any) -> None:
        """Nobody looks."""

    def begin(self, plan: RoundPlan) -> None:
        self.world.anchor(self.id, plan.round, plan.anchor)

    def record(self, report: RoundReport, memories: Mapping[str, JSON]) -> None:
        """A round is over."""
