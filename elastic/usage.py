"""How the command line is written: the order in which help lists commands, and options that may stand alone."""

from itertools import pairwise

import typer
from typer.core import TyperGroup

COMMANDS = (
    "quickstart", "doctor", "plan", "data", "init", "id", "check", "bootstrap", "join", "status",
    "top", "dashboard", "trace", "amend", "score", "incentives", "report", "replay",
    "generate", "eval", "export", "bench",
)  # fmt: skip
"""As people meet them: a first try, a run of their own, what to do about one that goes on, looking back, its model."""
OPTIONAL = {"--chaos": "20"}
"""Options whose value may be left out, and what it is then."""


class AsMet(TyperGroup):
    """A group of commands that lists them in the order of `COMMANDS`, and others behind them."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        place = {name: number for number, name in enumerate(COMMANDS)}
        return sorted(super().list_commands(ctx), key=lambda name: place.get(name, len(place)))


def spelled_out(args: list[str]) -> list[str]:
    """Arguments with a value for each option that may stand without one, which Typer does not know of."""
    out: list[str] = []
    for arg, after in pairwise([*args, "-"]):
        out += [arg, OPTIONAL[arg]] if arg in OPTIONAL and after.startswith("-") else [arg]
    return out
