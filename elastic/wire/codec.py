"""Sparse payloads as bytes, and strictly back.

    "eSPL" · version u8 · bits u8 · chunk u32 · k u32 · every tensor in order of its name, as in `packing`

Names and shapes come from the model, not from the bytes, so neither names nor lengths are sent, and what the bytes say
can make nobody allocate more than the model allows. A decoded payload stays packed until it is applied.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from elastic.errors import MalformedError
from elastic.wire.chunks import Array, Sparsity
from elastic.wire.packing import check_scales, layout, unpack

try:
    from elastic.wire import kernels
except ImportError:  # no numba: everything in numpy
    kernels = None  # type: ignore[assignment]


class Part(NamedTuple):
    """What is sent of one tensor."""

    shape: tuple[int, ...]
    data: Array
    """Its bytes, uint8; see `packing`."""


MAGIC = b"eSPL"
VERSION = 2
HEADER = struct.Struct("<4sBBII")
MAX_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class SparsePayload:
    """A pseudo-gradient's largest entries, packed."""

    sparsity: Sparsity
    parts: Mapping[str, Part]
    """By tensor name."""


def encode(payload: SparsePayload) -> bytes:
    """Payload → bytes; the same for equal payloads, in any dict order."""
    chunk, k, bits = payload.sparsity
    parts = [payload.parts[name].data.tobytes() for name in sorted(payload.parts)]
    return b"".join([HEADER.pack(MAGIC, VERSION, bits, chunk, k), *parts])


def decode(data: bytes, like: Mapping[str, Any], sparsity: Sparsity | None = None) -> SparsePayload:
    """Bytes from anyone → payload, the strict inverse of `encode`.

    Args:
        data: any bytes.
        like: name → anything with a `.shape`; meta tensors will do.
        sparsity: what the run's payloads are made with; None takes any.

    Raises:
        MalformedError: any deviation. Lengths are checked first; nothing is allocated that is larger than the model's
            largest payload.
    """
    made_with = _read_header(data)
    if sparsity is not None and made_with != sparsity:
        raise MalformedError(f"payload: {sparsity} expected, {made_with} came")
    if len(data) > (most := max_bytes(like, made_with)):
        raise MalformedError(f"payload: at most {most} bytes expected for this model, {len(data)} came")
    body, start, parts = np.frombuffer(data, np.uint8), HEADER.size, {}
    words = body if kernels is None else kernels.as_words([body])[0]
    for name in sorted(like):
        try:
            shape = tuple(like[name].shape)
            used = _length(body, words, start, shape, made_with)
        except MalformedError as error:
            raise MalformedError(f"payload: {name}: {error}") from None
        parts[name] = Part(shape, body[start : start + used])
        start += used
    if start != len(data):
        raise MalformedError(f"payload: {len(data) - start} bytes too many")
    return SparsePayload(made_with, parts)


def max_bytes(like: Mapping[str, Any], sparsity: Sparsity) -> int:
    """Length that no honest payload for tensors of these shapes exceeds; nothing is allocated."""
    return HEADER.size + sum(layout(tuple(tensor.shape), sparsity).max_bytes for tensor in like.values())


def _read_header(data: bytes) -> Sparsity:
    if len(data) < HEADER.size:
        raise MalformedError(f"payload: a header of {HEADER.size} bytes expected, {len(data)} bytes came")
    magic, version, bits, chunk, k = HEADER.unpack_from(data)
    if (magic, version) != (MAGIC, VERSION):
        raise MalformedError(f"payload: {MAGIC!r} version {VERSION} expected, {magic!r} version {version} came")
    if bits not in (1, 2) or not 1 <= k <= chunk <= MAX_CHUNK:
        raise MalformedError(f"payload: no payload has {bits} bits, {k} of {chunk}")
    return Sparsity(chunk, k, bits)


def _length(data: Array, words: Array, start: int, shape: tuple[int, ...], sparsity: Sparsity) -> int:
    """Bytes of the tensor that starts there; raises MalformedError unless they are what `pack` writes."""
    form = layout(shape, sparsity)
    if kernels is None or not form.num_chunks:
        return unpack(data[start:], form)[1]
    if len(data) - start < form.min_bytes:
        raise MalformedError("it ends early")
    check_scales(int(data[start]), data[start + 1 : start + form.head])
    stop = min(len(data), start + form.max_bytes)
    used = kernels.scan(words, start, stop, form.head, form.bits, kernels.table_of(form))
    if used < 0:
        raise MalformedError(kernels.PROBLEMS[used])
    return int(used)
