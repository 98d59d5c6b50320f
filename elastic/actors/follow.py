"""What `elastic join` shows: a line per round, until the run is over or the user has had enough."""

from collections.abc import Callable

import ray

from elastic.actors.handle import PeerHandle
from elastic.actors.interruption import Interrupted, Interruption
from elastic.actors.journal import describe
from elastic.actors.launch import quiet
from elastic.messages import RoundIndex
from elastic.reports import PeerStatus

Say = Callable[[str], None]
TROUBLE = ("waiting", "the run", "catching", "network")
"""How the phases begin that a person wants to hear of between rounds."""


def follow(handle: PeerHandle, say: Say) -> str:
    """Print each round as it ends; returns why the peer's life ended. Leaves politely on Ctrl-C or SIGTERM."""
    shown, phase, evaluated = RoundIndex(0), "", ""
    with Interruption() as interruption:
        try:
            while not handle.ended(0.5):
                interruption.check()
                shown = _show_reports(handle, shown, say)
                status = handle.status()
                phase, evaluated = _show_waiting(status, phase, say), _show_evaluated(status, evaluated, say)
            _show_reports(handle, shown, say)
            _show_evaluated(handle.status(), evaluated, say)
            return handle.reason()
        except Interrupted as signal_name:
            hand_in = str(signal_name) == "SIGINT"  # who sends SIGTERM may not wait: `ray job stop` kills after 3 s
            what = ", with what is done of this round; half a minute at most" if hand_in else ""
            say(f"{signal_name}: leaving the swarm{what} (once more: at once)")
            handle.leave(hand_in)
            return "left"
        finally:
            handle.kill()
            with quiet():
                ray.shutdown()


def _show_reports(handle: PeerHandle, last: RoundIndex, say: Say) -> RoundIndex:
    """Print the rounds after `last`; returns the newest."""
    reports = handle.reports(last)
    for report in reports:
        say(f"round {report.round:4d} | {describe(report)}")
    return max((report.round for report in reports), default=last)


def _show_evaluated(status: PeerStatus, before: str, say: Say) -> str:
    """Of an evaluator what it measured, once."""
    if status.evaluated and status.evaluated != before:
        say(f"evaluated  | {status.evaluated}")
    return status.evaluated or before


def _show_waiting(status: PeerStatus, before: str, say: Say) -> str:
    """Outside a round, say what is being waited for, once."""
    if status.stage in ("failed", "left"):
        return before  # why is told at the end
    if status.stage in ("ready", "watching") and status.round and not status.phase.startswith(TROUBLE):
        return before
    now = f"{status.stage}: {status.phase}" if status.phase else status.stage
    if now != before:
        say(now)
    return now
