"""The clocks: real time, and time that a test moves by hand."""

import asyncio
import heapq
import time

from elastic.messages import Seconds


class WallClock:
    """Monotonic time of this machine."""

    def now(self) -> Seconds:
        return Seconds(time.monotonic())

    async def sleep(self, seconds: Seconds) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """Time that passes only when everyone sleeps: a swarm in one process runs as fast as it computes.

    Whenever the event loop has nothing else to do, the earliest sleeper is woken and time jumps to its hour.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._order = 0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._driver: asyncio.Task[None] | None = None

    def now(self) -> Seconds:
        return Seconds(self._now)

    async def sleep(self, seconds: Seconds) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (self._now + max(seconds, 0.0), self._order, future))
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        await future

    async def _drive(self) -> None:
        while self._sleepers:
            for _ in range(50):  # let every runnable task reach its next wait before time moves
                await asyncio.sleep(0)
            when, _, future = heapq.heappop(self._sleepers)
            if not future.done():  # nobody waits for a cancelled sleeper, so time does not either
                self._now = max(self._now, when)
                future.set_result(None)
