"""The run's text: read, checked against its digest, tokenised once, mapped from disk ever after."""

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model_zoo.shards import ShardError, Tokens, open_shard, write_shard
from model_zoo.tokenizer import Tokenizer, load_tokenizer

SHIPPED = ("pride_and_prejudice",)
"""Texts in `model_zoo/texts`."""


class CorpusNotFoundError(FileNotFoundError):
    """The text is not there."""


class CorpusMismatchError(ValueError):
    """The text is there, but it is not the run's, or not text."""


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
