"""All of `elastic bench trace`: plant stragglers one after the other, then ask the traces who they were."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from elastic.bench.churn.swarm import TRACE_PORT, Child, Say, Settings, Swarm
from elastic.bench.churn.wan import LinkSpeed, Wan
from elastic.bench.trace import cost
from elastic.bench.trace.faults import ANSWERS, COLLECTOR_LOSS, Fault, Kind, draw, heal, plant, rounds
from elastic.errors import ElasticError
from elastic.messages import RoundIndex
from elastic.tracing.culprit import Finding, findings
from elastic.tracing.files import read_files
from elastic.tracing.model import Span
from elastic.tracing.rounds import rounds_of

PEERS, VALIDATORS = 5, 2
"""A quorum of two validators is both, so that each can keep everyone waiting."""
PACE = 1.5
REDUCER = {"name": "sparseloco", "k": 512}
"""Eight times as dense as usual: payloads of 0.1 MB, whose ways take long beside the DHT's small talk."""
LEAST, MOST = 1.2, 3.0
"""Seconds by which a straggler is slow; rounds take about five."""
HELD, CALM = 1, 1
"""Rounds for which a straggler stays, and rounds behind it: what came late in one makes the next begin late."""
BEFORE = 10
"""Rounds before the first straggler: what is usual, and who is named then."""
ENOUGH = 0.95
"""Part of the stragglers that should be named,"""
ENOUGH_SPANS = 0.999
"""and of the spans that should reach the collector."""
SLOWED = 1.2
"""A round that took less than so many times the median of calm ones was not slowed: nobody waited for the straggler."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A straggler, and what the traces say of the round it slowed most."""

    fault: Fault
    first: RoundIndex
    """The round of which it was one."""
    round: RoundIndex
    seconds: float
    """That round's."""
    slowed: bool
    named: str
    """Who was named,"""
    phase: str
    """and with what."""
    right_peer: bool
    right: bool
    """Peer and phase."""
    evidence: str


@dataclass(frozen=True, slots=True)
class Completeness:
    """What reached the collector."""

    made: int
    """Spans that ended in peers."""
    kept: int
    """Different ones that the collector has."""
    dangling: int
    """Of these, how many name a parent that nobody has."""

    @property
    def part(self) -> float:
        return self.kept / self.made if self.made else 0.0


def measure(folder: Path, stragglers: int, speed: LinkSpeed, seed: int, say: Say) -> dict[str, Any]:
    """Plant stragglers and judge what the traces say of them; after Ctrl-C, of those there were.

    Args:
        folder: for the peers' logs, and the spans.
        stragglers: how many are planted.
        speed: everyone's line.
        seed: of the stragglers, and of losses.
        say: where to.
    """
    spans = folder / "spans.jsonl"
    with Wan(PEERS + 2, speed, seed) as wan:
        say(f"{PEERS} peers, {VALIDATORS} of them validators, {speed}; {COLLECTOR_LOSS:.0%} loss to the collector")
        planted, usual, made, broke = asyncio.run(_plant(wan, folder, spans, stragglers, seed, say))
    found = read_files([spans]).spans
    told = findings(rounds_of(found))
    trials = list(judged(planted, told, usual))
    calm = [each for each in told if 0 < planted[0][1] - each.round <= BEFORE] if planted else []
    complete = completeness(found, made)
    say(table(trials, usual))
    say(f"of the {len(calm)} rounds before, in which nothing was planted, {named(calm)} had somebody to name")
    say(f"spans: {complete.kept:,} of {complete.made:,} came ({complete.part:.3%}), {complete.dangling} without parent")
    return {
        "shown": not broke and accuracy(trials) >= ENOUGH and complete.part >= ENOUGH_SPANS,
        "accuracy": accuracy(trials),
        "usual_seconds": usual,
        "calm": len(calm),
        "named": named(calm),
        "trials": [asdict(each) for each in trials],
        "spans": asdict(complete),
    }


def measure_cost(folder: Path, pairs: int, speed: LinkSpeed, seed: int, say: Say) -> dict[str, Any]:
    """What traces cost, from so many pairs of rounds with and without them."""
    with Wan(PEERS + 2, speed, seed) as wan:
        found = asyncio.run(cost.measure(wan, folder, pairs, say))
    say(cost.table(found))
    return asdict(found)


async def _plant(
    wan: Wan, folder: Path, spans: Path, number: int, seed: int, say: Say
) -> tuple[list[tuple[Fault, RoundIndex]], float, int, bool]:
    """Stragglers with the first round of each; the median of rounds before there were any; spans made; whether one
    stopped the swarm."""
    collector = PEERS + 1
    traces = {"exporter": "otlp", "endpoint": f"http://{wan.address(collector)}:{TRACE_PORT}/v1/traces"}
    settings = Settings(PACE, reducer=REDUCER, trace=traces, program="elastic.bench.trace.faulty")
    swarm = Swarm(wan, folder / "swarm", PEERS, VALIDATORS, settings)
    swarm.collector = Child(
        wan, collector, folder / "collector.log", "elastic.bench.trace.collector", str(TRACE_PORT), str(spans)
    )
    planted: list[tuple[Fault, RoundIndex]] = []
    broke = False
    async with swarm.running():
        heal(swarm)
        await rounds(swarm, BEFORE)
        usual = swarm.usual_seconds()
        payload = int(median(host.reports[-1][1].payload_bytes for host in swarm.hosts))
        say(f"a usual round takes {usual:.1f} s, a payload is {payload / 1e3:.0f} kB")
        try:
            for each in draw(number, seed, swarm, LEAST, MOST):
                first = RoundIndex(swarm.round + 1)
                planted.append((each, first))
                plant(swarm, each, payload)
                await rounds(swarm, HELD, but=each.hosts)  # who is too slow is left out
                heal(swarm)
                await rounds(swarm, CALM)
                say(f"{len(planted):4d} of {number}  round {first}: {each}")
            await rounds(swarm, CALM)  # their spans are with the collector
        except ElasticError as error:
            broke = True
            say(f"{planted[-1][0]}: {error}")
        except asyncio.CancelledError:
            del planted[-1:]  # it had no time
            say("interrupted; what was planted so far:")
    return planted, usual, sum(host.spans for host in swarm.hosts), broke


def judged(planted: Sequence[tuple[Fault, RoundIndex]], found: Sequence[Finding], usual: float) -> Iterator[Trial]:
    """Each straggler beside what the traces say of the longest round that it had to do with."""
    known = {each.round: each for each in found}
    for fault, first in planted:
        hit = [known[number] for number in range(first, first + HELD + CALM) if number in known]
        if not hit:
            yield Trial(fault, first, first, 0.0, True, "", "", False, False, "no spans")
            continue
        worst, names = max(hit, key=lambda each: each.seconds), [f"peer-{host + 1}" for host in fault.hosts]
        # Of a pair, the evidence has both.
        right_peer = worst.name in names and all(name in f"{worst.name} {worst.evidence}" for name in names)
        yield Trial(
            fault, first, RoundIndex(worst.round), worst.seconds, worst.seconds >= SLOWED * usual, worst.name,
            str(worst.phase or ""), right_peer, right_peer and worst.phase in ANSWERS[fault.kind], worst.evidence,
        )  # fmt: skip


def completeness(spans: Sequence[Span], made: int) -> Completeness:
    """What came of the spans that were made."""
    known = {(span.trace, span.peer, span.id) for span in spans}
    ids = {(span.trace, span.id) for span in spans}
    dangling = {(span.trace, span.id) for span in spans if span.parent and (span.trace, span.parent) not in ids}
    return Completeness(made, len(known), len(dangling))


def named(found: Sequence[Finding]) -> int:
    """In how many rounds somebody was slow, as far as the traces say."""
    return sum(each.peer is not None for each in found)


def table(trials: Sequence[Trial], usual: float) -> str:
    """A row for each kind, what was wrong, and the sum."""
    lines = [f"\n{'planted':16s} {'slowed a round':>14s} {'right peer':>11s} {'and phase':>10s}"]
    slowed = [each for each in trials if each.slowed]
    for kind in Kind:
        of_kind = [each for each in trials if each.fault.kind is kind]
        if of_kind:
            lines.append(_row(kind, of_kind))
    lines += [_row("all", trials), ""]
    lines += [
        f"  wrong: {each.fault}; round {each.round} of {each.seconds:.1f} s (usually {usual:.1f}): "
        f"{each.named or 'nobody'} {each.phase} ({each.evidence})"
        for each in slowed
        if not each.right
    ]
    if not_slowed := Counter(str(each.fault.kind) for each in trials if not each.slowed):
        kinds = ", ".join(f"{kind} {number}" for kind, number in not_slowed.items())
        lines.append(f"cost nobody anything, and are left out: {kinds}")
    return "\n".join(lines)


def accuracy(trials: Sequence[Trial]) -> float:
    """Part of the stragglers that slowed a round of which peer and phase were named."""
    slowed = [each for each in trials if each.slowed]
    return sum(each.right for each in slowed) / len(slowed) if slowed else 0.0


def _row(name: str, trials: Sequence[Trial]) -> str:
    slowed = [each for each in trials if each.slowed]
    of = f"{len(slowed)} of {len(trials)}"
    if not slowed:
        return f"{name:16s} {of:>14s}"
    peers = sum(each.right_peer for each in slowed) / len(slowed)
    return f"{name:16s} {of:>14s} {peers:>11.1%} {accuracy(trials):>10.1%}"
