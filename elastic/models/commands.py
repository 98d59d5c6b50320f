"""`elastic generate`, `elastic export` and `elastic eval`."""

import os
import sys
from enum import StrEnum
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from elastic.errors import ConfigError, enough_memory
from elastic.evals.tasks import SHIPPED

say = typer.echo

IN_MEMORY = "a model is read as fp32 on the CPU, 4 bytes a parameter"

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
            help="a run file, a peer's state directory or an anchor in it, a quickstart's folder, or a folder that "
            "`elastic export` or transformers wrote"
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

    with enough_memory(IN_MEMORY):
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

    with enough_memory(IN_MEMORY):
        held = write(where, out, round_, precision.value, run_file)
    say(f"wrote {out}: run {held.config.shared.run}, before round {held.round}, anchor {held.digest}")
    say(f'next: elastic generate {out} "Once upon a time"')


def evaluate(  # noqa: PLR0913 - one argument per flag
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="a run file, a peer's state directory or an anchor in it, a quickstart's folder, or a folder that "
            "`elastic export` or transformers wrote",
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(help="with commas between; also lm-eval's, where their data is at hand, and YAML files of yours"),
    ] = ",".join(SHIPPED),
    limit: Annotated[int | None, typer.Option(min=1, help="only so many examples of each task")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="write the results here, too")] = None,
    batch: Annotated[int, typer.Option(min=1, help="texts at a time, at most")] = 16,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default="a run's sequence_length; of a folder the model's longest, 2048 at most",
            help="tokens that the model reads at a time, at most",
        ),
    ] = None,
    run_file: RunFile = None,
) -> None:
    """Measure how good a model is, through lm-eval.

    bits_per_byte: how well it predicts text that nobody trained it on, a run's held-out text or else the end of a
    novel; less is better. facts: plain facts, one of four ends of a sentence; 0.25 is chance. Neither needs a network.
    """
    from elastic.models.evaluate import Effort, progress, table, write_json
    from elastic.models.evaluate import evaluate as measure

    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"--tasks: expected names with commas between, as in --tasks {','.join(SHIPPED)}")
    if json is not None and not json.parent.is_dir():
        raise ConfigError(f"--json {json}: there is no folder {json.parent}")
    with enough_memory(f"{IN_MEMORY}; a smaller --batch or --context takes less"), progress(sys.stderr) as on_progress:
        origin, results = measure(checkpoint, run_file, names, Effort(limit, batch, context), on_progress)
    say(f"model  {origin}")
    say(table(results))
    if json is not None:
        write_json(json, origin, limit, results)
