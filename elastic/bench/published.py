"""The yardstick: SparseLoCo in plain PyTorch, in the style of the code that trained Covenant-72B.

Written from its description, not from its source: top-k per chunk, two 12-bit indices in three bytes, 2-bit values in a
byte each, four bins per tensor, dense reconstruction at the sender, concatenation and scatter-mean at the receiver.
Left out to its advantage: its pickle container, and its optimizer step. Indices are unpacked twice, as there: once to
check what arrived, once to add it up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIDE = 64
"""Chunks are 64 × 64 tiles of matrices, 64 elements of vectors."""
KEPT = 64
DECAY = 0.95
BINS = 4
SIGMAS = 6.0


@dataclass(frozen=True, slots=True)
class Part:
    """What is sent of one tensor."""

    indices: Tensor
    """(C, KEPT · 3 / 2) uint8: two 12-bit numbers in three bytes."""
    codes: Tensor
    """(C, KEPT) uint8, below BINS."""
    shift: Tensor
    lookup: Tensor
    """(BINS,) fp32."""


def compress(delta: Mapping[str, Tensor], error: dict[str, Tensor]) -> dict[str, Part]:
    """e ← 0.95 e + Δ, its largest entries quantised and taken out of it, in place."""
    parts = {}
    for name, value in delta.items():
        error[name].mul_(DECAY).add_(value)
        chunks = to_chunks(error[name])
        indices = chunks.abs().topk(KEPT, dim=1, sorted=False).indices
        values = chunks.gather(1, indices)
        part = Part(pack12(indices), *quantise(values))
        sent = torch.zeros_like(chunks).scatter_(1, indices, dequantise(part))
        error[name].sub_(from_chunks(sent, value.shape))
        parts[name] = part
    return parts


def check(parts: Mapping[str, Part], like: Mapping[str, Tensor]) -> Mapping[str, Part]:
    """What a receiver looks at as a payload arrives: indices inside their chunks, finite levels."""
    for name, tensor in like.items():
        part = parts[name]
        if bool((unpack12(part.indices) >= chunk_size(tensor)).any()):
            raise ValueError("an index is outside its chunk")
        if not bool(torch.isfinite(part.shift) & torch.isfinite(part.lookup).all()):
            raise ValueError("levels are not finite")
    return parts


def aggregate(parts: Sequence[Mapping[str, Part]], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per coordinate the mean over the peers that sent it, each clipped down to the median norm."""
    updates = {}
    for name, tensor in like.items():
        mine = [part[name] for part in parts]
        indices = [unpack12(part.indices) for part in mine]
        values = [dequantise(part) for part in mine]
        norms = torch.stack([torch.linalg.vector_norm(each) for each in values])
        factors = (norms.median() / norms).clamp(max=1)
        clipped = [each * factor for each, factor in zip(values, factors, strict=True)]
        dense = values[0].new_zeros(len(mine[0].indices), chunk_size(tensor))
        dense.scatter_reduce_(1, torch.cat(indices, 1), torch.cat(clipped, 1), "mean", include_self=False)
        updates[name] = from_chunks(dense, tensor.shape)
    return updates


def size_bytes(parts: Mapping[str, Part]) -> int:
    """Bytes without any container."""
    return sum(part.indices.numel() + part.codes.numel() + 4 + 4 * BINS for part in parts.values())


def encode(parts: Mapping[str, Part]) -> list[bytes]:
    """The bytes themselves, in place of a container."""
    return [
        field.cpu().numpy().tobytes() for part in parts.values() for field in (part.indices, part.codes, part.lookup)
    ]


def chunk_size(tensor: Tensor) -> int:
    return SIDE * SIDE if tensor.ndim == 2 else SIDE


def to_chunks(tensor: Tensor) -> Tensor:
    """(C, S), a copy; sizes must be multiples of 64."""
    if tensor.ndim != 2:
        return tensor.reshape(-1, SIDE).clone()
    down, across = tensor.shape[0] // SIDE, tensor.shape[1] // SIDE
    return tensor.reshape(down, SIDE, across, SIDE).transpose(1, 2).reshape(down * across, SIDE * SIDE)


def from_chunks(chunks: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `to_chunks`, also a copy."""
    if len(shape) != 2:
        return chunks.reshape(tuple(shape))
    down, across = shape[0] // SIDE, shape[1] // SIDE
    return chunks.reshape(down, across, SIDE, SIDE).transpose(1, 2).reshape(tuple(shape))


def pack12(indices: Tensor) -> Tensor:
    """Two 12-bit numbers in three bytes."""
    first, second = indices[:, ::2], indices[:, 1::2]
    packed = torch.stack([first & 255, (first >> 8) | (second & 15) << 4, second >> 4], dim=2)
    return packed.reshape(len(indices), -1).to(torch.uint8)


def unpack12(packed: Tensor) -> Tensor:
    """The inverse of `pack12`, int64."""
    low, middle, high = packed.reshape(len(packed), -1, 3).to(torch.int64).unbind(2)
    return torch.stack([low | (middle & 15) << 8, middle >> 4 | high << 4], dim=2).reshape(len(packed), -1)


def quantise(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Four bins of 1.5 standard deviations around the mean, one table for the tensor: (codes, shift, lookup)."""
    shift = values.mean()
    centred = values - shift
    scale = (SIGMAS * centred.std() / BINS).clamp(min=1e-12)
    codes = (centred / scale + BINS // 2).round().clamp(0, BINS - 1).to(torch.uint8)
    flat = codes.reshape(-1).to(torch.int64)
    sums = centred.new_zeros(BINS).scatter_add_(0, flat, centred.reshape(-1))
    counts = torch.bincount(flat, minlength=BINS).clamp(min=1)
    return codes, shift, sums / counts


def dequantise(part: Part) -> Tensor:
    """(C, KEPT) fp32."""
    return part.lookup[part.codes.to(torch.int64)] + part.shift
