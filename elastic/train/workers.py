"""The workers of one peer: which of them owns what, and what they say to each other. Ray Train brings them together.

Every tensor of the anchor and of the residual has one owner. Whole tensors, not slices: a reducer cuts each tensor
into chunks of its own, and must find the same ones however many workers there are.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from elastic import errors
from elastic.config_local import TrainConfig
from elastic.errors import ElasticError

T = TypeVar("T")

PLAIN = TrainConfig()


@dataclass(frozen=True, slots=True)
class Worker:
    """This worker among the workers of its peer, where it computes, and how."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    how: TrainConfig = PLAIN

    def any(self, flag: bool) -> bool:
        """True on all workers if it is true on one, so that they decide alike."""
        return flag if self.world_size == 1 else self.sums([float(flag)])[0] > 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Added up over the workers, each value for itself."""
        if self.world_size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def gather(self, data: bytes) -> list[bytes]:
        """What every worker has, in the order of ranks."""
        if self.world_size == 1:
            return [data]
        sizes = [int(size) for size in self.sums([len(data) * (rank == self.rank) for rank in range(self.world_size)])]
        mine = torch.zeros(max(1, *sizes), dtype=torch.uint8, device=self.device)
        mine[: len(data)] = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        rooms = [torch.empty_like(mine) for _ in sizes]
        dist.all_gather(rooms, mine)
        return [room[:size].cpu().numpy().tobytes() for room, size in zip(rooms, sizes, strict=True)]

    def tell(self, data: bytes | None) -> bytes:
        """Rank 0's bytes, on every worker."""
        if self.world_size == 1:
            assert data is not None
            return data
        size = int(self.sums([0 if data is None or self.rank else len(data)])[0])
        room = torch.empty(max(1, size), dtype=torch.uint8, device=self.device)
        if self.rank == 0 and data:
            room[:size] = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        dist.broadcast(room, src=0)
        return data if self.rank == 0 and data is not None else room[:size].cpu().numpy().tobytes()

    def broadcast(self, value: Tensor | None, shape: Sequence[int], owner: int) -> Tensor:
        """The owner's tensor on every worker, fp32 on its device."""
        if self.world_size == 1:
            assert value is not None
            return value.to(self.device)
        here = torch.empty(tuple(shape), device=self.device) if value is None else value.to(self.device).contiguous()
        dist.broadcast(here, src=owner)
        return here

    def together(self, work: Callable[[], T]) -> T:
        """Do something that may fail on some workers and not on others; it raises on all or on none.

        Raises:
            ElasticError: what the first of them raised.
        """
        if self.world_size == 1:
            return work()
        failed: ElasticError | None = None
        try:
            done = work()
        except ElasticError as error:
            failed = error
        told = self.gather(b"" if failed is None else f"{type(failed).__name__}:{failed}".encode())
        for text in filter(None, told):  # the same one on all: what is done about it depends on its kind
            kind, _, message = text.decode(errors="replace").partition(":")
            raise getattr(errors, kind, ElasticError)(message) from failed
        return done


def owners(like: Mapping[str, Any], world_size: int) -> dict[str, int]:
    """Name → the rank that owns it: the largest first, each to whom has least, and no rank more than its part and one.

    It follows from shapes and number of workers alone.
    """
    loads, found = [(0, rank) for rank in range(world_size)], {}
    for name in sorted(like, key=lambda name: (-math.prod(like[name].shape), name)):
        load, rank = heapq.heappop(loads)
        found[name] = rank
        heapq.heappush(loads, (load + math.prod(like[name].shape), rank))
    return found
