"""A plan for people: tables in a terminal, or without lines and colours."""

import io
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from elastic.plan.advice import TARGET, Change, changes, limits, line_needed, obstacles, path
from elastic.plan.checked import COVENANT, SPARSELOCO_8B, arithmetic, measured
from elastic.plan.describe import PeerGroup
from elastic.plan.estimate import Estimate, Share
from elastic.plan.simulate import Row
from elastic.plan.work import Phase

BAR = 24
"""Columns of the longest bar."""
NARROW = 100
"""Columns that the tables take at least."""
MOST_STRANGERS = 128
"""Whose cards lie under one key of the DHT; `RecordLimits.strangers_in_key`."""


def page(found: Estimate, columns: int, *, plain: bool) -> str:
    """The whole plan."""
    sheet = Sheet(columns, plain)
    sheet.say(*_heading(found))
    for share in found.shares:
        sheet.show(_memory(share))
    sheet.show(_bytes(found), _time(found, plain))
    sheet.say(*_totals(found))
    sheet.list("In the way", obstacles(found), "red")
    sheet.list("What limits", limits(found))
    sheet.list("What to change", _advice(found))
    sheet.show(_checked())
    sheet.list("Published, computed again", [*arithmetic(COVENANT), *arithmetic(SPARSELOCO_8B)])
    return sheet.text()


def growth(rows: Sequence[Row], churn: float, columns: int, *, plain: bool) -> str:
    """The simulator's table."""
    sheet, first = Sheet(columns, plain), rows[0].usual
    sheet.say(
        f"run {first.case.shared.run}: payloads of {size(first.case.payload)}, by {first.way}; {churn:g} deaths per "
        f"peer and usual round, each away for {first.case.plan.restart_seconds:g} s and until its state is read"
    )
    others = [name for name in first.transfers if name != first.way]
    ways = [first.way, *others]
    columns_of_ways = [f"{way}, s" for way in ways]
    table = _table(
        "Growth", "peers", "each sends", "receives", "all receive", *columns_of_ways, "round, s", "counted", "goodput",
        "tokens a day",
    )  # fmt: skip
    for row in rows:
        usual, counted = row.usual, row.outcome.counted
        table.add_row(
            f"{usual.case.peers:,}", size(usual.transfer.sent), size(usual.transfer.received),
            size(usual.transfer.received * usual.case.peers), *(f"{usual.transfers[way].seconds:,.0f}" for way in ways),
            f"{row.outcome.round_seconds:,.0f}", f"{counted:.1f} of {usual.case.makers}", f"{row.goodput:.0%}",
            amount(row.tokens_per_day),
        )  # fmt: skip
    sheet.show(table)
    sheet.say(
        "Seconds by each way, the first is the one that is used. Goodput: tokens a second, beside the same swarm if "
        "all were always there and equally fast."
    )
    if max(row.usual.case.peers - row.usual.case.makers for row in rows) > MOST_STRANGERS:
        sheet.say(
            f"Today a peer sees the cards of the roster and of {MOST_STRANGERS} others (docs/exchange.md): of a larger "
            "crowd not everyone would be found."
        )
    if any(not row.usual.in_time for row in rows):
        sheet.say(
            "A usual round is beyond train_seconds + gather_seconds; that bound is left out here. See the plan itself."
        )
    return sheet.text()


def size(count: float) -> str:
    """Bytes in powers of a thousand."""
    return f"{amount(count)}B"


def amount(count: float) -> str:
    """Three digits and a letter."""
    for unit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {letter}"
    return f"{count:.3g} "


def seconds(count: float) -> str:
    """With as many digits as are of use."""
    return f"{count:,.0f}" if count >= 100 else f"{count:.1f}" if count >= 1 else f"{count:.2g}"


class Sheet:
    """Paragraphs and tables, one below the other."""

    def __init__(self, columns: int, plain: bool) -> None:
        self._plain = plain
        self._console = Console(
            file=io.StringIO(), width=max(columns, NARROW), force_terminal=not plain,
            color_system=None if plain else "standard", highlight=False,
        )  # fmt: skip

    def say(self, *lines: str, style: str = "") -> None:
        """Lines of text."""
        for line in lines:
            self._console.print(Text(line, style=style))

    def show(self, *tables: Table) -> None:
        """Tables, with a line between."""
        for table in tables:
            if self._plain:
                table.box = None
            self._console.print()
            self._console.print(table)

    def list(self, title: str, lines: Iterator[str] | Sequence[str], style: str = "") -> None:
        """Points below a title, which is left out if there are none."""
        points = [*lines]
        if points:
            self._console.print()
            self._console.print(Text(title, style="bold"))
        for point in points:
            self._console.print(_indented(point, style))

    def text(self) -> str:
        """All of it."""
        assert isinstance(self._console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in self._console.file.getvalue().rstrip().splitlines())


def _indented(text: str, style: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row("  -", Text(text, style=style))
    return grid


def _table(title: str, *headings: str) -> Table:
    """The first column is text, the second and later ones are numbers."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, expand=False, pad_edge=False
    )
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    return table


def _heading(found: Estimate) -> Iterator[str]:
    case, inner = found.case, found.case.shared.inner
    yield f"run {case.shared.run}: {case.sizes.num_params():,} parameters, {case.shared.rounds:,} rounds"
    for share in found.shares:
        yield f"{share.group.count:,} peers: {_described(share.group)}"
    yield (
        f"{case.makers} contribute in a round, each {inner.steps} steps of {inner.batch_size} × "
        f"{inner.sequence_length:,} = {amount(inner.steps * case.step_tokens)}tokens; a payload is "
        f"{size(case.payload)}, {4 * case.sizes.num_params() / case.payload:.0f} times smaller than fp32"
    )


def _described(group: PeerGroup) -> str:
    return f"{group.gpus} × {group.gpu}, {group.up_mbps:g} Mb/s up, {group.down_mbps:g} down, {group.rtt_ms:g} ms"


def _memory(share: Share) -> Table:
    table = _table(f"Room, {_described(share.group)}", "where", "GB")
    table.add_column("how")
    for room in share.rooms:
        for item in room.items:
            table.add_row(f"{room.place}: {item.name}", f"{item.size_bytes / 1e9:,.2f}", item.how)
        verdict = "fits" if room.fits else "DOES NOT FIT"
        table.add_row(
            Text(f"{room.place}, all", style="bold"), Text(f"{room.used / 1e9:,.2f}", style="bold"),
            Text(f"of {room.size_bytes / 1e9:,.0f}: {verdict}", style="green" if room.fits else "red"),
            end_section=True,
        )  # fmt: skip
    return table


def _bytes(found: Estimate) -> Table:
    table = _table("Bytes of a round, by the way they travel", "way", "up, a contributor", "down, a peer", "seconds")
    table.add_column("limited by")
    for name, transfer in found.transfers.items():
        table.add_row(
            f"{name} (used)" if name == found.way else name, size(transfer.sent), size(transfer.received),
            seconds(transfer.seconds), transfer.limit,
        )  # fmt: skip
    return table


def _time(found: Estimate, plain: bool) -> Table:
    table = _table("Time of a round", "phase", "seconds", "part")
    table.add_column("")
    table.add_column("how")
    longest = max(phase.seconds for phase in found.phases)
    for phase in found.phases:
        table.add_row(
            phase.name, seconds(phase.seconds), f"{phase.seconds / found.round_seconds:.1%}",
            _bar(phase, longest, plain), phase.how,
        )  # fmt: skip
    return table


def _bar(phase: Phase, longest: float, plain: bool) -> Text:
    width = round(BAR * phase.seconds / longest)
    return Text(("#" if plain else "█") * width, style="green" if phase.name == "inner steps" else "cyan")


def _totals(found: Estimate) -> Iterator[str]:
    per_billion = found.usd_per_day / (found.tokens_per_day / 1e9)
    yield ""
    yield (
        f"a round: {seconds(found.round_seconds)} s, utilisation {found.utilisation:.1%} (inner steps ÷ round); "
        f"{found.mfu:.1%} of all GPUs' peak"
    )
    yield (
        f"a day: {amount(found.tokens_per_day)}tokens, ${found.usd_per_day:,.0f}, ${per_billion:,.2f} for 10⁹ tokens "
        "(prices that the run file does not give are examples)"
    )
    yield (
        f"the run: {found.days:,.1f} days, {amount(found.tokens * found.case.shared.rounds)}tokens, "
        f"${found.days * found.usd_per_day:,.0f}"
    )
    rounds = found.join_seconds / found.round_seconds
    yield f"who joins fetches the anchor in {seconds(found.join_seconds)} s, {rounds:.1f} rounds"


def _advice(found: Estimate) -> Iterator[str]:
    if found.utilisation < TARGET:
        times = line_needed(found)
        yield (
            f"{TARGET:.1%} utilisation by faster lines alone: "
            + (f"{times:.3g} times as fast" if times else "none is fast enough, the rest of a round takes too long")
        )
    single = changes(found)
    for each in single:
        yield f"{each.what}: {_effect(each)}"
    steps = path(found)
    if len(steps) > 1:
        yield "together: " + ", then ".join(f"{each.what} ({each.after.utilisation:.1%})" for each in steps)
    if not single:
        yield "nothing that is tried here adds half a per cent of utilisation"


def _effect(change: Change) -> str:
    late = "" if change.after.in_time else ", payloads still late"
    return f"utilisation {change.after.utilisation:.1%}, {amount(change.after.tokens_per_day)}tokens a day{late}"


def _checked() -> Table:
    table = _table("Checked against our own measured runs", "what", "measured", "computed", "off")
    table.add_column("")
    for row in measured():
        note = f"docs/{row.page}" + (", a constant was fitted to it" if row.fitted else "")
        table.add_row(
            row.what, f"{row.measured:g} {row.unit}", f"{row.computed:.1f} {row.unit}", f"{row.off:+.0%}", note
        )  # fmt: skip
    return table
