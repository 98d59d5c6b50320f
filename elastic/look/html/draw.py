"""The strokes that all pictures are made of. Text stands outside the SVG, so it stays readable at any width."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import Any

import orjson

HEIGHT = 100.0
"""Of a line chart in its own units; a round is 1 wide."""
TICKS = 6
"""Labels on an axis, at most."""
ROW_PIXELS, NARROW_PIXELS, MANY_ROWS = 22, 13, 20
"""Height of a row; that of one among many."""


def esc(text: object) -> str:
    """Text for HTML, also within double quotes."""
    return html.escape(str(text), quote=True)


def json_attribute(value: Any) -> str:
    """JSON for an attribute in single quotes."""
    text = orjson.dumps(value).decode()
    return text.replace("&", "&amp;").replace("'", "&#39;").replace("<", "&lt;").replace(">", "&gt;")


def number(value: float) -> str:
    """A coordinate in few letters."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def section(name: str, title: str, note: str, body: str) -> str:
    """One picture with its title. `name` and `title` are ours; `note` is text."""
    told = f'<p class="note">{esc(note)}</p>' if note else ""
    return f'<section id="{name}"><h2>{esc(title)}</h2>{told}{body}</section>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """(classes of the swatch, text) each."""
    chips = "".join(f'<span><i class="{swatch}"></i>{esc(text)}</span>' for swatch, text in entries)
    return f'<div class="legend">{chips}</div>'


def round_ticks(rounds: Sequence[int]) -> str:
    """Labels below a picture whose columns are these rounds."""
    if not rounds:
        return ""
    step = max(1, -(-(len(rounds) - 1) // (TICKS - 1)))
    columns = [each for each in range(0, len(rounds), step) if len(rounds) - 1 - each >= step / 2] + [len(rounds) - 1]
    labels = "".join(
        f'<span style="left:{number(100 * (column + 0.5) / len(rounds))}%">{rounds[column]}</span>'
        for column in columns
    )
    return f'<div class="columns">{labels}</div>'


@dataclass(frozen=True, slots=True)
class Grid:
    """Peers × rounds, as classes of colour; None: nothing there."""

    names: Sequence[str]
    rounds: Sequence[int]
    fills: Sequence[Sequence[str | None]]
    """A row per name, a column per round."""
    facts: Sequence[Mapping[str, str]]
    """What else is known of a row, as data-… attributes."""
    tips: Any
    """What the script tells of a cell."""

    def draw(self) -> str:
        """A thick stroke for as long as a row keeps its colour: few bytes also for many cells."""
        row = ROW_PIXELS if len(self.names) <= MANY_ROWS else NARROW_PIXELS
        names = "".join(f'<span title="{esc(name)}">{esc(name)}</span>' for name in self.names)
        rows = "".join(self._row(index) for index in range(len(self.names)))
        size = f"0 0 {max(1, len(self.rounds))} {max(1, len(self.names))}"
        return (
            f'<div class="rows" style="--row:{row}px"><div class="names">{names}</div>'
            f'<div class="plot" style="height:{row * len(self.names)}px" data-tips=\'{json_attribute(self.tips)}\'>'
            f'<svg class="cells" viewBox="{size}" preserveAspectRatio="none" shape-rendering="crispEdges" role="img" '
            f'aria-label="peers by rounds">{rows}</svg></div>{round_ticks(self.rounds)}</div>'
        )

    def _row(self, index: int) -> str:
        paths: dict[str, list[str]] = {}
        fills, start = [*self.fills[index], object()], 0
        for column, fill in enumerate(fills):
            if fill != fills[start]:
                if isinstance(found := fills[start], str):
                    paths.setdefault(found, []).append(f"M{start} 0h{column - start}")
                start = column
        facts = "".join(f' data-{key}="{esc(value)}"' for key, value in self.facts[index].items())
        drawn = "".join(f'<path class="{fill}" d="{"".join(parts)}"/>' for fill, parts in sorted(paths.items()))
        middle = number(index + 0.5)
        return f'<g data-peer="{esc(self.names[index])}"{facts} transform="translate(0 {middle})">{drawn}</g>'


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to heights, with round numbers as labels."""

    low: float
    high: float
    digits: int
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Iterable[float], *, from_zero: bool = False) -> Scale:
        """One that holds all these values."""
        known = [each for each in values if isfinite(each)] or [0.0, 1.0]
        low, high = min(known), max(known)
        low = min(low, 0.0) if from_zero else low
        if high - low < 1e-9 * max(1.0, abs(high)):
            high = low + max(1.0, abs(low)) * (1.0 if from_zero else 0.1)
        rough = (high - low) / 4
        power = 10.0 ** floor(log10(rough))
        step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= rough * 0.999)
        first, last = floor(low / step + 1e-9), -floor(-high / step + 1e-9)
        ticks = tuple(step * each for each in range(first, last + 1))
        digits = max(0, -floor(log10(step) + 1e-9) + (step / power == 2.5))
        return cls(ticks[0], ticks[-1], digits, ticks)

    def y(self, value: float) -> float:
        """0 is at the top."""
        return HEIGHT * (self.high - value) / (self.high - self.low)

    def labels(self, unit: str = "") -> str:
        """At the left."""
        spans = "".join(
            f'<span style="top:{number(self.y(each))}%">{each:.{self.digits}f}{esc(unit)}</span>' for each in self.ticks
        )
        return f'<div class="heights">{spans}</div>'

    def lines(self, columns: int) -> str:
        """Behind everything."""
        return "".join(f'<path class="grid" d="M0 {number(self.y(each))}H{columns}"/>' for each in self.ticks)


def line(values: Sequence[float | None], scale: Scale, classes: str) -> str:
    """One line; it is broken where nothing is known, and a value alone is a dash."""
    parts: list[str] = []
    before: float | None = None
    for column, value in enumerate(values):
        if value is not None:
            alone = before is None and (column + 1 == len(values) or values[column + 1] is None)
            x = column + (0.25 if alone else 0.5)
            parts.append(f"{'L' if before is not None else 'M'}{number(x)} {number(scale.y(value))}")
            if alone:
                parts.append("h.5")
        before = value
    return f'<path class="line {classes}" d="{"".join(parts)}"/>' if parts else ""


def area(lower: Sequence[float | None], upper: Sequence[float | None], scale: Scale, classes: str) -> str:
    """Between two lines, in steps: a value holds for its whole round."""
    known = [
        (column, low, high) for column, (low, high) in enumerate(zip(lower, upper, strict=True))
        if low is not None and high is not None
    ]  # fmt: skip
    parts, at = [], 0
    while at < len(known):
        end = at
        while end + 1 < len(known) and known[end + 1][0] == known[end][0] + 1:
            end += 1
        run = known[at : end + 1]
        top = "".join(f"V{number(scale.y(high))}h1" for _, _, high in run)
        back = "".join(f"V{number(scale.y(low))}h-1" for _, low, _ in reversed(run))
        parts.append(f"M{run[0][0]} {number(scale.y(run[0][2]))}{top}{back}z")
        at = end + 1
    return f'<path class="{classes}" d="{"".join(parts)}"/>' if parts else ""


def line_chart(rounds: Sequence[int], scale: Scale, drawn: str, tips: Any, unit: str = "") -> str:
    """Axes around what was drawn."""
    return (
        f'<div class="rows lines">{scale.labels(unit)}<div class="plot" data-tips=\'{json_attribute(tips)}\'>'
        f'<svg viewBox="0 0 {max(1, len(rounds))} {number(HEIGHT)}" preserveAspectRatio="none" role="img" '
        f'aria-label="by round">{scale.lines(max(1, len(rounds)))}{drawn}</svg></div>{round_ticks(rounds)}</div>'
    )
