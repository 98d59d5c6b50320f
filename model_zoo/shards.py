"""Files of tokens. A shard is little-endian: a header of 64 bytes, then the tokens. The header:

magic | version u16 | bytes per token u16 | zero u32 | count u64 | SHA-256 of the tokens | 8 zeros
"""

import hashlib
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_zoo.tokenizer import write_whole

MAGIC = b"TOKSHARD"
VERSION = 1
HEADER = struct.Struct("<8sHHIQ32sQ")
DTYPES: dict[int, Any] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}

Tokens = npt.NDArray[np.unsignedinteger]


class ShardError(ValueError):
    """A file of tokens is damaged or is something else."""


def header_of(width: int, count: int, digest: bytes) -> bytes:
    """The first 64 bytes of a shard.

    Args:
        width: bytes per token, 2 or 4.
        count: of tokens.
        digest: SHA-256 of the tokens.
    """
    return HEADER.pack(MAGIC, VERSION, width, 0, count, digest, 0)


def shard_bytes(width: int, count: int) -> int:
    """Size of a shard's file."""
    return HEADER.size + width * count


def write_shard(path: Path, tokens: npt.ArrayLike) -> None:
    """Write tokens as a shard, two bytes each if all are below 65,536, else four. The file appears whole.

    Raises:
        ValueError: no tokens, or one that is negative or above 2**32 - 1.
    """
    array = np.asarray(tokens)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "ui":
        raise ValueError(f"a shard is a row of at least one integer; got {array.dtype} of shape {array.shape}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= 2**32:
        raise ValueError(f"tokens are in [0, 2**32); got {low} to {high}")
    packed = np.ascontiguousarray(array, dtype=DTYPES[2 if high < 2**16 else 4])
    digest = hashlib.sha256(packed.data).digest()
    write_whole(path, header_of(packed.itemsize, packed.size, digest), packed.data)


class ShardWriter:
    """A shard that grows on disk, beside its place; it takes its name when it is whole."""

    def __init__(self, path: Path, width: int) -> None:
        """What was left unfinished there before is overwritten."""
        self._path, self._width, self._sha256 = path, width, hashlib.sha256()
        self._beside = path.with_name(path.name + ".tmp")
        self._file = self._beside.open("wb")
        self._file.write(bytes(HEADER.size))
        self.count = 0
        """Tokens so far."""

    def append(self, tokens: bytes) -> None:
        """Some more, as they lie in the file."""
        self._file.write(tokens)
        self._sha256.update(tokens)
        self.count += len(tokens) // self._width

    def close(self) -> str:
        """Give the file its header and its name; gives the SHA-256 of the tokens in hex."""
        with self._file as file:
            file.seek(0)
            file.write(header_of(self._width, self.count, self._sha256.digest()))
            file.flush()
            os.fsync(file.fileno())
        self._beside.replace(self._path)
        return self._sha256.hexdigest()

    def discard(self) -> None:
        """Leave nothing."""
        self._beside.unlink(missing_ok=True)
        with suppress(OSError):  # on a full disk, what is still to be written cannot be
            self._file.close()


def open_shard(path: Path, expected: bytes | None = None) -> Tokens:
    """Map a shard, read-only, after checking its header, its size and its digest.

    Args:
        path: the file.
        expected: the header it must have, see `header_of`; None: any that fits.

    Raises:
        FileNotFoundError: it is not there.
        ShardError: anything is not as `write_shard` left it, or not as expected.
    """
    with path.open("rb") as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        raise ShardError(f"{path}: {len(header)} bytes are too few for a shard")
    magic, version, width, reserved, count, digest, reserved_too = HEADER.unpack(header)
    if magic != MAGIC or version != VERSION or width not in DTYPES or reserved or reserved_too:
        raise ShardError(f"{path}: not a shard of version {VERSION}")
    if expected is not None and header != expected:
        raise ShardError(f"{path}: its header says other tokens than the index")
    if count == 0 or path.stat().st_size != shard_bytes(width, count):
        raise ShardError(f"{path}: {path.stat().st_size} bytes, but its header says {count} tokens of {width}")
    tokens: Tokens = np.memmap(path, dtype=DTYPES[width], mode="r", offset=HEADER.size, shape=(count,))
    if hashlib.sha256(tokens.data).digest() != digest:
        raise ShardError(f"{path}: the tokens do not have the digest in the header")
    return tokens
