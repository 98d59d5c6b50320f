"""Dense tensors as bytes, and strictly back: averaged payloads and the anchor.

    average  "eAVG" · version u8 · fp16 values of every tensor
    anchor   "eSTA" · version u8 · u32 length · JSON [[name, shape], …] · fp32 values of every tensor

Tensors are ordered by name, all numbers are little-endian. Names and shapes come from the model, not from the
bytes: honest bytes have one possible length, checked before anything is allocated. The anchor's digest is that
of its bytes (`wire.tree`); its JSON makes a file explain itself, and a reader compares it
instead of parsing it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import torch

from elastic.errors import MalformedError

if TYPE_CHECKING:
    from torch import Tensor

AVERAGE_HEADER = b"eAVG\x01"
STATE_MAGIC = b"eSTA\x01"


def encode_dense(tensors: Mapping[str, Tensor]) -> bytes:
    """Name → tensor → bytes with fp16 values; the caller keeps values inside fp16's range."""
    return _join(AVERAGE_HEADER, tensors, "<f2")


def decode_dense(data: bytes, like: Mapping[str, Any]) -> dict[str, Tensor]:
    """Bytes from anyone → name → fp16 tensor in the shapes of `like`, strict inverse of `encode_dense`.

    Raises:
        MalformedError: any deviation, or a value that is not finite.
    """
    return _split("dense payload", data, AVERAGE_HEADER, like, "<f2")


def dense_size_bytes(like: Mapping[str, Any]) -> int:
    """Exact length of `encode_dense` for these shapes."""
    return len(AVERAGE_HEADER) + 2 * _num_values(like)


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
    raw = (tensor.to(torch_dtype).contiguous().numpy().astype(dtype, copy=False) for tensor in ordered)
    return b"".join([header, *(values.data for values in raw)])  # views: the bytes are copied once


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
