"""The average reducer: for swarms that trust each other and have bandwidth.

Peers average their pseudo-gradients among themselves (all-reduce) before they commit, so everyone's payload
is the same dense fp16 average and nothing is left for a later round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from elastic.errors import DivergedError
from elastic.sections import Section
from elastic.wire.dense import decode_dense, dense_size_bytes, encode_dense

if TYPE_CHECKING:
    from torch import Tensor

    from elastic.contracts import Payload, Tensors

FP16_MAX = 65504.0
"""Largest finite fp16 number; a value beyond it is sent as this, because everyone refuses infinity."""


class Average:
    """Dense fp16, two bytes a parameter. A payload is name → "values", fp16 in the parameter's shape."""

    averages = True

    class Config(Section):
        """No settings."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def compress(
        self, pseudo_gradient: Tensors, residual: Tensors, *, inplace: bool = False
    ) -> tuple[Payload, dict[str, Tensor]]:
        """Δ plus what earlier rounds left, in fp16; what rounding takes away stays in the residual, which is new.

        Raises:
            DivergedError: Δ has entries that are not finite.
        """
        payload, left = {}, {}
        for name, delta in pseudo_gradient.items():
            total = delta.detach().to("cpu", torch.float32)
            if name in residual:
                total = total + residual[name]
            if not torch.isfinite(total).all():
                raise DivergedError(f"pseudo-gradient of {name} is not finite")
            values = total.clamp(-FP16_MAX, FP16_MAX).to(torch.float16)
            payload[name], left[name] = {"values": values}, total - values.float()
        return payload, left

    def arrays(self, data: bytes, like: Tensors) -> dict[str, Any]:
        """A payload's bytes as name → fp32 numpy array, for the all-reduce."""
        return {name: values.float().numpy() for name, values in decode_dense(data, like).items()}

    def from_arrays(self, arrays: Mapping[str, Any]) -> bytes:
        """The payload's bytes of an average, exact if its values are fp16 numbers."""
        return encode_dense({name: torch.from_numpy(array).to(torch.float16) for name, array in arrays.items()})

    def decompress(self, payload: Payload, like: Tensors) -> dict[str, Tensor]:
        """The same numbers in fp32."""
        return {name: payload[name]["values"].float() for name in like}

    def aggregate(
        self, parts: Sequence[tuple[Payload, float]], like: Tensors, *, out: Tensors | None = None
    ) -> dict[str, Tensor]:
        """The common average bit for bit if all payloads are equal, else Σ share · D̂ in the order given.

        Shares sum to 1 only up to rounding: the common case must not depend on them.
        """
        return {
            name: _mean([(payload[name]["values"], share) for payload, share in parts], like[name]) for name in like
        }

    def join(self, payloads: Sequence[Payload]) -> Payload:
        return {name: fields for each in payloads for name, fields in each.items()}

    def encode(self, payload: Payload) -> bytes:
        return encode_dense({name: fields["values"] for name, fields in payload.items()})

    def decode(self, data: bytes, like: Tensors) -> Payload:
        """Strict inverse of `encode`.

        Raises:
            MalformedError: any deviation, or a value that is not finite.
        """
        return {name: {"values": values} for name, values in decode_dense(data, like).items()}

    def glance(self, payload: Any, name: str) -> tuple[Any, float]:
        """It speaks of all elements; averages are compared as a whole, by their digests."""
        return np.empty(0, np.int64), float(payload[name]["values"].double().square().sum())

    def max_bytes(self, like: Mapping[str, Any]) -> int:
        """Every payload has exactly this length."""
        return dense_size_bytes(like)


def _mean(parts: Sequence[tuple[Tensor, float]], like: Tensor) -> Tensor:
    if parts and all(torch.equal(values, parts[0][0]) for values, _ in parts):
        return parts[0][0].float()
    total = torch.zeros(tuple(like.shape), dtype=torch.float32)
    for values, share in parts:
        total = total + values.float() * share
    return total
