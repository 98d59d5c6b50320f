"""`elastic score` and `elastic incentives …`."""

from pathlib import Path
from typing import Annotated

import typer

from elastic.config import PluginChoice, RunConfig, load_config

say = typer.echo
incentives = typer.Typer(help="Look at what incentives make of a run.", rich_markup_mode=None)

Where = Annotated[Path, typer.Argument(help="a peer's state directory, or a folder of them, as of a quickstart")]
RunFile = Annotated[Path | None, typer.Option("--run-file", help="the run file; run.toml in that folder if not given")]


def score(
    peer: Annotated[str, typer.Argument(help="its name, or the beginning or end of its peer id")],
    where: Where,
    run_file: RunFile = None,
    rounds: Annotated[int, typer.Option(min=1, help="show the last so many")] = 20,
) -> None:
    """Explain a peer's score: what moved it, round by round.

    From what the best informed peer of that folder wrote down: a validator, if there is one.
    """
    from elastic.audit.evidence import best_witness, find_peer, names_in
    from elastic.audit.score import HEADER, LEGEND, history, line
    from elastic.registry import build

    witness, names = best_witness(where), names_in(where)
    config = _config(run_file, where)
    found = find_peer(peer, witness.peers, names)
    choice = config.shared.incentive
    moves = list(history(witness, found, build("incentive", choice)))
    say(f"{names.get(found, '')} {found}, as {names.get(witness.peer, witness.peer)} saw it, incentive {choice.name}")
    say(HEADER)
    for move in moves[-rounds:]:
        say(line(move))
    say(LEGEND)


@incentives.command("compare")
def compare(
    where: Where,
    backends: Annotated[
        list[str] | None, typer.Option("--with", help="uniform | reputation | package.module:Class; again for more")
    ] = None,
    run_file: RunFile = None,
) -> None:
    """Replay a run's evidence through several incentives.

    Each peer's part of all shares, its score at the end, and the rounds in which it contributed and would not have been
    asked to. The run's own incentive comes first, with its settings; others have their defaults.
    """
    from elastic.audit.compare import play, table
    from elastic.audit.evidence import best_witness, names_in
    from elastic.registry import build

    witness, own = best_witness(where), _config(run_file, where).shared.incentive
    choices = {own.name: own}
    for name in backends or ["uniform", "reputation"]:
        choices.setdefault(name, PluginChoice(name=name))
    books = {name: play(witness, build("incentive", choice)) for name, choice in choices.items()}
    say(f"{len(witness.rounds)} rounds, {witness.assessments} assessments")
    for text in table(books, names_in(where)):
        say(text)


def _config(run_file: Path | None, where: Path) -> RunConfig:
    from elastic.audit.evidence import run_file_in

    return load_config(run_file) if run_file is not None else run_file_in(where)
