"""The peer actor: builds the parts of one peer, lets it live, and frees everything when life is over."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import ray

from elastic import trace
from elastic.actors.backend import Backend
from elastic.actors.desk import GpuMemory, TrainerDesk
from elastic.actors.evaluating import Evaluating
from elastic.actors.job import Job
from elastic.actors.journal import Journal
from elastic.actors.logs import log_to_file, trace_to
from elastic.actors.measuring import Measuring
from elastic.actors.revival import Past
from elastic.actors.swarm import RemoteExchange
from elastic.amend import read_order
from elastic.config import RunConfig
from elastic.errors import BugError, ElasticError
from elastic.invite import read_invitation
from elastic.life import ASKED, Life, Presence, announced
from elastic.messages import JSON, PeerStage, Scoreboard
from elastic.metrics import Meters
from elastic.peer import Peer
from elastic.reports import PeerStatus, RoundReport
from elastic.schedule.clock import WallClock
from elastic.state.claim import claim
from elastic.wire.signing import Identity

if TYPE_CHECKING:
    from elastic.actors.trainer import RayTrainer

logger = logging.getLogger(__name__)

T = TypeVar("T")

HELD_OUT_SEQUENCES = 128
"""Sequences of held-out text in the final evaluation."""
HAND_IN_SECONDS = 30.0
"""For a peer that leaves to see its work counted."""
WORKER_DEATH = "a Ray Train worker died"
JOINING = "starting Ray Train, joining the DHT"
"""How the first phase of a peer begins."""


class PeerActor(TrainerDesk):
    """One peer. Driven by `run`; everything else is called from outside while it runs."""

    def __init__(self, config: RunConfig, actor: str, namespace: str, past: Past) -> None:
        super().__init__()
        log_to_file(config)
        identity, local = Identity.load(config.key_path), config.local
        self._config, self._stay = config, False
        self._job = Job(actor, namespace, config)
        self._meters = Meters()
        self._measuring = Measuring(config, identity.peer, self._meters)
        self._journal = Journal(config, identity.peer, past, self._meters)
        self._exchange = RemoteExchange(ray.get_actor("swarm", namespace=namespace), self._network_restarted)
        self._evaluating = Evaluating(config, self._journal, self._meters)
        self._presence = Presence(
            identity.peer, local.name, config.shared, self._exchange, watching=local.evaluator.wanted
        )
        self._life = Life(self._presence, WallClock(), self._journal, local.network.card_seconds, past.met)
        self._done = asyncio.Event()
        self._trainer: RayTrainer | None = None
        self._trainer_death = WORKER_DEATH
        self._backend = Backend(config, self._journal)
        self._living: asyncio.Task[str] | None = None
        self._peer: Peer | None = None

    # --- from outside --------------------------------------------------------------------------------------------

    async def run(self, stay: bool = False) -> str:
        """Live; returns why it ended. Raises the one error that a person must act on.

        Args:
            stay: after the last round, go on answering questions about the model until `leave`.
        """
        self._stay = stay
        async with AsyncExitStack() as stack:
            stack.callback(self._done.set)
            stack.enter_context(claim(self._config.local.state_dir))
            stack.callback(trace.shutdown)
            stack.callback(self._measuring.close)
            stack.push_async_callback(self._stop)
            self._living = asyncio.create_task(self._live())
            try:
                reason = await self._living
            except asyncio.CancelledError:
                reason = ASKED
            except ElasticError as error:
                self._journal.failed(error)
                raise
            except Exception as error:
                logger.exception("this is a bug")
                log = self._config.local.state_dir / "peer.log"
                bug = BugError(f"{type(error).__name__}: {error} (a bug; the traceback is in {log})")
                self._journal.failed(bug)
                raise bug from None
            self._journal.note(stage="left", phase=reason)
            return reason
        raise AssertionError("unreachable")

    async def leave(self, hand_in: bool = True) -> None:
        """Leave politely; returns when everything is freed.

        Args:
            hand_in: with what is done of the round under way, if the others count it soon. Else it stays on disk.
        """
        if self._living is not None:
            if hand_in and self._life.leave():
                await asyncio.wait({self._living}, timeout=HAND_IN_SECONDS)
            self._living.cancel()
            await self._done.wait()

    async def status(self) -> PeerStatus:
        return self._journal.status

    async def reports(self, after: int) -> list[RoundReport]:
        """Reports of rounds after this one."""
        return [report for report in self._journal.reports if report.round > after]

    async def held_out_loss(self, max_sequences: int) -> float:
        """Loss of the anchor on text that nobody trains on, in nats per token."""
        assert self._trainer is not None
        return await self._trainer.evaluate(max_sequences)

    async def generate(self, prompt: str, num_tokens: int) -> str:
        assert self._trainer is not None
        return await self._trainer.generate(prompt, num_tokens)

    async def worker_hello(self, rank: int, world_size: int, incarnation: str) -> None:
        if self._mailbox.hello(rank, world_size, incarnation):
            self._journal.restarted(self._trainer_death)
            self._trainer_death = WORKER_DEATH

    async def progress(self, step: int, loss: float, gpu: GpuMemory | None = None) -> bool:
        """Whether that was enough."""
        self._journal.progress(step, loss)
        if gpu is not None:
            self._meters.gpu(*gpu)
        return self._life.leaving

    # --- what is measured: asked from another thread ---------------------------------------------------------------

    def board(self) -> Scoreboard | None:
        """What the incentive thought after the last round."""
        return self._peer.board if self._peer is not None else None

    def news(self) -> JSON | None:
        """What the incentive's settler told last."""
        return self._backend.news

    # --- its life ------------------------------------------------------------------------------------------------

    async def _live(self) -> str:
        peer = self._peer = await self._assemble()
        async with self._life.heartbeat(peer):
            reason = await self._life.live(peer)
            return reason if self._life.leaving else await self._finish(peer, reason)

    # --- beginning and end ---------------------------------------------------------------------------------------

    async def _assemble(self) -> Peer:
        """Start the network and the trainer side by side, then put the peer together."""
        from elastic.actors.assembly import assemble
        from elastic.actors.trainer import RayTrainer  # five seconds of imports that no driver needs

        local = self._config.local
        trace_to(self._config)
        self._journal.note(metrics=self._measuring.start(self._mailbox, self))
        self._journal.note(
            stage="starting", phase=f"{JOINING} (gives up after {local.network.bootstrap_seconds:.0f} s)"
        )
        self._trainer = RayTrainer(self._mailbox, self._job, local.ray, local.state_dir / "ray")
        loop = asyncio.get_running_loop()
        self._trainer.start(
            on_restart=lambda because: _tell(loop, self._trainer_died, because),
            on_end=lambda error: _tell(loop, self._trainer_ended, error),
        )
        await self._life.patiently(self._connect)
        self._measuring.follow(self._exchange.partners)
        self._journal.note(phase="starting Ray Train")
        await self._mailbox.ready()
        state = await self._life.patiently(self._trainer.state)
        peer = assemble(
            self._config, self._exchange, self._trainer, state, lambda phase: self._journal.note(phase=phase)
        )
        peer.on_evidence, peer.take_up = self._journal.learn, self._backend.take_up
        peer.on_wishes, peer.on_anchor = self._journal.wished, self._evaluating.offer
        peer.ordered, peer.invitation = partial(read_order, local.state_dir), read_invitation(local.state_dir)
        self._journal.restore("ratings", peer.ratings)
        self._journal.restore("hearsay", peer.hearsay)
        await peer.follow_terms(state.round, anew=True)
        return peer

    async def _connect(self) -> None:
        self._reachable_at(await self._exchange.start())
        await self._exchange.heed(self._config.shared.agreement.validators)
        await self._presence.refuse_other_runs()
        await self._presence.renew()

    def _reachable_at(self, addresses: list[str]) -> None:
        self._presence.addresses = announced(addresses)
        logger.info("reachable at %s", ", ".join(self._presence.addresses))

    def _network_restarted(self, addresses: list[str]) -> None:
        self._reachable_at(addresses)
        self._journal.restarted("the network died")

    def _trainer_died(self, because: str) -> None:
        self._trainer_death = because
        self._journal.note(phase=because)

    def _trainer_ended(self, error: ElasticError) -> None:
        if not self._done.is_set() and self._presence.stage is not PeerStage.LEAVING:
            self._mailbox.fail(error)

    async def _finish(self, peer: Peer, because: str) -> str:
        """Measure what came out; stay, if told so, for questions about the model."""
        loss = await self._life.patiently(lambda: peer.trainer.evaluate(HELD_OUT_SEQUENCES))
        self._journal.note(stage="finished", phase=f"held-out loss {loss:.3f}", held_out=loss, digest=peer.state.anchor)
        await self._evaluating.finish()
        if self._stay:
            await asyncio.Event().wait()  # until `leave` cancels
        return f"{because}; held-out loss {loss:.3f} nats per token, anchor {peer.state.anchor[:12]}"

    async def _stop(self) -> None:
        """Free everything, in the order in which others notice: say goodbye, stop training, leave the network."""
        with suppress(ElasticError, TimeoutError):
            await asyncio.wait_for(self._presence.become(PeerStage.LEAVING), 3)
        if self._trainer is not None:
            await self._trainer.close()
            await asyncio.to_thread(self._trainer.join, 5.0)
        await self._evaluating.close()
        await self._backend.close()
        await self._exchange.close()


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[T], None], what: T) -> None:
    loop.call_soon_threadsafe(callback, what)
