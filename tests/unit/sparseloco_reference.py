"""SparseLoCo one number at a time: slow, plain, and written from the specification, not from the code."""

import math
from fractions import Fraction
from itertools import product

import numpy as np

SCALE_EPS = 1 / 31 + 1 / 256
"""What rounding may add to a level, relative: half a step of four mantissa bits, at the top a whole one less a half,
and half a step of the ratio, which the ratio's range can make a whole one."""


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


def level(code, exponent):
    """A scale byte as it is written in the format."""
    steps, binade = (code, 1) if code < 16 else (16 + code % 16, code // 16)
    return Fraction(steps) * Fraction(2) ** (exponent - 127 - 4 - 15 + binade) if exponent else Fraction(0)


def flatten(entries):
    """Of every chunk: indices, codes, (lower, upper) as exact numbers."""
    found = []
    for indices_of_block, codes_of_block in zip(entries.indices, entries.codes, strict=True):
        for indices, codes in zip(indices_of_block.tolist(), codes_of_block.tolist(), strict=True):
            scales = entries.scales[len(found)].tolist()
            upper = level(scales[0], entries.exponent)
            lower = upper * Fraction(scales[1], 256) if len(scales) == 2 else upper
            found.append((indices, codes, (lower, upper)))
    return found


def decode_value(code, levels):
    magnitude = np.float32(float(levels[code >> 1]))
    return -magnitude if code & 1 else magnitude


def decompress(entries, shape, chunk):
    dense = np.zeros(math.prod(shape), np.float32)
    for positions, (indices, codes, levels) in zip(chunks(shape, chunk), flatten(entries), strict=True):
        for index, code in zip(indices, codes, strict=True):
            dense[positions[index]] = decode_value(code, levels)
    return dense.reshape(shape)


def sent(entries, shape, chunk):
    mask = np.zeros(math.prod(shape), bool)
    for positions, (indices, _, _) in zip(chunks(shape, chunk), flatten(entries), strict=True):
        for index in indices:
            mask[positions[index]] = True
    return mask.reshape(shape)


def energy(entries):
    """Σ D̂², chunk by chunk in fp64: exact within a chunk, rounded where chunks are added."""
    total = 0.0
    for _, codes, levels in flatten(entries):
        total += float(sum(levels[code >> 1] ** 2 for code in codes))
    return total


def aggregate(parts, shape, chunk, rule):
    """Parts are (entries of one tensor, share)."""
    dense = [decompress(entries, shape, chunk).reshape(-1) for entries, _ in parts]
    norms = [math.sqrt(energy(entries)) for entries, _ in parts]
    loud = sorted(norm for norm in norms if norm > 0)
    median = loud[(len(loud) - 1) // 2] if loud else 0.0
    total, senders = np.zeros(math.prod(shape), np.float32), np.zeros(math.prod(shape), np.float32)
    for (entries, share), values, norm in zip(parts, dense, norms, strict=True):
        clip = min(1.0, median / norm) if norm > 0 else 1.0
        factor = np.float32(share * clip if rule == "mean" else clip)
        for place in np.flatnonzero(sent(entries, shape, chunk)):
            total[place] = np.float32(total[place] + np.float32(values[place] * factor))
            senders[place] += 1
    if rule == "senders":
        total = np.array([t / max(n, np.float32(1)) for t, n in zip(total, senders, strict=True)], np.float32)
    return total.reshape(shape)
