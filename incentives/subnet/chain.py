"""The chain, as much of it as we need. The only file that imports `bittensor`, version 11.3.0.

Every call has a deadline of ours, every answer is checked before it is believed, and every error is one of
`incentives.subnet.errors`. Sending is one short call that waits for nothing: what became of an extrinsic is always read
from finalized blocks, whether or not this process, this connection or this endpoint lived to hear of it.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import bittensor as bt
from bittensor._transport.errors import MaxRetriesExceeded, RpcPolicyRejection
from bittensor.keyfiles import Keyfile
from bittensor.sp_core import verify as verify_signature

from incentives.subnet.errors import (
    ChainAnswerError,
    ChainRefusedError,
    ChainUnreachableError,
    KeyFileError,
    NoSubnetError,
    RuntimeMismatchError,
)
from incentives.subnet.keys import hotkey_file
from incentives.subnet.receipts import Intention, Outcome
from incentives.subnet.snapshot import (
    MAX_NEURONS,
    Fate,
    Signed,
    Snapshot,
    commitment_of,
    neurons_of,
    number,
    raw_bytes,
    traces_of,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
S = "SubtensorModule"

ERA_BLOCKS = 16
"""An extrinsic that is in no block by then never will be: 3 minutes at 12 seconds a block."""
DEADLINE = 60.0
"""Seconds that one question to the chain may take; a set of weights is some 20 round trips."""
HASH = re.compile(r"0x[0-9a-f]{64}")
HANG_UP_SECONDS = 0.5
FIELD_BYTES, MAX_FIELDS = 128, 3
"""What a commitment can hold."""
REFUSED_AT_ONCE = frozenset({"NOT_REGISTERED", "NOT_AUTHORIZED", "RATE_LIMITED", "INVALID_ARGUMENT", "TOO_EARLY"})


@dataclass(frozen=True)
class Hotkey:
    """A key that signs for a neuron; it never leaves this object, and is not shown."""

    address: str
    scheme: int
    _pair: Any

    @classmethod
    def load(cls, wallet_path: Path, wallet: str, hotkey: str) -> "Hotkey":
        """Read the key file of a wallet's hotkey, and no other file of the wallet.

        Raises:
            KeyFileError: missing, readable by others, encrypted, or no key file.
        """
        path = hotkey_file(wallet_path, wallet, hotkey)
        file = Keyfile(path)
        if file.is_encrypted():
            raise KeyFileError(f"{path}: encrypted, and nobody is there to type a password; use a plain hotkey")
        try:
            pair = file.get_keypair()
            return cls(pair.ss58_address, pair.crypto_type, pair)
        except Exception as error:
            raise KeyFileError(f"{path}: not a key file of a hotkey ({type(error).__name__})") from error

    def sign(self, message: bytes) -> bytes:
        return bytes(self._pair.sign(message))

    def __repr__(self) -> str:
        return f"Hotkey({self.address})"


def verify(message: bytes, signature: bytes, hotkey: str, scheme: int) -> bool:
    """Whether a hotkey signed this; anything odd is a no."""
    try:
        return bool(verify_signature(message, signature, hotkey, scheme))
    except (ValueError, TypeError):
        return False


class _Substrate(bt.RpcSubstrate):  # type: ignore[misc]
    """Holds its connection from the start: the SDK loses it, open, if the opening is cut short."""

    connection: Any = None

    def _interface(self, endpoint: str, fallbacks: list[str]) -> Any:
        self.connection = super()._interface(endpoint, fallbacks)
        return self.connection


class Link:
    """One connection to one endpoint, for one subnet and hotkey. It is opened when needed, and again after trouble."""

    def __init__(self, endpoint: str, netuid: int, hotkey: Hotkey, *, deadline: float = DEADLINE) -> None:
        self._endpoint, self._netuid, self.hotkey, self._deadline = endpoint, netuid, hotkey, deadline
        self._client: Any = None
        self._substrate: Any = None
        self._genesis = ""
        self._newest = 0
        self._leaving: set[asyncio.Task[None]] = set()

    async def snapshot(self) -> Snapshot:
        """The subnet at the newest finalized block.

        Raises:
            ChainUnreachableError, ChainAnswerError, NoSubnetError, RuntimeMismatchError: see there.
        """
        return await self._ask("read the subnet", self._read_snapshot)

    async def finalized(self) -> int:
        """The newest finalized block."""
        return await self._ask("read the newest finalized block", self._read_finalized)

    async def weights(self, weights: Mapping[int, float], version_key: int = 0) -> Signed:
        """Sign weights as the subnet takes them now, plain or timelocked; nothing is sent.

        Raises:
            ChainRefusedError: they would be refused: not registered, too soon, too few.
        """
        intent = bt.SetWeights(netuid=self._netuid, weights=dict(weights), version_key=version_key)

        async def build() -> Signed:
            plan = await self._client.plan(intent, self.hotkey._pair)
            signed = await self._sign(plan.call)
            wanted = {str(uid): weight for uid, weight in weights.items()}
            about = {"weights": wanted, "warnings": tuple(each[:500] for each in plan.warnings[:16])}
            about["reveal_round"] = plan.extras.get("reveal_round")
            return Signed(signed.intention.model_copy(update=about), signed.unsigned, signed.signature)

        return await self._ask("prepare weights", build)

    async def commitment(self, data: bytes) -> Signed:
        """Sign a commitment of these bytes, at most 384; nothing is sent."""
        cut = [data[at : at + FIELD_BYTES] for at in range(0, len(data), FIELD_BYTES)]
        if len(cut) > MAX_FIELDS:
            raise ValueError(f"a commitment holds {MAX_FIELDS * FIELD_BYTES} bytes, not {len(data)}")
        fields = [{f"Raw{len(part)}": "0x" + part.hex()} for part in cut]
        call = bt.calls.Commitments.set_commitment(netuid=self._netuid, info={"fields": fields})

        async def build() -> Signed:
            return await self._sign(await self._client.compose(call))

        return await self._ask("prepare a commitment", build)

    async def send(self, signed: Signed) -> str:
        """Hand it to the endpoint's pool. Returns what the pool said if it was not simply taken; believe neither.

        Raises:
            ChainUnreachableError: no answer: it may have arrived or not.
        """

        async def submit() -> str:
            result = await self._client.submit_signature(
                signed.unsigned, signed.signature, wait_for_inclusion=False, wait_for_finalization=False
            )
            return "" if result.success else str(result.message)[:500]

        return await self._ask("send an extrinsic", submit)

    async def fate(self, intention: Intention) -> Fate:
        """What became of an intention, by the newest finalized block alone.

        Raises:
            ChainAnswerError: this is another chain than the one it was meant for.
        """

        async def read() -> Fate:
            if self._genesis != intention.genesis:
                raise ChainAnswerError(
                    f"{self._endpoint} is another chain (genesis {self._genesis[:18]}…) than the one that an extrinsic "
                    f"of ours was sent to ({intention.genesis[:18]}…); name that one's endpoint again"
                )
            return await self._read_fate(intention)

        return await self._ask("look for an extrinsic", read)

    async def close(self) -> None:
        """Hang up; the next call connects again."""
        self._drop()
        if self._leaving:
            _, late = await asyncio.wait(self._leaving, timeout=HANG_UP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _drop(self) -> None:
        """Leave this connection, without waiting for a good-bye that may take ten seconds."""
        substrate, self._client, self._substrate = self._substrate, None, None
        if substrate is not None and substrate.connection is not None:
            task = asyncio.create_task(self._hang_up(substrate.connection))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _hang_up(self, connection: Any) -> None:
        try:
            await connection.close()
        except (OSError, RuntimeError, bt.BittensorError) as error:
            logger.debug("hanging up on %s: %r", self._endpoint, error)

    async def _ask(self, what: str, question: Callable[[], Awaitable[T]]) -> T:
        """One question with a deadline; the SDK's many kinds of error become ours."""
        try:
            async with asyncio.timeout(self._deadline):
                if self._client is None:
                    await self._connect()
                return await question()
        except (ChainAnswerError, ChainRefusedError, ChainUnreachableError, NoSubnetError, RuntimeMismatchError):
            raise
        except TimeoutError as error:
            self._drop()
            raise ChainUnreachableError(
                f"{self._endpoint} did not {what} within {self._deadline:.0f} s; it is asked again later"
            ) from error
        except bt.RpcPolicyError as error:
            self._drop()
            wait = f"; it asks to wait {error.retry_after} s" if error.retry_after else ""
            raise ChainUnreachableError(f"{self._endpoint} turns us away: {str(error)[:300]}{wait}") from error
        except (bt.RpcConnectionError, MaxRetriesExceeded, RpcPolicyRejection, OSError) as error:
            self._drop()
            raise ChainUnreachableError(
                f"{self._endpoint} cannot be reached to {what} ({str(error)[:200]}); check the endpoint and the line"
            ) from error
        except bt.ChainError as error:
            raise self._translated(what, error) from error
        except Exception as error:
            self._drop()
            raise ChainAnswerError(
                f"{self._endpoint}: cannot {what}: {type(error).__name__}: {str(error)[:200]}; it lies, or SDK "
                f"{bt.__version__} does not fit it"
            ) from error

    def _translated(self, what: str, error: Any) -> Exception:
        message = f"cannot {what}: {str(error)[:300]}"
        if str(getattr(error.code, "name", error.code)) in REFUSED_AT_ONCE:
            return ChainRefusedError(message)
        return ChainAnswerError(f"{self._endpoint}: {message}")

    async def _connect(self) -> None:
        self._substrate = _Substrate(self._endpoint, fallback_endpoints=[], archive_endpoints=[])
        self._client = bt.Client(self._endpoint, substrate=self._substrate)
        try:
            await self._client.connect()
            self._genesis = str(await self._substrate.block_hash(0))
            if HASH.fullmatch(self._genesis) is None:
                raise ChainAnswerError(f"{self._endpoint}: {self._genesis[:80]!r} is not the hash of a first block")
            await self._check_fit()
        except BaseException:
            self._drop()
            raise

    async def _check_fit(self) -> None:
        spec = await self._client.spec_version()
        try:
            exists = await self._client.query((S, "NetworksAdded"), [self._netuid])
            await self._client.query((S, "SubnetEpochConsensus"), [self._netuid])
        except ValueError as error:
            raise RuntimeMismatchError(
                f"SDK bittensor {bt.__version__} does not fit runtime {spec} of {self._endpoint}: {error}; install the "
                "SDK that was made for this runtime, or use another endpoint"
            ) from error
        if not exists:
            raise NoSubnetError(f"{self._endpoint} has no subnet {self._netuid}; check netuid and endpoint")

    async def _read_finalized(self) -> int:
        final = await self._substrate.raw.get_chain_finalised_head()
        if HASH.fullmatch(str(final)) is None:  # the SDK would take the newest block instead
            raise ChainAnswerError(f"{self._endpoint}: {str(final)[:80]!r} is not the hash of a finalized block")
        block = int(await self._substrate.raw.get_block_number(final))
        if block < self._newest:
            went = f"{self._endpoint}: the finalized block went back from {self._newest} to {block}"
            if block + ERA_BLOCKS >= self._newest:
                raise ChainUnreachableError(f"{went}: behind its address is a node that lags; it is asked again later")
            raise ChainAnswerError(f"{went}: it is another chain, or it lies")
        self._newest = block
        return block

    async def _read_snapshot(self) -> Snapshot:
        block = await self._read_finalized()
        view = await self._client.at(block)
        graph, committed, stamp, head, slot = await asyncio.gather(
            view.subnets.metagraph(self._netuid, commitments=False),
            view.query_map(("Commitments", "CommitmentOf"), [self._netuid]),
            self._client.timestamp(),
            self._client.block(),
            self._client.block_time(),
        )
        if graph is None:
            raise NoSubnetError(f"{self._endpoint} has no subnet {self._netuid} at block {block}")
        return Snapshot(
            block=block,
            head=max(int(head), block),
            time=stamp.timestamp(),
            block_seconds=float(slot),
            neurons=neurons_of(graph, block),
            tempo=number(graph.tempo, "tempo", 2**16),
            rate_limit=number(graph.raw["weights_rate_limit"], "weights_rate_limit"),
            commit_reveal=bool(graph.raw["commit_reveal_weights_enabled"]),
            commitments=tuple(commitment_of(hotkey, record) for hotkey, record in committed[:MAX_NEURONS]),
        )

    async def _sign(self, call: Any) -> Signed:
        """The extrinsic with its nonce and era, signed; the expected traces are read off the very bytes signed."""
        unsigned = await self._client.prepare_call(
            call, address=self.hotkey.address, crypto_type=self.hotkey.scheme, period=ERA_BLOCKS
        )
        decoded = await self._client.decode_scale("Call", unsigned.call_data)
        kind, expected = traces_of(decoded)
        signature = self.hotkey.sign(unsigned.payload)
        extrinsic = await self._substrate.raw.attach_signature(unsigned, signature)
        intention = Intention(
            kind=kind,
            hotkey=self.hotkey.address,
            netuid=self._netuid,
            genesis=self._genesis,
            nonce=unsigned.nonce,
            birth=unsigned.era["current"],
            period=ERA_BLOCKS,
            hash=extrinsic.extrinsic_hash,
            expected=expected,
        )
        return Signed(intention, unsigned, signature)

    async def _read_fate(self, intention: Intention) -> Fate:
        block = await self._read_finalized()
        view = await self._client.at(block)
        account = await view.query(("System", "Account"), [intention.hotkey])
        if int(account["nonce"]) <= intention.nonce:
            return Fate(Outcome.LOST if block >= intention.death else None, block)
        stored_at = await self._stored_at(view, intention)
        if stored_at is not None and intention.birth < stored_at < intention.death:
            return Fate(Outcome.LANDED, block, stored_at)
        return await self._find(intention, block)

    async def _stored_at(self, view: Any, intention: Intention) -> int | None:
        """The block since which the chain stores exactly what was sent, if it does."""
        netuid, hotkey = intention.netuid, intention.hotkey
        if intention.kind == "binding":
            record = await view.query(("Commitments", "CommitmentOf"), [netuid, hotkey])
            commitment = commitment_of(hotkey, record) if record else None
            same = commitment is not None and commitment.data == bytes.fromhex(str(intention.expected))
            return commitment.block if commitment is not None and same else None
        uid = await view.query((S, "Uids"), [netuid, hotkey])
        if uid is None:
            return None
        updates = await view.query((S, "LastUpdate"), [netuid])
        last_update = int(updates[int(uid)])
        if intention.kind == "weights":
            stored = await view.query((S, "Weights"), [netuid, int(uid)])
            same = tuple(sorted((int(each), int(value)) for each, value in stored)) == intention.expected
            return last_update if same else None
        epochs = await view.query_map((S, "TimelockedWeightCommits"), [netuid])
        kept = {raw_bytes(commit) for _, commits in epochs for who, _, commit, _ in commits if who == hotkey}
        return last_update if bytes.fromhex(str(intention.expected)) in kept else None

    async def _find(self, intention: Intention, block: int) -> Fate:
        """Look through the blocks of its era: the nonce is spent, but what was sent is not what is stored."""
        for place in range(intention.birth + 1, min(intention.death - 1, block) + 1):
            try:
                found = await self._substrate.find_extrinsic(intention.hash, await self._substrate.block_hash(place))
            except (bt.ChainError, TypeError) as error:
                return Fate(Outcome.UNPROVEN, block, detail=f"block {place} cannot be read any more: {error}"[:500])
            if found is not None:
                outcome = Outcome.LANDED if found.success else Outcome.FAILED
                named = getattr(found.error, "name", None)
                return Fate(outcome, block, place, "" if found.success else f"{named}: {found.message}"[:500])
        return Fate(Outcome.LOST, block, detail="its nonce went to another extrinsic: who else signs with this hotkey?")
