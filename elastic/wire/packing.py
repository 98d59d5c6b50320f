"""One tensor of a sparse payload as bytes, in numpy: the reference that `kernels` must match bit for bit.

    exponent u8 · scales: `bits` bytes per chunk · a bit stream, lowest bit first, zeros up to a whole byte

The bit stream is all codes (`bits` bits per entry: sign, then upper level), then all remainders, then all quotients.
An entry's place is its gap to the one before it in its chunk, Rice coded: the gap's low bits are the remainder, the
rest is that many zeros and a one (Golomb 1966, Rice 1979). At 64 of 4096 that is 7.5 bits where entropy allows 7.36,
and as each chunk has exactly K ones no length is sent. A full chunk is about 78 bytes: 60 + 16 + 2.

Scales: one byte is the upper level as a float of 4 exponent and 4 mantissa bits below the tensor's exponent, the
other is lower / upper in 256ths. Both decode to fp32 without rounding, on any machine.
"""

# C chunks, K kept entries of a chunk, N entries of a tensor

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from elastic.errors import MalformedError
from elastic.wire.chunks import Array, Block, Sparsity, blocks

MIN_EXPONENT = 20
"""Of a tensor that says anything, as in fp32 (biased by 127): below it upper levels would not be normal fp32."""
MAX_EXPONENT = 254
_SPAN = 15
"""Binades below the tensor's exponent that a scale reaches at full precision; below them it is subnormal."""


class Layout(NamedTuple):
    """What follows from shape and sparsity about a tensor's bytes."""

    blocks: tuple[Block, ...]
    num_chunks: int
    num_entries: int
    bits: int
    remainder_bits: int
    """Of all entries together."""
    max_quotient_bits: int
    """Of all entries together, at most."""

    @property
    def head(self) -> int:
        """Bytes before the bit stream."""
        return 1 + self.num_chunks * self.bits if self.num_chunks else 0

    @property
    def plain_bits(self) -> int:
        """Bits of the stream whose number is fixed."""
        return self.num_entries * self.bits + self.remainder_bits

    @property
    def min_bytes(self) -> int:
        return self.head + (self.plain_bits + self.num_entries + 7) // 8

    @property
    def max_bytes(self) -> int:
        return self.head + (self.plain_bits + self.max_quotient_bits + 7) // 8


@lru_cache(maxsize=4096)
def layout(shape: tuple[int, ...], sparsity: Sparsity) -> Layout:
    """Layout of a tensor of that shape."""
    cut = blocks(shape, sparsity)
    return Layout(
        blocks=cut,
        num_chunks=sum(block.num_chunks for block in cut),
        num_entries=sum(block.num_entries for block in cut),
        bits=sparsity.bits,
        remainder_bits=sum(block.num_entries * block.rice for block in cut),
        max_quotient_bits=sum(
            block.num_chunks * (block.kept + ((block.size - block.kept) >> block.rice)) for block in cut
        ),
    )


class Entries(NamedTuple):
    """What a tensor sends, unpacked."""

    indices: Sequence[Array]
    """For each block (C, K) int, places in the chunk, strictly increasing along K."""
    codes: Sequence[Array]
    """For each block (C, K) uint8: bit 0 is the sign (1 = negative), bit 1 chooses the upper level."""
    exponent: int
    """0 if all levels are 0, else biased by 127; no level is 2^(exponent − 126) or more."""
    scales: Array
    """(C of all blocks, bits) uint8."""


@lru_cache(maxsize=256)
def level_table(exponent: int) -> Array:
    """(256,) fp32: what the first scale byte of a chunk stands for. Products of an integer and a power of two."""
    code = np.arange(256, dtype=np.int64)
    if exponent == 0:
        return np.zeros(256, np.float32)
    steps = np.where(code < 16, code, 16 + code % 16).astype(np.float32)
    power = exponent - 4 - _SPAN + np.maximum(code >> 4, 1)
    table: Array = steps * (power.astype(np.uint32) << 23).view(np.float32)
    return table


def levels_of(scales: Array, exponent: int) -> Array:
    """(C, bits) scale bytes → (C, 2) fp32 levels, lower first; with one bit both are the same."""
    upper_C = level_table(exponent)[scales[:, 0]]
    if scales.shape[1] == 1:
        return np.stack([upper_C, upper_C], axis=1)
    return np.stack([upper_C * (scales[:, 1].astype(np.float32) / np.float32(256)), upper_C], axis=1)


def round_levels(levels_C2: Array, bits: int) -> tuple[int, Array]:
    """Levels, fp64, lower first → the tensor's exponent and the nearest scales, (C, bits) uint8."""
    upper_C = levels_C2[:, 1]
    _, exponents_C = np.frexp(upper_C)
    exponent = int(np.frexp(upper_C.max())[1]) + 126  # not the largest of the exponents: that of 0 is 0
    exponent = exponent if upper_C.any() else 0
    if exponent < MIN_EXPONENT:
        return 0, np.zeros((len(levels_C2), bits), np.uint8)
    exponent = min(exponent, MAX_EXPONENT)
    binade_C = np.where(upper_C > 0, np.clip(exponents_C + 126 - exponent + _SPAN, 1, _SPAN), 1)
    steps_C = np.rint(np.ldexp(upper_C, 127 + 4 + _SPAN - exponent - binade_C)).astype(np.int64)
    code_C = np.minimum(steps_C + (binade_C - 1) * 16, 255)
    if bits == 1:
        return exponent, code_C.astype(np.uint8)[:, None]
    stored_C = level_table(exponent)[code_C].astype(np.float64)
    ratio_C = np.divide(levels_C2[:, 0], stored_C, out=np.zeros(len(stored_C)), where=stored_C > 0)
    return exponent, np.stack([code_C, np.minimum(np.rint(ratio_C * 256), 255)], axis=1).astype(np.uint8)


def pack(entries: Entries, form: Layout) -> Array:
    """Entries → bytes."""
    if not form.num_chunks:
        return np.empty(0, np.uint8)
    codes, remainders, quotients = [], [], []
    for block, indices_CK, codes_CK in zip(form.blocks, entries.indices, entries.codes, strict=True):
        gaps_N: Array = (np.diff(indices_CK.astype(np.int64), axis=1, prepend=-1) - 1).reshape(-1)
        codes.append(_to_bits(codes_CK.reshape(-1), form.bits))
        remainders.append(_to_bits(gaps_N & ((1 << block.rice) - 1), block.rice))
        quotients.append(gaps_N >> block.rice)
    ends_N = np.cumsum(np.concatenate(quotients) + 1)
    unary = np.zeros(ends_N[-1], np.uint8)
    unary[ends_N - 1] = 1
    stream = np.packbits(np.concatenate([*codes, *remainders, unary]), bitorder="little")
    return np.concatenate([np.array([entries.exponent], np.uint8), entries.scales.reshape(-1), stream])


def unpack(data: Array, form: Layout) -> tuple[Entries, int]:
    """Bytes from anyone → entries, and how many of the bytes they were; the strict inverse of `pack`.

    Args:
        data: uint8, the tensor's bytes and whatever follows them.

    Raises:
        MalformedError: any deviation. Nothing larger than the model allows is allocated before it is found.
    """
    if not form.num_chunks:
        return Entries([], [], 0, np.empty((0, form.bits), np.uint8)), 0
    if len(data) < form.min_bytes:
        raise MalformedError("it ends early")
    scales = data[1 : form.head].reshape(form.num_chunks, form.bits)
    check_scales(int(data[0]), scales)
    bits = np.unpackbits(data[form.head : form.max_bytes], bitorder="little")
    ends_N = np.flatnonzero(bits[form.plain_bits :])[: form.num_entries] + 1
    if len(ends_N) < form.num_entries:
        raise MalformedError("it ends early")
    last = form.plain_bits + int(ends_N[-1])
    used = form.head + (last + 7) // 8
    if bits[last : (used - form.head) * 8].any():
        raise MalformedError("padding bits are not zero")
    quotients_N = np.diff(ends_N, prepend=0) - 1
    indices, codes, start, remainder = [], [], 0, form.num_entries * form.bits
    for block in form.blocks:
        stop, after = start + block.num_entries, remainder + block.num_entries * block.rice
        codes.append(_from_bits(bits[start * form.bits : stop * form.bits], form.bits).astype(np.uint8))
        gaps_N = quotients_N[start:stop] << block.rice | _from_bits(bits[remainder:after], block.rice, stop - start)
        indices_CK = np.cumsum(gaps_N.reshape(-1, block.kept) + 1, axis=1) - 1
        if (indices_CK[:, -1] >= block.size).any():
            raise MalformedError("an index is outside its chunk")
        indices.append(indices_CK)
        start, remainder = stop, after
    shaped = [code.reshape(-1, block.kept) for code, block in zip(codes, form.blocks, strict=True)]
    return Entries(indices, shaped, int(data[0]), scales), used


def check_scales(exponent: int, scales: Array) -> None:
    """Raises MalformedError unless some tensor has these."""
    if exponent > MAX_EXPONENT or 0 < exponent < MIN_EXPONENT:
        raise MalformedError(f"exponent {exponent} is out of range")
    if exponent == 0 and scales.any():
        raise MalformedError("scales without an exponent")


def _to_bits(numbers_N: Array, width: int) -> Array:
    """Numbers below 2^16 → N · width bits, lowest first."""
    bits = (numbers_N.astype(np.uint16)[:, None] >> np.arange(width, dtype=np.uint16)) & 1
    return bits.astype(np.uint8).reshape(-1)


def _from_bits(bits: Array, width: int, count: int = -1) -> Array:
    """The inverse of `_to_bits`, int64; the count is needed where the width is 0."""
    weights = np.int64(1) << np.arange(width, dtype=np.int64)
    numbers_N: Array = bits.reshape(count, width).astype(np.int64) @ weights
    return numbers_N
