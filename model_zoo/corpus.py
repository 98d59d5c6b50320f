"""The run's text: read, checked against its digest, tokenised once, mapped from disk ever after.

A shard is a file of tokens, little-endian: a header of 64 bytes, then the tokens. The header:
    magic | version u16 | bytes per token u16 | zero u32 | count u64 | SHA-256 of the tokens | 8 zeros
"""

import hashlib
import struct
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_zoo.tokenizer import Tokenizer, load_tokenizer, write_whole

SHIPPED = ("pride_and_prejudice",)
"""Texts in `model_zoo/texts`."""
MAGIC = b"TOKSHARD"
VERSION = 1
HEADER = struct.Struct("<8sHHIQ32sQ")
DTYPES: dict[int, Any] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}

Tokens = npt.NDArray[np.unsignedinteger]


class CorpusNotFoundError(FileNotFoundError):
    """The text is not there."""


class CorpusMismatchError(ValueError):
    """The text is there, but it is not the run's, or not text."""


class ShardError(ValueError):
    """A file of tokens is damaged or is something else."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """A tokenised text."""

    tokens: Tokens
    """Mapped from disk, read-only, u16 or u32."""
    tokenizer: Tokenizer
    vocab_size: int
    """The size asked for; every token is below it."""
    sha256: str
    """Digest of the text's bytes."""


def load_tokens(
    corpus: str, path: Path | None, sha256: str | None, tokenizer: str, vocab_size: int, cache_dir: Path
) -> Corpus:
    """Read, check and tokenise the text of a run; `cache_dir` keeps the tokens, which are mapped next time.

    Args:
        corpus: name of a text that ships with the project, or any name if `path` is given.
        path: the text's file; None: it ships with the project.
        sha256: digest the text's bytes must have, in hex; None: any.
        tokenizer: "bytes" or "bpe".
        vocab_size: of the tokenizer.
        cache_dir: made if it is not there; two processes may use it at once.

    Raises:
        CorpusNotFoundError: no such text.
        CorpusMismatchError: another digest, or not UTF-8.
        ValueError: see `load_tokenizer`.
    """
    data = read_corpus(corpus, path)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise CorpusMismatchError(f'corpus "{corpus}" has SHA-256 {digest}, but this run trains on {sha256}')
    text = _as_text(corpus, data)
    chosen = load_tokenizer(tokenizer, vocab_size, text, cache_dir)
    shard = cache_dir / f"{digest[:16]}-{chosen.digest[:16]}.tokens"
    return Corpus(_cached_tokens(shard, text, chosen), chosen, vocab_size, digest)


def read_corpus(name: str, path: Path | None = None) -> bytes:
    """The text's bytes, from `path` or, without one, from the texts that ship with the project.

    Raises:
        CorpusNotFoundError: no such file, or no such name.
        CorpusMismatchError: it is empty.
    """
    if path is None and name not in SHIPPED:
        raise CorpusNotFoundError(
            f'no text called "{name}" ships with the project (known: {", ".join(SHIPPED)}); give a path'
        )
    try:
        data = path.read_bytes() if path else (resources.files("model_zoo") / "texts" / f"{name}.txt").read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CorpusNotFoundError(f'corpus "{name}": there is no file {path or name}') from error
    if not data:
        raise CorpusMismatchError(f'corpus "{name}" is empty')
    return data


def unigram_entropy(tokens: npt.ArrayLike) -> float:
    """Entropy of the token frequencies, in nats: the loss of a model that knows nothing else."""
    _, counts = np.unique(np.asarray(tokens), return_counts=True)
    frequencies = counts / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


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
    write_whole(path, HEADER.pack(MAGIC, VERSION, packed.itemsize, 0, packed.size, digest, 0), packed.data)


def open_shard(path: Path) -> Tokens:
    """Map a shard, read-only, after checking its header, its size and its digest.

    Raises:
        FileNotFoundError: it is not there.
        ShardError: anything is not as `write_shard` left it.
    """
    with path.open("rb") as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        raise ShardError(f"{path}: {len(header)} bytes are too few for a shard")
    magic, version, width, reserved, count, digest, reserved_too = HEADER.unpack(header)
    if magic != MAGIC or version != VERSION or width not in DTYPES or reserved or reserved_too:
        raise ShardError(f"{path}: not a shard of version {VERSION}")
    expected_bytes = HEADER.size + count * width
    if count == 0 or path.stat().st_size != expected_bytes:
        raise ShardError(f"{path}: {path.stat().st_size} bytes, but its header says {count} tokens of {width}")
    tokens: Tokens = np.memmap(path, dtype=DTYPES[width], mode="r", offset=HEADER.size, shape=(count,))
    if hashlib.sha256(tokens.data).digest() != digest:
        raise ShardError(f"{path}: the tokens do not have the digest in the header")
    return tokens


def _cached_tokens(shard: Path, text: str, tokenizer: Tokenizer) -> Tokens:
    try:
        return open_shard(shard)
    except (FileNotFoundError, ShardError):  # a damaged cache is only a cache
        write_shard(shard, tokenizer.encode(text))
    return open_shard(shard)


def _as_text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusMismatchError(f'corpus "{name}" is not UTF-8 text: {error.reason} at byte {error.start}') from error
