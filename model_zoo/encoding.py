"""Batches of text → tokens as they lie in a shard, on all cores, in order."""

from __future__ import annotations

import hashlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

import numpy as np

from model_zoo.documents import Reading
from model_zoo.prepared import Index, Shard
from model_zoo.shards import DTYPES
from model_zoo.tokenizer import BPETokenizer, ByteTokenizer

PLAIN = Reading()


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides which tokens come out, beside the text."""

    definition: str
    """The tokenizer's, as in `tokenizer.json`."""
    tokenizer: str
    """"bytes" or "bpe"."""
    vocab_size: int
    end: int | None
    reading: Reading = PLAIN
    shard_tokens: int = 2**23
    """A shard ends with the batch that has it reach so many."""
    held_out: float = 0.05

    def sha256(self) -> str:
        """Equal ones give equal shards."""
        parts = (self.definition, self.tokenizer, self.end, self.reading.kind, self.reading.field,
                 self.reading.errors, self.shard_tokens, self.held_out)  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def width(self) -> Any:
        """Bytes per token."""
        return 2 if self.vocab_size <= 2**16 else 4

    def index(self, count: Count, shards: Sequence[Shard]) -> Index:
        """What these settings made."""
        return Index(
            tokenizer=self.tokenizer,  # type: ignore[arg-type]
            tokenizer_sha256=hashlib.sha256(self.definition.encode()).hexdigest(),
            vocab_size=self.vocab_size, end=self.end, width=self.width, held_out=self.held_out,
            documents=count.documents, empty=count.empty, text_bytes=count.text_bytes, shards=tuple(shards),
        )  # fmt: skip


@dataclass(slots=True)
class Count:
    """Of the text that was read."""

    documents: int = 0
    empty: int = 0
    text_bytes: int = 0


@dataclass(slots=True)
class Batch:
    """Pieces that are encoded together; see `_encoded`."""

    data: bytes = b""
    """Their UTF-8, one behind the other."""
    lengths: list[int] = field(default_factory=list)
    ends: list[bool] = field(default_factory=list)
    """Of each piece: whether its document is over."""


Encoded = Iterator[tuple[Batch, bytes]]


class _Encoder:
    """A tokenizer that gives bytes as they lie in a shard."""

    def __init__(self, settings: Settings) -> None:
        self._tokenizer = (
            ByteTokenizer() if settings.tokenizer == "bytes" else BPETokenizer(settings.definition).literal()
        )
        self._dtype = DTYPES[settings.width]
        self._end = np.array([] if settings.end is None else [settings.end], self._dtype)

    def __call__(self, batch: Batch) -> bytes:
        borders = np.cumsum([0, *batch.lengths])
        texts = [batch.data[start:end] for start, end in pairwise(borders)]
        if isinstance(self._tokenizer, ByteTokenizer):
            rows: Any = [np.frombuffer(text, np.uint8) for text in texts]
        else:
            rows = self._tokenizer.encode_pieces([text.decode() for text in texts])
        parts = []
        for row, ends in zip(rows, batch.ends, strict=True):
            parts.append(np.asarray(row, self._dtype))
            if ends:
                parts.append(self._end)
        return np.concatenate(parts).tobytes()


_encoder: _Encoder | None = None
"""Of a worker process."""


def _start(settings: Settings, threads: int) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who reads and writes
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    _encoder = _Encoder(settings)


def _encode(batch: Batch) -> bytes:
    assert _encoder is not None
    return _encoder(batch)


@contextmanager
def encoders(settings: Settings, workers: int) -> Iterator[Callable[[Iterable[Batch]], Encoded]]:
    """What gives tokens for batches, in order; `workers` processes share the cores.

    One is this process: the tokenizer uses all cores by itself, and two threads keep it busy while its tokens are
    taken over. That needs Python, one thread at a time, so that a machine with many cores wants more processes.
    """
    pool: Executor
    if workers == 1:
        pool, encode = ThreadPoolExecutor(2), _Encoder(settings)
    else:
        threads = max(1, (os.cpu_count() or 1) // workers)
        pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(settings, threads))
        encode = _encode  # type: ignore[assignment]
    try:
        yield lambda batches: _in_order(pool, encode, batches, 2 * workers + 2)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: Executor, encode: Callable[[Batch], bytes], batches: Iterable[Batch], ahead: int) -> Encoded:
    waiting: deque[tuple[Batch, Future[bytes]]] = deque()
    for batch in batches:
        waiting.append((batch, pool.submit(encode, batch)))
        if len(waiting) >= ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()
