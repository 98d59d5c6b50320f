"""The sender's half of SparseLoCo, compiled: what `topk` does in torch, chunk by chunk while the chunk is in the cache.

The same payloads and residuals as the torch path, bit for bit. There are no bounds checks.
"""

# C chunks, K kept entries of a chunk, N entries of a tensor

from __future__ import annotations

import numpy as np

from elastic.wire.compiled import jit
from elastic.wire.kernels import ACROSS, COL, DOWN, HEIGHT, KEPT, RICE, ROW, STRIDE, WIDTH, shift_of

_BAND = 1024
"""Elements of a row of chunks that are folded in one go: long enough to stream, short enough to stay in the cache."""
_RANKED = 128
"""Up to so many entries of a chunk are sorted by counting how many are larger: quadratic, but without branches."""
_CANDIDATES = 2 * _RANKED
_LAST = 65535
"""No place in a chunk is larger."""
_MARGIN = 1 << 20
"""The search for the next chunk's threshold starts so much, 6 to 12 %, below the last one's, in the bits of fp32."""
_INFINITY = np.uint32(0x7F800000)


@jit
def pick(delta, residual, error, beta, table, indices, values, levels, two):
    """e = β·residual + Δ, and of each chunk its largest entries and the levels that fit them best.

    Args:
        delta: Δ, flat, fp32.
        residual: likewise; or empty: zeros.
        error: e, written; may be `residual`.
        beta: fp32.
        table: the tensor's blocks.
        indices: (N,) int32, written: places in the chunk, increasing in each chunk.
        values: (N,) fp32, written: e there.
        levels: (C, 2) fp64, written: lower and upper.
        two: whether there are two levels.

    Returns:
        Whether all of e is finite; if not, what was written means nothing.
    """
    most, longest, widest = 1, 1, 1
    for b in range(len(table)):
        tiles = max(1, _BAND // table[b, WIDTH])
        most = max(most, table[b, HEIGHT] * table[b, WIDTH])
        longest = max(longest, tiles * table[b, WIDTH])
        widest = max(widest, tiles * table[b, HEIGHT] * table[b, WIDTH])
    line, sizes = np.empty(longest, np.float32), np.empty(widest, np.uint32)
    ranked, found = np.empty(most, np.float32), np.empty(most + 1, np.int32)
    candidates, ranks = np.empty(_CANDIDATES, np.uint64), np.empty(_CANDIDATES, np.int32)
    chunk, entry, guess = 0, 0, _MARGIN
    for b in range(len(table)):
        height, width, stride, kept = table[b, HEIGHT], table[b, WIDTH], table[b, STRIDE], table[b, KEPT]
        band, shift, size = max(1, _BAND // width), shift_of(width), height * width
        for down in range(table[b, DOWN]):
            for first in range(0, table[b, ACROSS], band):
                corner = (table[b, ROW] + down * height) * stride + table[b, COL] + first * width
                tiles = min(band, table[b, ACROSS] - first)
                if not _fold(delta, residual, error, beta, corner, height, width, tiles, stride, line, sizes):
                    return False
                for tile in range(tiles):
                    mine = sizes[tile * size : (tile + 1) * size]
                    guess = _largest(mine, size, kept, guess, found, ranked, candidates, ranks)
                    _split(ranked, kept, levels[chunk], two)
                    for i in range(kept):
                        row = found[i] >> shift if shift >= 0 else np.int64(np.uint32(found[i]) // np.uint32(width))
                        indices[entry + i] = found[i]
                        values[entry + i] = error[corner + tile * width + found[i] + row * (stride - width)]
                    chunk, entry = chunk + 1, entry + kept
    return True


@jit
def _fold(delta, residual, error, beta, corner, height, width, tiles, stride, line, sizes):
    """e of some neighbouring chunks, in long rows, and chunk by chunk its magnitudes; whether all are finite.

    Magnitudes are the bits of fp32 without the sign, which sort as they do.
    """
    across, bits, largest = tiles * width, line.view(np.uint32), np.uint32(0)
    for row in range(height):
        there = corner + row * stride
        new, out = delta[there : there + across], error[there : there + across]
        if residual.size:
            old = residual[there : there + across]
            for i in range(across):
                line[i] = old[i] * beta + new[i]
        else:
            for i in range(across):
                line[i] = new[i]
        for i in range(across):  # apart, as `out` may be `old`: the compiler can then use vectors for both
            out[i] = line[i]
        for i in range(across):
            bits[i] &= np.uint32(0x7FFFFFFF)
            largest = max(largest, bits[i])
        for tile in range(tiles):
            here = sizes[(tile * height + row) * width : (tile * height + row + 1) * width]
            for i in range(width):
                here[i] = bits[tile * width + i]
    return largest < _INFINITY


@jit
def _largest(sizes, size, kept, guess, found, ranked, candidates, ranks):
    """The first `kept` of `found`: places of the largest, increasing, of equals the first; `ranked`: their magnitudes,
    decreasing. Returns where to start the search in the next chunk."""
    least = _threshold(sizes, size, kept, guess) if kept <= _RANKED else -1
    if least >= 0:
        _rank(sizes, found, _at_least(sizes, size, least, found), kept, ranked, candidates, ranks)
    else:
        _select(sizes, size, kept, found, ranked)
    return max(np.int64(ranked.view(np.uint32)[kept - 1]) - _MARGIN, 1)


@jit
def _threshold(sizes, size, kept, least):
    """What at least `kept` magnitudes reach, and not many more; −1 if so many are equal that there is no such thing.

    Steps that double until it lies between two of them, then halves: neighbouring chunks may be of any size.
    """
    most = kept + max(kept, 16) if kept <= _RANKED - 16 else _CANDIDATES
    low, high, step = 0, np.int64(_INFINITY), 1 << 21
    while high - low > 1:
        num = _count_at_least(sizes, size, np.uint32(least))
        if kept <= num <= most:
            return least
        if num < kept:
            high = least
        else:
            low = least
        if low == 0:
            least = max(high - step, high // 2)
        elif high == _INFINITY:
            least = min(low + step, (low + high) // 2)
        else:
            least = (low + high) // 2
        step *= 2
    return -1


@jit
def _count_at_least(sizes, size, least):
    """Apart from `_at_least`, as this becomes vectors, if nothing is wider than 32 bits."""
    num = np.uint32(0)
    for i in range(size):
        num = np.uint32(num + np.uint32(sizes[i] >= least))
    return np.int64(num)


@jit
def _at_least(sizes, size, least, found):
    """Places of the magnitudes of at least `least`, increasing; returns how many."""
    least, num = np.uint32(least), 0
    for i in range(size):
        found[np.uint64(num)] = i
        num += sizes[i] >= least
    return num


@jit
def _rank(sizes, found, num, kept, ranked, candidates, ranks):
    """Keep the `kept` largest of the candidates by counting how many are larger; of equals the first."""
    for i in range(num):
        candidates[i], ranks[i] = sizes[found[i]], 0
    total = _count_larger(candidates, num, ranks)
    if total != num * (num - 1) // 2:  # some are equal: compare places too
        for i in range(num):
            candidates[i], ranks[i] = candidates[i] << np.uint64(32) | np.uint64(_LAST - found[i]), 0
        _count_larger(candidates, num, ranks)
    taken, bits = 0, ranked.view(np.uint32)
    for i in range(num):
        if ranks[i] < kept:
            bits[ranks[i]] = sizes[found[i]]
            found[taken] = found[i]
            taken += 1


@jit
def _count_larger(candidates, num, ranks):
    """Into `ranks` for each how many are larger; returns their sum. One plain loop, which becomes vectors."""
    for j in range(num):
        other = candidates[j]
        for i in range(num):
            ranks[i] += np.int32(other > candidates[i])
    total = 0
    for i in range(num):
        total += ranks[i]
    return total


@jit
def _select(sizes, size, kept, found, ranked):
    """The same for any chunk, more slowly."""
    threshold, above, taken = np.uint32(0), 0, 0
    for i in range(size):
        above += sizes[i] > threshold
    if above >= kept:
        threshold = np.partition(sizes[:size], size - kept)[size - kept]
        above = 0
        for i in range(size):
            above += sizes[i] > threshold
    room = kept - above
    for i in range(size):
        if sizes[i] > threshold or (sizes[i] == threshold and room > 0):
            room -= sizes[i] == threshold
            found[taken] = i
            taken += 1
    bits = ranked.view(np.uint32)
    for i in range(kept):
        bits[i] = sizes[found[i]]
    bits[:kept] = np.sort(bits[:kept])[::-1]


@jit
def _split(ranked, kept, levels, two):
    """The best two levels for magnitudes that decrease, or their mean; see `topk.split_levels`."""
    whole = 0.0
    for i in range(kept):
        whole += np.float64(ranked[kept - 1 - i])
    if not two:
        levels[0] = levels[1] = whole / kept
        return
    low, best = 0.0, -1.0
    for i in range(kept):
        low += np.float64(ranked[kept - 1 - i])
        high, num_high = whole - low, max(kept - 1 - i, 1)
        gain = low * low / (i + 1) + high * high / num_high
        if gain > best:
            best = gain
            levels[0], levels[1] = low / (i + 1), max(low / (i + 1), high / num_high)


@jit
def pack(error, table, indices, values, levels, head, bits, words):
    """Code every entry, take what is sent out of e, and write the bit stream; returns the bytes used.

    Args:
        error: e, flat, fp32; on return e − D̂.
        table: the tensor's blocks.
        indices: (N,) from `pick`.
        values: likewise.
        levels: (C, 2) fp32, the levels as stored.
        head: bytes of the tensor before the bit stream.
        bits: per code.
        words: uint64 zeros, enough for the tensor's longest bytes and two words more; the stream is written.
    """
    entries, plain = len(indices), len(indices) * bits
    for b in range(len(table)):
        plain += table[b, DOWN] * table[b, ACROSS] * table[b, KEPT] * table[b, RICE]
    code, remainder, one = head * 8, head * 8 + entries * bits, head * 8 + plain
    chunk, entry = 0, 0
    for b in range(len(table)):
        height, width, stride, rice = table[b, HEIGHT], table[b, WIDTH], table[b, STRIDE], table[b, RICE]
        shift = shift_of(width)
        for c in range(table[b, DOWN] * table[b, ACROSS]):
            corner = (table[b, ROW] + c // table[b, ACROSS] * height) * stride
            corner += table[b, COL] + c % table[b, ACROSS] * width
            before, low, high = -1, levels[chunk, 0], levels[chunk, 1]
            for _ in range(table[b, KEPT]):
                index = int(indices[entry])
                gap, before = index - before - 1, index
                row = index >> shift if shift >= 0 else np.int64(np.uint32(index) // np.uint32(width))
                place = corner + index + row * (stride - width)
                value = values[entry]
                size = abs(value)
                upper = bits == 2 and size - low > high - size
                sent = high if upper or bits == 1 else low
                error[place] = value + sent if value < 0 else value - sent
                _put(words, code, np.uint64(value < 0) | np.uint64(upper) << np.uint64(1))
                _put(words, remainder, np.uint64(gap) & np.uint64((1 << rice) - 1))
                one += gap >> rice
                _put(words, one, np.uint64(1))
                code, remainder, one, entry = code + bits, remainder + rice, one + 1, entry + 1
            chunk += 1
    return (one + 7) // 8


@jit
def _put(words, bit, number):
    """Write a number below 2^16 into zeros."""
    place, shift = np.uint64(bit >> 6), np.uint64(bit & 63)
    words[place] |= number << shift
    words[place + np.uint64(1)] |= (number >> np.uint64(1)) >> (np.uint64(63) - shift)
