"""Ids of traces and spans that every peer computes alike, which traces are kept, and how a span is named on the wire.

Pure: whoever only reads traces needs no OpenTelemetry.
"""

from __future__ import annotations

import hashlib
import struct

_HALF = 2**64
_CONTEXT = struct.Struct("!B16s8sB")
CONTEXT_BYTES = _CONTEXT.size
"""Of `pack_context`."""
_VERSION, _SAMPLED = 0, 1


def round_trace_id(run: str, round_: int) -> int:
    """The 128-bit trace id of a round, the same on every peer."""
    return int.from_bytes(_hash("trace", run, round_)[:16], "big") or 1


def span_id(run: str, round_: int, *key: object) -> int:
    """The 64-bit id of a span that others can name without having met it; `("root",)` is the round's root."""
    return int.from_bytes(_hash("span", run, round_, *key)[:8], "big") or 1


def fine_trace_id(trace_id: int, span: int) -> int:
    """The trace of one peer's single steps in a round. Its lower half is the round's: both are kept, or neither."""
    upper = int.from_bytes(_hash("fine", trace_id, span)[:8], "big") or 1
    return upper << 64 | trace_id % _HALF


def sampled(trace_id: int, rate: float) -> bool:
    """Whether a trace is kept: alike on every peer with that rate, and on those with a higher one too.

    Source: OpenTelemetry's TraceIdRatioBased, with which this agrees.
    """
    return trace_id % _HALF < round(rate * _HALF)


def hex_id(number: int) -> str:
    """A span id as OTLP writes it."""
    return f"{number:016x}"


def hex_trace(number: int) -> str:
    """A trace id as OTLP writes it."""
    return f"{number:032x}"


def pack_context(trace_id: int, span: int) -> bytes:
    """W3C's traceparent in 26 bytes: version u8 · trace id · span id · flags u8, always sampled."""
    return _CONTEXT.pack(_VERSION, trace_id.to_bytes(16, "big"), span.to_bytes(8, "big"), _SAMPLED)


def unpack_context(data: bytes) -> tuple[int, int] | None:
    """(trace id, span id) of what anyone sent; None: it is none, or of a trace that nobody keeps."""
    if len(data) != CONTEXT_BYTES:
        return None
    version, trace_id, span, flags = _CONTEXT.unpack(data)
    ids = int.from_bytes(trace_id, "big"), int.from_bytes(span, "big")
    return ids if version == _VERSION and flags & _SAMPLED and all(ids) else None


def _hash(*key: object) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
