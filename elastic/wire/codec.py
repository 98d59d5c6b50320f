"""Tensors as bytes, and strictly back: sparse payloads, dense payloads, the anchor.

    sparse   "eSPL" · version u8 · chunk u32 · k u32 · the chunks of every tensor
    dense    "eAVG" · version u8 · fp16 values of every tensor
    anchor   "eSTA" · version u8 · u32 length · JSON [[name, shape], …] · fp32 values of every tensor

Tensors are ordered by name, all numbers are little-endian. Names and shapes come from the model, not from the
bytes: honest bytes have one possible length, checked before anything is allocated. The anchor's digest is the
SHA-256 of its bytes (`messages.digest_of`); its JSON makes a file explain itself, and a reader compares it
instead of parsing it.

A chunk of a sparse payload is a fixed number of bytes that follows from how many entries it keeps. Bit by
bit: indices in Elias-Fano form (unary high parts, then low parts), 2-bit codes, two bfloat16 levels, zeros up
to a whole byte. A full chunk of 4096 with k = 64 takes 84 bytes: 64 + 16 + 4.

Source of the index code: Elias 1974, Fano 1971. Levels are bfloat16 and not fp16, because pseudo-gradients
late in a run are below fp16's normal range; its rounding (≤ 0.4 %) is far below the error of having two
levels.
"""

# C chunks, K kept entries of a chunk, U bits of the high parts, B bits of a row

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson
import torch

from elastic.errors import MalformedError
from elastic.wire.chunks import Array, Block, Density, Rows, blocks, cut_rows, from_fields, to_fields

if TYPE_CHECKING:
    from torch import Tensor

DENSE_HEADER = b"eAVG\x01"
STATE_MAGIC = b"eSTA\x01"
MAGIC = b"eSPL"
VERSION = 1
HEADER = struct.Struct("<4sBII")
DEFAULT = Density()
INFINITY_BITS = 0x7F80
"""bfloat16 bits of +∞: as integers, everything finite and not negative is below, everything else is not."""


class RowFormat(NamedTuple):
    """The bits of one chunk."""

    kept: int
    low: int
    """Bits of the low part of an index."""
    upper: int
    """Bits of all high parts together, in unary."""

    @property
    def bits(self) -> int:
        return self.upper + self.kept * (self.low + 2) + 2 * 16

    @property
    def stride(self) -> int:
        """Whole bytes of one chunk."""
        return (self.bits + 7) // 8


def row_format(kept: int, density: Density) -> RowFormat:
    """The format of chunks that keep that many entries; a smaller chunk is coded like the widest such one."""
    widest = density.widest(kept)
    low = (widest // kept).bit_length() - 1
    return RowFormat(kept, low, kept + ((widest - 1) >> low))


def size_bytes(like: Mapping[str, Any], density: Density = DEFAULT) -> int:
    """Exact length of a payload for tensors of these shapes; nothing is allocated."""
    layout = (block for tensor in like.values() for block in blocks(tuple(tensor.shape), density.chunk))
    return HEADER.size + sum(_block_bytes(block, density) for block in layout)


def _block_bytes(block: Block, density: Density) -> int:
    return block.num_chunks * row_format(density.kept(block.size), density).stride


def encode(payload: Mapping[str, Mapping[str, Tensor]], density: Density = DEFAULT) -> bytes:
    """Payload → bytes.

    Args:
        payload: as `chunks.to_fields` makes it, name → "indices", "values", "levels".
        density: what the payload was made with; it decides the width of a chunk.
    """
    parts = [HEADER.pack(MAGIC, VERSION, *density)]
    for name in sorted(payload):
        rows = from_fields(payload[name])
        for start, stop, kept in _runs_of_equal_count(rows.indices_CK):
            parts.append(_pack(cut_rows(rows, start, stop, kept), row_format(kept, density)))
    return b"".join(parts)


def _runs_of_equal_count(indices_CK: Array) -> Iterator[tuple[int, int, int]]:
    """(start, stop, kept) of neighbouring rows that keep equally many entries."""
    counts_C = np.count_nonzero(indices_CK >= 0, axis=1)
    edges = sorted({0, *(np.flatnonzero(np.diff(counts_C)) + 1).tolist(), len(counts_C)})
    for start, stop in itertools.pairwise(edges):
        yield start, stop, int(counts_C[start])


def _pack(rows: Rows, form: RowFormat) -> bytes:
    upper_CU = np.zeros((len(rows.indices_CK), form.upper), np.uint8)
    np.put_along_axis(upper_CU, (rows.indices_CK >> form.low) + np.arange(form.kept), 1, axis=1)
    lower_CB = _to_bits(rows.indices_CK & ((1 << form.low) - 1), form.low)
    row_CB = np.hstack([upper_CU, lower_CB, _to_bits(rows.codes_CK, 2), _to_bits(rows.levels_C2, 16)])
    return np.packbits(row_CB, axis=1).tobytes()


def decode(data: bytes, like: Mapping[str, Any], density: Density = DEFAULT) -> dict[str, dict[str, Tensor]]:
    """Bytes from anyone → payload, the strict inverse of `encode`.

    Args:
        data: any bytes.
        like: name → anything with a `.shape`; meta tensors will do.
        density: what the run's payloads are made with.

    Raises:
        MalformedError: any deviation. The length is checked first, and only then something is allocated.
    """
    _check_header(data, density)
    if len(data) != (expected := size_bytes(like, density)):
        raise MalformedError(f"payload: {expected} bytes expected for this model, {len(data)} came")
    payload, offset = {}, HEADER.size
    for name in sorted(like):
        parts = []
        for block in blocks(tuple(like[name].shape), density.chunk):
            stop = offset + _block_bytes(block, density)
            parts.append(_unpack(memoryview(data)[offset:stop], block, density, name))
            offset = stop
        payload[name] = to_fields(parts)
    return payload


def _check_header(data: bytes, density: Density) -> None:
    if len(data) < HEADER.size:
        raise MalformedError(f"payload: a header of {HEADER.size} bytes expected, {len(data)} bytes came")
    magic, version, *made_with = HEADER.unpack_from(data)
    if (magic, version) != (MAGIC, VERSION):
        raise MalformedError(f"payload: {MAGIC!r} version {VERSION} expected, {magic!r} version {version} came")
    if tuple(made_with) != density:
        raise MalformedError(f"payload: {density} expected, {Density(*made_with)} came")


def _unpack(data: memoryview, block: Block, density: Density, name: str) -> Rows:
    form = row_format(density.kept(block.size), density)
    packed = np.frombuffer(data, np.uint8).reshape(block.num_chunks, form.stride)
    row_CB = np.unpackbits(packed, axis=1)
    ends = np.cumsum([form.upper, form.kept * form.low, 2 * form.kept, 2 * 16])
    upper_CU, lower_CB, codes_CB, levels_CB, padding_CB = np.split(row_CB, ends, axis=1)
    if padding_CB.any():
        raise MalformedError(f"payload: {name}: padding bits are not zero")
    if (np.count_nonzero(upper_CU, axis=1) != form.kept).any():
        raise MalformedError(f"payload: {name}: a chunk does not hold {form.kept} indices")
    high_CK = np.nonzero(upper_CU)[1].reshape(-1, form.kept) - np.arange(form.kept)
    indices_CK = (high_CK << form.low | _from_bits(lower_CB, form.low, form.kept)).astype(np.int32)
    rows = Rows(indices_CK, _from_bits(codes_CB, 2, form.kept).astype(np.uint8), _from_bits(levels_CB, 16, 2))
    _check_rows(rows, block.size, name)
    return rows


def _check_rows(rows: Rows, size: int, name: str) -> None:
    if (np.diff(rows.indices_CK, axis=1) <= 0).any():
        raise MalformedError(f"payload: {name}: indices of a chunk are repeated or out of order")
    if (rows.indices_CK[:, -1] >= size).any():
        raise MalformedError(f"payload: {name}: an index is outside its chunk of {size}")
    if (rows.levels_C2 >= INFINITY_BITS).any():
        raise MalformedError(f"payload: {name}: a magnitude level is negative, infinite or not a number")
    if (rows.levels_C2[:, 0] > rows.levels_C2[:, 1]).any():
        raise MalformedError(f"payload: {name}: the lower magnitude level is above the upper one")


def _to_bits(numbers: Array, width: int) -> Array:
    """(C, N) numbers below 2^16 → (C, N · width) bits, lowest bit first."""
    bits = (numbers.astype(np.uint16)[..., None] >> np.arange(width, dtype=np.uint16)) & 1
    return bits.astype(np.uint8).reshape(len(numbers), -1)


def _from_bits(bits: Array, width: int, count: int) -> Array:
    """The inverse of `_to_bits` for `count` numbers a row: uint16."""
    weights = np.uint16(1) << np.arange(width, dtype=np.uint16)
    numbers: Array = bits.reshape(len(bits), count, width) @ weights
    return numbers


def encode_dense(tensors: Mapping[str, Tensor]) -> bytes:
    """Name → tensor → bytes with fp16 values; the caller keeps values inside fp16's range."""
    return _join(DENSE_HEADER, tensors, "<f2")


def decode_dense(data: bytes, like: Mapping[str, Any]) -> dict[str, Tensor]:
    """Bytes from anyone → name → fp16 tensor in the shapes of `like`, strict inverse of `encode_dense`.

    Raises:
        MalformedError: any deviation, or a value that is not finite.
    """
    return _split("dense payload", data, DENSE_HEADER, like, "<f2")


def dense_size_bytes(like: Mapping[str, Any]) -> int:
    """Exact length of `encode_dense` for these shapes."""
    return len(DENSE_HEADER) + 2 * _num_values(like)


def encode_state(tensors: Mapping[str, Tensor]) -> bytes:
    """The anchor's canonical bytes: the same for equal tensors, on every machine and in any dict order."""
    return _join(state_header(tensors), tensors, "<f4")


def decode_state(data: bytes, like: Mapping[str, Any]) -> dict[str, Tensor]:
    """Canonical bytes from anyone → name → fp32 tensor in the shapes of `like`.

    Raises:
        MalformedError: any deviation, or a value that is not finite.
    """
    return _split("state", data, state_header(like), like, "<f4")


def state_header(like: Mapping[str, Any]) -> bytes:
    """Everything before the values; it follows from names and shapes."""
    layout = orjson.dumps([[name, list(like[name].shape)] for name in sorted(like)])
    return STATE_MAGIC + struct.pack("<I", len(layout)) + layout


def _join(header: bytes, tensors: Mapping[str, Tensor], dtype: str) -> bytes:
    ordered = (tensors[name].detach().cpu() for name in sorted(tensors))
    torch_dtype = {"<f2": torch.float16, "<f4": torch.float32}[dtype]
    raw = (tensor.to(torch_dtype).numpy().astype(dtype, copy=False).tobytes() for tensor in ordered)
    return b"".join([header, *raw])


def _split(what: str, data: bytes, header: bytes, like: Mapping[str, Any], dtype: str) -> dict[str, Tensor]:
    if not data.startswith(header):
        raise MalformedError(f"{what}: another format, version or model (the header is not the expected one)")
    itemsize = np.dtype(dtype).itemsize
    if len(data) != (expected := len(header) + itemsize * _num_values(like)):
        raise MalformedError(f"{what}: {expected} bytes expected for this model, {len(data)} came")
    tensors, offset = {}, len(header)
    for name in sorted(like):
        shape = tuple(like[name].shape)
        values = np.frombuffer(data, dtype, math.prod(shape), offset)
        if not np.isfinite(values).all():
            raise MalformedError(f"{what}: {name}: a value is infinite or not a number")
        tensors[name] = torch.from_numpy(values.astype(values.dtype.newbyteorder("="))).reshape(shape)
        offset += values.nbytes
    return tensors


def _num_values(like: Mapping[str, Any]) -> int:
    return sum(math.prod(tensor.shape) for tensor in like.values())
