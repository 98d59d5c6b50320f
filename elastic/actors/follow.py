"""What `elastic join` shows: a line per round, until the run is over or the user has had enough."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray

from elastic.actors.journal import describe
from elastic.actors.launch import PeerHandle
from elastic.messages import PeerStatus

Say = Callable[[str], None]


class Interrupted(BaseException):
    """SIGINT or SIGTERM; a BaseException, so that nobody takes it for an error."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into one `Interrupted`; the second signal ends the process at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Interrupted(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(handle: PeerHandle, say: Say) -> str:
    """Print each round as it ends; returns why the peer's life ended. Leaves politely on Ctrl-C or SIGTERM."""
    shown, phase = 0, ""
    try:
        with interruptible():
            while not handle.ended(0.5):
                shown += _show_reports(handle, shown, say)
                phase = _show_waiting(handle, phase, say)
            _show_reports(handle, shown, say)
            return handle.reason()
    except Interrupted as signal_name:
        say(f"{signal_name}: leaving the swarm (once more to stop at once)")
        handle.leave()
        return "left"


def _show_reports(handle: PeerHandle, start: int, say: Say) -> int:
    try:
        reports = ray.get(handle.peer.reports.remote(start), timeout=5)
    except (ray.exceptions.RayError, TimeoutError):
        return 0
    for report in reports:
        say(f"round {report.round:4d} | {describe(report)}")
    return len(reports)


def _show_waiting(handle: PeerHandle, before: str, say: Say) -> str:
    """Outside a round, say what is being waited for, once."""
    try:
        status: PeerStatus = ray.get(handle.peer.status.remote(), timeout=5)
    except (ray.exceptions.RayError, TimeoutError):
        return before
    if status.stage == "ready" and status.round and not status.phase.startswith(("waiting", "the run", "catching")):
        return before
    now: Any = f"{status.stage}: {status.phase}" if status.phase else status.stage
    if now != before:
        say(str(now))
    return str(now)
