"""`elastic plan`."""

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from elastic.config import load_config
from elastic.errors import ConfigError
from elastic.plan.estimate import Case, estimate

say = typer.echo

WIDE = 120
"""Columns of what is printed where there is no terminal."""
MOST_PEERS = 10**6


def plan(  # noqa: PLR0913 - options of a command
    context: typer.Context,
    run_file: Annotated[Path, typer.Argument(help="the run file; its [plan] says who is thought to take part")],
    peers: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=MOST_PEERS, help="simulate swarms of so many peers instead, e.g. --peers 10 100 1000 10000"
        ),
    ] = None,
    churn: Annotated[
        float, typer.Option(min=0, max=100, help="with --peers: deaths per peer and usual round; 0.05 is one in twenty")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="with --peers: of who dies when")] = 0,
    gpu: Annotated[
        str | None, typer.Option(help="what if all peers had such GPUs: H100, B200, RTX4090, cpu, …")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, max=4096, help="what if they had so many each")] = None,
    up: Annotated[float | None, typer.Option(min=1e-3, max=1e9, help="what if their uplinks had so many Mb/s")] = None,
    down: Annotated[float | None, typer.Option(min=1e-3, max=1e9, help="the same for downlinks")] = None,
    json: Annotated[bool, typer.Option("--json", help="all figures as JSON")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="no colours, no lines")] = False,
) -> None:
    """Reckon what a run takes: memory, bytes, time, money.

    From the run file and its table [plan] (GPUs, links; docs/plan.md): parameters, what lies on a GPU and in memory,
    bytes by topology, each phase of a round, utilisation, tokens a day, cost; what limits, and what to change. The
    formulas are held against measured and published runs on the same page. Needs no GPU, no network and no torch.
    """
    counts = [*(peers or []), *map(_count, context.args)]
    changes = {"gpu": gpu, "gpus": gpus, "up_mbps": up, "down_mbps": down}
    case = _what_if(Case.of(load_config(run_file)), {key: value for key, value in changes.items() if value is not None})
    if churn and not counts:
        raise ConfigError("--churn is for simulated swarms: say how many peers, as in --peers 10 100 1000")
    plain = plain or not sys.stdout.isatty()
    columns = shutil.get_terminal_size((WIDE, 0)).columns
    if counts:
        from elastic.plan.simulate import grow
        from elastic.plan.view import growth

        rows = list(grow(case, counts, churn, seed))
        from elastic.plan.figures import of_growth

        say(_json(of_growth(rows, churn, seed)) if json else growth(rows, churn, columns, plain=plain))
        return
    from elastic.plan.figures import of_plan
    from elastic.plan.view import page

    found = estimate(case)
    say(_json(of_plan(found)) if json else page(found, columns, plain=plain))


def _what_if(case: Case, changes: dict[str, Any]) -> Case:
    """Other peers than the run file describes; a price and an MFU that it says are of its own GPUs."""
    if "gpu" in changes:
        from elastic.plan.gpus import gpu_named

        try:
            gpu_named(changes["gpu"])
        except ValueError as error:
            raise ConfigError(f"--gpu: {error}") from error
        changes = {**changes, "mfu": None}
    if "gpu" in changes or "gpus" in changes:
        changes = {**changes, "usd_per_hour": None}
    return case.with_groups(**changes) if changes else case


def _count(argument: str) -> int:
    if not argument.isdecimal() or not 1 <= int(argument) <= MOST_PEERS:
        raise ConfigError(
            f"--peers {argument}: expected numbers from 1 to {MOST_PEERS:,}, as in --peers 10 100 1000 10000"
        )
    return int(argument)


def _json(tree: dict[str, Any]) -> str:
    return orjson.dumps(tree, option=orjson.OPT_INDENT_2).decode()
