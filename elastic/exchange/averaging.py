"""All-reduce for swarms that trust each other: Hivemind's DecentralizedAverager, made exact and made honest.

Matchmaking, partitioning and transport are Hivemind's. Three things differ. It runs on the caller's event
loop and p2pd instead of forking. Reducers send averages instead of differences, in fp16 and the same bytes to
everyone, and take them from these bytes themselves, so that all replicas end up with the same bits. And a
lost peer fails the averaging, where Hivemind would average the rest and report success.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hivemind.averaging.allreduce import AllreduceException, AllReduceRunner
from hivemind.averaging.averager import DecentralizedAverager
from hivemind.averaging.group_info import GroupInfo
from hivemind.averaging.load_balancing import load_balance_peers
from hivemind.averaging.matchmaking import Matchmaking, MatchmakingException
from hivemind.compression import Float16Compression, deserialize_torch_tensor, serialize_torch_tensor
from hivemind.dht.node import DHTNode
from hivemind.p2p import P2P, P2PContext, P2PDaemonError, P2PHandlerError, PeerID
from hivemind.proto import averaging_pb2, runtime_pb2
from hivemind.utils import get_dht_time
from hivemind.utils.asyncio import amap_in_executor

from elastic.errors import AveragingError
from elastic.messages import Seconds

logger = logging.getLogger(__name__)

MATCHMAKING_SECONDS = 4.0
"""How long a leader's call for a group stands before it is renewed; a complete group does not wait for it."""
REQUEST_SECONDS = 2.0
"""A leader that does not answer a request to join; below the above, or two that ask each other deadlock."""
NEXT_CHUNK_SECONDS = 5.0
"""A sender from which nothing arrives for so long is lost; a reducer, after twice as long."""
_MATCHMAKING_SHARE = 0.7
"""Of the timeout; the rest is for the all-reduce itself."""
_POLL_SECONDS = 0.05
"""Hivemind asks the DHT for new leaders without a pause."""
_DHT_SECONDS = 10.0
_FP16_MAX = float(torch.finfo(torch.float16).max)
_FOREIGN = (
    AllreduceException,
    MatchmakingException,
    P2PDaemonError,
    P2PHandlerError,
    OSError,
    EOFError,
    AssertionError,
)


async def average(
    p2p: P2P, dht: DHTNode, key: str, tensors: Mapping[str, Any], num_peers: int, timeout: Seconds
) -> dict[str, Any]:
    """The mean over exactly `num_peers` peers that call with the same key, names and shapes.

    Args:
        p2p: the p2pd to use; stays open.
        dht: where the peers find each other.
        key: names this averaging; new for every round.
        tensors: name → array, finite and within fp16's ±65504; not changed.
        num_peers: size of the group, ourselves included.
        timeout: for everything, in seconds.

    Returns:
        Name → fp32 array of values that fp16 can hold, the same bits on every peer that gets a result.

    Raises:
        AveragingError: no complete group in time, or anybody was lost on the way.
    """
    names = sorted(tensors)
    arrays = [np.asarray(tensors[name], dtype=np.float32) for name in names]
    flat = _flatten(arrays)
    if num_peers == 1:
        averaged = _from_wire(_to_wire(flat))
    else:
        schema = repr([(name, array.shape) for name, array in zip(names, arrays, strict=True)])
        averager = _Averager(p2p, dht, key, schema, num_peers)
        try:
            averaged = await averager.run(flat, timeout)
        except TimeoutError as error:
            raise AveragingError(f"averaging {key}: not done within {timeout:.0f} s") from error
        except _FOREIGN as error:
            raise AveragingError(f"averaging {key}: {error or type(error).__name__}") from error
    pieces = np.split(averaged.numpy(), np.cumsum([array.size for array in arrays])[:-1])
    return {name: piece.reshape(array.shape).copy() for name, piece, array in zip(names, pieces, arrays, strict=True)}


def _flatten(arrays: Sequence[Any]) -> torch.Tensor:
    """All values in one vector, (N,) fp32: fewer and fuller parts than tensor by tensor."""
    vector = np.concatenate([array.reshape(-1) for array in arrays]) if arrays else np.empty(0, np.float32)
    if not vector.size:
        raise AveragingError("there is nothing to average")
    # Written so that NaN is refused too.
    if not np.abs(vector).max() <= _FP16_MAX:
        raise AveragingError(f"a tensor is not finite, or above {_FP16_MAX:.0f}, fp16's limit")
    return torch.from_numpy(vector)


def _to_wire(part: torch.Tensor) -> Any:
    return serialize_torch_tensor(part, runtime_pb2.CompressionType.FLOAT16)


def _from_wire(message: Any) -> torch.Tensor:
    return deserialize_torch_tensor(message)


@dataclass(frozen=True, slots=True)
class _Step:
    """What matchmaking wants to know of Hivemind's StepControl, without its shared memory."""

    scheduled_time: float
    deadline: float
    data_for_gather: bytes = b""

    def get_timeout(self) -> float:
        return max(0.0, self.deadline - float(get_dht_time()))


class _Directory:
    """The part of `hivemind.DHT` that averaging uses, on a DHTNode of the same event loop."""

    def __init__(self, p2p: P2P, dht: DHTNode) -> None:
        self.peer_id = p2p.peer_id
        self.client_mode = False
        self._dht = dht

    async def get(self, key: str, *, latest: bool, return_future: bool) -> Any:
        await asyncio.sleep(_POLL_SECONDS)
        return await self._bounded(self._dht.get(key, latest=latest))

    async def store(self, *, key: str, subkey: bytes, value: bool, expiration_time: float, return_future: bool) -> bool:
        stored = await self._bounded(self._dht.store(key, value, expiration_time, subkey=subkey))
        return bool(stored)

    async def _bounded(self, call: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(call, _DHT_SECONDS)


class _Averager(DecentralizedAverager):  # type: ignore[misc]
    """One averaging: Hivemind's averager that was never started, its parts run here."""

    def __init__(self, p2p: P2P, dht: DHTNode, key: str, schema: str, num_peers: int) -> None:
        # No tensors for the parent: it would move them to /dev/shm, for a process that is never forked.
        super().__init__(
            (),
            _Directory(p2p, dht),
            start=False,
            prefix="average-" + hashlib.sha256(key.encode()).hexdigest()[:32],
            target_group_size=num_peers,
            min_group_size=num_peers,
            min_matchmaking_time=MATCHMAKING_SECONDS,
            request_timeout=REQUEST_SECONDS,
            allow_state_sharing=False,
        )
        self._key = key
        self._p2p = p2p
        self._num_peers = num_peers
        self.schema_hash = hashlib.sha256(schema.encode()).digest()
        self._pending_groups_registered = asyncio.Event()
        self._matchmaking = Matchmaking(p2p, self.schema_hash, self.dht, client_mode=False, **self.matchmaking_kwargs)

    async def run(self, flat: torch.Tensor, timeout: Seconds) -> torch.Tensor:
        """Find the group, average, and leave nothing behind."""
        try:
            async with asyncio.timeout(timeout):
                await self.add_p2p_handlers(self._p2p, namespace=self.prefix)
                group = await self._find_group(timeout)
                with self._register_allreduce_group(group):
                    return await self._reduce(flat, group)
        finally:
            await self._leave()

    async def _find_group(self, timeout: Seconds) -> GroupInfo:
        now = get_dht_time()
        step = _Step(scheduled_time=now + MATCHMAKING_SECONDS, deadline=now + _MATCHMAKING_SHARE * timeout)
        group = await self._matchmaking.look_for_group(step)
        if group is None:
            raise AveragingError(f"averaging {self._key}: {self._num_peers} peers did not come together")
        if len(set(group.peer_ids)) != self._num_peers or self.peer_id not in group.peer_ids:
            raise AveragingError(f"averaging {self._key}: a group of {group.group_size}, not of {self._num_peers}")
        return group

    async def _reduce(self, flat: torch.Tensor, group: GroupInfo) -> torch.Tensor:
        fractions = load_balance_peers(flat.numel(), [None] * group.group_size)
        runner = _ExactRunner(
            p2p=self._p2p,
            servicer_type=type(self),
            prefix=self.prefix,
            group_id=group.group_id,
            tensors=[flat],
            ordered_peer_ids=group.peer_ids,
            peer_fractions=fractions,
            compression=Float16Compression(),
            sender_timeout=NEXT_CHUNK_SECONDS,
            reducer_timeout=2 * NEXT_CHUNK_SECONDS,
        )
        self._running_groups[group.group_id].set_result(runner)
        work = asyncio.create_task(runner.collect())
        try:
            await asyncio.wait({work, runner.failed}, return_when=asyncio.FIRST_COMPLETED)
            if runner.failed.done():
                raise AveragingError(f"averaging {self._key}: {runner.failed.result()}")
            return work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            runner.forget()

    async def _leave(self) -> None:
        # Ends the thread that the parent's constructor starts.
        self._inner_pipe.send(("_SHUTDOWN", None))
        try:
            await asyncio.wait_for(self.remove_p2p_handlers(self._p2p, namespace=self.prefix), _DHT_SECONDS)
        except (P2PDaemonError, OSError, EOFError) as error:
            logger.debug("leaving averaging %s: %s", self._key, error)


class _ExactRunner(AllReduceRunner):  # type: ignore[misc]
    """All-reduce of averages instead of differences, that fails as a whole if any part of it does."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done, with the reason, as soon as anything went wrong."""
        self._unserved = set(self.sender_peer_ids) - {self.peer_id}
        self._served = asyncio.Event()

    async def collect(self) -> torch.Tensor:
        """Run to the end: our result is complete and all others have taken theirs from us."""
        (averaged,) = [tensor async for tensor in self]
        if self._reduces:
            await self._served.wait()
        if self.tensor_part_container.failed_size or self.banned_senders:
            raise AllreduceException("a part did not come from its reducer")
        return averaged

    def fail(self, reason: str) -> None:
        """Note the first thing that went wrong."""
        if not self.failed.done():
            self.failed.set_result(reason)

    def forget(self) -> None:
        """Mark the parent's future as looked at, or asyncio complains about it."""
        if self._future.done() and not self._future.cancelled():
            self._future.exception()

    @property
    def _reduces(self) -> bool:
        return bool(self.tensor_part_reducer.num_parts)

    async def _communicate_with_peer(self, peer_id: PeerID) -> None:
        try:
            if peer_id == self.peer_id:
                await self._reduce_own_parts()
            else:
                await super()._communicate_with_peer(peer_id)
        except _FOREIGN as error:
            self.fail(f"reducer {peer_id}: {str(error) or type(error).__name__}")
            raise

    async def _reduce_own_parts(self) -> None:
        loop = asyncio.get_running_loop()
        sender, place = self.sender_peer_ids.index(self.peer_id), self.ordered_peer_ids.index(self.peer_id)
        for index, part in enumerate(self.parts_for_local_averaging):
            averaged = await self.tensor_part_reducer.accumulate_part(sender, index, part, weight=self.weight)
            # Through the wire format, because that is what the others get.
            exact = await loop.run_in_executor(None, lambda value: _from_wire(_to_wire(value)), averaged)
            self.tensor_part_container.register_processed_part(place, index, exact)

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        """As the parent's, and notes who was served to the end."""
        async for message in super().rpc_aggregate_part(stream, context):
            yield message
        if context.remote_id not in self.banned_senders:
            self._unserved.discard(context.remote_id)
        if not self._unserved:
            self._served.set()

    async def _accumulate_parts_streaming(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], sender_index: int
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        """As the parent's, but the average itself is sent, and a part of another shape is not broadcast."""
        loop, num_received = asyncio.get_running_loop(), 0
        try:
            parts = amap_in_executor(lambda message: (_from_wire(message.tensor_part), message.weight), stream)
            async for part, weight in parts:
                expected = self.parts_for_local_averaging[num_received]
                if part.shape != expected.shape or weight != self.weight:
                    raise AllreduceException("a part of another shape or weight")
                averaged = await self.tensor_part_reducer.accumulate_part(
                    sender_index, num_received, part, weight=weight
                )
                num_received += 1
                message = await loop.run_in_executor(None, _to_wire, averaged)
                yield averaging_pb2.AveragingData(code=averaging_pb2.AVERAGED_PART, tensor_part=message)
        finally:
            if num_received != self.tensor_part_reducer.num_parts:
                await self._ban_sender(self.sender_peer_ids[sender_index])

    async def _ban_sender(self, peer_id: PeerID) -> None:
        # The parent would go on without it, and everyone would take the average of the rest for the whole.
        self.banned_senders.add(peer_id)
        self.fail(f"peer {peer_id} was lost")
