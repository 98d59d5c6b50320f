"""Traces in a terminal: the table of slow rounds, and one round as a waterfall. Gives lines, prints nothing."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from elastic.tracing.culprit import Finding, find, tally
from elastic.tracing.model import Span
from elastic.tracing.rounds import PeerRound, Round, offsets

NARROW = 60
"""Columns that a waterfall takes at least."""
HIDDEN = ("round.serve", "worker.state")
"""Spans that take no time: what they say is in their events."""
_NAMES, _SECONDS = 34, 9
_COLOURS = {
    "inner": "green", "compress": "green", "commit": "blue", "publish": "blue", "average": "blue", "gather": "cyan",
    "fetch": "cyan", "transfer": "cyan", "verify": "magenta", "assess": "magenta", "agree": "yellow", "outer": "green",
}  # fmt: skip
MAX_ROWS = 400
"""Lines of a waterfall; the shortest spans are left out beyond."""


def slow_table(found: Sequence[Finding], columns: int, *, plain: bool) -> str:
    """One line a round, and who was to blame how often."""
    table = Table(expand=False, pad_edge=False)
    table.add_column("round", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("culprit", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    table.add_column("lost", justify="right", no_wrap=True)
    table.add_column("evidence", overflow="fold")
    for each in found:
        style = "red" if each.lost >= 0.25 * max(each.seconds, 1e-9) else ""
        lost = f"{each.lost:.1f} s" if each.peer is not None else ""
        table.add_row(
            str(each.round), f"{each.seconds:.1f}", Text(each.name, style=style), str(each.phase or ""), lost,
            Text(each.evidence),
        )  # fmt: skip
    return "\n".join([_drawn(table, columns, plain=plain), *_summary(found)])


def _summary(found: Sequence[Finding]) -> Iterator[str]:
    rounds = len(found)
    for name, phase, times, lost in tally(found):
        what = f"{name}, {phase}" if phase else name
        seconds = f", {lost:.1f} s lost" if phase else ""
        yield f"{what}: {times} of {rounds} round{'s' * (rounds > 1)}{seconds}"


@dataclass(frozen=True, slots=True)
class _Row:
    label: str
    start: float
    """Seconds since the round began."""
    seconds: float
    depth: int
    failed: bool
    colour: str


def waterfall(round_: Round, before: Round | None, columns: int, *, plain: bool) -> str:
    """Peers and their phases as bars on one time line, and who made the round slow."""
    columns = max(columns, NARROW)
    shifts, rows = offsets(round_), list[_Row]()
    begin = min(each.round.start / 1e9 + shifts.get(peer, 0.0) for peer, each in round_.peers.items())
    for peer, each in sorted(round_.peers.items(), key=lambda pair: pair[1].name):
        rows += _rows_of(round_, each, shifts.get(peer, 0.0) - begin)
    total = max((row.start + row.seconds for row in rows), default=0.0)
    shown = _longest(rows)
    width = columns - _NAMES - _SECONDS - 2
    lines = [Text(f"run {round_.run}, round {round_.index}: {round_.seconds:.2f} s, {len(round_.peers)} peers")]
    lines.append(_scale(total, width))
    lines += [_line(row, total, width) for row in shown]
    if len(shown) < len(rows):
        lines.append(Text(f"{len(rows) - len(shown)} shorter spans are left out"))
    skewed = [f"{round_.name(peer)} {shift:+.2f} s" for peer, shift in shifts.items() if abs(shift) >= 0.05]
    if skewed:
        lines.append(Text(f"clocks were put right: {', '.join(skewed)}"))
    lines.append(_verdict(find(round_, before)))
    return _drawn(Text("\n").join(lines), columns, plain=plain)


def _verdict(found: Finding) -> Text:
    if found.peer is None:
        return Text(f"slow: {found.name} ({found.evidence})")
    text = f"slow: {found.name}, {found.phase}, {found.lost:.2f} s lost ({found.evidence})"
    return Text(text, style="bold")


def _rows_of(round_: Round, each: PeerRound, shift: float) -> Iterator[_Row]:
    def rows(span: Span, depth: int) -> Iterator[_Row]:
        if depth > 4:
            return
        last = span.name.rpartition(".")[2]
        yield _Row(_label(round_, each, span), span.start / 1e9 + shift, span.seconds, depth,
                   span.error is not None, _COLOURS.get(last, "white"))  # fmt: skip
        for child in each.inside(span, ""):
            if child.name not in HIDDEN and child.text("peer_from") != each.peer:
                yield from rows(child, depth + 1)

    yield from rows(each.round, 0)


def _label(round_: Round, each: PeerRound, span: Span) -> str:
    if span is each.round:
        return each.name + ("*" if each is round_.decider else "")
    other = span.text("peer_from") or span.text("peer_of")
    name = span.name.removeprefix("round.")
    return f"{name} {round_.name(other)}" if other else name


def _longest(rows: list[_Row]) -> list[_Row]:
    """All, or the longest, in their order; peers themselves always."""
    if len(rows) <= MAX_ROWS:
        return rows
    order = sorted(range(len(rows)), key=lambda at: (rows[at].depth > 0, -rows[at].seconds))
    return [rows[at] for at in sorted(order[:MAX_ROWS])]


def _scale(total: float, width: int) -> Text:
    left, right = "0", f"{total:.2f} s"
    return Text(" " * (_NAMES + _SECONDS + 2) + left + right.rjust(width - len(left)), style="dim")


def _line(row: _Row, total: float, width: int) -> Text:
    label = set_cell_size("  " * row.depth + row.label, _NAMES - 2) + (" !" if row.failed else "  ")
    # A span may say that it began before its round did.
    first = max(0, min(width - 1, int(width * row.start / total))) if total else 0
    length = max(1, round(width * (row.seconds + min(0.0, row.start)) / total)) if total else 1
    line = Text(label, style="red" if row.failed else "bold" if row.depth == 0 else "")
    line.append(f"{row.seconds:{_SECONDS - 2}.3f} s  ")
    line.append(" " * first)
    line.append(("━" if row.depth == 0 else "█")[0] * min(length, width - first), style=row.colour)
    return line


def _drawn(what: Table | Text, columns: int, *, plain: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=columns, force_terminal=not plain, color_system=None if plain else "standard",
                      no_color=plain, highlight=False, legacy_windows=False)  # fmt: skip
    console.print(what, soft_wrap=isinstance(what, Text))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
