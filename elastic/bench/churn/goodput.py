"""Goodput against churn: peers die at random; what is left of the tokens per second, with either kind of deadline."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from elastic.bench.churn.swarm import Swarm, good


@dataclass(frozen=True, slots=True)
class Goodput:
    """What a swarm made of its time."""

    deadlines: str
    deaths_per_round: float
    """Of each peer, aimed at."""
    kills: int
    rounds: int
    """With an outer step."""
    empty_rounds: int
    """Without one."""
    tokens_per_second: float
    """Of contributions that counted."""
    longest_round: float
    """Seconds."""


async def measure(swarm: Swarm, deadlines: str, rate: float, seconds: float, usual: float, seed: int) -> Goodput:
    """Let peers die for a while; each is started again at once.

    Args:
        deadlines: what they are called.
        rate: deaths per peer and usual round.
        seconds: how long.
        usual: seconds of a round without churn; deaths are a Poisson process in its time.
        seed: of who dies when.
    """
    rng, kills, returning = random.Random(seed), 0, set[asyncio.Task[None]]()
    start = time.monotonic()
    while (now := time.monotonic()) < start + seconds:
        pause = rng.expovariate(rate * len(swarm.hosts) / usual) if rate else seconds
        await asyncio.sleep(min(pause, start + seconds - now))
        alive = [host for host in swarm.hosts if host.child.alive]
        if time.monotonic() < start + seconds and alive:
            victim = rng.choice(alive)
            victim.kill()
            kills += 1
            returning.add(asyncio.create_task(victim.restart()))
    counted = {
        (host.id, report.round): report for host in swarm.hosts for report in host.since(start) if report.counted
    }
    ended = [report for host in swarm.hosts for report in host.since(start)]
    passed = time.monotonic() - start
    await asyncio.gather(*returning)
    return Goodput(
        deadlines, rate, kills, rounds=len({each.round for each in ended if good(each)}),
        empty_rounds=len({each.round for each in ended} - {each.round for each in ended if good(each)}),
        tokens_per_second=sum(report.tokens for report in counted.values()) / passed,
        longest_round=max((each.seconds["total"] for each in ended), default=passed),
    )  # fmt: skip


def line(found: Goodput, calm: float) -> str:
    """A row, for people; `calm` is the goodput with adaptive deadlines and nobody dying."""
    return (
        f"{found.deadlines:10s} {found.deaths_per_round:17.2f} {found.kills:6d} {found.rounds:7d} "
        f"{found.empty_rounds:13d} {found.tokens_per_second:9.0f} {found.tokens_per_second / calm:8.0%} "
        f"{found.longest_round:14.1f}"
    )


def header() -> str:
    """Above such lines."""
    return (
        f"{'deadlines':10s} {'deaths/peer/round':>17s} {'killed':>6s} {'rounds':>7s} {'without step':>13s} "
        f"{'tokens/s':>9s} {'goodput':>8s} {'longest round':>14s}"
    )
