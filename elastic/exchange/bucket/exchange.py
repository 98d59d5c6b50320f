"""A second way for payload bytes: this peer's own bucket, S3-compatible, beside the swarm. Records stay in Hivemind.

What this peer makes is put there in the background; others read it by plain HTTP from the URL on our card, also when we
cannot be reached any more. While a blob is on its way into the bucket it is not given to peers, so that a thin uplink
carries one copy of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel

from elastic.errors import FetchError
from elastic.exchange.blobs.bulk import Traffic
from elastic.exchange.bucket.public import is_bucket
from elastic.exchange.bucket.reader import BucketReader, Progress
from elastic.exchange.bucket.store import Bucket, BucketConfig
from elastic.exchange.bucket.uploads import Uploads
from elastic.exchange.hivemind import HivemindExchange
from elastic.messages import Digest, PeerCard, PeerId, RoundIndex, Seconds
from elastic.reports import Carried

logger = logging.getLogger(__name__)

MAX_BUCKETS = 3
"""Buckets that one fetch looks into: its first holder's, as a rule who made the blob, and two more."""
PATIENCE_SECONDS = 2.0
"""When nothing has come from a bucket for so long, peers are asked too."""
_PER_CARD = 2
_KNOWN_PEERS = 1024
_FOREIGN = 4096
_CARD_ADDRESSES = 16
_READERS = 48
_DRAIN_SECONDS = 5.0


class BucketExchange:
    """One peer's end of the swarm, with a bucket; implements `elastic.contracts.Exchange`. Made by `start`."""

    class Config(BucketConfig):
        """Settings beside `exchange = {name = "bucket"}`."""

    def __init__(self, inner: Any, bucket: Bucket, config: BucketConfig) -> None:
        self.peer: PeerId = inner.peer
        self.store = inner.store
        self._inner, self._config = inner, config
        self._buckets: OrderedDict[PeerId, tuple[str, ...]] = OrderedDict()
        self._foreign: OrderedDict[Digest, None] = OrderedDict()
        """What we fetched is in the bucket of who made it, if anywhere."""
        self._traffic = Traffic()
        self._reader = BucketReader(self.store.partials, self._traffic, config.allow_private)
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="bucket-read")
        withhold = config.withhold_seconds if config.public_url else 0.0
        self._uploads = Uploads(bucket, self.store, self._traffic, withhold)

    @classmethod
    async def start(cls, *, settings: BaseModel, **rest: Any) -> BucketExchange:
        """As `HivemindExchange.start`, which gets the `rest`; `settings` is our `Config`.

        Raises:
            ConfigError: a key cannot be read, or the bucket's settings are wrong. Else as `HivemindExchange.start`.
        """
        assert isinstance(settings, BucketConfig), "the registry has validated them"
        bucket = Bucket(settings)
        inner = await HivemindExchange.start(**rest)
        return cls(inner, bucket, settings)

    @property
    def addresses(self) -> list[str]:
        """Where peers reach us, and at the end where our bucket is read."""
        url = self._config.public_url
        listening = self._inner.addresses[: _CARD_ADDRESSES - 1]
        return [*listening, url] if url else listening

    @property
    def lost(self) -> bool:
        """Whether the local p2pd has died: this exchange is of no use any more."""
        return bool(self._inner.lost)

    async def announce(self, card: PeerCard) -> None:
        await self._inner.announce(card)

    async def cards(self) -> Sequence[PeerCard]:
        cards: Sequence[PeerCard] = await self._inner.cards()
        for card in cards:
            buckets = [each for each in card.addresses if is_bucket(each, self._config.allow_private)]
            if buckets and card.peer != self.peer:  # kept when the card is gone: then the bucket is needed most
                self._buckets[card.peer] = tuple(buckets[:_PER_CARD])
                self._buckets.move_to_end(card.peer)
        while len(self._buckets) > _KNOWN_PEERS:
            self._buckets.popitem(last=False)
        return cards

    async def post(self, kind: str, round_: RoundIndex, body: bytes) -> None:
        await self._inner.post(kind, round_, body)

    async def records(self, kind: str, round_: RoundIndex) -> Mapping[PeerId, bytes]:
        records: Mapping[PeerId, bytes] = await self._inner.records(kind, round_)
        return records

    async def heed(self, peers: Sequence[PeerId]) -> None:
        await self._inner.heed(peers)

    async def provide(self, blob: bytes) -> Digest:
        digest: Digest = await self._inner.provide(blob)
        if blob and digest not in self._foreign:
            self._uploads.add(digest)
        return digest

    async def provide_file(self, digest: Digest, path: str) -> None:
        await self._inner.provide_file(digest, path)

    async def fetch(self, digest: Digest, size_bytes: int, holders: Sequence[PeerId]) -> bytes:
        buckets = self._buckets_of(holders)
        if not buckets or not size_bytes or self.store.get(digest) is not None:
            blob: bytes = await self._inner.fetch(digest, size_bytes, holders)
        else:
            blob = await self._fetch(buckets, digest, size_bytes, holders)
        self._foreign[digest] = None
        if len(self._foreign) > _FOREIGN:
            self._foreign.popitem(last=False)
        return blob

    async def _fetch(self, buckets: list[str], digest: Digest, size: int, holders: Sequence[PeerId]) -> bytes:
        """From buckets as long as they give something, then from whoever is the first to have all of it."""
        progress, loop = Progress(), asyncio.get_running_loop()
        reading = loop.run_in_executor(self._threads, self._reader.fetch, buckets, digest, size, progress)
        try:
            while not reading.done() and time.monotonic() < progress.moved_at + PATIENCE_SECONDS:
                await asyncio.wait({reading}, timeout=PATIENCE_SECONDS / 4)
            blob = reading.result() if reading.done() else None
            return blob or await self._race(reading, asyncio.ensure_future(self._inner.fetch(digest, size, holders)))
        except FetchError as error:
            told = "; ".join(f"{bucket}: {problem}" for bucket, problem in progress.story.items())
            raise FetchError(f"{error}; {told}") from error
        finally:
            progress.stop.set()

    async def _race(self, reading: asyncio.Future[bytes | None], asking: asyncio.Future[bytes]) -> bytes:
        """Both go on from the chunks that have come; who fails leaves it to the other."""
        either: set[asyncio.Future[Any]] = {reading, asking}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and asking.exception() is not None:
                await asyncio.wait({reading})
            blob = reading.result() if reading.done() else None
            return blob or await asking
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    def _buckets_of(self, holders: Sequence[PeerId]) -> list[str]:
        found = (bucket for holder in dict.fromkeys(holders) for bucket in self._buckets.get(holder, ()))
        return list(dict.fromkeys(found))[:MAX_BUCKETS]

    async def average(self, key: str, tensors: Mapping[str, Any], num_peers: int, timeout: Seconds) -> dict[str, Any]:
        averaged: dict[str, Any] = await self._inner.average(key, tensors, num_peers, timeout)
        return averaged

    async def traffic(self) -> tuple[int, int]:
        out, received = await self._inner.traffic()
        return out + self._traffic.out, received + self._traffic.received

    async def partners(self) -> Mapping[PeerId, tuple[int, int]]:
        partners: Mapping[PeerId, tuple[int, int]] = await self._inner.partners()
        return partners

    async def served(self) -> Sequence[Carried]:
        served: Sequence[Carried] = await self._inner.served()
        return served

    async def close(self) -> None:
        await self._uploads.close(_DRAIN_SECONDS)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._inner.close()
