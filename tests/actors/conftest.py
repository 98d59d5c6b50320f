"""Real processes: Ray clusters, bootstraps and peers, started the way a user starts them, through the command line."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ELASTIC = [sys.executable, "-m", "elastic"]
ACTORS = (
    "ray::PeerActor",
    "ray::Swarm",
    "ray::RayTrainWorker",
    "ray::TrainController",
    "ray::EvaluatorActor",
    "ray::_Autoscaling",
)
MARK = f"ELASTIC_TESTS={uuid.uuid4().hex}"
"""In the environment of every process that descends from these tests."""
PATIENCE = 400.0
"""Seconds that a busy machine may take for anything; a bound on polling, not an expectation."""


def environment(**more: str) -> dict[str, str]:
    """The environment of every process of a test: no token, no address from outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    kept |= dict([MARK.split("=")])
    return {
        **kept, "RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", "RAY_memory_monitor_refresh_ms": "0", **more,
    }  # fmt: skip


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Poll until it holds; fail with what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.2)


class Program:
    """A running `elastic …` with its output in a file."""

    def __init__(self, args: list[str], folder: Path, **env: str) -> None:
        self.log = folder / f"{args[0]}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*ELASTIC, *args], cwd=folder, env=environment(**env), stdout=out, stderr=subprocess.STDOUT
            )

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def prints(self, pattern: str) -> None:
        """Wait for a line that matches; a program that ends before it prints one fails the test."""

        def there() -> bool:
            if re.search(pattern, self.output()):
                return True
            if self.process.poll() is not None:
                pytest.fail(f"ended with {self.process.returncode} before {pattern!r}:\n{self.output()}")
            return False

        until(there, f"{pattern!r} in\n{self.output()}")

    def ends(self) -> int:
        """Wait for its end; its exit code."""
        until(lambda: self.process.poll() is not None, f"the end of\n{self.output()}")
        return int(self.process.returncode)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _free_port() -> int:
    """Ray takes no port 0 for its dashboard and its agents, and two clusters would want the same default."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ray_cluster(cpus: int = 4, *, jobs: bool = False) -> Iterator[str]:
    """`ray start --head` as a child of ours, on free ports; gives its address.

    Args:
        cpus: that it believes to have.
        jobs: whether it takes jobs, which costs its start some seconds.
    """
    folder = Path(tempfile.mkdtemp(prefix="rt-"))  # short: Ray puts sockets below it
    log = folder / "start.log"
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port", "0",
        "--num-cpus", str(cpus),
        "--include-dashboard", str(jobs).lower(), "--dashboard-port", str(_free_port()),
        "--dashboard-agent-listen-port", str(_free_port()),
        "--temp-dir", str(folder), "--object-store-memory", "200000000",
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment(), stdout=out, stderr=subprocess.STDOUT)
    try:
        found: list[str] = []

        def started() -> bool:
            note = folder / "ray_current_cluster"
            found[:] = [note.read_text().strip()] if "Ray runtime started" in log.read_text(errors="replace") else []
            assert process.poll() is None, log.read_text(errors="replace")
            return bool(found)

        until(started, "ray start")
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with ray_cluster() as address:
        yield address


@pytest.fixture
def bootstrap(tmp_path: Path) -> Iterator[str]:
    """Address of a DHT entry point of this test."""
    program = Program(["bootstrap", "--host", "127.0.0.1"], tmp_path)
    try:
        program.prints(r"/ip4/\S+")
        match = re.search(r"/ip4/\S+", program.output())
        assert match is not None
        yield match.group()
    finally:
        program.process.send_signal(signal.SIGTERM)
        assert program.ends() == 0, program.output()


def processes(pattern: str) -> list[str]:
    """Command lines of processes that match and descend from these tests; whoever else runs peers here keeps theirs."""
    command = ["ps", "-eww", "-o", "pid,ppid,stat,args"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    found = [line for line in lines if re.search(pattern, line) and " Z" not in line[:24]]
    return [line for line in found if _is_ours(line.split()[0])]


def _is_ours(pid: str) -> bool:
    try:
        return MARK.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False  # it has ended, or is another user's


def run_file(path: Path, *, shared: str, bootstrap: str | None, ray: str, more: str = "") -> Path:
    """A run file whose [shared] part is given, with a state directory beside it."""
    entries = f'["{bootstrap}"]' if bootstrap else "[]"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""{shared}
[local]
name = "{path.stem}"
state_dir = "{path.stem}"
report = "report.jsonl"
[local.network]
host = "127.0.0.1"
bootstrap = {entries}
card_seconds = 8
bootstrap_seconds = 20
[local.ray]
address = "{ray}"
threads = 1
{more}
""",
        encoding="utf-8",
    )
    return path


def shared(validator: str, *, rounds: int = 500, min_peers: int = 1, steps: int = 2, run: str = "test") -> str:
    """A small and fast run."""
    return f"""
[shared]
run = "{run}"
rounds = {rounds}
[shared.model]
name = "llama"
preset = "nano"
layers = 1
dim = 64
heads = 2
kv_heads = 1
ffn_dim = 128
[shared.inner]
steps = {steps}
batch_size = 4
sequence_length = 64
[shared.round]
train_seconds = 30.0
gather_seconds = 15.0
min_peers = {min_peers}
[shared.agreement]
validators = ["{validator}"]
"""
