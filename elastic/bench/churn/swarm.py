"""The peers of a churn benchmark: a process and a namespace each, watched, killed and started again from here.

Times are of the machine's monotonic clock, which is the same in all its processes.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from elastic.agreement.simplex import proposer_of
from elastic.bench.churn.bare import PACE
from elastic.bench.churn.wan import Wan
from elastic.errors import ElasticError
from elastic.messages import Digest, PeerId, RoundIndex, View
from elastic.reports import RoundReport
from elastic.wire.signing import Identity

RUN = "churn"
PORT, TRACE_PORT = 4001, 4318
LOOK = 0.05
"""Seconds between two looks at what the peers said."""
START_SECONDS = 120.0
LEAVE_SECONDS = 20.0

Say = Callable[[str], Any]

Trigger = Callable[[str, RoundIndex], bool]
"""(phase, round) that a peer begins → whether it is killed there."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How rounds go."""

    pace: float = 1.0
    """Inner steps take at least so many seconds."""
    train_seconds: float = 20.0
    gather_seconds: float = 20.0
    deadline_factor: float = 2.0
    reducer: Mapping[str, Any] | None = None
    """As in a run file; None: its default."""
    trace: Mapping[str, Any] | None = None
    """The same; None: to our own collector, which has the entry point's host."""
    program: str = "elastic.bench.churn.bare"
    """The module that a peer runs."""


class Child:
    """A process in a namespace; it ends when its standard input closes."""

    def __init__(self, wan: Wan, host: int, log: Path, *command: str) -> None:
        self._command = [*wan.inside(host), sys.executable, "-m", *command]
        self.log = log
        self.process: asyncio.subprocess.Process | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def start(self) -> asyncio.StreamReader:
        """Start it; returns its standard output."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                start_new_session=True, limit=2**20,
            )  # fmt: skip
        assert self.process.stdout is not None
        return self.process.stdout

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    def stop(self) -> None:
        """SIGSTOP: it stays, and does nothing any more."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    async def leave(self) -> None:
        """Let it end by itself, for a while."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), LEAVE_SECONDS)
        except TimeoutError:
            self.kill()
            await self.process.wait()


class Host:
    """One peer over all its lives."""

    def __init__(self, wan: Wan, host: int, folder: Path, tree: Mapping[str, Any], program: str) -> None:
        """Not started.

        Args:
            wan: the network.
            host: its number there.
            folder: its state directory, with its key in it.
            tree: its run file, and the pace of its trainer.
            program: the module that it runs.
        """
        self.host, self.folder, self.name = host, folder, folder.name
        self.id: PeerId = Identity.load_or_create(folder / "peer.key").peer
        config = folder / "run.json"
        config.write_bytes(orjson.dumps(tree))
        self.child = Child(wan, host, folder / "stderr.log", program, str(config))
        self.reports: list[tuple[float, RoundReport]] = []
        """With the time at which each came."""
        self.started, self.began, self.killed = 0.0, 0.0, 0.0
        """Times of the last start, of when trainer and network were there after it, and of the last kill."""
        self.cpu: dict[int, float] = {}
        """Round → seconds of CPU up to its end, in the life that finished it."""
        self.spans = 0
        """Made in lives that are over, where the program counts them."""
        self.trigger: Trigger | None = None
        """Kills it; used up by that."""
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin a life."""
        self.started = time.monotonic()
        output = await self.child.start()
        self._reading = asyncio.create_task(self._read(output))

    def kill(self) -> None:
        """SIGKILL, now."""
        self.trigger, self.killed = None, time.monotonic()
        self.child.kill()

    async def gone(self) -> None:
        """Until the process of the last life is over."""
        if self._reading is not None:
            await self._reading
        if self.child.process is not None:
            await self.child.process.wait()

    async def restart(self) -> None:
        """Another life, once the last one is over."""
        await self.gone()
        await self.start()

    def since(self, moment: float) -> list[RoundReport]:
        """Reports that came after this time."""
        return [report for at, report in self.reports if at > moment]

    def good_at(self, moment: float, round_: RoundIndex) -> float | None:
        """When the first round from `round_` on that counted anyone ended here, after `moment`."""
        return next((at for at, each in self.reports if at > moment and each.round >= round_ and good(each)), None)

    def counted_at(self, moment: float) -> float | None:
        """When the first round that counted this very peer ended, after `moment`."""
        return next((at for at, report in self.reports if at > moment and report.counted), None)

    @property
    def round(self) -> RoundIndex:
        """The last round it finished."""
        return self.reports[-1][1].round if self.reports else RoundIndex(0)

    async def _read(self, output: asyncio.StreamReader) -> None:
        while line := await output.readline():
            said = orjson.loads(line)
            if said["what"] == "phase" and self.trigger and self.trigger(said["phase"], RoundIndex(said["round"])):
                self.kill()
            elif said["what"] == "begins":
                self.began = said["at"]
            elif said["what"] == "spans":
                self.spans += said["ended"]
            elif said["what"] == "report":
                self.reports.append((said["at"], RoundReport.model_validate(said["report"], strict=False)))
                self.cpu[int(self.round)] = said["cpu"]


class Swarm:
    """An entry point and some peers, of which the first ones decide."""

    def __init__(self, wan: Wan, folder: Path, peers: int, validators: int, settings: Settings) -> None:
        """Not started.

        Args:
            wan: needs a host more than there are peers, for entry point and trace collector.
            folder: for all state directories.
            peers: how many there are.
            validators: how many of them decide.
            settings: how rounds go.
        """
        self.wan, self._folder, self._settings = wan, folder, settings
        names = [f"peer-{number + 1}" for number in range(peers)]
        keys = [Identity.load_or_create(folder / name / "peer.key").peer for name in names]
        self.deciding, self._min_peers = sorted(keys[:validators]), peers
        entry = Identity.load_or_create(folder / "bootstrap.key").peer
        self._entry = f"/ip4/{wan.address(peers)}/tcp/{PORT}/p2p/{entry}"
        self._traces = f"http://{wan.address(peers)}:{TRACE_PORT}/v1/traces"
        self.bootstrap = Child(
            wan, peers, folder / "bootstrap.log", "elastic", "bootstrap", "--port", str(PORT),
            "--key", str(folder / "bootstrap.key"), "--until-stdin-closes",
        )  # fmt: skip
        self.collector = Child(wan, peers, folder / "collector.log", "elastic.bench.churn.collector", str(TRACE_PORT))
        self.hosts = [
            Host(wan, number, folder / name, self._tree(name), settings.program) for number, name in enumerate(names)
        ]

    def proposer(self, round_: RoundIndex) -> Host:
        """Who proposes first in that round."""
        peer = proposer_of(RUN, round_, View(0), self.deciding)
        return next(host for host in self.hosts if host.id == peer)

    def validators(self) -> list[Host]:
        return [host for host in self.hosts if host.id in self.deciding]

    def contributors(self) -> list[Host]:
        """Those who do not decide."""
        return [host for host in self.hosts if host.id not in self.deciding]

    @property
    def round(self) -> RoundIndex:
        """The newest round that anyone finished."""
        return max(host.round for host in self.hosts)

    def usual_seconds(self) -> float:
        """Median duration of the last good rounds."""
        recent = [report.seconds["total"] for host in self.hosts for _, report in host.reports[-20:] if good(report)]
        return median(recent) if recent else 0.0

    def anchors(self, round_: RoundIndex) -> set[Digest]:
        """Digests that peers reported after that round."""
        return {
            report.digest
            for host in self.hosts
            for _, report in host.reports
            if report.round == round_ and report.manifest
        }

    async def all_good(self, rounds: int = 2, seconds: float = START_SECONDS) -> None:
        """Until all have been counted in that many rounds from now on."""
        now = time.monotonic()

        def calm() -> bool:
            return all(sum(report.counted for report in host.since(now)) >= rounds for host in self.hosts)

        await self.until(calm, seconds, "all peers are counted")

    async def until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Until something holds.

        Raises:
            ElasticError: it took longer than that; says what every peer was at.
        """
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                at = ", ".join(
                    f"{each.name} {'' if each.child.alive else 'dead, '}round {each.round}" for each in self.hosts
                )
                raise ElasticError(
                    f"after {seconds:.0f} s it is still not so that {what}: {at}; logs in {self._folder}"
                )
            await asyncio.sleep(LOOK)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All peers train while this lasts."""
        try:
            await self.collector.start()
            await self.bootstrap.start()
            for host in self.hosts:
                await host.start()
            await self.all_good()
            yield
        finally:
            await asyncio.gather(*(host.child.leave() for host in self.hosts))
            for host in self.hosts:
                await host.gone()
            await asyncio.gather(self.bootstrap.leave(), self.collector.leave())  # until then, peers may want them

    def _tree(self, name: str) -> dict[str, Any]:
        settings = self._settings
        reducer = {"reducer": settings.reducer} if settings.reducer else {}
        return {
            PACE: settings.pace,
            "shared": {
                "run": RUN, "rounds": 10**6, **reducer,
                "inner": {"steps": 4, "batch_size": 4, "sequence_length": 64},
                "round": {
                    "train_seconds": settings.train_seconds, "gather_seconds": settings.gather_seconds,
                    "deadline_factor": settings.deadline_factor, "min_peers": self._min_peers,
                },
                "agreement": {"validators": self.deciding},
            },
            "local": {
                "name": name, "state_dir": ".",
                "trace": settings.trace or {"exporter": "otlp", "endpoint": self._traces},
                "network": {"bootstrap": [self._entry], "map_port": False},
            },
        }  # fmt: skip


def good(report: RoundReport) -> bool:
    """Whether an outer step was taken."""
    return report.manifest is not None and not (report.skipped or "").startswith("void")
