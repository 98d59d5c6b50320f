"""SparseLoCo one number at a time: slow, plain, and written from the specification, not from the code."""

import math
from fractions import Fraction
from itertools import product

import numpy as np

BF16_EPS = 2.0**-8
"""Half a unit in the last place of bfloat16, relative."""


def chunks(shape, chunk):
    """Flat positions of every chunk, in the payload's order: inner tiles, right edge, bottom edge, corner."""
    side = math.isqrt(chunk)
    rows, cols = shape if len(shape) == 2 and side * side == chunk else (1, math.prod(shape))
    height, width = (side, side) if len(shape) == 2 and side * side == chunk else (1, chunk)
    corners = [(top, left) for top in range(0, rows, height) for left in range(0, cols, width)]
    if cols == 0:
        corners = []
    found = []
    for top, left in corners:
        tile_rows, tile_cols = range(top, min(top + height, rows)), range(left, min(left + width, cols))
        ragged = (len(tile_rows) < height, len(tile_cols) < width)
        found.append((ragged, [row * cols + col for row, col in product(tile_rows, tile_cols)]))
    return [positions for _, positions in sorted(found, key=lambda item: item[0])]


def num_kept(size, chunk, k):
    return max(1, math.floor(Fraction(k * size, chunk) + Fraction(1, 2)))


def select(values, kept):
    """Indices of the largest magnitudes; of equal ones the first."""
    ranked = sorted(range(len(values)), key=lambda index: (-abs(values[index]), index))
    return sorted(ranked[:kept])


def squared_error(magnitudes, levels):
    return math.fsum(min((float(m) - float(level)) ** 2 for level in levels) for m in magnitudes)


def best_split_error(magnitudes):
    """The least squared error of two levels, over all splits of the sorted magnitudes."""
    ordered = sorted(float(m) for m in magnitudes)
    sides = [(ordered[:s], ordered[s:]) for s in range(1, len(ordered) + 1)]
    return min(
        math.fsum((m - math.fsum(side) / len(side)) ** 2 for side in pair if side for m in side) for pair in sides
    )


def decode_value(code, levels):
    magnitude = np.float32(float(levels[code & 1]))
    return -magnitude if code & 2 else magnitude


def decompress(fields, shape, chunk):
    dense = np.zeros(math.prod(shape), np.float32)
    for c, positions in enumerate(chunks(shape, chunk)):
        for index, code in zip(fields["indices"][c].tolist(), fields["values"][c].tolist(), strict=True):
            if index >= 0:
                dense[positions[index]] = decode_value(code, fields["levels"][c])
    return dense.reshape(shape)


def sent(fields, shape, chunk):
    mask = np.zeros(math.prod(shape), bool)
    for c, positions in enumerate(chunks(shape, chunk)):
        for index in fields["indices"][c].tolist():
            if index >= 0:
                mask[positions[index]] = True
    return mask.reshape(shape)


def aggregate(parts, shape, chunk, rule):
    """Parts are (fields of one tensor, share)."""
    dense = [decompress(fields, shape, chunk).reshape(-1) for fields, _ in parts]
    norms = [math.sqrt(math.fsum(float(v) ** 2 for v in values)) for values in dense]
    ordered, middle = sorted(norms), len(norms) // 2
    median = ordered[middle] if len(norms) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    total, senders = np.zeros(math.prod(shape), np.float32), np.zeros(math.prod(shape), np.float32)
    for (fields, share), values, norm in zip(parts, dense, norms, strict=True):
        clip = min(1.0, median / norm) if norm > 0 else 1.0
        factor = np.float32(share * clip if rule == "mean" else clip)
        for place in np.flatnonzero(sent(fields, shape, chunk)):
            total[place] = np.float32(total[place] + np.float32(values[place] * factor))
            senders[place] += 1
    if rule == "senders":
        total = np.array([t / max(n, np.float32(1)) for t, n in zip(total, senders, strict=True)], np.float32)
    return total.reshape(shape)
