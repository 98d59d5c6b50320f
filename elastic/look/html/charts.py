"""The pictures of a run: each is a section of HTML, made of the model only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2
from statistics import median, median_low, quantiles
from typing import Any

from elastic.look.html import draw
from elastic.look.html.draw import Grid, Scale, area, esc, legend, line, line_chart, section
from elastic.look.model import ACCEPTED, COUNTED, PHASES, Cell, Member, Picture, Round, Totals, totals
from elastic.messages import PeerId
from elastic.view import size

COLOURS = 8
"""Lines of a colour of their own; more cannot be told apart."""
LEVELS = 8
"""Of the heat map, above the lightest."""
DARKEST = 4.0
"""Times the usual: later is not darker."""
TOLD_CELLS = 8_000
"""So many cells tell their phases in a tooltip; more would make the page heavy."""
OUTCOMES = ("unknown", COUNTED, "accepted, not counted")
"""What a cell may tell; then come the reasons of those that were refused."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and what all of its charts need."""

    picture: Picture
    totals: dict[PeerId, Totals]
    coloured: tuple[Member, ...]
    """Members with a colour of their own, the same in all charts."""

    @classmethod
    def of(cls, picture: Picture) -> Scene:
        """Look once, draw often."""
        known = totals(picture)
        place = {each.peer: index for index, each in enumerate(picture.members)}
        chosen = sorted(picture.members, key=lambda each: (-known[each.peer].late, place[each.peer]))[:COLOURS]
        return cls(picture, known, tuple(sorted(chosen, key=lambda each: place[each.peer])))

    @property
    def rounds(self) -> list[int]:
        """Numbers of the columns."""
        return [each.index for each in self.picture.rounds]

    @property
    def all_coloured(self) -> bool:
        """Whether nobody is left out of the coloured lines."""
        return len(self.coloured) == len(self.picture.members)


def heat(scene: Scene) -> str:
    """Peers × rounds: how much later than others' a contribution was there. A slow peer is one dark band."""
    picture = scene.picture
    usual = {each.index: _usual(each) for each in picture.rounds}
    high = _most([
        cell.seconds / usual[each.index]
        for each in picture.rounds for cell in each.cells.values() if cell.seconds is not None
    ])  # fmt: skip
    fills, facts = [], []
    for member in picture.members:
        fills.append(_fills(picture, member, lambda each, cell: _heat_fill(cell, usual[each.index], high)))
        total = scene.totals[member.peer]
        facts.append({"late": str(total.late), "seconds": f"{total.seconds:.3f}" if total.seconds is not None else ""})
    names = [each.name for each in picture.members]
    swatches = [(f"fill-h{level}", f"{high ** (level / LEVELS):.1f} x") for level in (0, 2, 4, 6, 8)]
    key = legend([
        *swatches, ("fill-absent", "did not come"), ("fill-h5 at-most", "there when first looked at"),
        ("fill-out", "not asked to contribute any more"), ("fill-empty", "not there, or unknown"),
    ])  # fmt: skip
    note = (
        "How long after the beginning of a round a peer's contribution was there, compared with the median of that "
        "round: darker is later, and a slow peer stands out as one dark band. Touch a cell for its seconds and phases."
    )
    return section("heat", "Who is late", note, Grid(names, scene.rounds, fills, facts, _tips(scene)).draw() + key)


def seconds(scene: Scene) -> str:
    """How long rounds took, and until half of the contributions were there."""
    rounds = scene.picture.rounds
    whole, half = [each.seconds for each in rounds], [each.middle() for each in rounds]
    known = [value for value in (*whole, *half) if value is not None]
    if not known:
        return section("seconds", "Seconds", "No round is over yet.", "")
    scale = Scale.over(known, from_zero=True)
    drawn = line(whole, scale, "mean") + line(half, scale, "c0")
    names = ["the whole round", "until half had contributed"]
    values = [[None if value is None else round(value, 2) for value in each] for each in (whole, half)]
    tips = {"rounds": scene.rounds, "names": names, "values": values, "unit": " s"}
    key = legend([("fill-mean stroke", names[0]), ("f0 stroke", names[1])])
    return section("seconds", "Seconds", "Of each round.", line_chart(scene.rounds, scale, drawn, tips, " s") + key)


def verdicts(scene: Scene) -> str:
    """Peers × rounds: what counted, and why something did not."""
    picture = scene.picture
    fills = [_fills(picture, member, _verdict_fill) for member in picture.members]
    facts = [{"counted": str(scene.totals[each.peer].counted)} for each in picture.members]
    names = [each.name for each in picture.members]
    key = legend([
        ("fill-counted", "counted"), ("fill-waiting", "accepted, not counted"), ("fill-refused", "refused"),
        ("fill-absent", "did not come"), ("fill-out", "not asked to contribute any more"),
        ("fill-empty", "not there, or unknown"),
    ])  # fmt: skip
    note = "Verdicts as most peers here saw them, and what the manifest of the round counted."
    grid = Grid(names, scene.rounds, fills, facts, _tips(scene, phases=False)).draw()
    return section("verdicts", "Verdicts", note, grid + key)


def loss(scene: Scene) -> str:
    """Training loss per peer and round, the mean, and what held-out text says in the end."""
    series = {
        each.peer: [_loss_of(r.cells.get(each.peer)) for r in scene.picture.rounds] for each in scene.picture.members
    }
    means = [each.loss for each in scene.picture.rounds]
    held = [each.status.held_out for each in scene.picture.members if each.status and each.status.held_out is not None]
    found = median(held) if held else None
    if not any(mean is not None for mean in means):
        return section("loss", "Loss", "Nobody here trained yet.", "")
    scale = Scale.over([*(v for each in series.values() for v in each if v is not None), *held])
    drawn, tips, key = _curves(scene, series, scale, 4)
    drawn += line(means, scale, "mean")
    tips["names"].append("mean")
    tips["values"].append([None if each is None else round(each, 4) for each in means])
    key.append(("fill-mean stroke", "mean"))
    if found is not None:
        drawn += f'<path class="line held" d="M0 {draw.number(scale.y(found))}H{len(means)}"/>'
        key.append(("dash", f"held out, in the end: {found:.3f}"))
    chart = line_chart(scene.rounds, scale, drawn, tips) + legend(key)
    return section("loss", "Loss", "In training, nats per token, of the peers whose folders are here.", chart)


def scores(scene: Scene) -> str:
    """What the incentive thinks, round by round."""
    series = {each.peer: [r.scores.get(each.peer) for r in scene.picture.rounds] for each in scene.picture.members}
    known = [value for each in series.values() for value in each if value is not None]
    if not known:
        return section("scores", "Scores", "No evidence here that scores follow from.", "")
    scale = Scale.over(known, from_zero=min(known) >= 0)
    drawn, tips, key = _curves(scene, series, scale, 3)
    chart = line_chart(scene.rounds, scale, drawn, tips) + legend(key)
    name = scene.picture.incentive or "the incentive"
    return section("scores", "Scores", f"What {name} thinks after each round, by the best informed peer here.", chart)


def shares(scene: Scene) -> str:
    """Parts of the outer step, one upon the other."""
    rounds = scene.picture.rounds
    if not any(each.counted for each in rounds):
        return section("shares", "Shares", "Nothing counted yet.", "")
    scale = Scale(0.0, 1.0, 0, (0.0, 0.25, 0.5, 0.75, 1.0))
    below: list[float | None] = [0.0 if each.counted else None for each in rounds]
    drawn, values = "", []
    for index, member in enumerate(scene.coloured):
        mine = [_share(each, member.peer) for each in rounds]
        above = [None if b is None else b + m for b, m in zip(below, mine, strict=True)]
        drawn += area(below, above, scale, f"f{index}")
        values.append([round(100 * each, 1) if b is not None else None for each, b in zip(mine, below, strict=True)])
        below = above
    names = [each.name for each in scene.coloured]
    key = _chips(scene.coloured, "")
    if not scene.all_coloured:
        drawn += area(below, [None if b is None else 1.0 for b in below], scale, "fill-rest")
        values.append([None if b is None else round(100 * (1 - b), 1) for b in below])
        names.append("all others")
        key.append(("fill-rest", "all others"))
    tips = {"rounds": scene.rounds, "names": names, "values": values, "unit": " %"}
    percent = Scale(0.0, 100.0, 0, (0.0, 25.0, 50.0, 75.0, 100.0)).labels(" %")
    chart = line_chart(scene.rounds, scale, drawn, tips).replace(scale.labels(), percent, 1)
    return section("shares", "Shares", "Parts of the outer step.", chart + legend(key))


def phases(scene: Scene) -> str:
    """Where each peer's time goes: mean seconds per phase."""
    told = [each for each in scene.picture.members if scene.totals[each.peer].phases]
    longest = max((sum(scene.totals[each.peer].phases.values()) for each in told), default=0.0)
    if not longest:
        return section("phases", "Phases", "No peer here has finished a round.", "")
    rows = ""
    for member in told:
        found = scene.totals[member.peer].phases
        parts = "".join(
            f'<i class="p{PHASES.index(name)}" style="width:{draw.number(100 * seconds / longest)}%" '
            f'title="{name} {seconds:.2f} s"></i>'
            for name, seconds in found.items()
        )
        rows += _bar_row(member, f'<div class="bar">{parts}</div>', f"{sum(found.values()):.1f} s")
    used = [name for name in PHASES if any(name in scene.totals[each.peer].phases for each in told)]
    key = legend([(f"p{PHASES.index(name)}", name) for name in used])
    note = "Mean seconds per phase of a round, of the peers whose folders are here. Gathering is waiting for others."
    return section("phases", "Phases", note, f'<div class="bars">{rows}</div>{key}')


def traffic(scene: Scene) -> str:
    """Bytes per peer and direction."""
    told = [
        each for each in scene.picture.members if scene.totals[each.peer].bytes_out + scene.totals[each.peer].bytes_in
    ]
    most = max((max(scene.totals[e.peer].bytes_out, scene.totals[e.peer].bytes_in) for e in told), default=0)
    if not most:
        return section("bytes", "Bytes", "No peer here has sent or received anything.", "")
    rows = ""
    for member in told:
        total = scene.totals[member.peer]
        both = "".join(
            f'<div class="bar"><i class="{colour}" style="width:{draw.number(100 * amount / most)}%"></i></div>'
            for colour, amount in (("f1", total.bytes_out), ("f0", total.bytes_in))
        )
        rows += _bar_row(member, f'<div class="pair">{both}</div>', f"{size(total.bytes_out)} / {size(total.bytes_in)}")
    key = legend([("f1", "sent"), ("f0", "received")])
    note = "Over the rounds shown, of the peers whose folders are here."
    return section("bytes", "Bytes", note, f'<div class="bars">{rows}</div>{key}')


def _bar_row(member: Member, bars: str, told: str) -> str:
    name = esc(member.name)
    return f'<span class="who" title="{name}">{name}</span>{bars}<span class="num">{esc(told)}</span>'


def _curves(
    scene: Scene, series: dict[PeerId, list[float | None]], scale: Scale, digits: int
) -> tuple[str, dict[str, Any], list[tuple[str, str]]]:
    """Coloured lines, and for all the others how far they reach; with tips and a legend."""
    drawn, key = (
        "",
        _chips([each for each in scene.coloured if any(v is not None for v in series[each.peer])], "stroke", scene),
    )
    if not scene.all_coloured:
        columns = [[v for v in column if v is not None] for column in zip(*series.values(), strict=True)]
        lower, upper = [min(each, default=None) for each in columns], [max(each, default=None) for each in columns]
        drawn += area(lower, upper, scale, "spread")
        key.append(("fill-rest", "from the lowest to the highest of all"))
    for index, member in enumerate(scene.coloured):
        drawn += line(series[member.peer], scale, f"c{index}")
    values = [[None if v is None else round(v, digits) for v in series[each.peer]] for each in scene.coloured]
    names = [each.name for each in scene.coloured]
    return drawn, {"rounds": scene.rounds, "names": names, "values": values, "unit": ""}, key


def _chips(members: Sequence[Member], kind: str, scene: Scene | None = None) -> list[tuple[str, str]]:
    place = list(scene.coloured if scene is not None else members)
    return [(f"f{place.index(each)} {kind}".strip(), each.name) for each in members]


def _usual(each: Round) -> float:
    """Seconds after which contributions to a round are there; of two peers the faster one is usual."""
    return max(median_low([cell.seconds for cell in each.cells.values() if cell.seconds is not None] or [1.0]), 1e-3)


def _most(ratios: Sequence[float]) -> float:
    """Times the usual of the darkest cell. A single one that took for ever makes none of the others pale."""
    rare = quantiles(ratios, n=50)[-1] if len(ratios) > 1 else 0.0
    return min(max(2.0, rare), DARKEST)


def _fills(picture: Picture, member: Member, fill: Callable[[Round, Cell], str | None]) -> list[str]:
    """A member's row. Who was asked once and is not any more sits out: it was away, or is shut out."""
    out, asked = [], False
    for each in picture.rounds:
        cell = each.cells.get(member.peer)
        asked = asked or (cell is not None and cell.outcome != "")
        unknown = "fill-out" if asked and each.decided else "fill-empty"
        out.append((fill(each, cell) if cell is not None else None) or unknown)
    return out


def _heat_fill(cell: Cell, usual: float, high: float) -> str | None:
    if cell.absent:
        return "fill-absent"
    if cell.seconds is None:
        return None
    level = round(LEVELS * log2(max(1.0, cell.seconds / usual)) / log2(high))
    return f"fill-h{min(LEVELS, level)}" + (" at-most" if cell.at_most else "")


def _verdict_fill(_: Round, cell: Cell) -> str | None:
    if not cell.outcome:
        return None
    if cell.absent:
        return "fill-absent"
    return {COUNTED: "fill-counted", ACCEPTED: "fill-waiting"}.get(cell.outcome, "fill-refused")


def _tips(scene: Scene, *, phases: bool = True) -> dict[str, Any]:
    """Of each cell: tenths of a second (0: unknown), if at most, outcome, thousandths of share, tenths per phase."""
    picture, outcomes = scene.picture, list(OUTCOMES)
    told = sum(cell.own is not None for each in picture.rounds for cell in each.cells.values())
    names = [*PHASES, "assess"]

    def cell_tip(cell: Cell | None) -> Any:
        if cell is None:
            return 0
        outcome = "accepted, not counted" if cell.outcome == ACCEPTED else cell.outcome or "unknown"
        if outcome not in outcomes:
            outcomes.append(outcome)
        seconds = round(10 * (cell.seconds or 0.0)) if phases else 0
        tip: list[Any] = [seconds, int(cell.at_most), outcomes.index(outcome), round(1000 * (cell.share or 0.0))]
        if phases and cell.own is not None and told <= TOLD_CELLS:
            tip.append([round(10 * cell.own.phases.get(name, 0.0)) for name in names])
        return tip

    cells = [[cell_tip(each.cells.get(member.peer)) for each in picture.rounds] for member in picture.members]
    return {
        "rounds": scene.rounds, "names": [each.name for each in picture.members], "cells": cells,
        "outcomes": outcomes, "phases": names,
    }  # fmt: skip


def _loss_of(cell: Cell | None) -> float | None:
    return cell.own.loss if cell is not None and cell.own is not None else None


def _share(round_: Round, peer: PeerId) -> float:
    cell = round_.cells.get(peer)
    return cell.share or 0.0 if cell is not None else 0.0
