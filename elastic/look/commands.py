"""`elastic top`, `elastic report` and `elastic dashboard`."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from elastic.errors import ConfigError

say = typer.echo

Where = Annotated[
    Path, typer.Argument(help="a run file, a peer's state directory, or a folder of runs or of a quickstart")
]
WIDE = 100
"""Columns of what is printed once, where there is no terminal."""


def top(
    where: Where = Path("runs"),
    once: Annotated[bool, typer.Option("--once", help="print it once, as text; so it is through a pipe, too")] = False,
    seconds: Annotated[float, typer.Option(min=0.2, max=3600, help="between two looks")] = 1.0,
) -> None:
    """Watch a run in the terminal: what each peer does, who is late.

    Of each peer the phases of its last round as a bar, its loss, how much later than the others its contribution came
    (and how often), its score, and its share. Peers elsewhere are shown as far as the peers here know them.
    q or Ctrl-C leaves.
    """
    from elastic.look.collect import Watch
    from elastic.look.top import screen

    watch = Watch(where)
    if once or not (sys.stdout.isatty() and sys.stdin.isatty()):
        say(screen(watch.look(), shutil.get_terminal_size((WIDE, 0)).columns).plain)
        return
    from elastic.look.terminal import redraw

    redraw(lambda width, height: screen(watch.look(), width, height, "q leaves"), seconds)


def report(
    where: Where = Path("runs"),
    output: Annotated[Path, typer.Option("-o", "--output", help="write it there")] = Path("report.html"),
) -> None:
    """Write a run down as one HTML file: open it in a browser.

    Loss, who was late when (peers by rounds), phases, verdicts, scores, shares, bytes, changes of terms. The file needs
    no network and no other file, so it can be sent to others. Of one peer's folder it shows what that peer knows of the
    others.
    """
    from elastic.look.collect import Watch
    from elastic.look.html.page import report as page

    picture = Watch(where).look()
    try:
        output.write_text(page(picture), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror}") from error
    say(f"wrote {output}: run {picture.run}, {len(picture.members)} peers, {len(picture.rounds)} rounds")


def dashboard(
    where: Where = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="on 127.0.0.1; 0: any free one")] = 8090,
) -> None:
    """Serve a page about a run, on this machine only.

    The pictures of `elastic report`, redrawn as the run goes on. Ctrl-C ends it. It needs elastic[dashboard].
    """
    from elastic.look.collect import Watch
    from elastic.look.dashboard import serve

    serve(Watch(where), port, say)
