"""The outer step: one update of the anchor, bit for bit the same on every peer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from elastic.config import OuterConfig
from elastic.contracts import Reducer

MOMENTUM = "outer.momentum/"
"""Prefix of the outer momentum among the anchor's tensors: it is shared state and part of the digest."""


def with_momentum(anchor: Mapping[str, Tensor], config: OuterConfig) -> dict[str, Tensor]:
    """θ, and zero momentum beside it if the outer optimizer has any."""
    momentum = {MOMENTUM + name: torch.zeros_like(value) for name, value in anchor.items() if config.nesterov}
    return {**anchor, **momentum}


def outer_step(anchor: dict[str, Tensor], update: Mapping[str, Tensor], config: OuterConfig) -> None:
    """θ ← θ − α · update, in place; with Nesterov momentum m ← μ·m + update, θ ← θ − α · (update + μ·m).

    Product and difference are separate operations, never fused, so that every machine rounds alike.
    """
    for name, value in update.items():
        step = value
        if config.nesterov:
            momentum = anchor[MOMENTUM + name]
            momentum.mul_(config.nesterov).add_(value)
            step = momentum.mul(config.nesterov).add_(value)
        anchor[name].sub_(step.mul(config.learning_rate))


class Turns:
    """The tensors of a model in turns, each turn with room for its update: dense is one turn at a time.

    A turn has no more elements than the largest tensor and one more tensor. The room is the same memory in every turn
    and every round: fresh memory costs more than what is added up in it.
    """

    def __init__(self, like: Mapping[str, Tensor], device: str = "cpu") -> None:
        self._device = device
        self._turns: list[dict[str, Tensor]] = [{}]
        most = max((meta.numel() for meta in like.values()), default=0)
        for name in sorted(like):
            if _num_elements(self._turns[-1]) >= most and self._turns[-1]:
                self._turns.append({})
            self._turns[-1][name] = like[name]
        self._room = torch.empty(0)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """(name → what it looks like, name → uninitialised fp32 tensor of that shape)."""
        if not len(self._room):
            self._room = torch.empty(max(map(_num_elements, self._turns)), device=self._device)
        for some in self._turns:
            pieces = self._room[: _num_elements(some)].split([meta.numel() for meta in some.values()])
            yield some, {name: piece.view(some[name].shape) for name, piece in zip(some, pieces, strict=True)}


def outer_steps(
    anchor: dict[str, Tensor],
    parts: Sequence[tuple[Any, float]],
    reducer: Reducer,
    turns: Turns,
    config: OuterConfig,
) -> None:
    """What a round did to the anchor: (payload, share) in PeerId order, added up and applied, a turn at a time."""
    for some, room in turns:
        outer_step(anchor, reducer.aggregate(parts, some, out=room), config)


def _num_elements(some: Mapping[str, Tensor]) -> int:
    return sum(meta.numel() for meta in some.values())
