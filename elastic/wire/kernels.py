"""Reading sparse payloads, compiled: `packing.unpack` and what is done with its result, without the arrays between.

numba compiles these at their first call and keeps the result beside this file. Every function releases the GIL and
allocates nothing. Bytes come as `words`: little-endian uint64 with at least 16 bytes of zeros behind the last
(`as_words`). `table` is a tensor's blocks, int64, a row per block, columns as in `chunks.Block`.
"""

# C chunks, K kept entries of a chunk, P peers

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numba.cpython.unsafe.numbers import trailing_zeros

from elastic.wire.chunks import Array, Block

jit = njit(nogil=True, cache=True, error_model="numpy")

ENDS_EARLY, PADDING, OUTSIDE = -1, -2, -3
"""What `scan` returns for bytes that `pack` never writes."""
PROBLEMS = {
    ENDS_EARLY: "it ends early",
    PADDING: "padding bits are not zero",
    OUTSIDE: "an index is outside its chunk",
}

_ROW, _COL, _DOWN, _ACROSS, _HEIGHT, _WIDTH, _STRIDE, _KEPT, _RICE = range(len(Block._fields))
_SLAB = 64
"""Chunks of the sum that are worked on at a time: they stay in the cache while all peers are added."""


def as_words(parts: Sequence[Array]) -> tuple[Array, Array]:
    """Bytes (uint8) one after the other as words, and the byte at which each part starts: a multiple of 8."""
    starts = np.cumsum([0, *(len(part) // 8 + 3 for part in parts)])
    words = np.zeros(starts[-1], "<u8")
    for part, start in zip(parts, starts, strict=False):
        words[start:].view(np.uint8)[: len(part)] = part
    return words, starts[:-1] * 8


@jit
def _word(words, bit):
    """The 64 bits from `bit` on, lowest first, as one number."""
    place, shift = np.uint64(bit >> 6), np.uint64(bit & 63)  # unsigned: numba then looks for no negative index
    return words[place] >> shift | (words[place + np.uint64(1)] << np.uint64(1)) << (np.uint64(63) - shift)


@jit
def _next_one(words, bit, end):
    """Where the next one is, from `bit` on; `end` or more if there is none before it."""
    word = _word(words, bit)
    while word == 0:
        bit += 64
        if bit >= end:
            return end
        word = _word(words, bit)
    return bit + np.int64(trailing_zeros(word))


@jit
def _plain(bits, table):
    """(entries, bits of the stream whose number is fixed) of a tensor."""
    entries, plain = 0, 0
    for b in range(len(table)):
        count = table[b, _DOWN] * table[b, _ACROSS] * table[b, _KEPT]
        entries += count
        plain += count * (bits + table[b, _RICE])
    return entries, plain


@jit
def scan(words, start, stop, head, bits, table):
    """How many of the bytes from `start` on, before `stop`, are the tensor's, or why they are not; see `unpack`."""
    entries, plain = _plain(bits, table)
    if start + head + (plain + entries + 7) // 8 > stop:
        return ENDS_EARLY
    begin, end = (start + head) * 8, stop * 8
    remainder, one = begin + entries * bits, begin + plain
    for b in range(len(table)):
        size, kept, rice = table[b, _HEIGHT] * table[b, _WIDTH], table[b, _KEPT], table[b, _RICE]
        mask = np.uint64((1 << rice) - 1)
        for _ in range(table[b, _DOWN] * table[b, _ACROSS]):
            index = -1
            for _ in range(kept):
                found = _next_one(words, one, end)
                index += 1 + ((found - one) << rice) + np.int64(_word(words, remainder) & mask)
                one, remainder = found + 1, remainder + rice
            if one > end:
                return ENDS_EARLY
            if index >= size:
                return OUTSIDE
    used = (one + 7) // 8
    if _word(words, one) & np.uint64((1 << (used * 8 - one)) - 1):
        return PADDING
    return used - start


@jit
def energies(words, start, head, bits, table, levels, out):
    """‖D̂‖² of each chunk into `out`, fp64: n_low · low² + n_high · high².

    Args:
        start: byte at which the tensor's bytes start.
        levels: (256,) fp32, `packing.level_table` of the tensor.
        out: (C,) fp64.
    """
    chunk, code = 0, (start + head) * 8
    for b in range(len(table)):
        kept = table[b, _KEPT]
        for _ in range(table[b, _DOWN] * table[b, _ACROSS]):
            low, high = _levels(words, start, bits, chunk, levels)
            num_high = 0
            if bits == 2:
                for first in range(0, kept, 32):
                    chosen = _word(words, code + 2 * first) & np.uint64(0xAAAAAAAAAAAAAAAA)
                    if kept - first < 32:
                        chosen &= np.uint64((1 << (2 * (kept - first))) - 1)
                    while chosen:
                        num_high, chosen = num_high + 1, chosen & (chosen - np.uint64(1))
            code += bits * kept
            out[chunk] = (kept - num_high) * np.float64(low) ** 2 + num_high * np.float64(high) ** 2
            chunk += 1


@jit
def _levels(words, start, bits, chunk, levels):
    scales = _word(words, (start + 1 + chunk * bits) * 8)
    high = levels[scales & np.uint64(255)]
    if bits == 1:
        return high, high
    return high * (np.float32((scales >> np.uint64(8)) & np.uint64(255)) / np.float32(256)), high


@jit
def add(total, senders, words, starts, head, bits, table, levels, factors):
    """total += value · factor for every entry of every peer, in the peers' order; product and sum are each rounded.

    Args:
        total: the flat tensor, fp32.
        senders: as `total`; counts who sent a coordinate. Or empty: not counted.
        words: the tensor's bytes of all peers, each checked by `scan`.
        starts: (P,) byte at which each peer's start.
        head: bytes of the tensor before the bit stream.
        bits: per code.
        table: the tensor's blocks.
        levels: (P, 256) fp32, each peer's `packing.level_table`.
        factors: (P,) fp32.
    """
    entries, plain = _plain(bits, table)
    ones = (starts + head) * 8 + plain
    chunk, code, remainder = 0, head * 8, head * 8 + entries * bits
    for b in range(len(table)):
        kept, num_chunks = table[b, _KEPT], table[b, _DOWN] * table[b, _ACROSS]
        for first in range(0, num_chunks, _SLAB):
            last = min(first + _SLAB, num_chunks)
            for p in range(len(starts)):
                at = starts[p] * 8
                ones[p] = _add_chunks(
                    total, senders, words, starts[p], first, last, chunk - first, bits, table[b], levels[p],
                    factors[p], at + code, at + remainder, ones[p],
                )  # fmt: skip
            chunk += last - first
            code += (last - first) * kept * bits
            remainder += (last - first) * kept * table[b, _RICE]


@jit
def _add_chunks(total, senders, words, start, first, last, offset, bits, block, levels, factor, code, remainder, one):
    """Some chunks of one peer; returns where their ones end."""
    kept, width, stride, rice = block[_KEPT], block[_WIDTH], block[_STRIDE], block[_RICE]
    mask = np.uint64((1 << rice) - 1)
    end = words.size * 64
    for c in range(first, last):
        low, high = _levels(words, start, bits, offset + c, levels)
        low, high = low * factor, high * factor
        place = (block[_ROW] + c // block[_ACROSS] * block[_HEIGHT]) * stride
        place += block[_COL] + c % block[_ACROSS] * width - 1
        column = -1
        for _ in range(kept):
            found = _next_one(words, one, end)
            gap = 1 + ((found - one) << rice) + np.int64(_word(words, remainder) & mask)
            one, remainder = found + 1, remainder + rice
            place, column = place + gap, column + gap
            while column >= width:
                place, column = place + stride - width, column - width
            bit = _word(words, code)
            code += bits
            value = high if bits == 1 or bit & np.uint64(2) else low
            total[np.uint64(place)] += -value if bit & np.uint64(1) else value
            if senders.size:
                senders[np.uint64(place)] += np.float32(1)
    return one
