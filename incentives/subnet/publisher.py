"""Weights and bindings onto the chain, never twice.

One extrinsic at a time. It is written down before it is sent, and what became of it is read from finalized blocks until
it has landed, or never can: by its nonce, by what is stored, or because its era is over. Nothing is sent in between,
so whatever happens to the connection, the endpoint or this process, nothing is repeated that may still come.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from elastic.errors import ClockSkewError, StateError
from incentives.subnet.errors import ChainAnswerError, ChainRefusedError, ChainUnreachableError, LockedError
from incentives.subnet.journal import Journal
from incentives.subnet.receipts import Intention, Outcome, Receipt
from incentives.subnet.snapshot import Neuron, Signed, Snapshot
from incentives.subnet.vector import vector

if TYPE_CHECKING:
    from incentives.subnet.chain import Link

logger = logging.getLogger(__name__)

MAX_SKEW_SECONDS = 5.0
"""A timelocked commit opens at a moment that the SDK works out from this machine's clock."""
LATE_BLOCKS = 5
"""A newest block older than this many block times means a chain that stands still, or a clock that is ahead."""
RETRY_BLOCKS = 100
"""What the chain refused in a block, for a fee perhaps, is not tried again before: 20 minutes of the public chains."""


@dataclass(frozen=True)
class Rules:
    """The run's settings for weights."""

    burn: float = 0.0
    burn_uid: int | None = None
    version_key: int = 0


class Lock:
    """One process at a time publishes with a hotkey on a subnet; the lock goes with the process that held it."""

    def __init__(self, directory: Path, hotkey: str, netuid: int) -> None:
        """
        Raises:
            LockedError: another process has it.
            StateError: the lock file cannot be written.
        """
        path = directory / f".elastic-{hotkey}-{netuid}.lock"
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"{path}: the lock cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise LockedError(
                f"process {holder} publishes with hotkey {hotkey} on subnet {netuid} already ({path}); stop one of them"
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Publisher:
    """Publishes for one hotkey on one subnet. Its methods are called one after the other."""

    def __init__(self, link: "Link", journal: Journal, rules: Rules, *, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            link: to the chain, for our hotkey.
            journal: what is on its way, and what became of it; of this hotkey and subnet alone.
            rules: of the run.
            clock: Unix seconds.
        """
        self.link, self.journal, self.clock, self._rules = link, journal, clock, rules
        self._hotkey = link.hotkey.address
        self._said = ""

    async def settle(self) -> Receipt | None:
        """If something is on its way, look for it; a receipt if its fate is known now.

        Raises:
            ChainUnreachableError, ChainAnswerError: it stays open.
            StateError: the receipt cannot be written; it stays open.
        """
        intention = self.journal.open
        if intention is None:
            return None
        fate = await self.link.fate(intention)
        if fate.outcome is None:
            return None
        receipt = Receipt(
            intention=intention,
            outcome=fate.outcome,
            block=fate.block,
            settled=fate.read_at,
            detail=(fate.detail or self._said)[:500],
            time=self.clock(),
        )
        self.journal.close(receipt)
        logger.info("%s %s: %s %s", intention.kind, intention.hash[:18], receipt.outcome, receipt.detail)
        return receipt

    async def publish(self, snapshot: Snapshot, scores: Mapping[str, float], round_: int) -> Intention | None:
        """Send weights if they are due and nothing is on its way; what was sent, or None if it is too early.

        Args:
            snapshot: of the newest finalized block.
            scores: hotkey → score.
            round_: of the scoreboard.

        Raises:
            ChainRefusedError: the chain would not take them from us, or there are none.
            ClockSkewError: a commit would open at the wrong time.
            ChainUnreachableError: nothing was sent.
            StateError: nothing was sent, since it could not be written down.
        """
        me = self._neuron(snapshot)
        if self._busy(snapshot) or not due(snapshot, me):
            return None
        if not me.validator_permit:
            raise ChainRefusedError(
                f"hotkey {self._hotkey} (uid {me.uid}) has no validator permit at block {snapshot.block}: "
                "it needs more stake, or is no validator of this subnet"
            )
        if snapshot.commit_reveal:
            check_clock(snapshot, self.clock())
        rules = self._rules
        wanted = vector(scores, snapshot.uids, own=self._hotkey, burn=rules.burn, burn_uid=rules.burn_uid)
        if not wanted.weights:
            raise ChainRefusedError(
                f"nobody with a positive score is registered at block {snapshot.block}, and there is no burn_uid"
            )
        signed = await self.link.weights(wanted.weights, rules.version_key)
        return await self._send(signed, {"dropped": wanted.dropped, "round": round_})

    async def commit(self, snapshot: Snapshot, data: bytes) -> Intention | None:
        """Send a commitment of these bytes if nothing is on its way; see `publish`."""
        if self._busy(snapshot):
            return None
        return await self._send(await self.link.commitment(data), {})

    def _busy(self, snapshot: Snapshot) -> bool:
        """Whether something is on its way, or the chain refused the last thing a short while ago."""
        last = self.journal.last
        cooling = last is not None and last.outcome is Outcome.FAILED and snapshot.block - last.settled < RETRY_BLOCKS
        return self.journal.open is not None or cooling

    def _neuron(self, snapshot: Snapshot) -> Neuron:
        me = snapshot.neuron(self._hotkey)
        if me is None:
            raise ChainRefusedError(
                f"hotkey {self._hotkey} is not registered at block {snapshot.block}; register it with "
                "`btcli subnets register`"
            )
        return me

    async def _send(self, signed: Signed, about: dict[str, object]) -> Intention:
        intention = signed.intention.model_copy(update=about)
        self.journal.begin(intention)
        try:
            self._said = await self.link.send(signed)
        except (ChainUnreachableError, ChainAnswerError, ChainRefusedError) as error:
            self._said = str(error)
        if self._said:
            logger.warning("%s %s is on its way, perhaps: %s", intention.kind, intention.hash[:18], self._said)
        return intention


def due(snapshot: Snapshot, me: Neuron) -> bool:
    """Whether it is time for weights: once a tempo, a quarter early so that no tempo goes without."""
    wait = max(snapshot.rate_limit, snapshot.tempo * 3 // 4)
    return me.last_update == 0 or snapshot.block - me.last_update >= wait


def check_clock(snapshot: Snapshot, now: float) -> None:
    """
    Raises:
        ClockSkewError: this clock and the chain's are too far apart, or the chain stands still.
    """
    ahead = now - snapshot.time
    if ahead < -MAX_SKEW_SECONDS:
        raise ClockSkewError(f"this clock is {-ahead:.0f} s behind the chain's newest block; set it right (NTP)")
    if ahead > LATE_BLOCKS * snapshot.block_seconds + MAX_SKEW_SECONDS:
        raise ClockSkewError(
            f"the chain's newest block is {ahead:.0f} s old by this clock: the chain stands still, or the clock is "
            "ahead; no weights are committed until it moves or the clock is set right (NTP)"
        )
