"""Peers that give each other one blob, in virtual time: uplinks that send chunk after chunk, and nothing else."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from elastic.exchange.blobs.selection import Ask, Selection, pick
from elastic.messages import PeerId
from elastic.wire.tree import CHUNK_BYTES

LATENCY = 0.05
MAX_ASKS = 16


@dataclass
class SimPeer:
    """An uplink, what it has sent, and its own fetch if it has one."""

    name: PeerId
    rate: float
    holds: np.ndarray
    free_at: float = 0.0
    sent: int = 0
    done_at: float | None = None
    dies_at: float = float("inf")
    lies: bool = False
    selection: Selection | None = None
    open_asks: int = 0
    wakes_at: float = -1.0
    handed: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.handed = np.zeros(len(self.holds), np.uint8)


class SimSwarm:
    """One blob of `num_chunks`; the first peer has it.

    Args:
        rates: bytes per second that each peer can send; the first is the origin.
    """

    def __init__(self, num_chunks: int, rates: list[float], seed: int = 0) -> None:
        self.now, self.seed = 0.0, seed
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.peers = {
            PeerId(f"peer{index:02d}"): SimPeer(PeerId(f"peer{index:02d}"), rate, np.full(num_chunks, index == 0))
            for index, rate in enumerate(rates)
        }

    @property
    def origin(self) -> SimPeer:
        return next(iter(self.peers.values()))

    def start(self, name: PeerId, at: float = 0.0) -> None:
        """That peer begins to fetch from everyone, the origin first."""
        self._at(at, lambda: self._begin(self.peers[name]))

    def run(self, seconds: float) -> None:
        """Until nothing happens any more, or so much virtual time has passed."""
        while self._events and self.now < seconds:
            self.now, _, event = heapq.heappop(self._events)
            event()

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _begin(self, peer: SimPeer) -> None:
        others = [name for name in self.peers if name != peer.name]
        rng = np.random.default_rng([self.seed, int(peer.name[4:])])
        peer.selection = Selection(others, rng, self.now)
        self._drive(peer)

    def _drive(self, peer: SimPeer) -> None:
        selection = peer.selection
        assert selection is not None
        if peer.done_at is not None or self.now >= peer.dies_at:
            return
        if selection.complete:
            peer.done_at = self.now
            return
        while peer.open_asks < MAX_ASKS and (ask := selection.next(self.now)) is not None:
            peer.open_asks += 1
            self._at(self.now + LATENCY, lambda ask=ask, asked=self.now: self._serve(peer, ask, asked))
        peer.wakes_at = self.now + max(selection.wait(self.now), 0.01)
        self._at(peer.wakes_at, lambda at=peer.wakes_at: self._drive(peer) if peer.wakes_at == at else None)

    def _serve(self, peer: SimPeer, ask: Ask, asked: float) -> None:
        holder, selection = self.peers[ask.holder], peer.selection
        assert selection is not None
        if self.now >= holder.dies_at:
            self._later(peer, 0.0, lambda: selection.failed(ask, "is gone", self.now))
            return
        if not holder.holds.any() and holder.selection is None:
            self._later(peer, 0.0, lambda: selection.lacks(ask, "does not have it", self.now))
            return
        if ask.table and not selection.has_table:
            selection.got_table(peer.holds.copy(), self.now)
        selection.told(ask.holder, holder.holds.copy())
        picked = pick(ask.chunks, ask.most, ask.copies, holder.holds, holder.handed)
        for chunk in picked:
            holder.free_at = max(holder.free_at, self.now) + CHUNK_BYTES / holder.rate
            holder.sent += 1
            if not holder.lies:
                self._at(holder.free_at + LATENCY, lambda chunk=chunk: self._arrive(peer, holder, chunk))
        wait = (holder.free_at - self.now if picked else 0.0) + LATENCY
        if picked and holder.lies:
            self._later(peer, wait, lambda: selection.lied(ask, "gave wrong bytes", self.now))
        elif picked and holder.free_at > holder.dies_at:
            self._later(peer, wait, lambda: selection.failed(ask, "broke off", self.now))
        else:
            self._later(peer, wait, lambda: selection.answered(ask, len(picked), self.now - asked, self.now))

    def _arrive(self, peer: SimPeer, holder: SimPeer, chunk: int) -> None:
        if self.now < holder.dies_at and peer.selection is not None:
            peer.holds[chunk] = True
            peer.selection.got(chunk, self.now)

    def _later(self, peer: SimPeer, seconds: float, event: Callable[[], None]) -> None:
        def happen() -> None:
            event()
            peer.open_asks -= 1
            self._drive(peer)

        self._at(self.now + seconds, happen)
