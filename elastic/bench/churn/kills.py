"""The kill matrix: who is killed in which phase of a round, and what it costs the others and itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from elastic.bench.churn.swarm import Host, Say, Swarm, good
from elastic.messages import RoundIndex

PHASES = ("inner", "commit", "gather", "agree", "outer")
"""Of `elastic.round`; the others take milliseconds."""
QUICK_PHASES = ("gather", "agree")
SECONDS = 120.0
"""For anything that must happen after a kill."""

Choose = Callable[[Swarm, RoundIndex], Host]


@dataclass(frozen=True, slots=True)
class Blow:
    """One kill and what came of it; seconds from the kill on."""

    role: str
    phase: str
    rounds_lost: int
    """Ended without an outer step, for the survivor that was worst off."""
    good_after: float
    """Until every survivor had finished a round that counted somebody."""
    back_after: float | None
    """Until the killed peer had finished a round that counted it; it was started again at once."""


def _first_validator(swarm: Swarm, round_: RoundIndex) -> Host:
    return next(host for host in swarm.validators() if host is not swarm.proposer(round_))


ROLES: dict[str, Choose] = {
    "proposer": lambda swarm, round_: swarm.proposer(round_),
    "another validator": _first_validator,
    "contributor": lambda swarm, round_: swarm.contributors()[0],
}


async def matrix(swarm: Swarm, phases: Sequence[str], say: Say) -> list[Blow]:
    """Every role in every phase, then those that have no part in a round, then everyone at once."""
    blows = []

    def note(blow: Blow) -> None:
        blows.append(blow)
        say(line(blow))

    for phase in phases:
        for role in ROLES:
            note(await kill_one(swarm, role, phase))
    note(await _hang_collector(swarm))
    note(await _kill_bootstrap(swarm))
    note(await _kill_everyone(swarm))
    return blows


def line(blow: Blow) -> str:
    """A blow, for people."""
    back = f"{blow.back_after:7.1f}" if blow.back_after is not None else "      –"
    return f"{blow.role:28s} {blow.phase:8s} {blow.rounds_lost:11d} {blow.good_after:21.1f} {back:>17s}"


def header() -> str:
    """Above such lines."""
    return f"{'killed':28s} {'phase':8s} {'rounds lost':>11s} {'s to next good round':>21s} {'s to its return':>17s}"


async def kill_one(swarm: Swarm, role: str, phase: str) -> Blow:
    """Kill whoever has that role as it begins that phase, start it again at once, and wait until all is well."""
    await swarm.all_good(1, SECONDS)
    aim = RoundIndex(swarm.round + 2)
    victim = ROLES[role](swarm, aim)
    victim.trigger = lambda began, round_: (began, round_) == (phase, aim)
    await swarm.until(lambda: victim.trigger is None, SECONDS, f"{victim.name} began {phase} of round {aim}")
    return await _aftermath(swarm, (role, phase), [victim], victim.killed, aim)


async def _hang_collector(swarm: Swarm) -> Blow:
    """The trace collector takes connections and never answers, which is worse than its death; then it dies."""
    await swarm.all_good(1, SECONDS)
    aim, stopped = RoundIndex(swarm.round + 1), time.monotonic()
    swarm.collector.stop()
    blow = await _aftermath(swarm, ("trace collector (hangs)", "any"), [], stopped, aim)
    swarm.collector.kill()
    return blow


async def _kill_bootstrap(swarm: Swarm) -> Blow:
    """The entry point dies, and then a peer: it must find the others without."""
    await swarm.all_good(1, SECONDS)
    aim = RoundIndex(swarm.round + 1)
    swarm.bootstrap.kill()
    victim = swarm.contributors()[0]
    victim.kill()
    blow = await _aftermath(swarm, ("entry point and a peer", "any"), [victim], victim.killed, aim)
    await swarm.bootstrap.start()
    return blow


async def _kill_everyone(swarm: Swarm) -> Blow:
    """A power cut: nobody survives, all are started again."""
    await swarm.all_good(1, SECONDS)
    aim = RoundIndex(swarm.round + 1)
    for host in swarm.hosts:
        host.kill()
    return await _aftermath(swarm, ("every peer at once", "any"), swarm.hosts, swarm.hosts[0].killed, aim)


async def _aftermath(
    swarm: Swarm, what: tuple[str, str], victims: Sequence[Host], killed: float, aim: RoundIndex
) -> Blow:
    """Start the victims again, and see how long everyone needs."""
    survivors = [host for host in swarm.hosts if host not in victims] or swarm.hosts
    await asyncio.gather(*(victim.restart() for victim in victims))
    await swarm.until(
        lambda: all(host.good_at(killed, aim) for host in survivors), SECONDS, "the survivors had a good round"
    )
    await swarm.until(lambda: all(each.counted_at(killed) for each in victims), SECONDS, "the killed came back")
    good_at = [host.good_at(killed, aim) or 0.0 for host in survivors]
    back_at = [victim.counted_at(killed) or 0.0 for victim in victims]
    lost = max(sum(1 for _ in _bad(host, killed, until)) for host, until in zip(survivors, good_at, strict=True))
    return Blow(*what, lost, max(good_at) - killed, max(back_at) - killed if back_at else None)


def _bad(host: Host, start: float, end: float) -> Iterator[RoundIndex]:
    return (report.round for at, report in host.reports if start < at < end and not good(report))
