"""What an exchange holds, serves and puts up with, in one place; and the uplink's limit."""

from __future__ import annotations

import threading
from dataclasses import dataclass

MIB = 1024 * 1024
DISK_BYTES = 8 * 1024 * MIB
"""Blobs held in the blob directory; files of others (`BlobStore.add_file`) do not count."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of both ends."""

    idle_seconds: float = 10.0
    """A stream on which nothing moves for this long is dead."""
    open_seconds: float = 10.0
    """For reaching a holder and opening a stream to it."""
    min_bytes_per_second: float = 20_000.0
    """A holder slower than this, after `grace_seconds`, is given up for another one."""
    grace_seconds: float = 10.0
    max_streams: int = 128
    """Streams served at a time."""
    max_streams_per_peer: int = 16
    """Of these, to one peer; so many more are told that we are busy."""
    max_stranger_streams: int = 64
    """Of all, to those whom we do not heed: anyone can come under many names, and so does who has only just joined."""
    max_queue_seconds: float = 5.0
    """Who would wait longer for the uplink is told that we are busy."""
    max_fetches: int = 48
    """Blobs fetched at a time; as many as contribute in a round."""
    max_fetch_streams: int = 64
    """Streams that we receive from at a time, of all fetches."""
    max_asks: int = 16
    """Of these, for one blob."""
    upload_bytes_per_second: float = 0.0
    """Payload bytes that we send, to all together; 0: no limit."""
    memory_bytes: int = 256 * MIB
    """Blobs held in memory, where there is no blob directory."""
    disk_bytes: int = DISK_BYTES
    partial_memory_bytes: int = 256 * MIB
    """Unfinished blobs held in memory, beside those being fetched."""
    partial_disk_bytes: int = 8 * 1024 * MIB
    """Unfinished blobs held in the blob directory, beside those being fetched."""


@dataclass(frozen=True, slots=True)
class RecordLimits:
    """Bounds of DHT records, for whoever stores them and for whoever reads them.

    A record counts as its value and `RECORD_COST`. What may lie under one key fits into one message of Hivemind's,
    4 MiB, or nobody could read that key: 128 records of 16 KiB, half a MiB of strangers, and room to spare.
    """

    heeded: int = 128
    """Peers whose records are always carried: twice the largest roster with the most validators."""
    bytes_of_heeded: int = 4 * MIB
    """Records of each of these; what is beyond counts as a stranger's."""
    bytes_of_former: int = 64 * MIB
    """Records that all those who are not heeded any more wrote while they were."""
    strangers_in_key: int = 128
    stranger_bytes_in_key: int = MIB // 2
    stranger_bytes: int = 64 * MIB
    """Records of all strangers under all keys, those of other runs too."""
    bytes_in_key: int = 3 * MIB
    handover_bytes: int = MIB // 4
    """Records given to a node that is new in the neighbourhood; anyone can be that."""
    records_in_store: int = 512
    """Records that one request may ask to be stored: a signature takes 0.2 ms to check."""
    keys_in_find: int = 4
    """Keys that one request may ask for; ours ask for one."""


RECORD_COST = 1024
"""Bytes that a record takes beside its value, in memory and in messages, rounded up."""


class Uplink:
    """A token bucket that sends whole chunks one after the other, in the order in which they were asked for."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def reserve(self, count: int, now: float) -> float:
        """Seconds until these bytes may leave."""
        if not self._rate:
            return 0.0
        with self._lock:
            start = max(self._free_at, now)
            self._free_at = start + count / self._rate
            return start - now

    def queue(self, now: float) -> float:
        """Seconds until the uplink is free."""
        with self._lock:
            return max(0.0, self._free_at - now)
