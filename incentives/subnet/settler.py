"""Takes scoreboards to the chain, tick by tick, in a thread with a loop of its own: nobody who trains waits for it.

`Settler` is what the outside sees: a mailbox for boards, the latest news, an end. `Cycle` is one tick: look for what is
on its way, read the subnet at a finalized block, renew our binding, publish when due. Trouble with the chain ends up in
the news as an alarm, and the next tick tries again.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from elastic.errors import ClockSkewError, ConfigError, ElasticError, StateError
from elastic.messages import JSON, Scoreboard
from elastic.wire.signing import Identity
from incentives.subnet.backend import Subnet
from incentives.subnet.binding import Bindings, Statement, bind, judge
from incentives.subnet.chain import Hotkey, Link, verify
from incentives.subnet.errors import ChainAnswerError
from incentives.subnet.journal import Journal, overdue
from incentives.subnet.news import Member, News, Notice
from incentives.subnet.publisher import RETRY_BLOCKS, Lock, Publisher, Rules
from incentives.subnet.receipts import Outcome
from incentives.subnet.snapshot import Snapshot

logger = logging.getLogger(__name__)

JOIN_SECONDS = 10.0
LOOK_BLOCKS = 5
"""The whole subnet is read this often; in between only what is on its way is looked for."""
FATES = {
    Outcome.FAILED: "was refused in its block",
    Outcome.LOST: "never got into a block",
    Outcome.UNPROVEN: "is in blocks that cannot be read any more",
}
GRAVE = (ConfigError, ClockSkewError, StateError, ChainAnswerError)
"""Trouble that does not pass by itself."""


class Cycle:
    """What a settler does each time it looks at the chain."""

    def __init__(
        self,
        config: Subnet.Config,
        publisher: Publisher,
        *,
        run: str,
        identity: Identity | None = None,
        publishes: bool = True,
    ) -> None:
        """
        Args:
            config: the run's settings.
            publisher: for our hotkey.
            run: name of the run.
            identity: of our peer, to be bound to the hotkey; None: it is left as it is.
            publishes: whether weights are expected of us, so that silence is an alarm.
        """
        self._config, self._publisher, self._run, self._identity = config, publisher, run, identity
        self._link, self._journal, self._clock = publisher.link, publisher.journal, publisher.clock
        self._hotkey, self._publishes = publisher.link.hotkey, publishes
        self._snapshot: Snapshot | None = None
        self._read_at = 0.0
        self._board: Scoreboard | None = None
        self._trouble: tuple[Notice, ...] = ()
        self._began = self._journal.began
        """The block since which weights are expected of us; None: the chain was never read."""
        self.news = News(
            hotkey=self._hotkey.address, open=self._journal.open, receipt=self._journal.last,
            landed=self._journal.landed,
        )  # fmt: skip

    async def tick(self, board: Scoreboard | None) -> News:
        """Do what can be done now; never raises because of the chain."""
        try:
            receipt = await self._publisher.settle()
            if receipt is not None or await self._is_time_to_look(board):
                await self._look(board)
            self._trouble = ()
        except ElasticError as error:
            self._trouble = (Notice(level="error" if isinstance(error, GRAVE) else "warning", text=str(error)[:500]),)
        alarms = (*self._overdue(), *self._unwelcome(), *self._trouble)
        for alarm in alarms:
            if alarm not in self.news.alarms:
                logger.warning("%s", alarm.text)
        told = {
            "open": self._journal.open, "receipt": self._journal.last, "landed": self._journal.landed, "alarms": alarms,
        }  # fmt: skip
        self.news = self.news.model_copy(update=told)
        return self.news

    async def _is_time_to_look(self, board: Scoreboard | None) -> bool:
        if self._snapshot is None or self._trouble or board is not self._board:
            return True
        return await self._link.finalized() >= self._snapshot.block + LOOK_BLOCKS

    async def _look(self, board: Scoreboard | None) -> None:
        snapshot = await self._link.snapshot()
        self._snapshot, self._read_at, self._board = snapshot, self._clock(), board
        self._began = snapshot.head if self._began is None else self._began
        bindings = self._judge(snapshot)
        self._see(snapshot, bindings)
        await self._renew(snapshot, bindings)
        if board is not None:
            hotkeys = bindings.hotkeys
            scores = {hotkeys[peer]: score for peer, score in board.scores.items() if peer in hotkeys}
            await self._publisher.publish(snapshot, scores, board.round)

    def _judge(self, snapshot: Snapshot) -> Bindings:
        return judge(
            snapshot.commitments,
            run=self._run,
            netuid=self._config.netuid,
            block=snapshot.block,
            max_blocks=self._config.binding_blocks,
            verify=verify,
        )

    def _see(self, snapshot: Snapshot, bindings: Bindings) -> None:
        roster = {}
        for peer, hotkey in bindings.hotkeys.items():
            neuron = snapshot.neuron(hotkey)
            if neuron is not None:
                roster[peer] = Member(
                    hotkey=hotkey, uid=neuron.uid, stake=neuron.stake, validator_permit=neuron.validator_permit
                )
        refused = {hotkey: str(why) for hotkey, why in bindings.refused.items()}
        seen = {"block": snapshot.block, "head": snapshot.head, "roster": roster, "refused": refused}
        self.news = self.news.model_copy(update=seen)

    async def _renew(self, snapshot: Snapshot, bindings: Bindings) -> None:
        """Commit our binding if there is none, or half of its time is over."""
        mine, block = self._hotkey.address, snapshot.block
        if self._identity is None or snapshot.neuron(mine) is None:
            return
        left = bindings.expires.get(mine, 0) - block
        if bindings.hotkeys.get(self._identity.peer) == mine and 2 * left > self._config.binding_blocks:
            return
        last = max((each.block for each in snapshot.commitments if each.hotkey == mine), default=-RETRY_BLOCKS)
        if mine not in bindings.refused or block - last >= RETRY_BLOCKS:
            expires = block + self._config.binding_blocks
            statement = Statement(self._run, self._config.netuid, mine, self._identity.peer, expires)
            await self._publisher.commit(
                snapshot, bind(statement, self._hotkey.scheme, self._hotkey.sign, self._identity).encode()
            )

    def _overdue(self) -> tuple[Notice, ...]:
        """Whether our weights are late; while the chain cannot be read, by the blocks that it must have made since."""
        snapshot = self._snapshot
        me = snapshot.neuron(self._hotkey.address) if snapshot else None
        if snapshot is None or self._began is None or me is None or not (me.validator_permit and self._publishes):
            return ()
        unseen = int((self._clock() - self._read_at) / snapshot.block_seconds)
        alarm = overdue(snapshot.head + max(unseen, 0), me.last_update, snapshot.tempo, self._began)
        return (Notice(level=alarm.level, text=alarm.text),) if alarm else ()

    def _unwelcome(self) -> tuple[Notice, ...]:
        """What the chain did not take, until something lands."""
        last = self._journal.last
        if last is None or last.outcome is Outcome.LANDED:
            return ()
        text = f"our {last.intention.kind} of nonce {last.intention.nonce} {FATES[last.outcome]}: {last.detail}"
        return (Notice(level="error" if last.outcome is Outcome.FAILED else "warning", text=text[:500]),)


class Settler:
    """A mailbox for scoreboards with a thread behind it that talks to the chain."""

    def __init__(
        self,
        config: Subnet.Config,
        local: Subnet.Local,
        state_dir: Path,
        *,
        run: str,
        identity: Identity | None = None,
        tell: Callable[[JSON], None] | None = None,
    ) -> None:
        """Takes the lock, opens the journal, and starts.

        Args:
            config: the run's settings.
            local: this machine's.
            state_dir: where the journal lies; the same one after a restart.
            run: name of the run.
            identity: of our peer, to be bound to the hotkey.
            tell: is told the news after each look, in the settler's thread.

        Raises:
            KeyFileError: the hotkey's key file cannot or must not be used.
            LockedError: another process publishes with this hotkey on this subnet.
            StateError: the journal cannot be read or written.
        """
        hotkey = Hotkey.load(local.wallet_path, local.wallet, local.hotkey)
        keys = local.wallet_path.expanduser() / local.wallet / "hotkeys"
        self._lock = Lock(keys, hotkey.address, config.netuid)
        try:
            journal = Journal(state_dir / f"subnet-{config.netuid}-{hotkey.address}")
        except StateError:
            self._lock.release()
            raise
        self._link = Link(local.endpoint, config.netuid, hotkey)
        publisher = Publisher(self._link, journal, Rules(config.burn, config.burn_uid, config.version_key))
        self._cycle = Cycle(config, publisher, run=run, identity=identity, publishes=local.publish)
        self._poll_seconds, self._tell = local.poll_seconds, tell
        self._board: Scoreboard | None = None
        self._publishes, self._failure, self._closing = local.publish, "", False
        self._loop = asyncio.new_event_loop()
        self._life: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="settler", daemon=True)
        self._thread.start()

    async def settle(self, board: Scoreboard) -> None:
        """Leave a board in the mailbox in place of the one there; returns at once."""
        if self._publishes:
            self._board = board

    async def news(self) -> JSON:
        """What was seen last; returns at once."""
        news = self._cycle.news
        if self._failure:
            stopped = Notice(level="error", text=f"the settler has stopped: {self._failure}"[:500])
            news = news.model_copy(update={"alarms": (*news.alarms, stopped)})
        return news.to_json()

    async def close(self) -> None:
        """Stop, also in the middle of a call; what is on its way stays written down."""
        self._closing = True
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it ends at this very moment
                self._loop.call_soon_threadsafe(self._end)
            await asyncio.to_thread(self._thread.join, JOIN_SECONDS)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._begin())
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._loop.close()
            self._lock.release()

    async def _begin(self) -> None:
        self._life = asyncio.create_task(self._live())
        await asyncio.wait([self._life])
        await self._link.close()
        if not self._life.cancelled():
            self._life.result()

    def _end(self) -> None:
        if self._life is not None:
            self._life.cancel()

    async def _live(self) -> None:
        while not self._closing:
            news = await self._cycle.tick(self._board)
            if self._tell is not None:
                self._tell(news.to_json())
            await asyncio.sleep(self._poll_seconds)
