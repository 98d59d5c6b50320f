"""A view that redraws in a terminal until q is pressed, and leaves it as it was."""

from __future__ import annotations

import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live

LEAVE = ("q", "Q", "\x03", "\x04", "\x1b")
"""Keys that end the view: q, and what people press to get out."""


def redraw(draw: Callable[[int, int], RenderableType], seconds: float) -> None:
    """Draw (columns, lines) again and again until somebody leaves."""
    console = Console()
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(draw(console.size.width, console.size.height), refresh=True)
                if pressed(seconds) in LEAVE:
                    return
        except KeyboardInterrupt:
            return


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Keys as they are pressed: a function that waits so many seconds for one; "" if there was none."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return sys.stdin.read(1) or "q" if ready else ""

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
