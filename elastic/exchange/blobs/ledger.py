"""Who gave or took how many bytes, in how many seconds: what tells a slow uplink from a slow downlink."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from elastic.messages import PeerId
from elastic.reports import Carried

MAX_PEERS = 256
"""Whoever comes beyond is put together under one name: anyone can come under many."""
OTHERS = PeerId("others")
"""Their name."""


@dataclass(slots=True, eq=False)
class Entry:
    """Of one peer, or of all others; `Ledger.begin` gives it."""

    num_bytes: int = 0
    seconds: float = 0.0
    open: int = 0
    """Streams under way,"""
    since: float = 0.0
    """the first of them since then."""
    span: bytes = b""
    """What it said it was busy with, last."""


class Ledger:
    """Bytes and busy seconds by peer, of all since the last `take`. Thread-safe.

    Seconds in which several streams with one peer are open count once.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._accounts: dict[PeerId, Entry] = {}

    def begin(self, peer: PeerId, span: bytes = b"") -> Entry:
        """A stream with this peer is open; the entry where it is booked, until `end`.

        Args:
            peer: who it is.
            span: what it does this for, see `trace.wire_context`.
        """
        with self._lock:
            name = peer if peer in self._accounts or len(self._accounts) < MAX_PEERS else OTHERS
            entry = self._accounts.setdefault(name, Entry())
            if not entry.open:
                entry.since = self._now()
            entry.open += 1
            entry.span = span or entry.span
            return entry

    def add(self, entry: Entry, num_bytes: int) -> None:
        """So many bytes are carried over a stream of it."""
        with self._lock:
            entry.num_bytes += num_bytes

    def end(self, entry: Entry) -> None:
        """A stream of it is closed."""
        with self._lock:
            entry.open -= 1
            if not entry.open:
                entry.seconds += self._now() - entry.since

    def take(self) -> list[Carried]:
        """What was carried since the last call, most first; what is under way goes on, and counts up to now."""
        with self._lock:
            now, found = self._now(), []
            for peer, entry in list(self._accounts.items()):
                busy = entry.seconds + (now - entry.since if entry.open else 0.0)
                found.append(Carried(peer, entry.num_bytes, busy, entry.span))
                entry.num_bytes, entry.seconds, entry.since = 0, 0.0, now
                if not entry.open:
                    del self._accounts[peer]
        return sorted((each for each in found if each.num_bytes), key=lambda each: -each.num_bytes)
