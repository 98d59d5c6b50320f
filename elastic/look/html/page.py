"""A whole page about a run: one file without a network, or the pieces of a page that is served."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from statistics import median

from elastic.look.html import charts
from elastic.look.html.charts import Scene
from elastic.look.html.draw import esc, section
from elastic.look.model import Member, Picture, slow_peers, thinned
from elastic.names import printable
from elastic.view import doing, size

MOST_PEERS, MOST_ROUNDS = 64, 500
"""More are not drawn."""
NAMED = 5
"""Slow peers that are named, at most."""


def asset(name: str) -> str:
    """style.css or script.js."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def report(picture: Picture) -> str:
    """One self-contained HTML file: works from a disk, offline, and runs no script but its own."""
    script, style = asset("script.js"), asset("style.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{esc(picture.run)}: report of a run</title>
<style>{style}</style></head>
<body class="look"><main class="pictures">
{"".join(pieces(picture))}
</main><script>{script}</script></body></html>
"""


def pieces(picture: Picture) -> list[str]:
    """Header and pictures, in the order in which they are read."""
    shown = thinned(picture, MOST_PEERS, MOST_ROUNDS)
    scene = Scene.of(shown)
    drawn = (
        charts.loss, charts.heat, charts.phases, charts.seconds, charts.verdicts, charts.scores, charts.shares,
        charts.traffic,
    )  # fmt: skip
    return [header(shown, picture), *(chart(scene) for chart in drawn), terms(shown), table(scene)]


def header(shown: Picture, whole: Picture) -> str:
    """What everyone asks first, of the whole run; and what is left out below."""
    facts = "".join(f"<div><dt>{esc(what)}</dt><dd>{esc(told)}</dd></div>" for what, told in _facts(whole))
    notes = "".join(f'<p class="note">{esc(note)}.</p>' for note in shown.notes)
    slow = f'<p class="slow">{esc(who_is_slow(whole))}</p>'
    return f'<header><h1>Run {esc(whole.run)}</h1><dl class="facts">{facts}</dl>{slow}{notes}</header>'


def who_is_slow(picture: Picture) -> str:
    """The answer in words."""
    if not picture.rounds:
        return "No round is over yet."
    found = [
        f"{member.name} was late or absent in {times} of {picture_rounds(picture, member)} rounds"
        + (f", {behind:.1f} s behind the middle one" if behind > 0 else "")
        for member, times, behind in slow_peers(picture)
    ]
    more = f", and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return "; ".join(found[:NAMED]) + more + "." if found else "Nobody was late in more than half of the rounds."


def picture_rounds(picture: Picture, member: Member) -> int:
    """Rounds in which a peer was on the roster."""
    return sum(cell.outcome != "" for _, cell in picture.cells(member.peer))


def _facts(picture: Picture) -> list[tuple[str, str]]:
    decided = [each for each in picture.rounds if each.decided]
    seconds = [each.seconds for each in decided if each.seconds is not None]
    losses = [each.loss for each in picture.rounds if each.loss is not None]
    held = [each.status.held_out for each in picture.members if each.status and each.status.held_out is not None]
    here = sum(each.here for each in picture.members)
    running = picture.running
    rounds = f"{decided[-1].index if decided else 0}" + (f" of {picture.planned}" if picture.planned else "")
    return [
        ("Rounds", rounds),
        ("Peers", f"{len(picture.members)}, {here} of them here" + (f", {running} running" if running else "")),
        ("Incentive", picture.incentive or "unknown"),
        ("Anchor", picture.anchor),
        ("Seconds per round", f"{median(seconds):.1f} (median)" if seconds else "-"),
        ("Loss in training", f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else "-"),
        ("Held-out loss", f"{median(held):.3f}" if held else "-"),
    ]


def terms(picture: Picture) -> str:
    """What the run agreed to change about itself, and what validators would change."""
    lines = [*picture.changes, *picture.wishes]
    body = "<ul>" + "".join(f"<li>{esc(each)}</li>" for each in lines) + "</ul>" if lines else ""
    note = "" if lines else "Nothing was changed while the run went on, as far as is known here."
    return section("terms", "Changes of terms", note, body)


def table(scene: Scene) -> str:
    """All peers, a row each."""
    heads = (
        "peer", "id", "", "doing", "counted", "late", "seconds", "loss", "score", "share", "sent", "received",
        "restarts",
    )  # fmt: skip
    top = "".join(f"<th{_text(index)}>{esc(head)}</th>" for index, head in enumerate(heads))
    rows = "".join(f"<tr>{_row(scene, each)}</tr>" for each in scene.picture.members)
    body = f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'
    failures = [
        f"{each.name} failed: {each.status.error[:300]}"
        for each in scene.picture.members
        if each.status is not None and each.status.stage == "failed" and each.status.error
    ]
    told = "".join(f"<li>{esc(printable(line))}</li>" for line in failures)
    return section("peers", "Peers", "", body + (f"<ul>{told}</ul>" if told else ""))


def _row(scene: Scene, member: Member) -> str:
    total, status = scene.totals[member.peer], member.status
    cells = (
        member.name, f"…{member.peer[-8:]}", "validator" if member.validator else "",
        printable(doing(status)) if status is not None else ("" if member.here else "elsewhere"),
        f"{total.counted}/{total.rounds}", f"{total.late}" if total.rounds else "-", _number(total.seconds, 1),
        _number(total.loss, 3), _number(total.score, 3), f"{total.share:.1%}" if total.share is not None else "-",
        size(total.bytes_out) if total.bytes_out else "-", size(total.bytes_in) if total.bytes_in else "-",
        str(status.restarts) if status is not None else "-",
    )  # fmt: skip
    return "".join(f"<td{_text(index)}>{esc(cell)}</td>" for index, cell in enumerate(cells))


def _text(column: int) -> str:
    return ' class="text"' if column < 4 else ""


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
