"""What other validators say in blobs, fetched beside everything else: who is silent keeps nobody waiting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass
from math import inf

from elastic.contracts import Clock, Exchange
from elastic.errors import MalformedError, NetworkError
from elastic.messages import BlobRef, PeerId, Seconds

logger = logging.getLogger(__name__)

POLL = Seconds(0.1)
"""Between two looks at whether something came."""
LONGEST_PAUSE = Seconds(16.0)
"""After a failure an author is not asked for a second, then for two, and so on up to this."""
_NO_PAUSE = Seconds(-inf), Seconds(0.5)


@dataclass(frozen=True, slots=True)
class _Errand:
    record: bytes
    began: Seconds
    work: asyncio.Task[bytes | None]


class Errands:
    """One fetch of each author at a time."""

    def __init__(self, exchange: Exchange, clock: Clock, what: str) -> None:
        """Nothing is fetched yet; `what` names it in the log."""
        self._exchange, self._clock, self._what = exchange, clock, what
        self._running: dict[PeerId, _Errand] = {}
        self._pauses: dict[PeerId, tuple[Seconds, Seconds]] = {}
        """Author that failed us → until when it is not asked, and how long that was."""

    def send(self, author: PeerId, record: bytes) -> None:
        """Go for the blob that an author's record refers to; not while another one of its is on its way, nor soon
        after one did not come."""
        if author not in self._running and self._clock.now() >= self._pauses.get(author, _NO_PAUSE)[0]:
            work = asyncio.create_task(self._fetch(author, record))
            self._running[author] = _Errand(record, self._clock.now(), work)

    async def wait(self, authors: Collection[PeerId], seconds: Seconds) -> None:
        """Until theirs have come or failed, but for none longer than so many seconds since it was sent for."""
        while any(self._is_awaited(author, seconds) for author in authors):
            await self._clock.sleep(POLL)

    def back(self) -> dict[PeerId, tuple[bytes, bytes]]:
        """Author → its record and its blob, of those that came since the last call, by name."""
        over = {author: errand for author, errand in sorted(self._running.items()) if errand.work.done()}
        found = {}
        for author, errand in over.items():
            del self._running[author]
            blob = errand.work.result()
            if blob is not None:
                found[author] = errand.record, blob
        return found

    def cancel(self) -> None:
        """Nothing is wanted any more."""
        for errand in self._running.values():
            errand.work.cancel()
        self._running.clear()

    def _is_awaited(self, author: PeerId, seconds: Seconds) -> bool:
        errand = self._running.get(author)
        return errand is not None and not errand.work.done() and self._clock.now() < errand.began + seconds

    async def _fetch(self, author: PeerId, record: bytes) -> bytes | None:
        try:
            where = BlobRef.from_bytes(record)
            blob = await self._exchange.fetch(where.digest, where.size_bytes, [author])
        except (NetworkError, MalformedError) as error:
            lie = isinstance(error, MalformedError) and author not in self._pauses
            pause = Seconds(min(2 * self._pauses.get(author, _NO_PAUSE)[1], LONGEST_PAUSE))
            self._pauses[author] = Seconds(self._clock.now() + pause), pause
            logger.log(
                logging.WARNING if lie else logging.INFO,
                "%s of %s: %s; not asked again for %.0f s", self._what, author, error, pause,
            )  # fmt: skip
            return None
        self._pauses.pop(author, None)
        return blob
