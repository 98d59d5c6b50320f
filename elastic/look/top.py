"""`elastic top`: a run in a terminal, as lines of text that fit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from elastic.look.model import PHASES, Member, Picture, Round, Totals, slow_peers, totals
from elastic.names import printable
from elastic.view import doing

LETTERS = dict(zip(PHASES, "icmpvgao", strict=True))
"""A phase in a bar: readable without colours too."""
STYLES = dict(
    zip(
        PHASES,
        (
            "white on blue", "black on bright_blue", "black on bright_magenta", "white on magenta", "black on magenta",
            "black on yellow", "black on green", "white on dark_green",
        ),
        strict=True,
    )
)  # fmt: skip
BLOCKS = "▁▂▃▄▅▆▇█"
NARROWEST = 60
BEFORE = (("peer", 12), ("doing", 9), ("round", -5))
"""Columns left of the bar, and their widths; below 0: to the right."""
BEHIND = (("loss", -6), ("late", -7), ("often", -6), ("score", -6), ("share", -6))
"""Those right of it. The bar has the rest."""
FIXED = sum(abs(width) + 1 for _, width in (*BEFORE, *BEHIND))
AROUND = 7
"""Lines above and below the peers, at most."""
NOBODY = "nobody runs here now: `elastic quickstart` or `elastic join` starts peers"


def screen(picture: Picture, width: int, height: int | None = None, hint: str = "") -> Text:
    """The whole view.

    Args:
        picture: the run.
        width: columns of the terminal; it is never narrower than `NARROWEST`.
        height: its lines; None: any number.
        hint: how to leave.
    """
    width, known = max(width, NARROWEST), totals(picture)
    lines = [_headline(picture), _losses(picture, width), _heading(width)]
    room = len(picture.members) if height is None else max(1, height - AROUND)
    members = picture.members[: room if len(picture.members) <= room else room - 1]
    last = picture.last_decided
    longest = max((_total(each, picture) for each in members), default=0.0)
    lines += [_row(each, picture, known[each.peer], last, (longest, width)) for each in members]
    if len(members) < len(picture.members):
        lines.append(Text(f"… and {len(picture.members) - len(members)} more", style="dim"))
    lines += [_legend(), *_told(picture, hint)]
    for each in lines:
        each.truncate(width, overflow="ellipsis")
    return Text("\n").join(lines)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as blocks; the highest is the tallest."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    spread = (high - low) or 1.0
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * (value - low) / spread)] for value in shown)


def bar(phases: Mapping[str, float], longest: float, width: int) -> Text:
    """Seconds per phase as letters, of a bar that is as wide as the longest round."""
    out, passed, drawn = Text(), 0.0, 0
    if longest <= 0:
        return out
    for name in PHASES:
        passed += phases.get(name, 0.0)
        end = min(width, round(width * passed / longest))
        out.append(LETTERS[name] * (end - drawn), style=STYLES[name])
        drawn = end
    return out


def _headline(picture: Picture) -> Text:
    newest = picture.last.index if picture.last is not None else 0
    begun = max((each.status.round for each in picture.members if each.status is not None), default=newest)
    of = f" of {picture.planned}" if picture.planned else ""
    anchor = picture.anchor
    parts = [
        picture.run, f"round {max(newest, begun)}{of}", f"{len(picture.members)} peers, {picture.running} running here",
        picture.incentive or "unknown incentive", anchor if "DIFFERENT" in anchor else f"anchor {anchor[:8]}",
    ]  # fmt: skip
    return Text("  ".join(parts), style="bold")


def _losses(picture: Picture, width: int) -> Text:
    losses = [each.loss for each in picture.rounds if each.loss is not None]
    if not losses:
        return Text("loss -")
    last = picture.last_decided
    seconds = f"  {last.seconds:.1f} s a round" if last is not None and last.seconds is not None else ""
    room = width - len(seconds) - 22
    return Text.assemble(
        f"loss {losses[0]:.3f} ", (sparkline(losses, room), "cyan"), f" {losses[-1]:.3f}", (seconds, "dim")
    )


def _heading(width: int) -> Text:
    before, behind = [name for name, _ in BEFORE], [name for name, _ in BEHIND]
    return _line(before, Text("its last round"), behind, width, "bold underline")


def _row(member: Member, picture: Picture, known: Totals, last: Round | None, scale: tuple[float, int]) -> Text:
    (longest, width), status, late = scale, member.status, _late(member, last)
    elsewhere = "" if member.here else "elsewhere"
    before = [
        member.name + ("*" if member.validator else ""),
        printable(doing(status)) if status is not None else elsewhere,
        str(status.round) if status is not None else "",
    ]
    behind = [
        f"{known.loss:.3f}" if known.loss is not None else "-",
        late,
        f"{known.late}/{known.rounds}" if known.rounds else "-",
        f"{known.score:.3f}" if known.score is not None else "-",
        f"{100 * known.share:.1f}%" if known.share is not None else "-",
    ]
    return _line(before, bar(_phases(member, picture), longest, width - FIXED), behind, width, "yellow" if late else "")


def _line(before: Sequence[str], middle: Text, behind: Sequence[str], width: int, style: str) -> Text:
    """A row of the table."""
    middle = middle.copy()
    middle.truncate(width - FIXED, pad=True)
    left = [_fit(cell, size) for cell, (_, size) in zip(before, BEFORE, strict=True)]
    right = [_fit(cell, size) for cell, (_, size) in zip(behind, BEHIND, strict=True)]
    return Text.assemble(" ".join(left), " ", middle, " ", " ".join(right), style=style)


def _fit(cell: str, size: int) -> str:
    """Exactly that wide; also letters that are twice as wide as others."""
    if cell_len(cell) > abs(size):
        cell = set_cell_size(cell, abs(size) - 1) + "…"
    return " " * (abs(size) - cell_len(cell)) + cell if size < 0 else set_cell_size(cell, size)


def _late(member: Member, last: Round | None) -> str:
    """How late it was in the last round that is over."""
    if last is None or member.peer not in last.late():
        return ""
    cell = last.cells[member.peer]
    return "absent" if cell.absent else f"+{last.behind()[member.peer]:.1f} s"


def _phases(member: Member, picture: Picture) -> Mapping[str, float]:
    """Of the last round that it told of."""
    for each in reversed(picture.rounds):
        cell = each.cells.get(member.peer)
        if cell is not None and cell.own is not None:
            return cell.own.phases
    return {}


def _total(member: Member, picture: Picture) -> float:
    return sum(seconds for name, seconds in _phases(member, picture).items() if name in PHASES)


def _legend() -> Text:
    out = Text()
    for name in PHASES:
        out.append(LETTERS[name], style=STYLES[name])
        out.append(f" {name} ", style="dim")
    return out.append("* decides", style="dim")


def _told(picture: Picture, hint: str) -> list[Text]:
    """What else there is to say."""
    slow = [f"{member.name} ({times} times)" for member, times, _ in slow_peers(picture)[:3]]
    lines = [Text(f"late in most rounds: {', '.join(slow)}", style="yellow")] if slow else []
    if not picture.running:
        lines.append(Text(NOBODY))
    if hint or picture.notes:
        lines.append(Text("; ".join([*([hint] if hint else []), *picture.notes]), style="dim"))
    return lines
