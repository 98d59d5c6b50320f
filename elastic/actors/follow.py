"""What `elastic join` shows: a line per round, until the run is over or the user has had enough."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import ray

from elastic.actors.journal import describe
from elastic.actors.launch import PeerHandle, quiet
from elastic.messages import PeerStatus

Say = Callable[[str], None]
TROUBLE = ("waiting", "the run", "catching", "network")
"""How the phases begin that a person wants to hear of between rounds."""


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


def follow(handle: PeerHandle, say: Say) -> str:
    """Print each round as it ends; returns why the peer's life ended. Leaves politely on Ctrl-C or SIGTERM."""
    shown, phase = 0, ""
    try:
        with Interruption() as interruption:
            while not handle.ended(0.5):
                interruption.check()
                shown = _show_reports(handle, shown, say)
                phase = _show_waiting(handle, phase, say)
            _show_reports(handle, shown, say)
            return handle.reason()
    except Interrupted as signal_name:
        say(f"{signal_name}: leaving the swarm (once more to stop at once)")
        handle.leave()
        return "left"
    finally:
        handle.kill()
        with quiet():
            ray.shutdown()


def _show_reports(handle: PeerHandle, last: int, say: Say) -> int:
    """Print the rounds after `last`; returns the newest."""
    try:
        reports = ray.get(handle.peer.reports.remote(last), timeout=5)
    except (ray.exceptions.RayError, TimeoutError):
        return last
    for report in reports:
        say(f"round {report.round:4d} | {describe(report)}")
    return max((report.round for report in reports), default=last)


def _show_waiting(handle: PeerHandle, before: str, say: Say) -> str:
    """Outside a round, say what is being waited for, once."""
    try:
        status: PeerStatus = ray.get(handle.peer.status.remote(), timeout=5)
    except (ray.exceptions.RayError, TimeoutError):
        return before
    if status.stage == "failed":
        return before  # its error is told at the end
    if status.stage == "ready" and status.round and not status.phase.startswith(TROUBLE):
        return before
    now: Any = f"{status.stage}: {status.phase}" if status.phase else status.stage
    if now != before:
        say(str(now))
    return str(now)
