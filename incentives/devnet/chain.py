"""The devnet's chain: blocks, a pool, finality, forks. It moves only when told to.

chain = Chain()
chain.add_subnet(3, tempo=20, rate_limit=5)
chain.register(3, hotkey, coldkey, stake=10**12, permit=True)
chain.produce()
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from incentives.devnet.codec import Codec, blake2
from incentives.devnet.extrinsics import Extrinsic, decode
from incentives.devnet.metadata import metadata
from incentives.devnet.rules import Event, FailedError, RefusedError, check_for_pool, dispatch, invalid
from incentives.devnet.scale import compact
from incentives.devnet.state import Neuron, State

SPEC_VERSION = 461
DISPATCH_INFO = {"weight": {"ref_time": 1000, "proof_size": 100}, "class": "Normal", "pays_fee": "No"}


@dataclass(frozen=True)
class Block:
    """One block, with the state after it."""

    number: int
    hash: bytes
    parent: bytes
    state: State
    extrinsics: tuple[bytes, ...]
    """Encoded; the timestamp comes first."""


@dataclass(frozen=True)
class Applied:
    """An extrinsic that is in a block."""

    extrinsic: Extrinsic
    block: int
    failed: str | None
    """The error's name, if its dispatch failed."""


class Chain:
    """One fork of blocks and what waits to get into the next one."""

    def __init__(
        self,
        *,
        slot_ms: int = 12_000,
        spec_version: int = SPEC_VERSION,
        clock: Callable[[], float] = time.time,
        without: frozenset[str] = frozenset(),
    ) -> None:
        """
        Args:
            slot_ms: what clients are told of the time between blocks.
            spec_version: version of the runtime.
            clock: Unix seconds, which new blocks are stamped with.
            without: storage items that this runtime lacks.
        """
        self.codec = Codec(metadata(slot_ms, without), spec_version, 1)
        self.clock = clock
        self.finality_lag = 0
        """Blocks that the finalized one is behind."""
        self.withheld = False
        """The pool keeps what it has, and blocks are empty."""
        self.pool: list[Extrinsic] = []
        self.applied: list[Applied] = []
        """What is in blocks of this fork, oldest first."""
        self.state = State(self.codec)
        self.blocks: list[Block] = []
        self.by_hash: dict[bytes, Block] = {}
        # Clients keep metadata on disk by (genesis, version): other metadata must be another chain.
        self._salt = blake2(self.codec.metadata)
        self.state.put("Number", value=0, pallet="System")
        self.state.put("Now", value=self._now_ms(), pallet="Timestamp")
        self._seal(())

    @property
    def head(self) -> Block:
        return self.blocks[-1]

    @property
    def finalized(self) -> Block:
        return self.blocks[max(0, len(self.blocks) - 1 - self.finality_lag)]

    def add_subnet(
        self,
        netuid: int,
        *,
        tempo: int = 360,
        rate_limit: int = 100,
        commit_reveal: bool = False,
        **settings: Any,
    ) -> None:
        """Found a subnet, from the next block on.

        Args:
            netuid: its number.
            tempo: blocks between two epochs.
            rate_limit: blocks between two sets of weights.
            commit_reveal: whether weights are committed, timelocked.
            settings: further storage items by name, such as MinAllowedWeights=8.
        """
        named = {"Tempo": tempo, "WeightsSetRateLimit": rate_limit, "CommitRevealWeightsEnabled": commit_reveal}
        self.state.add_subnet(netuid, {**named, **settings})

    def register(
        self, netuid: int, hotkey: str, coldkey: str, *, stake: int = 0, permit: bool = False, uid: int | None = None
    ) -> int:
        """Register a hotkey, from the next block on; with `uid` it takes that place from whoever has it."""
        neuron = Neuron(hotkey, coldkey, stake, permit, self.head.number + 1)
        if uid is None:
            return self.state.register(netuid, neuron)
        self.state.replace(netuid, uid, neuron)
        return uid

    def submit(self, data: bytes) -> bytes:
        """Take a signed extrinsic into the pool; its hash.

        Raises:
            RefusedError: for one of the reasons for which a node's pool refuses.
        """
        extrinsic = decode(self.codec, data, self.head.number, self._hash_of)
        if any(each.hash == extrinsic.hash for each in self.pool):
            raise RefusedError("Transaction Already Imported", code=1013)
        if extrinsic.nonce < self.state.nonce(extrinsic.signer):
            raise invalid("Transaction is outdated")
        if any((each.signer, each.nonce) == (extrinsic.signer, extrinsic.nonce) for each in self.pool):
            raise RefusedError("Priority is too low: (0 vs 0)", code=1014)
        check_for_pool(self.state, extrinsic.signer, extrinsic.call, extrinsic.arguments, self.head.number + 1)
        self.pool.append(extrinsic)
        return extrinsic.hash

    def next_nonce(self, who: str) -> int:
        """The nonce after those in blocks and in the pool."""
        nonce, waiting = self.state.nonce(who), {each.nonce for each in self.pool if each.signer == who}
        while nonce in waiting:
            nonce += 1
        return nonce

    def produce(self) -> Block:
        """Build the next block."""
        number = self.head.number + 1
        self.state.put("Number", value=number, pallet="System")
        self.state.put("Now", value=self._now_ms(), pallet="Timestamp")
        for netuid in self.state.neurons:
            self._count_epoch(netuid, number)
        stamp = self.codec.compose("Timestamp", "set", {"now": self._now_ms()})
        included, events = [compact(len(stamp) + 1) + b"\4" + stamp], list[dict[str, Any]]()
        self.pool = [each for each in self.pool if self._in_era(each, number)]
        for extrinsic in [] if self.withheld else self._ready():
            events += self._apply(extrinsic, len(included), number)
            included.append(extrinsic.data)
        self.state.put("Events", value=events, pallet="System")
        return self._seal(tuple(included))

    def reorg(self, depth: int, *, forget: bool = False) -> list[Block]:
        """Replace the last blocks by a longer fork; what was in them returns to the pool, unless it is forgotten."""
        dropped = self.blocks[-depth:]
        del self.blocks[-depth:]
        for block in dropped:
            del self.by_hash[block.hash]
        lost = [each.extrinsic for each in self.applied if each.block > self.head.number]
        self.applied = [each for each in self.applied if each.block <= self.head.number]
        self.state = self.head.state.copy()
        self._salt += b"fork"
        fork = [self.produce()]
        self.pool = [] if forget else [*lost, *self.pool]
        return fork + [self.produce() for _ in range(depth)]

    def _ready(self) -> list[Extrinsic]:
        """Take out of the pool what can be in the next block, and what was overtaken."""
        ready, waiting, nonces = list[Extrinsic](), list[Extrinsic](), dict[str, int]()
        for extrinsic in sorted(self.pool, key=lambda each: each.nonce):
            due = nonces.setdefault(extrinsic.signer, self.state.nonce(extrinsic.signer))
            if extrinsic.nonce < due:
                continue
            if extrinsic.nonce == due:
                nonces[extrinsic.signer] += 1
            (ready if extrinsic.nonce == due else waiting).append(extrinsic)
        self.pool = waiting
        return ready

    def _in_era(self, extrinsic: Extrinsic, number: int) -> bool:
        return extrinsic.era is None or self._hash_of(extrinsic.era.birth(number)) == extrinsic.era_hash

    def _apply(self, extrinsic: Extrinsic, index: int, number: int) -> list[dict[str, Any]]:
        before, failed = self.state.copy(), None
        try:
            events = dispatch(self.state, extrinsic.signer, extrinsic.call, extrinsic.arguments, number)
            outcome: Event = {"ExtrinsicSuccess": {"dispatch_info": DISPATCH_INFO}}
        except FailedError as error:
            self.state, events, failed = before, [], error.name
            reason = self.codec.error(error.pallet, error.name)
            outcome = {"ExtrinsicFailed": {"dispatch_error": reason, "dispatch_info": DISPATCH_INFO}}
        self.state.spend_nonce(extrinsic.signer)
        self.applied.append(Applied(extrinsic, number, failed))
        phase = {"ApplyExtrinsic": index}
        return [{"phase": phase, "event": event, "topics": []} for event in [*events, {"System": outcome}]]

    def _count_epoch(self, netuid: int, number: int) -> None:
        tempo, since = self.state.get("Tempo", netuid), self.state.get("BlocksSinceLastStep", netuid)
        over = bool(tempo) and since >= tempo
        if over:
            self.state.put("LastEpochBlock", netuid, value=number)
            self.state.put("SubnetEpochIndex", netuid, value=self.state.get("SubnetEpochIndex", netuid) + 1)
        self.state.put("BlocksSinceLastStep", netuid, value=0 if over else since + 1)

    def _seal(self, extrinsics: tuple[bytes, ...]) -> Block:
        parent = self.blocks[-1] if self.blocks else None
        number, above = (parent.number + 1, parent.hash) if parent else (0, bytes(32))
        digest = blake2(number.to_bytes(8, "little") + above + b"".join(extrinsics) + self._salt)
        block = Block(number, digest, above, self.state.copy(), extrinsics)
        self.blocks.append(block)
        self.by_hash[digest] = block
        return block

    def _hash_of(self, number: int) -> bytes:
        return self.blocks[min(number, self.head.number)].hash

    def _now_ms(self) -> int:
        return int(self.clock() * 1000)
