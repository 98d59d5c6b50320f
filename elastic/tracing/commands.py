"""`elastic trace …`: who made a round slow, and what everyone did when."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from elastic.errors import ConfigError
from elastic.tracing.culprit import findings
from elastic.tracing.files import read_files, trace_files
from elastic.tracing.jaeger import Jaeger
from elastic.tracing.otlp import Found
from elastic.tracing.rounds import Round, chosen, newest_run, rounds_of

say = typer.echo
trace = typer.Typer(help="Look at a run's traces: who made a round slow, and with what.", rich_markup_mode=None)

NEWEST = 20
"""Rounds that are asked of Jaeger if none are named."""

Where = Annotated[
    Path,
    typer.Argument(
        help="a folder of runs or of a quickstart, a peer's state directory, a run file, or a file of traces; of a "
        "folder of runs the one that wrote last"
    ),
]
JaegerUrl = Annotated[str | None, typer.Option("--jaeger", metavar="URL", help="ask Jaeger there, instead of files")]
Run = Annotated[str | None, typer.Option("--run", help="name of the run, if there are several; the last one if not")]
Plain = Annotated[bool, typer.Option("--plain", help="no colours")]


@trace.command("slow")
def slow(
    where: Where = Path("runs"),
    run: Run = None,
    rounds: Annotated[str | None, typer.Option(metavar="A-B", help="only these rounds, as 3-9 or 7")] = None,
    jaeger: JaegerUrl = None,
    plain: Plain = False,
) -> None:
    """Name who made each round slow, and with what.

    A peer and a phase (compute, upload link, download link, validation, Ray scheduling, disk, …), what that cost
    everyone, and the evidence: the part of the round's critical path that took longest beyond what it took the others.
    """
    wanted = _rounds(rounds)
    # The round before tells why somebody began late.
    known = _read(where, jaeger, run, None if wanted is None else range(max(0, wanted.start - 1), wanted.stop))
    found = [each for each in findings(known) if wanted is None or each.round in wanted]
    if not found:
        raise ConfigError(f"no traces of round {rounds}: there are some of {_span(known)}")
    from elastic.tracing.show import slow_table

    say(f"run {known[0].run}")
    say(slow_table(found, _columns(), plain=_plain(plain)))


@trace.command("show")
def show(
    round_: Annotated[int, typer.Argument(min=0, metavar="ROUND", help="which round")],
    where: Where = Path("runs"),
    run: Run = None,
    jaeger: JaegerUrl = None,
    plain: Plain = False,
) -> None:
    """Draw one round: every peer's phases as bars on one time line.

    Peers' clocks are put right where somebody would else have seen what was not there yet. The proposer has a star,
    what failed an exclamation mark.
    """
    from elastic.tracing.show import waterfall

    known = _read(where, jaeger, run, range(max(0, round_ - 1), round_ + 1))
    by_index = {each.index: each for each in known}
    if round_ not in by_index or not by_index[round_].peers:
        raise ConfigError(f"no traces of round {round_}: there are some of {_span(known)}")
    say(waterfall(by_index[round_], by_index.get(round_ - 1), _columns(), plain=_plain(plain)))


def _read(where: Path, jaeger: str | None, run: str | None, rounds: range | None) -> list[Round]:
    """The rounds of one run."""
    if jaeger is not None:
        source, found = jaeger, _ask(Jaeger(jaeger), run, rounds)
    else:
        source, found = str(where), read_files(trace_files(where), run, rounds)
    if found.skipped:
        say(f"{found.skipped} lines or spans of {source} are none, and were left out", err=True)
    everything = rounds_of(span for span in found.spans if run is None or span.run == run)
    known = list(newest_run(everything))
    if not known:
        named = f' of the run "{run}"' if run is not None else ""
        others = sorted({span.run for span in found.spans if span.run})[:8]
        raise ConfigError(
            f"{source}: no traces of rounds{named}" + (f"; there is {', '.join(others)}" if others else "")
        )
    inside = [each for each in known if rounds is None or each.index in rounds]
    return inside or known


def _ask(jaeger: Jaeger, run: str | None, rounds: range | None) -> Found:
    if run is not None and rounds is not None:
        return jaeger.rounds(run, rounds)
    newest = jaeger.newest(run, NEWEST)
    known = list(newest_run(rounds_of(newest.spans)))
    if rounds is None or not known:
        return newest
    return jaeger.rounds(known[0].run, rounds)


def _rounds(text: str | None) -> range | None:
    try:
        return None if text is None else chosen(text)
    except ValueError as error:
        raise ConfigError(f"--rounds {text}: should be a round or some in a row, as 7 or 3-9") from error


def _span(known: list[Round]) -> str:
    indices = [each.index for each in known]
    return f"rounds {min(indices)}-{max(indices)}" if len(set(indices)) > 1 else f"round {indices[0]}"


def _columns() -> int:
    return shutil.get_terminal_size((120, 40)).columns


def _plain(wanted: bool) -> bool:
    return wanted or not sys.stdout.isatty()
