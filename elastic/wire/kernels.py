"""Reading sparse payloads, compiled: `packing.unpack` and what is done with its result, without the arrays between.

No function allocates more than a chunk's places. There are no bounds checks: what `scan` has not accepted, with the
same shape and sparsity, must not be added. Bytes come as `words`: little-endian uint64 with at least 16 bytes of zeros
behind the last (`as_words`). `table` is a tensor's blocks, int64, a row per block, columns as in `chunks.Block`.
"""

# C chunks, K kept entries of a chunk, P peers

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros

from elastic.wire.chunks import Array, Block
from elastic.wire.compiled import jit
from elastic.wire.packing import Layout

ENDS_EARLY, PADDING, OUTSIDE = -1, -2, -3
"""What `scan` returns for bytes that `pack` never writes."""
PROBLEMS = {
    ENDS_EARLY: "it ends early",
    PADDING: "padding bits are not zero",
    OUTSIDE: "an index is outside its chunk",
}

ROW, COL, DOWN, ACROSS, HEIGHT, WIDTH, STRIDE, KEPT, RICE = range(len(Block._fields))
_ZEROS = np.zeros(24, np.uint8)
_SLAB = 64
"""Chunks of the sum that are worked on at a time: they stay in the cache while all peers are added."""


def as_words(parts: Sequence[Array]) -> tuple[Array, Array]:
    """Bytes (uint8) one after the other as words, and the byte at which each part starts: a multiple of 8."""
    padded = [piece for part in parts for piece in (part, _ZEROS[: 24 - len(part) % 8])]
    starts = np.array([0, *accumulate(len(part) // 8 * 8 + 24 for part in parts[:-1])], np.int64)
    return np.concatenate(padded).view("<u8"), starts


@lru_cache(maxsize=4096)
def table_of(form: Layout) -> Array:
    """A tensor's blocks as an array."""
    return np.array(form.blocks, np.int64).reshape(-1, len(Block._fields))


@jit
def _word(words, bit):
    """The 64 bits from `bit` on, lowest first, as one number."""
    place, shift = np.uint64(bit >> 6), np.uint64(bit & 63)  # unsigned: numba then looks for no negative index
    return words[place] >> shift | (words[place + np.uint64(1)] << np.uint64(1)) << (np.uint64(63) - shift)


@jit
def _gaps(words, remainder, one, end, kept, rice, gaps):
    """The `kept` gaps of one chunk, each with the one behind it, into `gaps`; returns where their ones end.

    Beyond `end` there is nothing to be read; what is returned is then larger, and the gaps mean nothing.
    """
    unary, left = _word(words, one), 64
    each, plain, mask = 64 // max(rice, 1), np.uint64(0), np.uint64((1 << rice) - 1)
    fresh = 0
    for i in range(kept):
        zeros = 0
        while unary == 0:
            zeros, one = zeros + left, one + left
            if one >= end:
                return end + 1
            unary, left = _word(words, one), 64
        run = np.uint64(trailing_zeros(unary))
        unary = unary >> run >> np.uint64(1)
        zeros += int(run)
        one, left = one + int(run) + 1, left - int(run) - 1
        if fresh == 0:
            plain, fresh = _word(words, remainder), each
            remainder += each * rice
        gaps[i] = 1 + (zeros << rice) + np.int64(plain & mask)
        plain, fresh = plain >> np.uint64(rice), fresh - 1
    return one


@jit
def shift_of(width):
    """log2 of a power of two, else −1: dividing by what is only known later is slow."""
    shift = 0
    while 1 << shift < width:
        shift += 1
    return shift if 1 << shift == width else -1


@jit
def _plain(bits, table):
    """(entries, bits of the stream whose number is fixed) of a tensor."""
    entries, plain = 0, 0
    for b in range(len(table)):
        count = table[b, DOWN] * table[b, ACROSS] * table[b, KEPT]
        entries += count
        plain += count * (bits + table[b, RICE])
    return entries, plain


@jit
def scan(words, start, stop, head, bits, table):
    """How many of the bytes from `start` on, before `stop`, are the tensor's, or why they are not; see `unpack`."""
    entries, plain = _plain(bits, table)
    if start + head + (plain + entries + 7) // 8 > stop:
        return ENDS_EARLY
    begin, end = (start + head) * 8, stop * 8
    remainder, one = begin + entries * bits, begin + plain
    gaps = np.empty(_most(table), np.int64)
    for b in range(len(table)):
        size, kept, rice = table[b, HEIGHT] * table[b, WIDTH], table[b, KEPT], table[b, RICE]
        for _ in range(table[b, DOWN] * table[b, ACROSS]):
            one = _gaps(words, remainder, one, end, kept, rice, gaps)
            remainder += kept * rice
            if one > end:
                return ENDS_EARLY
            last = -1
            for i in range(kept):
                last += gaps[i]
            if last >= size:
                return OUTSIDE
    used = (one + 7) // 8
    if _word(words, one) & np.uint64((1 << (used * 8 - one)) - 1):
        return PADDING
    return used - start


@jit
def energies(words, starts, head, bits, table, levels, out):
    """‖D̂‖² of each peer: chunk by chunk n_low · low² + n_high · high², added up in order in fp64; see `topk.energy`.

    Args:
        words: see above.
        starts: (P,) byte at which each peer's bytes start.
        head: bytes of the tensor before the bit stream.
        bits: per code.
        table: the tensor's blocks.
        levels: (P, 256) fp32, each peer's `packing.level_table`.
        out: (P,) fp64, written.
    """
    for p in range(len(starts)):
        chunk, code, total = 0, (starts[p] + head) * 8, 0.0
        for b in range(len(table)):
            kept = table[b, KEPT]
            for _ in range(table[b, DOWN] * table[b, ACROSS]):
                low, high = _levels(words, starts[p], bits, chunk, levels[p])
                num_high = 0
                if bits == 2:
                    for first in range(0, kept, 32):
                        chosen = _word(words, code + 2 * first) & np.uint64(0xAAAAAAAAAAAAAAAA)
                        if kept - first < 32:
                            chosen &= np.uint64((1 << (2 * (kept - first))) - 1)
                        num_high += _count(chosen)
                code += bits * kept
                total += (kept - num_high) * np.float64(low) ** 2 + num_high * np.float64(high) ** 2
                chunk += 1
        out[p] = total


@jit
def _count(word):
    """How many ones a word has."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@jit
def _most(table):
    """Most entries of a chunk."""
    most = 1
    for b in range(len(table)):
        most = max(most, table[b, KEPT])
    return most


@jit
def _levels(words, start, bits, chunk, levels):
    scales = _word(words, (start + 1 + chunk * bits) * 8)
    high = levels[scales & np.uint64(255)]
    if bits == 1:
        return high, high
    return high * (np.float32((scales >> np.uint64(8)) & np.uint64(255)) / np.float32(256)), high


def slabs(words: Array, starts: Array, form: Layout, num: int) -> list[tuple[Array, Array]]:
    """A tensor cut for `num` threads: `chunks` and `ones` of each slab, as `add` takes them."""
    num = max(1, min(num, form.num_chunks // _SLAB))
    edges = np.array([form.num_chunks * i // num for i in range(num + 1)], np.int64)
    ones = np.empty((num + 1, len(starts)), np.int64)
    _seek(words, starts, form.head, form.bits, table_of(form), edges, ones)
    return [(edges[i : i + 2], ones[i]) for i in range(num)]


@jit
def _seek(words, starts, head, bits, table, edges, ones):
    """Of each of these chunks, and of each peer, where its ones start: so many ones behind the tensor's first."""
    _, plain = _plain(bits, table)
    for p in range(len(starts)):
        ones[0, p] = (starts[p] + head) * 8 + plain
        for edge in range(1, len(edges) - 1):
            missing, chunk = 0, 0
            for b in range(len(table)):
                num_chunks = table[b, DOWN] * table[b, ACROSS]
                here = min(max(edges[edge] - chunk, 0), num_chunks) - min(max(edges[edge - 1] - chunk, 0), num_chunks)
                missing, chunk = missing + here * table[b, KEPT], chunk + num_chunks
            ones[edge, p] = _skip(words, ones[edge - 1, p], missing)


@jit
def _skip(words, bit, missing):
    """Behind so many ones."""
    word, left = _word(words, bit), 64
    here = _count(word)
    while here < missing:
        missing, bit = missing - here, bit + left
        word, left = _word(words, bit), 64
        here = _count(word)
    for _ in range(missing):
        run = np.uint64(trailing_zeros(word))
        word = word >> run >> np.uint64(1)
        bit += int(run) + 1
    return bit


@jit
def add(total, senders, words, starts, chunks, ones, head, bits, table, levels, factors):
    """total = Σ value · factor over every entry of every peer, in the peers' order; product and sum are each rounded.

    Args:
        total: the flat tensor, fp32; written, whatever it was.
        senders: as `total`, zeros; counts who sent a coordinate. Or empty: not counted.
        words: the tensor's bytes of all peers, each checked by `scan`.
        starts: (P,) byte at which each peer's start.
        chunks: the first chunk, and the one behind the last.
        ones: (P,) where each peer's ones of the first chunk start; changed.
        head: bytes of the tensor before the bit stream.
        bits: per code.
        table: the tensor's blocks.
        levels: (P, 256) fp32, each peer's `packing.level_table`.
        factors: (P,) fp32.
    """
    entries, _ = _plain(bits, table)
    gaps = np.empty(_most(table), np.int64)
    chunk, code, remainder = 0, head * 8, head * 8 + entries * bits
    for b in range(len(table)):
        kept, num_chunks = table[b, KEPT], table[b, DOWN] * table[b, ACROSS]
        begin, end = max(chunks[0] - chunk, 0), min(chunks[1] - chunk, num_chunks)
        for first in range(begin, end, _SLAB):
            last, done = min(first + _SLAB, end), first * kept
            _clear(total, table[b], first, last)
            for p in range(len(starts)):
                at = starts[p] * 8
                ones[p] = _add_chunks(
                    total, senders, words, starts[p], first, last, chunk, bits, table[b], levels[p],
                    factors[p], at + code + done * bits, at + remainder + done * table[b, RICE], ones[p], gaps,
                )  # fmt: skip
        chunk += num_chunks
        code += num_chunks * kept * bits
        remainder += num_chunks * kept * table[b, RICE]


@jit
def _clear(total, block, first, last):
    """Zeros where these chunks are, just before they are needed: memory is passed over once."""
    width, stride = block[WIDTH], block[STRIDE]
    for c in range(first, last):
        corner = (block[ROW] + c // block[ACROSS] * block[HEIGHT]) * stride
        corner += block[COL] + c % block[ACROSS] * width
        for row in range(block[HEIGHT]):
            total[corner + row * stride : corner + row * stride + width] = 0


@jit
def _add_chunks(
    total, senders, words, start, first, last, offset, bits, block, levels, factor, code, remainder, one, gaps
):
    """Some chunks of one peer; returns where their ones end."""
    kept, width, stride, rice = block[KEPT], block[WIDTH], block[STRIDE], block[RICE]
    end, values, shift = words.size * 64, np.empty(4, np.float32), shift_of(width)
    for c in range(first, last):
        low, high = _levels(words, start, bits, offset + c, levels)
        low, high = low * factor, high * factor
        values[0], values[1], values[2], values[3] = low, -low, high, -high
        corner = (block[ROW] + c // block[ACROSS] * block[HEIGHT]) * stride + block[COL] + c % block[ACROSS] * width
        one = _gaps(words, remainder, one, end, kept, rice, gaps)
        remainder += kept * rice
        index, codes = -1, np.uint64(0)
        for i in range(kept):
            if i & 31 == 0:
                codes = _word(words, code + i * bits)
            index += gaps[i]
            row = index >> shift if shift >= 0 else np.int64(np.uint32(index) // np.uint32(width))
            place = np.uint64(corner + index + row * (stride - width))
            total[place] += values[codes & np.uint64(3 if bits == 2 else 1)]
            codes >>= np.uint64(bits)
            if senders.size:
                senders[place] += np.float32(1)
        code += kept * bits
    return one
