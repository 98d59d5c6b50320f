"""What traces cost: rounds with and without them, in turn, in the same swarm.

`local.trace.sample = 0.5` traces half of the rounds, the same ones on every peer, as drawn from their trace ids: no two
swarms need be compared, which on a machine with other work would differ by more than what is looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from elastic.bench.churn.swarm import RUN, Say, Settings, Swarm
from elastic.bench.trace.faults import rounds
from elastic.messages import RoundIndex
from elastic.trace_ids import round_trace_id, sampled

if TYPE_CHECKING:
    from elastic.bench.churn.wan import Wan

SAMPLE = 0.5
PACE = 0.8
SHOWN_EVERY = 10


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over pairs of rounds of one peer, near each other, one traced and one not."""

    pairs: int
    """Of all peers."""
    traced_cpu: float
    """Seconds of CPU per round and peer,"""
    untraced_cpu: float
    """and of one without traces."""
    more_cpu: float
    """Median of the differences in each pair;"""
    spread: tuple[float, float]
    """and the middle half of them."""
    traced_seconds: float
    """Length of a round,"""
    untraced_seconds: float
    """and of one without traces."""

    @property
    def part(self) -> float:
        """Of a round."""
        return self.more_cpu / self.untraced_seconds


async def measure(wan: Wan, folder: Path, pairs: int, say: Say) -> Cost:
    """Let a swarm train until there are so many pairs of each peer."""
    traces = {"exporter": "file", "sample": SAMPLE}
    swarm = Swarm(wan, folder, wan.hosts - 2, 2, Settings(PACE, trace=traces, program="elastic.bench.trace.faulty"))
    async with swarm.running():
        first = RoundIndex(swarm.round + 1)
        while len(_pairs(range(first, swarm.round))) < pairs:
            await rounds(swarm, SHOWN_EVERY)
            say(f"what traces cost: round {swarm.round}")
        last = min(host.round for host in swarm.hosts)
        seconds = [{int(each.round): each.seconds["total"] for _, each in host.reports} for host in swarm.hosts]
        return compared([used(host.cpu) for host in swarm.hosts], seconds, range(first, last))


def used(until: Mapping[int, float]) -> dict[int, float]:
    """Round → seconds of CPU up to its end; gives those of each round."""
    return {index: until[index] - until[index - 1] for index in until if index - 1 in until}


def compared(cpu: Sequence[Mapping[int, float]], seconds: Sequence[Mapping[int, float]], over: range) -> Cost:
    """CPU seconds and length of each round of each peer → what traces cost."""
    found = _pairs(over)
    of = [
        (mine, lengths, pair)
        for mine, lengths in zip(cpu, seconds, strict=True)
        for pair in found
        if set(pair) <= mine.keys() & lengths.keys()  # who caught up has no such round
    ]
    more = sorted(mine[traced] - mine[untraced] for mine, _, (traced, untraced) in of)
    return Cost(
        len(more),
        traced_cpu=median(mine[pair[0]] for mine, _, pair in of),
        untraced_cpu=median(mine[pair[1]] for mine, _, pair in of),
        more_cpu=median(more),
        spread=(more[len(more) // 4], more[3 * len(more) // 4]),
        traced_seconds=median(lengths[pair[0]] for _, lengths, pair in of),
        untraced_seconds=median(lengths[pair[1]] for _, lengths, pair in of),
    )


def table(cost: Cost) -> str:
    """For people."""
    low, high = (1e3 * each for each in cost.spread)
    return (
        f"\ncost of traces, {cost.pairs} pairs of rounds: {1e3 * cost.more_cpu:+.1f} ms of CPU per round and peer "
        f"(middle half {low:+.1f} to {high:+.1f}), {cost.part:+.2%} of a round\n"
        f"with traces {1e3 * cost.traced_cpu:.0f} ms of CPU in rounds of {cost.traced_seconds:.2f} s, "
        f"without {1e3 * cost.untraced_cpu:.0f} ms in {cost.untraced_seconds:.2f} s"
    )


def _pairs(rounds: range) -> list[tuple[int, int]]:
    """(traced, untraced) rounds, each behind one of its kind: the last spans of a round are exported in the next."""
    traced, untraced = (
        [
            index
            for index in rounds[1:]
            if all(sampled(round_trace_id(RUN, each), SAMPLE) is wanted for each in (index - 1, index))
        ]
        for wanted in (True, False)
    )
    return [(index, min(untraced, key=lambda each: abs(each - index))) for index in traced] if untraced else []
