"""What can make a peer slow, as it is planted: by a file that the peer's process looks at, or by its line.

The file tells only what a machine would do by itself: no code of a peer, and none of the tracing, knows of it.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import orjson

from elastic.bench.churn.swarm import Host, Swarm
from elastic.tracing.links import Phase

FAULTS_FILE = "faults.json"
"""In a peer's state directory: what its machine does wrong, as `Ails`."""

COLLECTOR_LOSS = 0.05
"""Part of the packets to the collector, and of those from it, that are lost all the time."""

WRITES = 5
"""Files that a peer must have on disk in a round, one after the other, some."""
ROUND_SECONDS = 120.0
"""No round takes longer."""


class Kind(StrEnum):
    """Ways of being slow."""

    CPU = "slow CPU"
    UPLINK = "slow uplink"
    DOWNLINK = "slow downlink"
    LOSS = "lossy link"
    VALIDATOR = "slow validator"
    DISK = "stuck disk"
    PAIR = "bad pair"


ANSWERS: Mapping[Kind, frozenset[Phase]] = {
    Kind.CPU: frozenset({Phase.COMPUTE}),
    Kind.UPLINK: frozenset({Phase.UPLINK}),
    Kind.DOWNLINK: frozenset({Phase.DOWNLINK}),
    Kind.LOSS: frozenset({Phase.UPLINK, Phase.DOWNLINK}),  # a loss may hit either way
    Kind.VALIDATOR: frozenset({Phase.VALIDATION}),
    Kind.DISK: frozenset({Phase.DISK}),
    Kind.PAIR: frozenset({Phase.PAIR}),
}
"""What is right to say of each."""


@dataclass(frozen=True, slots=True)
class Ails:
    """Seconds that a machine takes beyond what it needs."""

    inner: float = 0.0
    """For the inner steps of a round."""
    check: float = 0.0
    """To check a payload."""
    sign: float = 0.0
    """To make up its mind on a proposal."""
    fsync: float = 0.0
    """To have a file on disk."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One straggler."""

    kind: Kind
    hosts: tuple[int, ...]
    """Whose it is: one host, or a pair."""
    seconds: float
    """About so long its machine or its line takes beyond the usual."""
    loss: float = 0.0
    """Part of the packets, of a lossy link."""
    sign: bool = False
    """Of a slow validator: it is slow to sign, not to check."""

    def __str__(self) -> str:
        who = " and ".join(f"peer-{host + 1}" for host in self.hosts)
        return f"{self.kind}, {who}, " + (f"{self.loss:.0%}" if self.loss else f"{self.seconds:.1f} s")


def draw(number: int, seed: int, swarm: Swarm, least: float, most: float) -> list[Fault]:
    """That many stragglers: each kind in turn, whose it is and how slow by chance."""
    rng, found, kinds = random.Random(seed), [], list(Kind)
    deciding = [host.host for host in swarm.validators()]
    for index in range(number):
        kind = kinds[index % len(kinds)]
        hosts = deciding if kind is Kind.VALIDATOR else range(len(swarm.hosts))
        chosen = tuple(sorted(rng.sample(list(hosts), 2 if kind is Kind.PAIR else 1)))
        loss = rng.uniform(0.06, 0.15) if kind is Kind.LOSS else 0.0
        found.append(Fault(kind, chosen, rng.uniform(least, most), loss, sign=rng.random() < 0.5))
    return found


def plant(swarm: Swarm, fault: Fault, payload: int) -> None:
    """Let it be so from now on; `payload` is the size of a contribution in bytes."""
    host, others = fault.hosts[0], len(swarm.hosts) - 1
    rate = payload * others / fault.seconds  # to everyone, and from everyone
    match fault.kind:
        case Kind.UPLINK:
            _lines(swarm, up={host: rate})
        case Kind.DOWNLINK:
            _lines(swarm, down={host: rate})
        case Kind.LOSS:
            _lines(swarm, loss={host: fault.loss}, down_loss={host: fault.loss})
        case Kind.PAIR:
            swarm.wan.change({"narrow": [*fault.hosts, payload / fault.seconds]})
        case Kind.CPU:
            _tell(swarm.hosts[host], Ails(inner=fault.seconds))
        case Kind.DISK:
            _tell(swarm.hosts[host], Ails(fsync=fault.seconds / WRITES))
        case Kind.VALIDATOR:
            slow = Ails(sign=fault.seconds) if fault.sign else Ails(check=fault.seconds)
            _tell(swarm.hosts[host], slow)


def heal(swarm: Swarm) -> None:
    """Everything is well again."""
    swarm.wan.change({"narrow": []})
    _lines(swarm)
    for host in swarm.hosts:
        _tell(host, Ails())


async def rounds(swarm: Swarm, number: int, but: Collection[int] = ()) -> None:
    """Until everyone `but` some has finished so many more.

    Raises:
        ElasticError: that took much too long.
    """
    last, hosts = swarm.round + number, [host for host in swarm.hosts if host.host not in but]
    await swarm.until(
        lambda: min(host.round for host in hosts) >= last, number * ROUND_SECONDS, f"round {last} is over"
    )


def ails(folder: Path) -> Ails:
    """What that peer's machine does wrong now."""
    try:
        return Ails(**orjson.loads((folder / FAULTS_FILE).read_bytes()))
    except FileNotFoundError:
        return Ails()


def _tell(host: Host, wrong: Ails) -> None:
    new = host.folder / f"{FAULTS_FILE}.new"
    new.write_bytes(orjson.dumps(wrong))
    new.replace(host.folder / FAULTS_FILE)


def _lines(swarm: Swarm, **changed: dict[int, float]) -> None:
    """Everyone's line is as usual, but for these (field of a port → host → value), and that of the collector, the last
    host."""
    usual, hosts = swarm.wan.speed.port() | {"down_loss": 0.0}, range(swarm.wan.hosts)
    change: dict[str, list[float]] = {}
    for name in ("up", "down", "loss", "down_loss"):
        values = dict.fromkeys(hosts, usual[name]) | changed.get(name, {})
        change[name] = [values[host] for host in hosts]
    change["loss"][-1] = change["down_loss"][-1] = COLLECTOR_LOSS
    swarm.wan.change(change)
