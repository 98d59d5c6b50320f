"""How many bytes a round's payload has, from the shapes alone. The format: docs/sparseloco.md."""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from elastic.errors import ConfigError
from elastic.plan.shape import Tensors
from elastic.sections import PluginChoice

HEADER_BYTES = 14
"""Before the first tensor; see `elastic.wire.codec`."""
FP16_BYTES = 2


def payload_bytes(reducer: PluginChoice, tensors: Iterable[Tensors]) -> float:
    """Bytes of one payload that a reducer of ours makes.

    Raises:
        ConfigError: another reducer, or settings that it would refuse.
    """
    if reducer.name == "average":
        return FP16_BYTES * float(sum(each.numbers for each in tensors))
    if reducer.name != "sparseloco":
        raise ConfigError(
            f'`elastic plan` does not know what the reducer "{reducer.name}" sends: write payload_bytes into [plan]'
        )
    chunk = _setting(reducer.settings, "chunk", 4096, 16, 65536)
    k = _setting(reducer.settings, "k", 64, 1, chunk)
    bits = _setting(reducer.settings, "bits", 2, 1, 2)
    return HEADER_BYTES + sum(each.times * tensor_bytes(each.shape, chunk, k, bits) for each in tensors)


def tensor_bytes(shape: tuple[int, ...], chunk: int, k: int, bits: int) -> float:
    """Bytes of one tensor: head, codes, remainders, and quotients as long as they are for random places.

    The cut into chunks is that of `elastic.wire.chunks`, of which this is the arithmetic without numpy; a test holds
    one against the other.
    """
    head, stream = 1, 0.0
    for size, times in _chunks(shape, chunk):
        kept = max(1, (2 * k * size + chunk) // (2 * chunk))
        rice = max(0, ((size - kept) * 45 // ((kept + 1) * 64)).bit_length() - 1)
        head += times * bits
        stream += times * kept * (bits + rice + 1 + _expected_quotient(size, kept, rice))
    return head + math.ceil(stream / 8)


def _chunks(shape: tuple[int, ...], chunk: int) -> list[tuple[int, int]]:
    """(elements of a chunk, how many such chunks)."""
    side = math.isqrt(chunk)
    tiled = len(shape) == 2 and side * side == chunk
    rows, cols = shape if tiled else (1, math.prod(shape))
    down, across = _spans(rows, side if tiled else 1), _spans(cols, side if tiled else chunk)
    return [(height * width, times * each) for height, times in down for width, each in across]


def _spans(length: int, step: int) -> list[tuple[int, int]]:
    full, rest = divmod(length, step)
    return [(size, times) for size, times in ((step, full), (rest, 1)) if size and times]


@lru_cache(maxsize=1024)
def _expected_quotient(size: int, kept: int, rice: int) -> float:
    """Mean of gap >> rice between `kept` random places of `size`, where a gap is what is skipped between two.

    All gaps of a random choice are alike, and one is j or more with probability C(size − j, kept) / C(size, kept).
    """

    def log_choose(n: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(n - kept + 1)

    steps = range(1 << rice, size - kept + 1, 1 << rice)
    return sum(math.exp(log_choose(size - step) - log_choose(size)) for step in steps)


def _setting(settings: dict[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = settings.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"reducer sparseloco: {key}: should be from {low} to {high} (got {value!r:.80})")
    return value
