"""The command line. Heavy libraries are imported inside the commands that need them, so `--help` is instant."""

import asyncio
import shutil
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from elastic import __version__
from elastic.audit.commands import incentives, replay, score
from elastic.bench.commands import bench
from elastic.check import check_plugins, check_values, notes
from elastic.config import RunConfig, load_config
from elastic.data.commands import data
from elastic.errors import ConfigError, ElasticError
from elastic.look.commands import dashboard, report, top
from elastic.models.commands import evaluate, export, generate
from elastic.order import amend
from elastic.plan.commands import plan
from elastic.plan.describe import described
from elastic.registry import EXTRAS, resolve, target_of
from elastic.sections import PluginChoice
from elastic.tracing.commands import trace
from elastic.usage import AsMet, spelled_out

app = typer.Typer(
    name="elastic",
    cls=AsMet,
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
    """Entry point: a user's mistake is one line on stderr and exit code 1, never a stack trace."""
    try:
        code = app(args=spelled_out(sys.argv[1:]), prog_name="elastic", standalone_mode=False)
    except ElasticError as error:
        _fail(str(error))
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        _fail(f"{error.format_message()} (see `{context.command_path if context else 'elastic'} --help`)")
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS:
            raise
        own = ("bittensor", "plot", "bucket", "dashboard", "eval", "data")
        extra = EXTRAS[library] if EXTRAS[library] in own else "peer"
        _fail(f"{library} is not installed: pip install 'elastic[{extra}]' (in a clone: pip install -e '.[{extra}]')")
    except (typer.Abort, KeyboardInterrupt):
        raise SystemExit(130) from None  # Ctrl-C before there is anything to leave
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")
    raise SystemExit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    raise SystemExit(1) from None


app.add_typer(bench, name="bench")
app.add_typer(incentives, name="incentives")
app.add_typer(data, name="data")
app.add_typer(trace, name="trace")
app.command(context_settings={"allow_extra_args": True})(plan)
app.command("eval")(evaluate)
for command in (score, amend, replay, top, report, dashboard, generate, export):
    app.command()(command)


def _version(value: bool) -> None:
    if value:
        say(f"elastic {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train one language model together with strangers: elastic, on Ray and Hivemind, no server to trust.

    See it work: quickstart. Make a run: plan, data, init, bootstrap, check, doctor, join. Be part of one: check,
    doctor, join. While it goes on: status, top, dashboard, trace, amend, score. Afterwards: report, replay,
    incentives, eval, export.
    """
    if context.invoked_subcommand is None:
        say(context.get_help())


@app.command()
def quickstart(  # noqa: PLR0913 - one argument per flag
    peers: Annotated[int, typer.Option(min=1, max=16, help="peers on this machine")] = 3,
    rounds: Annotated[
        int | None, typer.Option(min=1, show_default="18; 45 with --chaos", help="rounds to train")
    ] = None,
    inner_steps: Annotated[int, typer.Option(min=1, help="inner steps per round and peer")] = 10,
    reducer: Annotated[str, typer.Option(help="sparseloco | average | package.module:Class")] = "sparseloco",
    incentive: Annotated[
        str, typer.Option(help="reputation | uniform | subnet (on a local devnet) | package.module:Class")
    ] = "reputation",
    workers: Annotated[str, typer.Option(help='Ray Train workers per peer: "1", or one number each: "2,1,1"')] = "1",
    folder: Annotated[Path, typer.Option("--dir", help="where runs are kept")] = Path("runs"),
    report: Annotated[Path | None, typer.Option(help="write one JSON object per peer and round here")] = None,
    plain: Annotated[bool, typer.Option(help="lines instead of the live view")] = False,
    chaos: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="kill (SIGKILL) a random process this often (20, if no number is given): a peer's actor, its network "
            "actor, p2pd, Ray Train's controller or a worker, and the bootstrap once, for good; never Ray's raylet and "
            "GCS or this command, with which all peers end. Each kind has its turn if the run is long enough; nobody "
            "is killed in the last third",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="of who is killed by --chaos")] = 0,
    metrics: Annotated[bool, typer.Option("--metrics", help="an endpoint for Prometheus on each peer")] = False,
) -> None:
    """Train a small model with several peers on this machine.

    A real swarm on real text: Ray, Ray Train, a Hivemind DHT, all on loopback. No account, GPU or open port is needed.
    """
    rounds = rounds or (18 if chaos is None else 45)
    each = _workers(workers, peers)
    for slot, name in (("reducer", reducer), ("incentive", incentive)):
        target = target_of(slot, name)
        if target == name:  # a class of the user's own: better to find out now than in every peer
            resolve(slot, PluginChoice(name=name))
    from elastic.actors.environment import new_folder, own_cluster

    folder = new_folder(folder)
    own_cluster(folder)
    from elastic.actors.quickstart import Settings, run_quickstart

    settings = Settings(
        peers=peers, rounds=rounds, inner_steps=inner_steps, reducer=reducer, incentive=incentive,
        workers=each, folder=folder, report=report, plain=plain or not sys.stdout.isatty(),
        chaos=chaos, seed=seed, metrics=metrics,
    )  # fmt: skip
    raise SystemExit(run_quickstart(settings, say))


@app.command()
def init(
    run_file: Annotated[Path, typer.Argument(help="where to write it; folders are made")] = Path("run.toml"),
    name: Annotated[str, typer.Option(help="name of the run: letters, digits, . _ -")] = "my-run",
) -> None:
    """Write a commented run file for a run of your own.

    Every setting is explained and has its default. This machine becomes the run's validator: its key is made in
    runs/NAME beside the run file. An existing file is never overwritten.
    """
    from elastic.actors.offline import write_run_file

    peer = write_run_file(run_file, name)
    say(f"wrote {run_file} (validator: this machine, {peer})")
    say("next: elastic bootstrap           # in a second terminal; put the address it prints into the run file")
    say(f"      elastic check {run_file}")
    say(f"      ray start --head && elastic doctor {run_file} && elastic join {run_file}")
    say("others get a copy of the run file: [shared] as it is, [local] their own")


@app.command("id")
def identify(run_file: RunFile) -> None:
    """Print the peer id of this machine.

    An organiser adds it to `shared.agreement.validators` to let this machine decide too. Its key is made in the state
    directory if there is none yet.
    """
    from elastic.wire.signing import Identity

    say(Identity.load_or_create(load_config(run_file).key_path).peer)


@app.command()
def check(run_file: RunFile) -> None:
    """Validate a run file without a network.

    Looks at keys, values and addresses, at the plug-ins and their settings, at how they fit, and at the text.
    """
    config = load_config(run_file)
    validate(config)
    described(config)
    from elastic.actors.offline import check_corpus

    text = check_corpus(config)
    say(f"run      {config.shared.run}, {config.shared.rounds} rounds")
    say(f"shared   {config.shared.digest()}  (equal on every peer of the run)")
    say(text)
    for note in notes(config):
        say(f"note     {note}")
    say(f"ok       next: ray start --head && elastic join {run_file}")


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
    """Start an entry point to the DHT and print its address.

    It knows no run and trains nothing: any machine that others can reach will do, for any number of runs. It also
    tells `elastic doctor` whether it can dial a machine, and measures the line to it. Ctrl-C ends it; peers that have
    met go on without it.
    """
    from elastic.exchange.dht.bootstrap import run_bootstrap

    def ready(addresses: list[str]) -> None:
        say("hand out one of these (local.network.bootstrap in the run file):")
        for address in sorted(addresses, key=lambda each: each.startswith("/ip4/127.")):  # of no use to others
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
def join(run_file: RunFile) -> None:
    """Join a run from this machine's Ray cluster.

    `ray start --head` first. The same command after a stop or a crash goes on from the state on disk. Ctrl-C leaves.
    """
    config = load_config(run_file)
    validate(config)
    from elastic.actors.environment import attach
    from elastic.actors.offline import check_corpus

    check_corpus(config)
    require_bootstrap(config)
    attach()
    from elastic.actors.follow import follow
    from elastic.actors.launch import connect, start_peer

    connect(config.local.ray)
    handle = start_peer(config)
    say(f"joining run {config.shared.run} (log: {config.local.state_dir / 'peer.log'}); Ctrl-C leaves")
    say(follow(handle, say))


@app.command()
def status(
    where: Annotated[
        Path, typer.Argument(help="a run file, a peer's state directory, or a folder of runs or of a quickstart")
    ] = Path("runs"),
) -> None:
    """Show this machine's peers: what they do, how far they are.

    Without an argument: the run that was last active under runs/.
    """
    from elastic.actors.journal import newest_statuses
    from elastic.view import alive, status_table

    folder = load_config(where).local.state_dir if where.is_file() or where.suffix == ".toml" else where
    statuses = newest_statuses(folder)
    say(status_table(statuses, shutil.get_terminal_size().columns))
    if not any(alive(each) for each in statuses):
        say(f"none of them is running (folder {folder})")


@app.command()
def doctor(
    run_file: Annotated[Path, typer.Argument(help="the run file you want to join with")] = Path("run.toml"),
    ntp: Annotated[str, typer.Option(help="a time server to compare this machine's clock with")] = "pool.ntp.org",
) -> None:
    """Look for what would keep this machine from taking part.

    Packages, key, disk, memory, port, address, entry points, clock, GPUs, Ray: each with what to do. It also goes to
    the entry points for a moment, as the peer would, asks them to dial it back, and measures the line to one of them
    (a few seconds each way). Nothing is changed. Ends with 1 if there is a problem.
    """
    config = load_config(run_file)
    validate(config)
    from elastic.actors.doctor import examine
    from elastic.actors.finding import Level

    problems = 0
    for finding in examine(config, ntp):
        say(f"{finding.level.value:<8} {finding.what:<9} {finding.says}")
        problems += finding.level is Level.PROBLEM
    if problems:
        say(f"{problems} problem{'s' * (problems > 1)} to be mended before `elastic join {run_file}`")
        raise SystemExit(1)
    say(f"nothing stands in the way: elastic join {run_file}")


def validate(config: RunConfig) -> None:
    """All that can be said of a run file without a network, but for its text.

    Raises:
        ConfigError: see `elastic.check`.
    """
    check_values(config)
    check_plugins(config)


def require_bootstrap(config: RunConfig) -> None:
    """A peer that knows nobody can only be the first: a validator.

    Raises:
        ConfigError: it is not.
    """
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
