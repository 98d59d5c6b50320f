"""Ctrl-C and SIGTERM for programs that hold Ray actors."""

import signal
from types import FrameType


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The user wants to stop; the message is the signal's name."""


class Interruption:
    """SIGINT and SIGTERM as a flag: an exception raised inside one of Ray's own calls would break Ray.

    The second signal ends the process at once.
    """

    def __init__(self) -> None:
        self._signal: str | None = None

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises Interrupted if a signal came."""
        if self._signal is not None:
            raise Interrupted(self._signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
