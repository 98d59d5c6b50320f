"""`elastic bench …`. Heavy libraries are imported inside the commands that need them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from elastic.errors import ConfigError

bench = typer.Typer(help="Measure on this machine what the README and the docs state.", rich_markup_mode=None)
say = typer.echo

Json = Annotated[Path | None, typer.Option("--json", help="write all figures here")]
Threads = Annotated[int, typer.Option(min=0, help="threads; 0: as many as torch takes by itself")]


@bench.command("inner")
def inner(
    steps: Annotated[int, typer.Option(min=1, help="inner steps per block")] = 30,
    pairs: Annotated[int, typer.Option(min=1, help="alternating pairs of blocks")] = 7,
) -> None:
    """Inner steps under Ray Train beside a plain PyTorch loop: same model, same batches, same run."""
    with _own_cluster() as folder:
        from elastic.bench.peer import measure_inner

        result = measure_inner(folder, steps, pairs, say)
    say(f"median: peer {result['peer']:,.0f} tokens/s, plain loop {result['plain']:,.0f}, ratio {result['ratio']:.3f}")


@bench.command("join")
def join(
    peers: Annotated[int, typer.Option(min=1, max=8, help="peers that train already")] = 3,
) -> None:
    """Time from the command `elastic join` to the newcomer's first counted contribution."""
    with _own_cluster() as folder:
        from elastic.bench.peer import measure_join

        seconds = measure_join(folder, peers, say)
    say(f"join to first counted contribution: {seconds:.1f} s, beside {peers} training peers")


@bench.command("reducer", context_settings={"allow_extra_args": True})
def reducer(  # noqa: PLR0913 - options of a command
    context: typer.Context,
    params: Annotated[float, typer.Option(min=1e5, max=1e10, help="parameters of the model, about")] = 30e6,
    peers: Annotated[
        list[int] | None, typer.Option(min=1, max=1024, help="payloads to add up, e.g. --peers 8 16 70")
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="passes; figures are their medians")] = 7,
    threads: Threads = 0,
    device: Annotated[str, typer.Option(help="cpu: compiled kernels; cuda: the torch path, on both sides")] = "cpu",
    json: Json = None,
) -> None:
    """SparseLoCo beside plain PyTorch in the style of the published code: time per stage, bytes, errors."""
    counts = [*(peers or []), *map(_count, context.args)] or [8, 16]
    _has_folder(json)
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here")
    from elastic.bench.reducer import Setup, measure, table

    if threads:
        torch.set_num_threads(threads)
    result = measure(Setup(params, counts, passes, device=device), say)
    say(table(result))
    _write(json, result)


@bench.command("convergence")
def convergence(
    quick: Annotated[bool, typer.Option("--quick", help="a few rows, five minutes")] = False,
    tokens: Annotated[int, typer.Option(min=0, help="tokens of each row; 0: as many as the rows want")] = 0,
    text: Annotated[list[Path] | None, typer.Option(help="texts to train on instead of the shipped one")] = None,
    threads: Threads = 0,
    json: Annotated[Path | None, typer.Option("--json", help="keep the rows here, and skip those it has")] = None,
    picture: Annotated[Path | None, typer.Option("--plot", help="draw the rows here (.svg, .png, .pdf)")] = None,
) -> None:
    """Held-out loss at equal tokens: data-parallel AdamW, DiLoCo, SparseLoCo and its settings.

    The whole table takes about an hour on two cores. With --json a run that was stopped goes on where it was.
    """
    _has_folder(json)
    _has_folder(picture)
    import torch

    from elastic.bench.convergence import plot, run, table

    if picture is not None:
        import matplotlib  # noqa: F401 - better to miss it now than in an hour

    if threads:
        torch.set_num_threads(threads)
    rows = run(quick, tokens, text or [], json, say)
    say(table(rows))
    if picture is not None:
        plot(rows, picture)
        say(f"wrote {picture}")


def _count(argument: str) -> int:
    if not argument.isdecimal() or not 1 <= int(argument) <= 1024:
        raise ConfigError(f"--peers {argument}: expected numbers from 1 to 1024, as in --peers 8 16 70")
    return int(argument)


def _has_folder(path: Path | None) -> None:
    """Better to find out now than when everything is measured."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.absolute().parent}")


def _write(path: Path | None, result: Any) -> None:
    if path is not None:
        path.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
        say(f"wrote {path}")


@contextmanager
def _own_cluster() -> Iterator[Path]:
    """A folder and the environment for a Ray cluster of our own; Ray must not be imported before."""
    from elastic.actors.environment import own_cluster

    with tempfile.TemporaryDirectory(prefix="elastic-bench-") as name:
        own_cluster(Path(name))
        yield Path(name)
