"""Partitions: the network falls apart for a while, and grows together again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from elastic.agreement.simplex import quorum
from elastic.bench.churn.swarm import Host, Swarm, good
from elastic.errors import ElasticError
from elastic.messages import RoundIndex

SPLITS: Mapping[str, Sequence[int]] = {
    "halves": (0, 0, 1, 1, 0, 1),
    "thirds": (0, 0, 1, 1, 2, 2),
    "one validator and a peer apart": (0, 0, 0, 1, 0, 1),
}
"""Side of each of six peers, of which the first four decide; the entry point stays with the first side."""
HEAL_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Split:
    """A partition and what came of it."""

    name: str
    seconds: float
    """How long it lasted."""
    minority_rounds: int
    """Decided by sides without a quorum. The round under way at the beginning does not count: a quorum may have voted
    in it before."""
    majority_rounds: int
    """Decided by the side with a quorum, if there is one."""
    one_model_after: float
    """Seconds from the healing until everyone had finished the same round, with one anchor."""
    rounds_to_whole: int
    """Rounds that ended after the healing, up to and with the first that counted everybody."""


async def split(swarm: Swarm, name: str, seconds: float) -> Split:
    """Let the network fall apart for so many seconds, and wait until all is well again; raises if anchors differ."""
    await swarm.all_good(1)
    under_way, start = RoundIndex(swarm.round + 1), time.monotonic()
    swarm.wan.split([*SPLITS[name], 0])
    await asyncio.sleep(seconds)
    decided = dict.fromkeys(SPLITS[name], 0)
    for host, side in zip(swarm.hosts, SPLITS[name], strict=True):
        rounds = {each.round for each in host.since(start) if good(each) and each.round > under_way}
        decided[side] = max(decided[side], len(rounds))
    majority = [side for side in decided if _decides(swarm, SPLITS[name], side)]
    last, healed = swarm.round, time.monotonic()
    swarm.wan.heal()
    await swarm.until(lambda: _first(swarm, healed, _with_all) is not None, HEAL_SECONDS, "a round counts everybody")
    whole, common = _first(swarm, healed, _with_all), _first(swarm, healed, _finished)
    assert whole is not None and common is not None
    if len(anchors := swarm.anchors(common)) > 1:
        raise ElasticError(f"{name}: two anchors after round {common}: {', '.join(sorted(anchors))}")
    at = max(at for host in swarm.hosts for at, report in host.reports if report.round == common)
    return Split(
        name, seconds, minority_rounds=sum(count for side, count in decided.items() if side not in majority),
        majority_rounds=sum(decided[side] for side in majority), one_model_after=at - healed,
        rounds_to_whole=whole - last,
    )  # fmt: skip


def line(found: Split) -> str:
    """A partition, for people."""
    return (
        f"{found.name:30s} {found.seconds:7.0f} {found.minority_rounds:17d} {found.majority_rounds:17d} "
        f"{found.one_model_after:15.1f} {found.rounds_to_whole:16d}"
    )


def header() -> str:
    """Above such lines."""
    return (
        f"{'partition':30s} {'seconds':>7s} {'minority decided':>17s} {'majority decided':>17s} "
        f"{'s to one model':>15s} {'rounds to whole':>16s}"
    )


def _decides(swarm: Swarm, sides: Sequence[int], side: int) -> bool:
    there = [host for host, its in zip(swarm.hosts, sides, strict=True) if its == side and host.id in swarm.deciding]
    return len(there) >= quorum(len(swarm.deciding))


def _finished(host: Host, moment: float) -> set[RoundIndex]:
    return {report.round for report in host.since(moment) if good(report)}


def _with_all(host: Host, moment: float) -> set[RoundIndex]:
    return {report.round for report in host.since(moment) if report.counted}


def _first(swarm: Swarm, moment: float, rounds: Callable[[Host, float], set[RoundIndex]]) -> RoundIndex | None:
    """The first round after `moment` that is among these of every peer."""
    return min(set.intersection(*(rounds(host, moment) for host in swarm.hosts)), default=None)
