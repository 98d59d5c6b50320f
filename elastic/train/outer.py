"""The outer step: one update of the anchor, bit for bit the same on every peer."""

from collections.abc import Mapping

from torch import Tensor

from elastic.config import OuterConfig

MOMENTUM = "outer.momentum/"
"""Prefix of the outer momentum among the anchor's tensors: it is shared state and part of the digest."""


def initial_anchor(params: Mapping[str, Tensor], config: OuterConfig) -> dict[str, Tensor]:
    """θ as fp32 copies on the CPU, and zero momentum beside it if the outer optimizer has any."""
    anchor = {name: param.detach().cpu().float().clone() for name, param in params.items()}
    if config.nesterov:
        anchor |= {MOMENTUM + name: value.new_zeros(value.shape) for name, value in anchor.items()}
    return anchor


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
