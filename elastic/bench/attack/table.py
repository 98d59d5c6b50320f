"""The table of `elastic bench attack`, in markdown that is as readable as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, fsum
from statistics import mean, median

from elastic.bench.attack.measure import Outcome
from elastic.bench.attack.zoo import ABSENT

COLUMNS = ("kind", "defence", "detected", "out after", "shut out", "gets", "loss", "damage", "cost", "round")


def table(outcomes: Sequence[Outcome]) -> str:
    """Means over seeds; a row per kind and defence."""
    rows = []
    for kind, defence in dict.fromkeys((each.kind, each.defence) for each in outcomes):
        mine = [each for each in outcomes if (each.kind, each.defence) == (kind, defence)]
        rows.append([kind, defence, *_figures(mine, outcomes)])
    widths = [max(len(row[place]) for row in (list(COLUMNS), *rows)) for place in range(len(COLUMNS))]
    lines = [_line(COLUMNS, widths), _line(["-" * width for width in widths], widths)]
    return "\n".join([*lines, *(_line(row, widths) for row in rows)])


def slashes(outcomes: Sequence[Outcome]) -> str:
    """How often an honest peer was shut out where such a thing can happen, and how often that may be at most."""
    scored = [each for each in outcomes if each.validator_cost > 0]
    runs, out = sum(each.honest for each in scored), sum(each.slashed for each in scored)
    people = len({(each.seed, number) for each in scored for number in range(each.honest)})
    bound = f"{100 * most(out, runs):.2f} %" if runs else "-"
    return (
        f"honest peers shut out where validators assess: {out} of {runs} peer-runs, at most {bound} (95 %, if all were "
        f"independent); of {people} different peers, {len(scored)} runs"
    )


def most(found: int, of: int, sure: float = 0.95) -> float:
    """The largest rate at which so few are found in so many still happens with 1 - `sure` (Clopper and Pearson)."""
    low, high = found / of, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        seldom = fsum(comb(of, each) * rate**each * (1 - rate) ** (of - each) for each in range(found + 1)) < 1 - sure
        low, high = (low, rate) if seldom else (rate, high)
    return high


def damages(mine: Sequence[Outcome], everyone: Sequence[Outcome]) -> list[float]:
    """Relative difference of the loss to the run of the same seed and defence without bad peers."""
    clean = {(each.defence, each.seed): each.held_out for each in everyone if each.kind == ABSENT}
    pairs = [(each.held_out, clean.get((each.defence, each.seed))) for each in mine]
    return [held_out / without - 1 for held_out, without in pairs if without is not None]


def _figures(mine: Sequence[Outcome], everyone: Sequence[Outcome]) -> list[str]:
    bad, honest = sum(each.bad for each in mine), sum(each.honest for each in mine)
    ejected = [after for each in mine for after in each.ejected_after]
    damage = damages(mine, everyone)
    spread = f" ({100 * min(damage):+.1f} to {100 * max(damage):+.1f})" if len(damage) > 1 else ""
    hurt = f"{100 * mean(damage):+.1f} %{spread}" if bad and damage else "-"
    cost = mean(each.validator_cost for each in mine)
    return [
        f"{100 * sum(each.detected for each in mine) / bad:.0f} %" if bad else "-",
        f"{median(ejected):g}" if ejected else "-",
        f"{sum(each.slashed for each in mine)} of {honest}",
        f"{100 * mean(each.gets for each in mine):.0f} %" if bad else "-",
        f"{mean(each.held_out for each in mine):.3f}",
        hurt,
        f"{100 * cost:.0f} %" if cost else "-",
        f"{mean(each.round_seconds for each in mine):.1f} s",
    ]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    left, right = zip(cells[:2], widths[:2], strict=True), zip(cells[2:], widths[2:], strict=True)
    padded = [*(cell.ljust(width) for cell, width in left), *(cell.rjust(width) for cell, width in right)]
    return f"| {' | '.join(padded)} |"
