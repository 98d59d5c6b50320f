"""`elastic quickstart --chaos`: every so often a random process is killed, and how long its peer needs is noted.

Never Ray's raylet or GCS, which end every process of the machine's peers at once, nor the quickstart itself.
"""

import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray

from elastic.actors.follow import Say
from elastic.actors.handle import PeerHandle
from elastic.reports import RoundReport

BOOTSTRAP = "bootstrap"
PEER = "peer actor"
NETWORK = "network actor"
P2PD = "p2pd"
CONTROLLER = "Ray Train controller"
WORKER = "Ray Train worker"
KINDS = (PEER, NETWORK, P2PD, CONTROLLER, WORKER)
CALM = 3
"""The last one in so many rounds is calm: the last victim must have time to come back."""
ROUNDS_PER_KILL = 3
"""At least, on average: killing faster than peers come back would never end."""


@dataclass(slots=True)
class Kill:
    """One process killed."""

    kind: str
    peer: str | None
    """Name of the peer it belonged to; None: the bootstrap."""
    at: float
    """Seconds of the caller's clock."""
    reports: int
    """How many reports there were."""
    back_after: float | None = None
    """Seconds until the peer reported a round that counted it."""


class Chaos:
    """Who is killed next. Each kind of process has its turn before one has its second."""

    def __init__(self, seconds: float, seed: int, rounds: int, say: Say) -> None:
        """Nothing is killed before the first `look`.

        Args:
            seconds: between two kills.
            seed: of all choices.
            rounds: of the run.
            say: told of each kill.
        """
        self._seconds, self._rounds, self._say = seconds, rounds, say
        self._random = random.Random(seed)
        self._turns = [*KINDS, BOOTSTRAP]
        self._random.shuffle(self._turns)
        self._next: float | None = None
        self.kills: list[Kill] = []

    def look(self, handles: Sequence[PeerHandle], bootstrap: int, reports: Sequence[RoundReport], now: float) -> None:
        """Note who is back; kill somebody if it is time.

        Args:
            handles: the peers.
            bootstrap: process id of their entry point.
            reports: all of them so far.
            now: seconds of any steady clock.
        """
        self._note_who_is_back(reports, now)
        begun = {report.peer for report in reports}
        if self._next is None and len(begun) == len(handles):
            self._next = now + self._seconds
        if self._next is None or now < self._next or not self._may_kill(reports):
            return
        found = self._choose(handles, bootstrap)
        if found is None:
            return  # what could be killed has not started yet
        kind, peer, pid = found
        os.kill(pid, signal.SIGKILL)
        self.kills.append(Kill(kind, peer, now, len(reports)))
        self._next = now + self._seconds
        self._say(f"chaos: killed the {kind}" + (f" of {peer}" if peer else ", for good"))

    def _may_kill(self, reports: Sequence[RoundReport]) -> bool:
        newest = max(report.round for report in reports)
        calm = newest >= self._rounds - self._rounds // CALM
        return not calm and len(self.kills) < self._rounds // ROUNDS_PER_KILL

    def _choose(self, handles: Sequence[PeerHandle], bootstrap: int) -> tuple[str, str | None, int] | None:
        """The next kind that somebody has: kind, peer, process."""
        peers = self._random.sample(list(handles), len(handles))
        for kind in list(self._turns):
            victims = [(None, bootstrap)] if kind == BOOTSTRAP else _having(peers, kind)
            if victims:
                self._turns.remove(kind)
                self._turns = self._turns or self._random.sample(KINDS, len(KINDS))
                return kind, *victims[0]
        return None

    def _note_who_is_back(self, reports: Sequence[RoundReport], now: float) -> None:
        for kill in self.kills:
            if kill.back_after is None and any(
                report.name == kill.peer and report.counted for report in reports[kill.reports :]
            ):
                kill.back_after = now - kill.at


def _having(handles: Sequence[PeerHandle], kind: str) -> list[tuple[str | None, int]]:
    """Peers that have such a process, and its id."""
    found = ((handle.config.local.name, processes(handle).get(kind)) for handle in handles)
    return [(name, pid) for name, pid in found if pid is not None]


def processes(handle: PeerHandle) -> dict[str, int]:
    """Kind → process id, of those of a peer's processes that run now. All on this machine."""
    alive = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
    peer = _first(alive, ActorID=handle.peer._actor_id.hex())
    network = _first(alive, ActorID=handle.swarm._actor_id.hex())
    controller = peer and _first(alive, ActorClassName="TrainController", OwnerAddress=peer["Address"])
    worker = controller and _first(alive, ActorClassName="RayTrainWorker", OwnerAddress=controller["Address"])
    actors = {PEER: peer, NETWORK: network, CONTROLLER: controller, WORKER: worker}
    found = {kind: int(actor["Pid"]) for kind, actor in actors.items() if actor}
    if network and (daemon := _daemon_of(network["Pid"])):
        found[P2PD] = daemon
    return found


def _first(actors: list[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
    return next((actor for actor in actors if all(actor[key] == value for key, value in wanted.items())), None)


def _daemon_of(network: int) -> int | None:
    try:
        children = psutil.Process(network).children()
        return next((child.pid for child in children if child.name() == "p2pd"), None)
    except psutil.NoSuchProcess:
        return None
