"""An asyncio loop whose time is virtual: whenever nothing can run, it is at once as late as the next thing to happen.

A simulated hour costs what its computing costs, and the order of events follows from the program alone.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from elastic.messages import Seconds

T = TypeVar("T")


class _Leap(selectors.DefaultSelector):
    """Instead of waiting, adds the time that would have been waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing will ever happen again: everyone waits for everyone")
            self.now += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """See above. `asyncio.to_thread` runs at once, on the loop's own thread: time must not run past a busy thread."""

    def __init__(self) -> None:
        self._leap = _Leap()
        super().__init__(self._leap)
        self.set_default_executor(InlineExecutor(1))

    def time(self) -> float:
        return self._leap.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """It has no threads; asyncio would start one to wait for them, of whose real time this loop knows nothing."""


class VirtualClock:
    """`contracts.Clock` on a `VirtualLoop`.

    Args:
        grain: nobody sleeps for less, in seconds: those who poll would be most of the work.
    """

    def __init__(self, grain: float = 0.0) -> None:
        self._grain = grain

    def now(self) -> Seconds:
        return Seconds(asyncio.get_running_loop().time())

    async def sleep(self, seconds: Seconds) -> None:
        await asyncio.sleep(max(seconds, self._grain))


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run to the end on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


class InlineExecutor(ThreadPoolExecutor):
    """Runs everything at once, on the thread that asks."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  as an executor does
            future.set_exception(error)
        return future
