"""`elastic quickstart`: a real swarm on this machine, from nothing to a trained model and a summary.

A bootstrap process, one Ray cluster bound to loopback, and peers in namespaces of their own that know nothing of each
other but the bootstrap's address. Every part is the real one; only the machine is shared.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray
from rich.console import Console

from elastic.actors import summary
from elastic.actors.chaos import Chaos, Kill
from elastic.actors.child import Child
from elastic.actors.devnet import SUBNET, Devnet
from elastic.actors.follow import Say
from elastic.actors.footprint import tree_bytes
from elastic.actors.handle import PeerHandle
from elastic.actors.interruption import Interrupted, Interruption
from elastic.actors.launch import quiet, silence_ray, start_peer
from elastic.actors.live import LiveView
from elastic.actors.offline import corpus_digest
from elastic.actors.peer import JOINING
from elastic.config import RunConfig, load_config
from elastic.errors import BootstrapError, ElasticError
from elastic.messages import PeerId, RoundIndex
from elastic.reports import PeerStatus, RoundReport
from elastic.wire.signing import Identity

LOG = "bootstrap.log"
CARD_SECONDS = 20
METRICS = """
[local.metrics]
prometheus = "127.0.0.1:0"
"""
MAX_DECIDING = 4
"""So many of the peers are validators: four let one of them lie or die."""
MEMORY_SECONDS = 3.0
"""Between two looks at memory, which cost some milliseconds per process."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The flags of the command."""

    peers: int = 3
    rounds: int = 18
    inner_steps: int = 10
    reducer: str = "sparseloco"
    incentive: str = "reputation"
    workers: tuple[int, ...] = (1, 1, 1)
    folder: Path = Path()
    """An empty folder for this run."""
    report: Path | None = None
    plain: bool = False
    chaos: float | None = None
    """Seconds between two kills; None: nobody is killed."""
    seed: int = 0
    """Of who is killed."""
    metrics: bool = False
    """Whether each peer has a Prometheus endpoint."""


@dataclass(slots=True)
class Result:
    """What the swarm came to, for the summary."""

    folder: Path
    configs: list[RunConfig]
    reports: list[RoundReport] = field(default_factory=list)
    statuses: list[PeerStatus] = field(default_factory=list)
    """The last of each peer."""
    kills: list[Kill] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    """Seconds since the command began at which these were done: `ray`, `network`, `trainers`, `start`, `end`."""
    peak_bytes: int = 0
    """Largest memory seen of all processes together."""
    on_chain: list[str] = field(default_factory=list)
    """What landed on the chain of this run, if it has one, in words."""
    held_out: tuple[float, float] | None = None
    """Loss on held-out text: unigram model, ours (nats per token)."""
    sample: str = ""


def run_quickstart(settings: Settings, say: Say) -> int:
    """Run it; returns the exit code."""
    begin, folder = time.monotonic(), settings.folder
    if settings.report is not None:
        settings.report.write_bytes(b"")  # a place that cannot be written is better found out now
    say(f"run folder {folder}")
    result = Result(folder, [])
    handles: list[PeerHandle] = []
    try:
        with Interruption() as interruption, ExitStack() as stack:
            entry = stack.enter_context(closing(EntryPoint(folder)))
            stack.enter_context(local_cluster(num_cpus=sum(settings.workers) + 1))
            stack.callback(free, handles)
            result.times["ray"] = time.monotonic() - begin
            interruption.check()
            devnet = None
            if settings.incentive == SUBNET:
                devnet = stack.enter_context(closing(Devnet(folder, names(settings))))
                say(f"devnet     a local devnet at {devnet.url}, which is no real chain")
            result.configs = run_files(folder, settings, entry.address(), settings.peers, devnet)
            handles += [start_peer(config, stay=True) for config in result.configs]
            chaos = Chaos(settings.chaos, settings.seed, settings.rounds, say) if settings.chaos else None
            for now in _watch(handles, settings, result, begin, say):
                interruption.check()
                if chaos is not None:
                    chaos.look(handles, entry.pid, result.reports, now)
                    result.kills = chaos.kills
            summary.measure(handles, result)
            if devnet is not None:
                result.on_chain = devnet.report()
            result.times["end"] = time.monotonic() - begin
    except Interrupted as signal_name:
        say(f"{signal_name}: stopped; nothing is left running. The run is in {folder}")
        return 130
    summary.show(result, settings, Console(width=None if sys.stdout.isatty() else 110), say)
    return 0 if summary.identical(result) else 1


def _watch(handles: list[PeerHandle], settings: Settings, result: Result, begin: float, say: Say) -> Iterator[float]:
    """Until every peer has finished the run; raises what ended a peer too early. Yields the time between two looks."""
    look, told = 0.0, set[str]()
    with LiveView(settings.plain, settings.rounds, say) as view:
        while True:
            for handle in handles:
                if handle.ended(0.0):
                    raise ElasticError(f"peer {handle.config.local.name} ended early: {handle.reason()}")
            result.statuses = statuses = [handle.status() for handle in handles]
            for handle, status in zip(handles, statuses, strict=True):
                mine = [report.round for report in result.reports if report.peer == status.peer]
                new = handle.reports(max(mine, default=RoundIndex(0)))
                result.reports += [report for report in new if report.manifest]  # the others did not end yet
            _note_start(statuses, result, begin)
            for status in statuses:
                if status.metrics and status.metrics not in told:
                    told.add(status.metrics)
                    say(f"metrics of {status.name} at {status.metrics}")
            if time.monotonic() > look:
                result.peak_bytes = max(result.peak_bytes, tree_bytes())
                look = time.monotonic() + MEMORY_SECONDS
            view.update(statuses, result.reports)
            if all(status.stage == "finished" for status in statuses):
                return
            yield time.monotonic()
            time.sleep(0.4)


def _note_start(statuses: list[PeerStatus], result: Result, begin: float) -> None:
    """When the slowest peer had its network, its trainer, and its first round."""
    seen = {
        "network": not any(status.phase.startswith(JOINING) for status in statuses),
        "trainers": all(status.stage != "starting" for status in statuses),
        "start": all(status.round >= 1 for status in statuses),
    }
    for what, done in seen.items():
        if done and what not in result.times:
            result.times[what] = time.monotonic() - begin


class EntryPoint(Child):
    """`elastic bootstrap`."""

    def __init__(self, folder: Path) -> None:
        command = ["elastic", "bootstrap", "--host", "127.0.0.1", "--until-stdin-closes"]
        super().__init__(folder / LOG, *command, "--key", str(folder / "bootstrap.key"))

    def address(self) -> str:
        """Wait for its address."""
        for line in self.stdout:
            if line.strip().startswith("/ip4/"):
                return line.strip()
        raise BootstrapError(f"the bootstrap process ended before it was reachable: see {self.log}")


BURY_SECONDS = 2.0
"""For Ray's workers to end by themselves when their cluster does."""


@contextmanager
def local_cluster(num_cpus: int) -> Iterator[None]:
    """A Ray cluster of our own (see `environment.own_cluster`), gone with this process."""
    silence_ray()
    with quiet():
        ray.init(
            address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR", configure_logging=True,
        )  # fmt: skip
    try:
        yield
    finally:
        workers = [each for each in psutil.Process().children(recursive=True) if _is_ray_worker(each)]
        with quiet():
            ray.shutdown()
        for late in psutil.wait_procs(workers, timeout=BURY_SECONDS)[1]:  # they would notice, half a minute later
            with suppress(psutil.NoSuchProcess):
                late.kill()


def _is_ray_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "".join(process.cmdline()[:1]).startswith("ray::")
    return False


def names(settings: Settings) -> list[str]:
    """What the peers are called."""
    return [f"peer-{number + 1}" for number in range(settings.peers)]


def run_files(
    folder: Path, settings: Settings, entry: str, min_peers: int, devnet: Devnet | None = None
) -> list[RunConfig]:
    """A run file and a key per peer; three or more peers decide together, so that any one of them may die."""
    keys = [Identity.load_or_create(folder / name / "peer.key") for name in names(settings)]
    deciding = keys[:MAX_DECIDING] if len(keys) >= 3 else keys[:1]
    shared = _shared(settings, [key.peer for key in deciding], min_peers) + (devnet.shared() if devnet else "")
    configs = []
    for name, workers in zip(names(settings), settings.workers, strict=True):
        path = folder / name / "run.toml"
        local = _local(name, workers, entry, settings) + (devnet.local(name) if devnet else "")
        path.write_text(shared + local, encoding="utf-8")
        configs.append(load_config(path))
    return configs


def _shared(settings: Settings, validators: list[PeerId], min_peers: int) -> str:
    average = settings.reducer == "average"
    return f"""\
# Written by `elastic quickstart`; `elastic init` writes one with every value explained.
[shared]
run = "quickstart"
rounds = {settings.rounds}

[shared.model]
name = "llama"
preset = "nano"

[shared.data]
corpus = "pride_and_prejudice"
sha256 = "{corpus_digest()}"

[shared.inner]
steps = {settings.inner_steps}
learning_rate = {3e-3 if average else 6e-3}

[shared.reducer]
name = "{settings.reducer}"

[shared.outer]
learning_rate = {0.7 if average else 1.0}
nesterov = {0.6 if average else 0.0}

[shared.round]
train_seconds = 120.0
gather_seconds = 60.0
min_peers = {min_peers}

[shared.agreement]
validators = {json.dumps(validators)}

[shared.incentive]
name = "{settings.incentive}"
"""


def _local(name: str, workers: int, entry: str, settings: Settings) -> str:
    report = f"report = {json.dumps(str(settings.report.resolve()))}\n" if settings.report else ""
    return f"""
[local]
name = "{name}"
state_dir = "."
{report}
[local.network]
host = "127.0.0.1"
bootstrap = ["{entry}"]
card_seconds = {CARD_SECONDS}

[local.ray]
workers = {workers}
threads = 1
{METRICS if settings.metrics else ""}"""


def free(handles: list[PeerHandle]) -> None:
    """Let every peer say goodbye, all at once."""
    farewells = [handle.peer.leave.remote(hand_in=False) for handle in handles]
    if farewells:
        ray.wait(farewells, num_returns=len(farewells), timeout=10)
    for handle in handles:
        handle.kill()
