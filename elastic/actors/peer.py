"""The peer actor: builds the parts, then lives round by round until the run is over or someone says leave."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from elastic import trace
from elastic.actors.desk import TrainerDesk
from elastic.actors.job import Job
from elastic.actors.journal import Journal
from elastic.actors.logs import log_to_file
from elastic.actors.swarm import RemoteExchange
from elastic.agreement.validator import NamedValidator, genesis
from elastic.apply import catch_up
from elastic.config import RunConfig
from elastic.errors import (
    BootstrapError,
    BugError,
    ClockSkewError,
    ElasticError,
    FetchError,
    NetworkError,
    NotThisRunError,
    PortTakenError,
    TrainerLostError,
)
from elastic.messages import Manifest, PeerCard, PeerStage, PeerStatus, RoundIndex, RoundReport
from elastic.peer import Peer
from elastic.registry import build
from elastic.round import run_round
from elastic.schedule.clock import WallClock
from elastic.schedule.decide import CatchUp, Found, Leave, Train, Wait, decide_next
from elastic.state.chain import Chain
from elastic.state.store import claim
from elastic.wire.signing import Identity

T = TypeVar("T")

if TYPE_CHECKING:
    from elastic.actors.trainer import RayTrainer

logger = logging.getLogger(__name__)

HELD_OUT_SEQUENCES = 128
"""Sequences of held-out text in the final evaluation."""
POLL_SECONDS = 0.3
"""Between two looks while there is nothing to do yet."""
HEARTBEAT_SECONDS = 5.0
"""At least so often a peer shows that it lives."""
MAX_ADDRESSES = 16
"""As many as a card may carry."""
RETRY_SECONDS = 1.0
"""Before another try when the network failed."""
JOINING = "starting Ray Train, joining the DHT"
"""How the first phase of a peer begins."""
FAREWELL_SECONDS = 10.0
"""How long a peer that finished the run stays to serve those who have not."""


class PeerActor(TrainerDesk):
    """One peer. Driven by `run`; everything else is called from outside while it runs."""

    def __init__(self, config: RunConfig, actor: str, namespace: str) -> None:
        super().__init__()
        log_to_file(config)
        self._config, self._stay = config, False
        self._job = Job(Identity.load(config.key_path).peer, actor, namespace, config)
        self._exchange = RemoteExchange(ray.get_actor("swarm", namespace=namespace))
        self._journal = Journal(config, self._job.peer)
        self._stage, self._leaving, self._done = PeerStage.STARTING, False, asyncio.Event()
        self._peer: Peer | None = None
        self._trainer: RayTrainer | None = None
        self._living: asyncio.Task[str] | None = None
        self._addresses: tuple[str, ...] = ()
        self._stale = False
        """Whether the trainer was restarted and may hold something else than we think."""
        self._unsure = True
        """Whether the swarm may be ahead of what we know."""

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
            stack.push_async_callback(self._stop)
            self._living = asyncio.create_task(self._live())
            try:
                reason = await self._living
            except asyncio.CancelledError:
                reason = "asked to leave"
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

    async def leave(self) -> None:
        """Leave politely; returns when everything is freed."""
        self._leaving = True
        if self._living is not None:
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

    async def progress(self, step: int, loss: float) -> None:
        self._journal.progress(step, loss)

    # --- its life ------------------------------------------------------------------------------------------------

    async def _live(self) -> str:
        peer = await self._assemble()
        heartbeat = asyncio.create_task(self._heartbeat())
        try:
            while (reason := await self._patiently(lambda: self._next(peer))) is None:
                pass
            return reason
        finally:
            heartbeat.cancel()

    async def _patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do something until the network and the trainer let us; what only a person can mend passes."""
        while True:
            try:
                return await step()
            except (BootstrapError, PortTakenError, ClockSkewError):
                if self._peer is None:
                    raise
                logger.warning("the swarm cannot be reached; trying again")
            except NetworkError as error:
                logger.warning("%s; trying again", error)
                self._journal.note(phase=f"network: {error}"[:200])
            except TrainerLostError as error:
                logger.warning("%s; going on from the state on disk", error)
                self._stale = True
            self._unsure = True
            await asyncio.sleep(RETRY_SECONDS)

    async def _next(self, peer: Peer) -> str | None:
        """Decide and do one thing; returns why life is over, if it is."""
        if self._stale:
            await peer.refresh()
            self._stale = False
        head = await self._head(peer)
        validator = peer.agreement.validates(peer.id)
        match decide_next(
            holds=peer.holds(),
            head=head,
            rounds=peer.shared.rounds,
            validator=validator,
            leaving=self._leaving,
        ):
            case Train(head):
                await self._round(peer, head)
            case CatchUp(head):
                await self._catch_up(peer, head)
            case Found():
                await self._found(peer)
            case Wait(because):
                self._journal.note(phase=because)
                await self._become(PeerStage.READY)
                await peer.clock.sleep(POLL_SECONDS)  # type: ignore[arg-type]
            case Leave(because):
                await self._see_others_off(peer)
                return await self._finish(peer, because)
        return None

    async def _round(self, peer: Peer, head: Manifest) -> None:
        await self._become(PeerStage.READY)
        plan = peer.plan(head)
        self._journal.begin(plan)
        report = await run_round(peer, plan)
        self._journal.record(report, peer.incentive.state())
        self._unsure = report.manifest is None

    async def _catch_up(self, peer: Peer, head: Manifest) -> None:
        self._journal.note(phase=f"catching up to round {head.round}")
        if head.round > 0:
            await self._become(PeerStage.CATCHING_UP)
        try:
            await catch_up(peer, head)
            self._unsure = head.round > 0  # others went on while we caught up
        except FetchError as error:
            logger.warning("catching up: %s; trying again", error)
            self._unsure = True
            await peer.clock.sleep(1.0)  # type: ignore[arg-type]

    async def _found(self, peer: Peer) -> None:
        """As the validator of a run that has no manifest: sign the genesis once enough peers are ready."""
        await self._become(PeerStage.READY)
        mine = peer.shared.digest()
        ready = [c.peer for c in await peer.exchange.cards() if c.stage is PeerStage.READY and c.shared == mine]
        if len(ready) < peer.shared.round.min_peers:
            self._journal.note(phase=f"waiting for peers ({len(ready)} of {peer.shared.round.min_peers})")
            await peer.clock.sleep(POLL_SECONDS)  # type: ignore[arg-type]
            return
        roster = peer.incentive.select(RoundIndex(1), sorted(ready), peer.shared.round.max_peers)
        manifest = genesis(peer.shared.run, peer.state.anchor, sorted(roster), proposer=peer.id)
        await catch_up(peer, await peer.agreement.propose(manifest))

    async def _head(self, peer: Peer) -> Manifest | None:
        """The newest manifest: ours, unless we have reason to think that the swarm has a newer one."""
        own = peer.chain.head()
        if own is not None and not self._unsure:
            return own
        known = await peer.agreement.head()
        self._unsure = False
        return max((m for m in (own, known) if m is not None), key=lambda m: m.round, default=None)

    # --- beginning and end ---------------------------------------------------------------------------------------

    async def _assemble(self) -> Peer:
        """Start the network and the trainer side by side, then put the peer together."""
        from elastic.actors.trainer import RayTrainer  # five seconds of imports that no driver needs

        config, shared = self._config, self._config.shared
        identity = Identity.load(config.key_path)
        name = config.local.name or identity.peer[-6:]
        trace.setup(
            config.local.trace,
            run=shared.run,
            peer=identity.peer,
            name=name,
            state_dir=config.local.state_dir,
        )
        self._journal.note(
            stage="starting", phase=f"{JOINING} (gives up after {config.local.network.bootstrap_seconds:.0f} s)"
        )
        self._trainer = RayTrainer(self._mailbox, self._job, config.local.ray, config.local.state_dir / "ray")
        loop = asyncio.get_running_loop()
        self._trainer.start(lambda error: _tell(loop, self._trainer_ended, error))
        await self._patiently(self._connect)
        self._journal.note(phase="starting Ray Train")
        await self._mailbox.ready()
        chain = Chain(config.local.state_dir / "chain.jsonl")
        agreement = NamedValidator(
            identity, shared.agreement.validators, shared.run, self._exchange, journal=chain.keep
        )
        state = await self._patiently(self._trainer.state)
        peer = Peer(
            identity=identity, name=name, shared=shared, clock=WallClock(), trainer=self._trainer,
            reducer=build("reducer", shared.reducer), like=layout(config), exchange=self._exchange,
            agreement=agreement, incentive=self._journal.restore_incentive(build("incentive", shared.incentive)),
            chain=chain, state=state, on_phase=lambda phase: self._journal.note(phase=phase),
        )  # fmt: skip
        await self._patiently(peer.refresh)
        head = chain.head()
        if head is not None and agreement.validates(peer.id):
            # The DHT may have forgotten it, for instance if the whole swarm was down.
            await self._patiently(lambda: agreement.propose(head))
        self._peer = peer
        return peer

    async def _connect(self) -> None:
        addresses = await self._exchange.start()
        outside = [each for each in addresses if not each.startswith("/ip4/127.")] or addresses
        self._addresses = tuple(outside[:MAX_ADDRESSES])
        logger.info("reachable at %s", ", ".join(self._addresses))
        await self._refuse_other_runs()
        await self._announce()

    async def _refuse_other_runs(self) -> None:
        """Raises NotThisRunError if the validator runs another [shared] section; strangers' cards prove nothing."""
        mine, validators = self._config.shared.digest(), self._config.shared.agreement.validators
        if self._job.peer in validators:
            return  # it is the others who have the wrong file
        deciding = [card for card in await self._exchange.cards() if card.peer in validators]
        if deciding and all(card.shared != mine for card in deciding):
            raise NotThisRunError(
                f'the swarm runs "{self._config.shared.run}" with another [shared] section (digest '
                f"{deciding[0].shared[:12]}…, yours is {mine[:12]}…): get the current run file from its organiser"
            )

    def _trainer_ended(self, error: ElasticError) -> None:
        if not self._leaving and not self._done.is_set():
            self._mailbox.fail(error)

    async def _stop(self) -> None:
        """Free everything, in the order in which others notice: say goodbye, stop training, leave the network."""
        self._leaving, self._stage = True, PeerStage.LEAVING
        with suppress(ElasticError, TimeoutError):
            await asyncio.wait_for(self._announce(), 3)
        if self._trainer is not None:
            await self._trainer.close()
            await asyncio.to_thread(self._trainer.join, 5.0)
        await self._exchange.close()

    async def _see_others_off(self, peer: Peer) -> None:
        """After the last round: serve its payloads until everyone has moved on, or for a bounded time."""
        await self._become(PeerStage.READY)
        deadline = time.monotonic() + FAREWELL_SECONDS
        while time.monotonic() < deadline:
            if all(card.round >= peer.holds() for card in await peer.exchange.cards()):
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _finish(self, peer: Peer, because: str) -> str:
        """Measure what came out; stay, if told so, for questions about the model."""
        loss = await peer.trainer.evaluate(HELD_OUT_SEQUENCES)
        self._journal.note(stage="finished", phase=f"held-out loss {loss:.3f}")
        if self._stay:
            await asyncio.Event().wait()  # until `leave` cancels
        return f"{because}; held-out loss {loss:.3f} nats per token, anchor {peer.state.anchor[:12]}"

    # --- being seen ----------------------------------------------------------------------------------------------

    async def _become(self, stage: PeerStage) -> None:
        self._stage = stage
        self._journal.note(stage=stage.value)
        await self._announce()

    async def _announce(self) -> None:
        card = PeerCard(
            peer=self._job.peer, run=self._config.shared.run, shared=self._config.shared.digest(),
            name=self._config.local.name, stage=self._stage, addresses=self._addresses,
            round=self._peer.holds() if self._peer else RoundIndex(0),
        )  # fmt: skip
        await self._exchange.announce(card)

    async def _heartbeat(self) -> None:
        """Renew the card before it expires, and count who is there."""
        while True:
            try:
                self._journal.note()
                await self._announce()
                bytes_out, bytes_in = await self._exchange.traffic()
                self._journal.note(
                    peers=len(await self._exchange.cards()), bytes_out=bytes_out, bytes_in=bytes_in,
                    digest=self._peer.state.anchor if self._peer else None,
                )  # fmt: skip
            except ElasticError as error:
                logger.warning("heartbeat: %s", error)
            await asyncio.sleep(min(self._config.local.network.card_seconds / 4, HEARTBEAT_SECONDS))


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[ElasticError], None], error: ElasticError) -> None:
    loop.call_soon_threadsafe(callback, error)


def layout(config: RunConfig) -> dict[str, Any]:
    """Parameter name → meta tensor: shapes without memory."""
    import torch  # see `_assemble`

    with torch.device("meta"):
        model = build("model", config.shared.model)
    return dict(model.named_parameters())
