"""Something slow beside everything else: one thing at a time, and of what waits only the newest."""

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from elastic.errors import ElasticError, StateError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Background(Generic[T]):
    """Does what is wanted in a thread that is there only while there is something to do.

    A failure ends it for good, and is told to whoever asks next: after a failed fsync nobody knows what is on the disk.
    """

    def __init__(self, do: Callable[[T], None]) -> None:
        self._do = do
        self._changed = threading.Condition()
        self._waiting: T | None = None
        self._at: T | None = None
        self._failure: Exception | None = None

    def want(self, item: T) -> None:
        """Do this next, instead of what waits."""
        with self._changed:
            self._waiting = item
            if self._at is None and self._failure is None:
                self._at, self._waiting = item, None
                threading.Thread(target=self._run, args=(item,), name="elastic-sync", daemon=True).start()

    def held(self) -> list[T]:
        """What is being done or waits."""
        with self._changed:
            return [item for item in (self._at, self._waiting) if item is not None]

    def wait(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Until there is nothing left to do, or this is true after something was done.

        Raises:
            StateError: it failed, now or earlier.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._at is None or enough())
        self.check()

    def check(self) -> None:
        """Tell of a failure.

        Raises:
            StateError: it failed.
        """
        if isinstance(self._failure, ElasticError):
            raise StateError(str(self._failure)) from self._failure
        if self._failure is not None:
            raise self._failure

    def _run(self, item: T | None) -> None:
        """Until nothing waits."""
        while item is not None:
            try:
                self._do(item)
            except Exception as error:  # whoever asks next is told
                logger.exception("in the background")
                self._failure = error
            with self._changed:
                self._at, self._waiting = (None if self._failure else self._waiting), None
                item = self._at
                self._changed.notify_all()
