"""The live view of the quickstart: a table that redraws in a terminal, a line per round elsewhere."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from elastic.actors.follow import Say
from elastic.reports import PeerStatus, RoundReport
from elastic.view import restarted, table

BEHIND = 2
"""Rounds by which the reports of two peers that both live may differ."""


class LiveView:
    """A context manager that is told statuses and reports now and then."""

    def __init__(self, plain: bool, rounds: int, say: Say) -> None:
        self._rounds, self._say = rounds, say
        self._live = None if plain else Live(console=Console(), refresh_per_second=4, transient=True)
        self._shown: set[int] = set()

    def __enter__(self) -> "LiveView":
        if self._live:
            self._live.start()
        else:
            self._say("starting a bootstrap, Ray, and the peers' networks and trainers")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def update(self, statuses: Sequence[PeerStatus], reports: Sequence[RoundReport]) -> None:
        """Show the newest."""
        complete = complete_rounds(reports, len(statuses))
        last = complete[-1] if complete else None
        if self._live:
            back = (Text(restarted(status)) for status in statuses if status.restarts)
            self._live.update(
                Group(Text(self._headline(statuses, last)), table(statuses, slowest=slowest(last)), *back)
            )
            return
        for entries in over(reports, len(statuses)):
            if entries[0].round not in self._shown:
                self._shown.add(entries[0].round)
                self._say(round_line(entries, self._rounds))

    def _headline(self, statuses: Sequence[PeerStatus], last: list[RoundReport] | None) -> str:
        if last is None:
            doing = sorted({status.phase for status in statuses if status.phase})
            return "starting: " + "; ".join(doing)
        return round_line(last, self._rounds)


def by_round(reports: Sequence[RoundReport]) -> list[list[RoundReport]]:
    """Reports of each round, oldest round first; of a round that a peer reported twice, the later report."""
    rounds: dict[int, dict[str, RoundReport]] = {}
    for report in reports:
        rounds.setdefault(report.round, {})[report.peer] = report
    return [list(rounds[index].values()) for index in sorted(rounds)]


def complete_rounds(reports: Sequence[RoundReport], peers: int) -> list[list[RoundReport]]:
    """Those of `by_round` that every peer has reported."""
    return [entries for entries in by_round(reports) if len(entries) == peers]


def over(reports: Sequence[RoundReport], peers: int) -> list[list[RoundReport]]:
    """Those of `by_round` of which no more reports will come: everyone, or who lives, is further."""
    complete = complete_rounds(reports, peers)
    everyone = complete[-1][0].round if complete else 0
    newest = max((report.round for report in reports), default=0)
    return [entries for entries in by_round(reports) if entries[0].round <= max(everyone, newest - BEHIND)]


def slowest(entries: Sequence[RoundReport] | None) -> str | None:
    """Name of the peer whose contribution arrived last, as most peers saw it."""
    if not entries:
        return None
    names: dict[str, str] = {report.peer: report.name for report in entries}
    seen = [report.last for report in entries if report.last is not None]
    return names.get(max(sorted(set(seen)), key=seen.count)) if seen else None


def round_line(entries: Sequence[RoundReport], rounds: int) -> str:
    """One round of the whole swarm."""
    losses = [report.loss for report in entries if report.loss is not None]
    mean = f"loss {sum(losses) / len(losses):.3f}" if losses else "nobody trained"
    seconds = max(report.seconds.get("total", 0.0) for report in entries)
    tokens = sum(report.tokens for report in entries) / max(seconds, 1e-3)
    counted = sum(report.counted for report in entries)
    equal = "equal" if len({report.digest for report in entries}) == 1 else "DIFFERENT"
    last = slowest(entries)
    return (
        f"round {entries[0].round:3d}/{rounds} | {mean} | {tokens:6,.0f} tokens/s | {counted} of {len(entries)} counted"
        f" | anchors {equal} {entries[0].digest[:8]} | {seconds:.1f} s" + (f", last {last}" if last else "")
    )
