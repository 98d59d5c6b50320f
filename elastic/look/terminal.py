"""A view that redraws in a terminal until q is pressed, and leaves it as it was."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live

LEAVE = re.compile(rb"[qQ\x03\x04\x1c]")
"""Keys that end the view: q, and what people press to get out; also Escape, if it comes alone."""
SEQUENCE = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|O.)")
"""What arrows and such keys send, also a mouse's wheel; there may be a Q in it."""
LOCAL = 3
"""Index of the local modes among a terminal's attributes."""
MOST_KEYS = 1024
"""Bytes that are looked at at a time."""


def redraw(draw: Callable[[int, int], RenderableType], seconds: float) -> None:
    """Draw (columns, lines) again and again until somebody leaves."""
    console = Console()
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(draw(console.size.width, console.size.height), refresh=True)
                if leaves(pressed(seconds)):
                    return
        except KeyboardInterrupt:
            return


def leaves(pressed: bytes | None) -> bool:
    """Whether somebody wants to get out, by what was pressed.

    Args:
        pressed: all that came; None: nothing was pressed; empty: the terminal is gone.
    """
    if pressed is None:
        return False
    keys = SEQUENCE.sub(b"", pressed)
    return pressed in (b"", b"\x1b") or LEAVE.search(keys) is not None


@contextmanager
def _keys() -> Iterator[Callable[[float], bytes | None]]:
    """Keys as they are pressed: a function that waits so many seconds for some, and gives all there are."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> bytes | None:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        # Not through sys.stdin: what lies in its buffer is not there for `select`.
        return os.read(descriptor, MOST_KEYS) if ready else None

    try:
        tty.setcbreak(descriptor)
        # Ctrl-C is a key like any other here: a signal may come in the middle of a drawing, and the terminal would stay
        # as it was drawn.
        mode = termios.tcgetattr(descriptor)
        mode[LOCAL] &= ~termios.ISIG
        termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
