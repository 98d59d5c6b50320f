"""SparseLoCo: the k largest entries of every chunk, two bits each, with error feedback.

Sources: SparseLoCo (arXiv 2508.15706), Covenant-72B (arXiv 2603.08163). Where we differ from that run: two
magnitude levels per chunk, chosen optimally (there: one table per tensor), and a mean over all peers by share
(there: over the peers that sent the coordinate; here that is `rule = "senders"`).

Everything a peer must reproduce bit for bit (`decompress`, `aggregate`) is single element-wise fp32
operations in numpy, in PeerId order, and norms by exactly rounded sums: neither the number of threads nor the
CPU shows.
"""

# C chunks, S chunk size, K kept entries of a chunk, N entries sent of a tensor

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator

from elastic.config import Section
from elastic.errors import DivergedError
from elastic.wire import codec
from elastic.wire.chunks import Array, Block, Density, Rows, blocks, cut_rows, from_fields, to_fields, widen

if TYPE_CHECKING:
    from torch import Tensor

    from elastic.contracts import Payload, Tensors

BFLOAT16_MAX = float(torch.finfo(torch.bfloat16).max)
"""A level beyond this would round to infinity, which everyone refuses; the rest stays in the residual."""


SLAB_CHUNKS = 256
"""Chunks compressed at a time: 4 MiB of magnitudes stay near the processor, a huge tensor needs no copy."""


class SparseLoCo:
    """Top-k per chunk, a sign and a magnitude bit per entry, two levels per chunk: 0.02 bytes a parameter."""

    averages = False

    class Config(Section):
        """Settings of the `sparseloco` reducer; the same on every peer."""

        chunk: Annotated[int, Field(ge=16, le=65536)] = 4096
        """Elements per chunk. A square number cuts matrices into square tiles, any other into runs."""
        k: Annotated[int, Field(ge=1, le=65536, validate_default=True)] = 64
        """Entries kept of a full chunk, at most `chunk`; smaller chunks keep the same proportion."""
        beta: Annotated[float, Field(ge=0, le=1)] = 0.95
        """Decay of the residual per round; 1 forgets nothing, 0 turns error feedback off."""
        rule: Literal["mean", "senders"] = "mean"
        """"mean": Σ share · D̂. "senders": per coordinate, the plain mean over the peers that sent it."""

        @field_validator("k")
        @classmethod
        def _fits_chunk(cls, k: int, info: ValidationInfo) -> int:
            chunk = info.data.get("chunk")
            if chunk is not None and k > chunk:
                raise ValueError(f"k is at most chunk = {chunk}")
            return k

    def __init__(self, config: Config) -> None:
        self.config = config
        self.density = Density(config.chunk, config.k)

    def compress(self, pseudo_gradient: Tensors, residual: Tensors) -> tuple[Payload, dict[str, Tensor]]:
        """e = β·residual + Δ → what is sent of e, and e − D̂.

        Args:
            pseudo_gradient: Δ, name → any shape, on any device.
            residual: e of the round before; a missing name counts as zeros. Neither argument is changed.

        Returns:
            The payload, and fp32 residuals on the CPU; `decompress(payload)` + residual is e, to rounding.

        Raises:
            DivergedError: e has entries that are not finite.
        """
        payload, left = {}, {}
        for name in sorted(pseudo_gradient):
            error = _fold_in(pseudo_gradient[name], residual.get(name), self.config.beta)
            if not np.isfinite(error).all():
                raise DivergedError(f"pseudo-gradient of {name} is not finite: the inner steps diverged")
            payload[name] = self._extract(error)
            left[name] = torch.from_numpy(error)
        return payload, left

    def _extract(self, error: Array) -> dict[str, Tensor]:
        """Takes the largest entries out of e (in place): the tensor's part of the payload."""
        flat = error.reshape(-1)
        parts = []
        layout = blocks(error.shape, self.density.chunk)
        for block in itertools.chain.from_iterable(block.slabs(SLAB_CHUNKS) for block in layout):
            magnitudes_CS = np.empty((block.num_chunks, block.size), np.float32)
            grid = block.grid(flat)
            np.abs(grid, out=magnitudes_CS.reshape(grid.shape))
            indices_CK = select(magnitudes_CS, self.density.kept(block.size))
            positions_CK = block.positions(indices_CK)
            rows = quantise(indices_CK, flat[positions_CK])
            flat[positions_CK] -= rows.values()
            parts.append(rows)
        return to_fields(parts)

    def decompress(self, payload: Payload, like: Tensors) -> dict[str, Tensor]:
        """D̂, dense fp32: zeros but for the entries sent."""
        return {name: self._fill(payload[name], tuple(like[name].shape)) for name in like}

    def _fill(self, fields: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        dense = np.zeros(math.prod(shape), np.float32)
        positions_N, values_N = entries(fields, shape, self.density)
        dense[positions_N] = values_N
        return torch.from_numpy(dense).reshape(shape)

    def aggregate(self, parts: Sequence[tuple[Payload, float]], like: Tensors) -> dict[str, Tensor]:
        """One dense fp32 update from (payload, share) in PeerId order, by the configured rule.

        Each tensor of each peer is first clipped down to the median over peers of that tensor's norm. Then,
        peer by peer, value · fp32(factor) is rounded and added to the sum: a payload has no coordinate twice,
        so the order inside a peer cannot matter. No parts: zeros. The rule "senders" ignores shares, as that
        run did: it divides a coordinate's sum by how many sent it.
        """
        return {
            name: self._aggregate([(payload[name], share) for payload, share in parts], tuple(like[name].shape))
            for name in like
        }

    def _aggregate(self, parts: Sequence[tuple[Mapping[str, Tensor], float]], shape: tuple[int, ...]) -> Tensor:
        clips = clip_factors([norm(fields) for fields, _ in parts])
        by_share = self.config.rule == "mean"
        total = np.zeros(math.prod(shape), np.float32)
        senders = np.zeros(0 if by_share else total.size, np.float32)
        for (fields, share), clip in zip(parts, clips, strict=True):
            positions_N, values_N = entries(fields, shape, self.density)
            scaled_N = values_N * np.float32(share * clip if by_share else clip)
            total[positions_N] += scaled_N
            if not by_share:
                senders[positions_N] += 1
        if not by_share:
            total /= np.maximum(senders, 1)
        return torch.from_numpy(total).reshape(shape)

    def encode(self, payload: Payload) -> bytes:
        return codec.encode(payload, self.density)

    def decode(self, data: bytes, like: Tensors) -> Payload:
        """Strict inverse of `encode`; `like` may hold meta tensors.

        Raises:
            MalformedError: any deviation, other settings of chunk and k included.
        """
        return codec.decode(data, like, self.density)

    def max_bytes(self, like: Mapping[str, Any]) -> int:
        """Every payload has exactly this length."""
        return codec.size_bytes(like, self.density)


def _fold_in(delta: Tensor, residual: Tensor | None, beta: float) -> Array:
    """β·residual + Δ as a fresh contiguous fp32 array; product and sum are rounded separately."""
    error = np.zeros(tuple(delta.shape), np.float32)
    if residual is not None:
        np.multiply(_to_numpy(residual), np.float32(beta), out=error)
    error += _to_numpy(delta)
    return error


def _to_numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().to("cpu", torch.float32).numpy()
    return array


def select(magnitudes_CS: Array, kept: int) -> Array:
    """Places of the largest magnitudes of each chunk: (C, kept) int32, increasing; of equals the first.

    Args:
        magnitudes_CS: fp32, finite, no negative zeros: their bits then sort as they do, and quicker.
    """
    bits_CS = magnitudes_CS.view(np.uint32)
    size = bits_CS.shape[1]
    threshold_C1 = np.partition(bits_CS, size - kept, axis=1)[:, size - kept, None]
    chosen_CS = bits_CS >= threshold_C1
    tied_C = np.flatnonzero(np.count_nonzero(chosen_CS, axis=1) > kept)
    if tied_C.size:
        chosen_CS[tied_C] = _first_of_equals(bits_CS[tied_C], threshold_C1[tied_C], kept)
    places_CK: Array = (np.flatnonzero(chosen_CS) % size).astype(np.int32).reshape(-1, kept)
    return places_CK


def _first_of_equals(bits_CS: Array, threshold_C1: Array, kept: int) -> Array:
    above_CS, equal_CS = bits_CS > threshold_C1, bits_CS == threshold_C1
    room_C1 = kept - np.count_nonzero(above_CS, axis=1, keepdims=True)
    chosen_CS: Array = above_CS | (equal_CS & (np.cumsum(equal_CS, axis=1) <= room_C1))
    return chosen_CS


def quantise(indices_CK: Array, values_CK: Array) -> Rows:
    """Signs, two magnitude levels per chunk, and for each entry the nearer level.

    The levels are those of the best split (`split_levels`), rounded to bfloat16; choosing the nearer
    *rounded* level afterwards can only bring entries closer.
    """
    magnitudes_CK = np.abs(values_CK)
    levels_C2 = np.minimum(split_levels(magnitudes_CK), BFLOAT16_MAX).astype(np.float32)
    bits_C2 = torch.from_numpy(levels_C2).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    stored_C2 = widen(bits_C2)
    upper_CK = magnitudes_CK - stored_C2[:, :1] > stored_C2[:, 1:] - magnitudes_CK
    codes_CK = upper_CK.astype(np.uint8) | (values_CK < 0).astype(np.uint8) << 1
    return Rows(indices_CK, codes_CK, bits_C2)


def split_levels(magnitudes_CK: Array) -> Array:
    """The two levels with the least squared error per chunk: (C, 2) fp64, lower first.

    Exact 2-means in one dimension: sorted magnitudes split at each rank s, levels are the means of both
    sides, and Σ_low² / s + Σ_high² / (K − s) is to be as large as possible; prefix sums give it for all s at
    once. With s = K there is one level.
    """
    sorted_CK = np.sort(magnitudes_CK, axis=1).astype(np.float64)
    low_sum_CK = np.cumsum(sorted_CK, axis=1)
    high_sum_CK = low_sum_CK[:, -1:] - low_sum_CK
    low_count_K = np.arange(1, sorted_CK.shape[1] + 1)
    high_count_K = np.maximum(low_count_K[::-1] - 1, 1)
    gain_CK = low_sum_CK**2 / low_count_K + high_sum_CK**2 / high_count_K
    best_C1 = np.argmax(gain_CK, axis=1)[:, None]
    low_C1 = np.take_along_axis(low_sum_CK / low_count_K, best_C1, axis=1)
    high_C1 = np.take_along_axis(high_sum_CK / high_count_K, best_C1, axis=1)
    return np.hstack([low_C1, np.maximum(low_C1, high_C1)])


def entries(fields: Mapping[str, Tensor], shape: tuple[int, ...], density: Density) -> tuple[Array, Array]:
    """Places in the flat tensor (int64) and values (fp32) of all entries sent."""
    found = [(block.positions(rows.indices_CK), rows.values()) for block, rows in _by_block(fields, shape, density)]
    positions_N = np.concatenate([positions.reshape(-1) for positions, _ in found] or [np.empty(0, np.int64)])
    values_N = np.concatenate([values.reshape(-1) for _, values in found] or [np.empty(0, np.float32)])
    return positions_N, values_N


def _by_block(fields: Mapping[str, Tensor], shape: tuple[int, ...], density: Density) -> Iterator[tuple[Block, Rows]]:
    rows, start = from_fields(fields), 0
    for block in blocks(shape, density.chunk):
        stop = start + block.num_chunks
        yield block, cut_rows(rows, start, stop, density.kept(block.size))
        start = stop


def norm(fields: Mapping[str, Tensor]) -> float:
    """‖D̂‖ of one tensor, fp64, the same on every machine.

    Per chunk n_low·low² + n_high·high², then `math.fsum` over the chunks: that sum is exactly rounded, so no
    order and no instruction set can show in it.
    """
    rows = from_fields(fields)
    num_high_C = np.count_nonzero(rows.codes_CK & 1, axis=1)
    num_low_C = np.count_nonzero(rows.indices_CK >= 0, axis=1) - num_high_C
    squares_C2 = widen(rows.levels_C2).astype(np.float64) ** 2
    energy_C = num_low_C * squares_C2[:, 0] + num_high_C * squares_C2[:, 1]
    return math.sqrt(math.fsum(energy_C.tolist()))


def clip_factors(norms: Sequence[float]) -> list[float]:
    """min(1, median / norm) for each peer; of an even number the median is the mean of the middle two."""
    median = statistics.median(norms) if norms else 0.0
    return [min(1.0, median / peer_norm) if peer_norm > 0 else 1.0 for peer_norm in norms]
