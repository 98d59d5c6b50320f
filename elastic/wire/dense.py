"""Dense tensors as bytes, and strictly back: averaged payloads and the anchor.

    average  "eAVG" · version u8 · fp16 values of every tensor
    anchor   "eSTA" · version u8 · u32 length · JSON [[name, shape], …] · fp32 values of every tensor

Tensors are ordered by name, all numbers are little-endian. Names and shapes come from the model, not from the
bytes: honest bytes have one possible length, checked before anything is allocated. The anchor's digest is that
of its bytes (`wire.tree`); its JSON makes a file explain itself, and a reader compares it
instead of parsing it. As every tensor has its place, several processes write and read one file (`StateLayout`).
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import orjson
import torch

from elastic.errors import MalformedError
from elastic.wire.files import read_at, write_at
from elastic.wire.threads import in_threads

if TYPE_CHECKING:
    from torch import Tensor

AVERAGE_HEADER = b"eAVG\x01"
STATE_MAGIC = b"eSTA\x01"
LOOK_AT = 2**22
"""Values that are looked at together, so that what comes of it stays in the cache."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's values lie."""

    offset: int
    """In bytes, from the beginning of the file."""
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Where everything lies in the file of an anchor or a residual: `encode_state`'s bytes, in parts."""

    header: bytes
    places: Mapping[str, Place]
    """By name, in order of names."""
    size: int
    """Bytes of the whole file."""

    @classmethod
    def of(cls, like: Mapping[str, Any]) -> Self:
        """Of a model's names and shapes."""
        header = state_header(like)
        places, size = _places(header, like, "<f4")
        return cls(header, places, size)

    def write(self, path: Path | str, tensors: Mapping[str, Tensor]) -> None:
        """Put some of the tensors, and the header, at their places in a file that is there already.

        Beside others that write other tensors of it: whoever writes last, the bytes are the same. Tensors that are
        fp32 on the CPU already are not copied.

        Raises:
            OSError: it cannot be written.
        """
        descriptor = os.open(path, os.O_WRONLY)  # never made here: a name that is gone belongs to nobody
        try:
            write_at(descriptor, self.header, 0)
            for name in sorted(tensors):
                place = self.places[name]
                assert tuple(tensors[name].shape) == place.shape, f"{name} has another shape"
                write_at(descriptor, _bytes_of(tensors[name], "<f4"), place.offset)
        finally:
            os.close(descriptor)

    def read(self, path: Path | str, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Some of the tensors, or all: fp32 on the CPU, in memory of their own; nothing else is read.

        Raises:
            MalformedError: another size or header, or a value of those tensors that is not finite.
            OSError: it cannot be read.
        """
        names = list(self.places if names is None else names)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _check("state", os.pread(descriptor, len(self.header), 0), self.header)
            _check_size("state", os.fstat(descriptor).st_size, self.size)
            return dict(zip(names, in_threads(partial(self._read, descriptor), names), strict=True))
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, name: str) -> Tensor:
        place = self.places[name]
        values = np.empty(place.numel, "<f4")
        if read_at(descriptor, values.view(np.uint8).data, place.offset) != values.nbytes:
            raise MalformedError(f"state: {name}: the file became shorter while it was read")
        return _tensor("state", name, values, place)


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
    return _places(AVERAGE_HEADER, like, "<f2")[1]


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


def _places(header: bytes, like: Mapping[str, Any], dtype: str) -> tuple[dict[str, Place], int]:
    """Where each tensor's values lie, in order of names, and how long all is."""
    places, offset = {}, len(header)
    for name in sorted(like):
        places[name] = Place(offset, tuple(like[name].shape))
        offset += np.dtype(dtype).itemsize * places[name].numel
    return places, offset


def _join(header: bytes, tensors: Mapping[str, Tensor], dtype: str) -> bytes:
    return b"".join([header, *(_bytes_of(tensors[name], dtype) for name in sorted(tensors))])  # views: copied once


def _split(what: str, data: bytes, header: bytes, like: Mapping[str, Any], dtype: str) -> dict[str, Tensor]:
    _check(what, data[: len(header)], header)
    places, size = _places(header, like, dtype)
    _check_size(what, len(data), size)
    found = {}
    for name, place in places.items():
        values = np.frombuffer(data, dtype, place.numel, place.offset)
        found[name] = _tensor(what, name, values.copy(), place)
    return found


def _check(what: str, found: bytes, header: bytes) -> None:
    if found != header:
        raise MalformedError(f"{what}: another format, version or model (the header is not the expected one)")


def _check_size(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise MalformedError(f"{what}: {expected} bytes expected for this model, {found} came")


def _tensor(what: str, name: str, values: np.ndarray[Any, Any], place: Place) -> Tensor:
    """The values' tensor, in their memory if numbers lie there as this machine has them."""
    if not all(np.isfinite(values[at : at + LOOK_AT]).all() for at in range(0, len(values), LOOK_AT)):
        raise MalformedError(f"{what}: {name}: a value is infinite or not a number")
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=False)).reshape(place.shape)


def _bytes_of(tensor: Tensor, dtype: str) -> memoryview[int]:
    """A view of the tensor's own memory, if its values lie there as they are to be written."""
    torch_dtype = {"<f2": torch.float16, "<f4": torch.float32}[dtype]
    values: np.ndarray[Any, Any] = tensor.detach().cpu().to(torch_dtype).contiguous().reshape(-1).numpy()
    return values.astype(dtype, copy=False).view(np.uint8).data
