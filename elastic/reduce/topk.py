"""The sender's half of SparseLoCo in torch, on any device: the reference for `kernels`, and what runs on a GPU."""

# C chunks, S elements of a chunk, K kept entries of a chunk, G groups of neighbouring elements, M most candidates

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from elastic.wire.packing import Entries, Layout, levels_of, round_levels

if TYPE_CHECKING:
    from torch import Tensor

    from elastic.wire.chunks import Array, Block

GROUP = 16
"""Elements whose maximum is looked at first: few chunks have two of their largest entries in one group."""


def extract(error: Tensor, form: Layout) -> Entries:
    """Take the largest entries out of e, in place: what the tensor sends.

    Args:
        error: e, contiguous, fp32, finite; on return e − D̂.
        form: layout of the tensor.
    """
    if not form.num_chunks:
        return Entries([], [], 0, np.empty((0, form.bits), np.uint8))
    flat = error.reshape(-1)
    picked = [_pick(flat, block) for block in form.blocks]
    levels_C2 = np.concatenate([split_levels(np.abs(values_CK), form.bits) for _, values_CK in picked])
    exponent, scales = round_levels(levels_C2, form.bits)
    stored_C2 = levels_of(scales, exponent)
    codes, start = [], 0
    for block, (indices_CK, values_CK) in zip(form.blocks, picked, strict=True):
        stored = stored_C2[start : start + block.num_chunks]
        codes.append(choose(values_CK, stored, form.bits))
        places = torch.from_numpy(block.positions(indices_CK).reshape(-1)).to(flat.device)
        left = values_CK - values_of(codes[-1], stored)
        flat[places] = torch.from_numpy(left.reshape(-1)).to(flat.device)
        start += block.num_chunks
    return Entries([indices for indices, _ in picked], codes, exponent, scales)


def _pick(flat: Tensor, block: Block) -> tuple[Array, Array]:
    """Places in each chunk of its largest entries, increasing, and their values: (C, K) each."""
    chunks_CS = block.grid(flat).transpose(1, 2).reshape(block.num_chunks, block.size)
    indices_CK = select(chunks_CS.abs(), block.kept)
    values_CK = chunks_CS.gather(1, indices_CK)
    return indices_CK.cpu().numpy(), values_CK.cpu().numpy()


def select(magnitudes_CS: Tensor, kept: int) -> Tensor:
    """Places of the largest magnitudes of each chunk: (C, kept) int64, increasing; of equals the first.

    The kept-th largest of the groups' maxima bounds the threshold from below, so one pass over the elements leaves
    few candidates to sort.
    """
    num_chunks, size = magnitudes_CS.shape
    floor_C1 = magnitudes_CS.new_full((num_chunks, 1), -1.0)
    if size % GROUP == 0 and size // GROUP >= kept:
        maxima_CG = magnitudes_CS.reshape(num_chunks, -1, GROUP).amax(-1)
        floor_C1 = maxima_CG.topk(kept, dim=1).values[:, -1:]
    chunk_N, place_N = (magnitudes_CS >= floor_C1).nonzero(as_tuple=True)
    counts_C = torch.bincount(chunk_N, minlength=num_chunks)
    column_N = torch.arange(len(chunk_N), device=chunk_N.device) - (counts_C.cumsum(0) - counts_C)[chunk_N]
    candidates_CM = magnitudes_CS.new_full((num_chunks, int(counts_C.max())), -1.0)
    candidates_CM[chunk_N, column_N] = magnitudes_CS[chunk_N, place_N]
    places_CM = torch.zeros_like(candidates_CM, dtype=torch.int64)
    places_CM[chunk_N, column_N] = place_N
    best_CK = candidates_CM.sort(dim=1, descending=True, stable=True).indices[:, :kept]
    return places_CM.gather(1, best_CK).sort(dim=1).values


def split_levels(magnitudes_CK: Array, bits: int) -> Array:
    """The two levels with the least squared error per chunk: (C, 2) fp64, lower first. With one bit, their mean twice.

    Exact 2-means in one dimension: sorted magnitudes split at each rank s, levels are the means of both
    sides, and Σ_low² / s + Σ_high² / (K − s) is to be as large as possible; prefix sums give it for all s at
    once. With s = K there is one level.
    """
    low_sum_CK = np.cumsum(np.sort(magnitudes_CK, axis=1), axis=1, dtype=np.float64)
    num_kept = magnitudes_CK.shape[1]
    if bits == 1:
        return np.repeat(low_sum_CK[:, -1:] / num_kept, 2, axis=1)
    high_sum_CK = low_sum_CK[:, -1:] - low_sum_CK
    low_count_K = np.arange(1, num_kept + 1)
    high_count_K = np.maximum(num_kept - low_count_K, 1)
    gain_CK = low_sum_CK * low_sum_CK / low_count_K + high_sum_CK * high_sum_CK / high_count_K
    best_C1 = np.argmax(gain_CK, axis=1)[:, None]
    low_C1 = np.take_along_axis(low_sum_CK / low_count_K, best_C1, axis=1)
    high_C1 = np.take_along_axis(high_sum_CK / high_count_K, best_C1, axis=1)
    return np.hstack([low_C1, np.maximum(low_C1, high_C1)])


def choose(values_CK: Array, levels_C2: Array, bits: int) -> Array:
    """Codes (C, K) uint8: the sign, and of the stored levels the nearer one; it is always nearer than the other was."""
    codes_CK: Array = (values_CK < 0).astype(np.uint8)
    if bits == 2:
        magnitudes_CK = np.abs(values_CK)
        upper_CK = magnitudes_CK - levels_C2[:, :1] > levels_C2[:, 1:] - magnitudes_CK
        codes_CK |= upper_CK.astype(np.uint8) << 1
    return codes_CK


def values_of(codes_CK: Array, levels_C2: Array) -> Array:
    """What entries stand for (C, K), fp32. With one bit both levels are the same."""
    magnitudes_CK = np.where(codes_CK & 2, levels_C2[:, 1:], levels_C2[:, :1])
    return np.where(codes_CK & 1, -magnitudes_CK, magnitudes_CK)


def entries_of(entries: Entries, form: Layout) -> tuple[Array, Array]:
    """Places in the flat tensor (int64) and values (fp32) of all entries sent."""
    positions, values, start = [np.empty(0, np.int64)], [np.empty(0, np.float32)], 0
    stored_C2 = levels_of(entries.scales, entries.exponent)
    for block, indices_CK, codes_CK in zip(form.blocks, entries.indices, entries.codes, strict=True):
        positions.append(block.positions(indices_CK).reshape(-1))
        values.append(values_of(codes_CK, stored_C2[start : start + block.num_chunks]).reshape(-1))
        start += block.num_chunks
    return np.concatenate(positions), np.concatenate(values)


def energy(entries: Entries) -> float:
    """‖D̂‖² of one tensor, fp64, the same on every machine.

    Per chunk n_low·low² + n_high·high², of which each product is exact; the chunks are added up one after the other,
    because any other order would round differently.
    """
    squares_C2 = levels_of(entries.scales, entries.exponent).astype(np.float64) ** 2
    energies, start = [np.zeros(1)], 0
    for codes_CK in entries.codes:
        low_C, high_C = squares_C2[start : start + len(codes_CK)].T
        num_high_C = np.count_nonzero(codes_CK & 2, axis=1)
        energies.append((codes_CK.shape[1] - num_high_C) * low_C + num_high_C * high_C)
        start += len(codes_CK)
    return float(np.cumsum(np.concatenate(energies))[-1])  # `sum` would add in another order
