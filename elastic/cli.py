"""The command line. Heavy libraries are imported inside the commands that need them, so `--help` is instant."""

import asyncio
import shutil
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from elastic import __version__
from elastic.config import RunConfig, load_config
from elastic.errors import ConfigError, ElasticError
from elastic.messages import PeerStatus

app = typer.Typer(
    name="elastic",
    help="Train one language model together with strangers: elastic, on Ray and Hivemind, no server to trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunFile = Annotated[Path, typer.Argument(help="the run file (TOML); `elastic init` writes one")]


def say(text: str) -> None:
    """A line for the user, at once also through a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 1, never a stack trace."""
    try:
        app(standalone_mode=True)
    except ElasticError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in (
            "ray",
            "torch",
            "hivemind",
            "opentelemetry",
            "numpy",
        ):
            sys.stderr.write(f"error: {error.name} is not installed: pip install 'elastic[peer]'\n")
            raise SystemExit(1) from None
        raise


def _version(value: bool) -> None:
    if value:
        say(f"elastic {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train one language model together with strangers."""


@app.command()
def quickstart(  # noqa: PLR0913 - one argument per flag
    peers: Annotated[int, typer.Option(min=1, max=16, help="peers on this machine")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="rounds to train")] = 12,
    inner_steps: Annotated[int, typer.Option(min=1, help="inner steps per round and peer")] = 15,
    reducer: Annotated[str, typer.Option(help="sparseloco | average | package.module:Class")] = "sparseloco",
    incentive: Annotated[str, typer.Option(help="uniform | reputation | package.module:Class")] = "uniform",
    workers: Annotated[str, typer.Option(help='Ray Train workers per peer: "1", or one number each: "2,1,1"')] = "1",
    folder: Annotated[Path, typer.Option("--dir", help="where runs are kept")] = Path("runs"),
    report: Annotated[Path | None, typer.Option(help="write one JSON object per peer and round here")] = None,
    plain: Annotated[bool, typer.Option(help="lines instead of the live view")] = False,
) -> None:
    """Train a small model on real text with several peers on this machine (no account, GPU or open port needed)."""
    from elastic.actors.environment import new_folder, own_cluster

    folder = new_folder(folder)
    own_cluster(folder)
    from elastic.actors.quickstart import Settings, run_quickstart

    settings = Settings(
        peers=peers, rounds=rounds, inner_steps=inner_steps, reducer=reducer, incentive=incentive,
        workers=_workers(workers, peers), folder=folder, report=report, plain=plain or not sys.stdout.isatty(),
    )  # fmt: skip
    raise SystemExit(run_quickstart(settings, say))


@app.command()
def join(run_file: RunFile) -> None:
    """Join a run from this machine's Ray cluster (`ray start --head` first); again after a stop, to go on."""
    from elastic.actors.environment import attach

    attach()
    from elastic.actors.follow import follow
    from elastic.actors.launch import connect, start_peer

    config = load_config(run_file)
    validate(config)
    _require_bootstrap(config)
    connect(config.local.ray)
    handle = start_peer(config)
    say(f"joining run {config.shared.run} (log: {config.local.state_dir / 'peer.log'}); Ctrl-C leaves")
    say(follow(handle, say))


@app.command()
def bootstrap(
    host: Annotated[str, typer.Option(help="address to listen on")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0: any free one")] = 0,
    key: Annotated[Path, typer.Option(help="private key; keep it, and the address stays the same")] = Path(
        "bootstrap.key"
    ),
    announce: Annotated[list[str] | None, typer.Option(help="address to tell others, e.g. /dns4/host/tcp/4001")] = None,
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Start an entry point to the DHT and print the address to hand out."""
    from elastic.exchange.bootstrap import run_bootstrap

    def ready(addresses: list[str]) -> None:
        say("hand out one of these (local.network.bootstrap in the run file):")
        for address in addresses:
            say(f"  {address}")

    async def serve() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        if until_stdin_closes:
            loop.add_reader(sys.stdin.fileno(), stop.set)
        await run_bootstrap(key, host, port, tuple(announce or ()), ready, stop)

    asyncio.run(serve())


@app.command()
def check(run_file: RunFile) -> None:
    """Validate a run file without a network: keys, values, plug-ins and their settings, the text."""
    config = load_config(run_file)
    validate(config)
    from elastic.actors.offline import check_corpus

    say(f"run      {config.shared.run}, {config.shared.rounds} rounds")
    say(f"shared   {config.shared.digest()}  (equal on every peer of the run)")
    say(check_corpus(config))
    if not config.local.network.bootstrap and config.local.exchange.name == "hivemind":
        say("note     local.network.bootstrap is empty: this peer waits to be found, as the run's first peer")
    say("ok")


@app.command()
def status(
    where: Annotated[
        Path, typer.Argument(help="a run file, a peer's state directory, or a quickstart's folder")
    ] = Path("runs"),
) -> None:
    """Show the peers of a folder: what they do, where they are in the run."""
    from elastic.view import alive, status_table

    folder = load_config(where).local.state_dir if where.is_file() else where
    files = sorted(folder.glob("**/status.json"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise ConfigError(f"{folder}: no peer has run here; `elastic join` starts one")
    newest = files[-1].parent.parent
    statuses = [PeerStatus.from_bytes(file.read_bytes()) for file in files if file.parent.parent == newest]
    say(status_table(statuses, shutil.get_terminal_size().columns))
    if not any(alive(each) for each in statuses):
        say(f"none of them is running (folder {newest})")


@app.command()
def init(
    run_file: Annotated[Path, typer.Argument(help="where to write it")] = Path("run.toml"),
    name: Annotated[str, typer.Option(help="name of the run")] = "my-run",
) -> None:
    """Write a commented run file, with this machine as the run's validator."""
    from elastic.actors.offline import write_run_file

    peer = write_run_file(run_file, name)
    say(f"wrote {run_file} (validator: this machine, {peer})")
    say("next: elastic bootstrap           # in a second terminal; put the address it prints into the run file")
    say(f"      elastic check {run_file}")
    say(f"      ray start --head && elastic join {run_file}")


def validate(config: RunConfig) -> None:
    """Resolve every plug-in of a run file and validate its settings.

    Raises:
        ConfigError: see `elastic.registry.resolve`.
    """
    from elastic.registry import resolve

    slots: dict[str, Any] = {
        "model": config.shared.model, "reducer": config.shared.reducer, "incentive": config.shared.incentive,
        "exchange": config.local.exchange,
    }  # fmt: skip
    for slot, choice in slots.items():
        resolve(slot, choice)


def _require_bootstrap(config: RunConfig) -> None:
    """A peer that knows nobody can only be the first: its validator."""
    if config.local.network.bootstrap:
        return
    from elastic.wire.signing import Identity

    if Identity.load_or_create(config.key_path).peer not in config.shared.agreement.validators:
        raise ConfigError(
            "local.network.bootstrap is empty: put the address there that `elastic bootstrap` printed for this run"
        )


def _workers(text: str, peers: int) -> tuple[int, ...]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f'--workers {text}: expected a number, or one per peer as in "2,1,1"') from error
    if min(numbers) < 1 or len(numbers) not in (1, peers):
        raise ConfigError(f"--workers {text}: expected one number of at least 1, or {peers} of them")
    return tuple(numbers * peers if len(numbers) == 1 else numbers)
