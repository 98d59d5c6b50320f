"""`elastic generate` and `elastic export`."""

import os
import sys
from enum import StrEnum
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from elastic.errors import ConfigError

say = typer.echo

RunFile = Annotated[
    Path | None, typer.Option("--run-file", help="the run file, for a peer's state directory without one")
]
Round = Annotated[
    int | None,
    typer.Option(
        "--round", min=1, help="the run's model that this round starts from, kept or rebuilt; else the newest"
    ),
]


class Precision(StrEnum):
    """Of the parameters on disk."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def generate(  # noqa: PLR0913 - options of a command
    where: Annotated[
        Path,
        typer.Argument(
            help="a run file, a peer's state directory, a quickstart's folder, or a folder that `elastic export` or "
            "transformers wrote"
        ),
    ],
    prompt: Annotated[str, typer.Argument(help="the text to continue")],
    tokens: Annotated[int, typer.Option("-n", "--tokens", min=1, help="how many tokens at most")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="another one gives another text")] = 0,
    round_: Round = None,
    run_file: RunFile = None,
) -> None:
    """Let a model continue a text.

    Of a run it is the newest model that peers on this machine hold, also while they train on. The text appears as it
    is drawn, the same one for the same seed. What a terminal would obey is shown as a mark. Ctrl-C ends it.
    """
    if not isfinite(temperature):
        raise ConfigError("--temperature: should be a finite number")
    from elastic.models.opened import open_model
    from elastic.models.speak import harmless, speak

    opened = open_model(where, run_file, round_)
    pieces = speak(opened, prompt, tokens, temperature, seed)
    first = next(pieces, "")  # what is wrong with the prompt is said before anything is shown
    try:
        for piece in chain((harmless(prompt), first), pieces, ("\n",)):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except BrokenPipeError:  # as `head` leaves
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def export(
    where: Annotated[Path, typer.Argument(help="a run file, a peer's state directory, or a quickstart's folder")],
    out: Annotated[Path, typer.Argument(help="the folder to write; it must not be there, or be empty")],
    round_: Round = None,
    precision: Annotated[Precision, typer.Option("--dtype", help="float32 keeps every bit")] = Precision.FLOAT32,
    run_file: RunFile = None,
) -> None:
    """Write a run's model as a folder that transformers opens.

    Parameters as safetensors, tokenizer, configuration, and a model card made from the run's records: rounds, tokens,
    contributors, shares, digests. The folder is there when all of it is. `elastic generate` opens it too.
    """
    from elastic.models.export import export as write

    held = write(where, out, round_, precision.value, run_file)
    say(f"wrote {out}: run {held.config.shared.run}, before round {held.round}, anchor {held.digest}")
    say(f'next: elastic generate {out} "Once upon a time"')
