"""The Exchange without a network: all peers in one process. For unit tests and simulation, never the default.

It promises what the real one promises, and breaks on demand: `MemoryNetwork.cut` and `MemoryNetwork.corrupt`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from elastic.errors import AveragingError, FetchError, MalformedError, NetworkError
from elastic.exchange.blobs.ledger import Ledger
from elastic.exchange.blobs.partial import Partial
from elastic.exchange.blobs.store import BlobStore, Offer
from elastic.exchange.blobs.transfer import transfer
from elastic.messages import Digest, PeerCard, PeerId, RoundIndex, Seconds
from elastic.reports import Carried

MAX_RECORD_BYTES = 16 * 1024
"""No record is larger; the real exchange refuses larger ones too."""


@dataclass
class _Meeting:
    """The peers that wait for one averaging."""

    num_peers: int
    result: asyncio.Future[dict[str, Any]]
    inputs: dict[PeerId, dict[str, Any]] = field(default_factory=dict)


class MemoryNetwork:
    """What all `MemoryExchange`s of one simulated internet share."""

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        card_seconds: float = 20.0,
        sleep: Callable[[Seconds], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self.now, self.sleep = now, sleep
        self.card_seconds = card_seconds
        self.cards: dict[tuple[str, PeerId], tuple[bytes, float]] = {}
        """(run, peer) → canonical card, when it expires on the `now` clock."""
        self.records: dict[tuple[str, str, RoundIndex], dict[PeerId, bytes]] = {}
        """(run, kind, round) → peer → body."""
        self.peers: dict[PeerId, MemoryExchange] = {}
        self._meetings: dict[tuple[str, str], _Meeting] = {}
        self._cut: set[frozenset[PeerId]] = set()
        """Who is cut off from all, alone; pairs that are cut off from each other."""
        self._shown: dict[tuple[str, RoundIndex, PeerId, PeerId], bytes | None] = {}
        self._corrupt: set[tuple[Digest, PeerId | None]] = set()

    def join(self, peer: PeerId, run: str = "run") -> MemoryExchange:
        """A new peer's exchange."""
        self.peers[peer] = MemoryExchange(self, peer, run)
        return self.peers[peer]

    def cut(self, peer: PeerId, *others: PeerId) -> None:
        """From now on nothing gets to this peer or away from it; or nothing between it and these others."""
        self._cut.update({frozenset((peer, other)) for other in others} or {frozenset((peer,))})

    def heal(self, peer: PeerId) -> None:
        """Undo every `cut` of that peer."""
        self._cut = {pair for pair in self._cut if peer not in pair}

    def corrupt(self, digest: Digest, holder: PeerId | None = None) -> None:
        """This holder, or every holder, serves wrong bytes for this digest."""
        self._corrupt.add((digest, holder))

    def show(self, author: PeerId, kind: str, round_: RoundIndex, body: bytes | None, *readers: PeerId) -> None:
        """These readers see another record of that author than everyone else; None: they see none."""
        self._shown.update({(kind, round_, author, reader): body for reader in readers})

    def seen_by(self, reader: PeerId, run: str, kind: str, round_: RoundIndex) -> dict[PeerId, bytes]:
        """Everyone's records of that kind for that round as that reader sees them."""
        seen = {
            author: self._shown.get((kind, round_, author, reader), body)
            for author, body in self.records.get((run, kind, round_), {}).items()
            if self.reaches(reader, author)
        }
        return {author: body for author, body in seen.items() if body is not None}

    def reaches(self, one: PeerId, other: PeerId) -> bool:
        """Whether bytes get from one to the other."""
        return one == other or not {frozenset((one,)), frozenset((other,)), frozenset((one, other))} & self._cut

    def offered(self, holder: PeerId, digest: Digest) -> Offer | None:
        """What that holder has of a blob, right or wrong; None if it has nothing of that digest."""
        exchange = self.peers.get(holder)
        offer = exchange.store.offer(digest) if exchange is not None else None
        if offer is not None and {(digest, None), (digest, holder)} & self._corrupt:
            right = offer.read
            return replace(offer, read=lambda chunk: bytes([right(chunk)[0] ^ 1]) + right(chunk)[1:])
        return offer

    def meet(self, run: str, key: str, num_peers: int) -> _Meeting:
        """The averaging of that key that is gathering its peers now."""
        meeting = self._meetings.get((run, key))
        if meeting is None or meeting.result.done():
            meeting = _Meeting(num_peers, asyncio.get_running_loop().create_future())
            self._meetings[run, key] = meeting
        return meeting


class MemoryExchange:
    """One peer's end of a `MemoryNetwork`; implements `elastic.contracts.Exchange`."""

    class Config(BaseModel):
        """Settings beside `exchange = {name = "memory"}`: none."""

        model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, network: MemoryNetwork, peer: PeerId, run: str) -> None:
        self.peer = peer
        self.addresses: list[str] = [f"/memory/{peer}"]
        self._network = network
        self._run = run
        self.store = BlobStore()
        self.ledger = Ledger(network.now)
        """Who took how much of us."""
        self._own: dict[tuple[str, RoundIndex], bytes] = {}
        self._bytes_out = 0
        self._bytes_in = 0
        self._by_peer: dict[PeerId, tuple[int, int]] = {}
        self._closed = False

    async def announce(self, card: PeerCard) -> None:
        self._check_open()
        if self._network.reaches(self.peer, PeerId("")):
            expires = self._network.now() + self._network.card_seconds
            self._network.cards[self._run, self.peer] = (card.canonical(), expires)

    async def cards(self) -> Sequence[PeerCard]:
        self._check_open()
        now = self._network.now()
        live = []
        for (run, peer), (body, expires) in sorted(self._network.cards.items()):
            if run == self._run and expires > now and self._network.reaches(self.peer, peer):
                live.extend(_readable(body, peer, run))
        return live

    async def post(self, kind: str, round_: RoundIndex, body: bytes) -> None:
        self._check_open()
        if len(body) > MAX_RECORD_BYTES:
            raise NetworkError(f"a record of {len(body)} bytes; at most {MAX_RECORD_BYTES} are carried")
        self._own[kind, round_] = body
        if self._network.reaches(self.peer, PeerId("")):
            self._network.records.setdefault((self._run, kind, round_), {})[self.peer] = body
            self._bytes_out += len(body)

    async def records(self, kind: str, round_: RoundIndex) -> Mapping[PeerId, bytes]:
        self._check_open()
        seen = self._network.seen_by(self.peer, self._run, kind, round_)
        self._bytes_in += sum(map(len, seen.values()))
        own = self._own.get((kind, round_))
        return seen if own is None else seen | {self.peer: own}

    async def heed(self, peers: Sequence[PeerId]) -> None:
        """Nothing is ever crowded out here."""
        self._check_open()

    async def provide(self, blob: bytes) -> Digest:
        self._check_open()
        return self.store.add(blob)

    async def provide_file(self, digest: Digest, path: str) -> None:
        self._check_open()
        self.store.add_file(digest, Path(path))

    def held(self, digest: Digest) -> bytes | None:
        """The bytes we serve under that digest."""
        return self.store.read(digest)

    async def fetch(self, digest: Digest, size_bytes: int, holders: Sequence[PeerId]) -> bytes:
        self._check_open()
        own = self.held(digest)
        if own is not None:
            return own
        story: dict[PeerId, str] = {}
        offers = {holder: self._offer(holder, digest, size_bytes, story) for holder in dict.fromkeys(holders)}
        live = {holder: offer for holder, offer in offers.items() if offer is not None}
        if live:
            with self.store.partials.receiving(next(iter(live.values())).table) as partial:
                with transfer(digest, size_bytes) as account:
                    for chunk in np.flatnonzero(~partial.holds):
                        self._take(int(chunk), partial, live, story, account.ledger)
                if partial.holds.all():
                    return partial.data()
        told = "; ".join(f"{peer}: {problem}" for peer, problem in story.items())
        raise FetchError(f"nobody gave {digest}: {told or 'no holder is known'}")

    def _offer(self, holder: PeerId, digest: Digest, size_bytes: int, story: dict[PeerId, str]) -> Offer | None:
        if not self._network.reaches(self.peer, holder):
            story[holder] = "cannot be reached"
            return None
        offer = self._network.offered(holder, digest)
        if offer is None:
            story[holder] = "does not have it"
        elif offer.table.size != size_bytes:
            story[holder] = f"announces {offer.table.size} bytes, expected {size_bytes}"
            return None
        return offer

    def _take(
        self, chunk: int, partial: Partial, live: dict[PeerId, Offer], story: dict[PeerId, str], came: Ledger
    ) -> None:
        """One chunk from one of those who have it, another one for each chunk; who fails is left out from then on."""
        able = [holder for holder, offer in live.items() if offer.holds[chunk]]
        for holder in able[chunk % max(1, len(able)) :] + able[: chunk % max(1, len(able))]:
            try:
                data = live[holder].read(chunk)
            except OSError:
                story[holder] = "broke off"
                del live[holder]
                continue
            self._moved(holder, received=len(data))
            self._network.peers[holder]._moved(self.peer, out=len(data))
            for ledger, other in ((self._network.peers[holder].ledger, self.peer), (came, holder)):
                entry = ledger.begin(other)
                ledger.add(entry, len(data))
                ledger.end(entry)
            if partial.add(chunk, data):
                return
            story[holder] = "gave wrong bytes"
            del live[holder]

    async def average(self, key: str, tensors: Mapping[str, Any], num_peers: int, timeout: Seconds) -> dict[str, Any]:
        self._check_open()
        if not self._network.reaches(self.peer, PeerId("")):
            raise AveragingError(f"averaging {key}: this peer is cut off")
        meeting = self._network.meet(self._run, key, num_peers)
        meeting.inputs[self.peer] = {name: np.array(value, np.float32) for name, value in tensors.items()}
        if len(meeting.inputs) == num_peers:
            _conclude(meeting, key)
        timer = asyncio.create_task(self._network.sleep(timeout))
        either: tuple[asyncio.Future[Any], ...] = (meeting.result, timer)
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not meeting.result.done():
                missing = num_peers - len(meeting.inputs)
                raise AveragingError(f"averaging {key}: {missing} of {num_peers} peers did not come")
            return {name: value.copy() for name, value in meeting.result.result().items()}
        finally:
            timer.cancel()
            if not meeting.result.done():
                meeting.inputs.pop(self.peer, None)

    async def traffic(self) -> tuple[int, int]:
        return self._bytes_out, self._bytes_in

    async def partners(self) -> Mapping[PeerId, tuple[int, int]]:
        return dict(self._by_peer)

    async def served(self) -> Sequence[Carried]:
        return self.ledger.take()

    async def close(self) -> None:
        self._closed = True
        self._network.peers.pop(self.peer, None)

    def _moved(self, peer: PeerId, out: int = 0, received: int = 0) -> None:
        before = self._by_peer.get(peer, (0, 0))
        self._by_peer[peer] = (before[0] + out, before[1] + received)
        self._bytes_out += out
        self._bytes_in += received

    def _check_open(self) -> None:
        if self._closed:
            raise NetworkError("this exchange is closed")


def _readable(body: bytes, peer: PeerId, run: str) -> list[PeerCard]:
    try:
        card = PeerCard.from_bytes(body)
    except MalformedError:
        return []
    return [card] if (card.peer, card.run) == (peer, run) else []


def _conclude(meeting: _Meeting, key: str) -> None:
    """Give everyone the same mean, summed in PeerId order, or the same error."""
    shapes = [{name: value.shape for name, value in inputs.items()} for inputs in meeting.inputs.values()]
    values = [value for inputs in meeting.inputs.values() for value in inputs.values()]
    if any(other != shapes[0] for other in shapes):
        meeting.result.set_exception(AveragingError(f"averaging {key}: the peers' tensors differ in name or shape"))
    elif not all(np.isfinite(value).all() for value in values):
        meeting.result.set_exception(AveragingError(f"averaging {key}: a tensor is not finite"))
    else:
        ordered = [meeting.inputs[peer] for peer in sorted(meeting.inputs)]
        meeting.result.set_result(
            {name: sum(inputs[name] for inputs in ordered) / np.float32(len(ordered)) for name in shapes[0]}
        )
