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


@dataclass(slots=True)
class _Account:
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
        self._accounts: dict[PeerId, _Account] = {}

    def begin(self, peer: PeerId, span: bytes = b"") -> None:
        """A stream with this peer is open.

        Args:
            peer: who it is.
            span: what it does this for, see `trace.wire_context`.
        """
        with self._lock:
            account = self._account(peer)
            if not account.open:
                account.since = self._now()
            account.open += 1
            account.span = span or account.span

    def add(self, peer: PeerId, num_bytes: int) -> None:
        """So many bytes were carried over it."""
        with self._lock:
            self._account(peer).num_bytes += num_bytes

    def end(self, peer: PeerId) -> None:
        """It is closed."""
        with self._lock:
            account = self._account(peer)
            account.open = max(0, account.open - 1)
            if not account.open:
                account.seconds += self._now() - account.since

    def take(self) -> list[Carried]:
        """What was carried since the last call, most first; what is under way goes on, and counts up to now."""
        with self._lock:
            now, found = self._now(), []
            for peer, account in list(self._accounts.items()):
                busy = account.seconds + (now - account.since if account.open else 0.0)
                found.append(Carried(peer, account.num_bytes, busy, account.span))
                if account.open:
                    self._accounts[peer] = _Account(open=account.open, since=now, span=account.span)
                else:
                    del self._accounts[peer]
        return sorted((each for each in found if each.num_bytes), key=lambda each: -each.num_bytes)

    def _account(self, peer: PeerId) -> _Account:
        name = peer if peer in self._accounts or len(self._accounts) < MAX_PEERS else OTHERS
        return self._accounts.setdefault(name, _Account())
