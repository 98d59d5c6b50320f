"""Putting blobs into our bucket in the background: a bounded queue, a few tries, and no round ever waits for it."""

from __future__ import annotations

import asyncio
import logging

from elastic.errors import NetworkError
from elastic.exchange.blobs.bulk import Traffic
from elastic.exchange.blobs.store import BlobStore
from elastic.exchange.bucket.store import Bucket
from elastic.messages import Digest

logger = logging.getLogger(__name__)

MAX_QUEUED = 16
"""Blobs that wait; the oldest one gives way."""
TRIES = 3
RETRY_SECONDS = 2.0
"""Before the second try; twice as many before the third."""


class Uploads:
    """One upload after the other, the bytes read when their turn comes. Lives on one event loop.

    Args:
        store: where the bytes are, and what is withheld from peers.
        withhold_seconds: how long a blob on its way is given to nobody else, at most; it ends with the first try.
    """

    def __init__(self, bucket: Bucket, store: BlobStore, traffic: Traffic, withhold_seconds: float) -> None:
        self.done = self.failed = 0
        self._bucket, self._store, self._traffic = bucket, store, traffic
        self._withhold_seconds = withhold_seconds
        self._queue: asyncio.Queue[Digest] = asyncio.Queue(MAX_QUEUED)
        self._worker: asyncio.Task[None] | None = None

    def add(self, digest: Digest) -> None:
        """Upload this blob of the store soon; never waits and never raises."""
        if self._queue.full():
            self._give_up(self._queue.get_nowait(), "too many are waiting")
            self._queue.task_done()
        self._queue.put_nowait(digest)
        if self._withhold_seconds:
            self._store.withheld.add(digest)
            asyncio.get_running_loop().call_later(self._withhold_seconds, self._store.withheld.discard, digest)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def close(self, seconds: float) -> None:
        """Let what is queued leave for so long, then stop."""
        if self._worker is not None:
            try:
                await asyncio.wait_for(self._queue.join(), seconds)
            except TimeoutError:
                logger.warning("closing before everything is in the bucket")
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None

    async def _work(self) -> None:
        while True:
            digest = await self._queue.get()
            try:
                await self._upload(digest)
            finally:
                self._store.withheld.discard(digest)
                self._queue.task_done()

    async def _upload(self, digest: Digest) -> None:
        problem = ""
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(RETRY_SECONDS * 2 ** (attempt - 1))
            blob = await asyncio.to_thread(self._store.read, digest)
            if blob is None:
                problem = "it has made room for newer ones"
                break
            try:
                self._traffic.add(out=await self._bucket.put(digest, blob))
            except NetworkError as error:
                problem = str(error)
                self._store.withheld.discard(digest)
            else:
                self.done += 1
                self._store.withheld.discard(digest)
                await self._make_room()
                return
        self._give_up(digest, problem)

    async def _make_room(self) -> None:
        try:
            await self._bucket.make_room()
        except NetworkError as error:
            logger.warning("old blobs stay in the bucket: %s", error)

    def _give_up(self, digest: Digest, problem: str) -> None:
        self.failed += 1
        self._store.withheld.discard(digest)
        logger.warning("not in the bucket: %s (%d so far): %s", digest[:12], self.failed, problem)
