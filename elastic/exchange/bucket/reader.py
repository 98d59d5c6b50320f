"""Blobs out of other peers' buckets: the table first, then ranges of chunks, each checked against it as it arrives.

URL/DIGEST        the bytes of a blob
URL/DIGEST.table  the hashes of its chunks, 32 bytes each; written last, so the blob is whole where there is one
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from elastic.exchange.blobs.bulk import Traffic
from elastic.exchange.blobs.partial import Partials
from elastic.exchange.blobs.selection import Bits
from elastic.exchange.bucket.public import Read, reading
from elastic.exchange.limits import Limits
from elastic.messages import Digest
from elastic.wire.tree import CHUNK_BYTES, HASH_BYTES, Table, chunk_size, num_chunks

TABLE_SUFFIX = ".table"
MAX_RUN = 64
"""Chunks asked for in one request, 16 MiB: few requests, which are paid for, and little lost when one breaks off."""
SHUN_SECONDS = 60.0
"""A bucket that failed or lied is left alone for so long."""
_MAX_SHUNNED = 1024


@dataclass
class Progress:
    """Of one fetch, written by its thread and read by whoever waits for it."""

    stop: threading.Event = field(default_factory=threading.Event)
    """Set: the bytes are wanted no longer."""
    moved_at: float = field(default_factory=time.monotonic)
    """When the last chunk came."""
    story: dict[str, str] = field(default_factory=dict)
    """Bucket → what it did wrong."""


class BucketReader:
    """Fills the same unfinished blobs as the fetch from peers does. Blocking and thread-safe: call it in threads.

    Args:
        private: read from private networks and from this machine's files too.
    """

    def __init__(self, partials: Partials, traffic: Traffic, private: bool, limits: Limits | None = None) -> None:
        self._partials, self._traffic = partials, traffic
        self._private, self._limits = private, limits or Limits()
        self._shunned: dict[str, float] = {}

    def fetch(self, buckets: Sequence[str], digest: Digest, size: int, progress: Progress) -> bytes | None:
        """The blob if these buckets have it, one after the other; None if not. What came is kept either way."""
        for bucket in buckets:
            if self._shunned.get(bucket, 0.0) > time.monotonic():
                progress.story[bucket] = "failed lately"
                continue
            try:
                data = self._read(bucket.rstrip("/"), digest, size, progress)
            except FileNotFoundError as error:
                progress.story[bucket] = f"does not have it: {error}"
            except (OSError, EOFError, ValueError) as error:
                self._shun(bucket)
                progress.story[bucket] = str(error) or "timed out"
            else:
                return data
        return None

    def _read(self, bucket: str, digest: Digest, size: int, progress: Progress) -> bytes | None:
        with self._partials.receiving(self._table(bucket, digest, size)) as partial:
            while (run := next_run(partial.holds)) and not progress.stop.is_set():
                length = min(len(run) * CHUNK_BYTES, size - run[0] * CHUNK_BYTES)
                with self._reading(f"{bucket}/{digest}", run[0] * CHUNK_BYTES, length) as read:
                    for index in run:
                        chunk = read(chunk_size(size, index))
                        self._traffic.add(received=len(chunk))
                        if not partial.add(index, chunk):
                            raise ValueError(f"gave wrong bytes for chunk {index}")
                        progress.moved_at = time.monotonic()
                        if progress.stop.is_set():
                            return None
            return partial.data() if partial.holds.all() else None

    def _table(self, bucket: str, digest: Digest, size: int) -> Table:
        known = self._partials.get(digest)
        if known is not None and known.table.size == size:
            return known.table
        length = num_chunks(size) * HASH_BYTES
        with self._reading(f"{bucket}/{digest}{TABLE_SUFFIX}", 0, length) as read:
            table = Table(size, read(length))
        self._traffic.add(received=length)
        if table.digest != digest:
            raise ValueError("gave wrong bytes: its table has another digest")
        return table

    def _reading(self, url: str, start: int, length: int) -> AbstractContextManager[Read]:
        return reading(url, start, length, self._private, self._limits)

    def _shun(self, bucket: str) -> None:
        if len(self._shunned) >= _MAX_SHUNNED:
            self._shunned.clear()
        self._shunned[bucket] = time.monotonic() + SHUN_SECONDS


def next_run(holds: Bits) -> range:
    """The first missing chunks that follow each other, at most MAX_RUN."""
    missing = np.flatnonzero(~holds)
    if not len(missing):
        return range(0)
    first = int(missing[0])
    gaps = np.flatnonzero(missing != first + np.arange(len(missing)))
    return range(first, first + min(int(gaps[0]) if len(gaps) else len(missing), MAX_RUN))
