"""Who made a round slow, and with what: the part of its critical path that took longest beyond what is usual. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from elastic.tracing.links import Phase
from elastic.tracing.model import Event
from elastic.tracing.path import Step, critical_path
from elastic.tracing.rounds import Round

LEAST_SECONDS, LEAST_PART = 0.1, 0.05
"""Less than so much, or than such a part of the round, sticks out of nothing."""
MUCH_SECONDS, MUCH_TIMES = 0.5, 1.3
"""Who lost less than this, and took less than so many times as long as usual, is nobody in particular."""
NOBODY = "nobody in particular"


@dataclass(frozen=True, slots=True)
class Finding:
    """One round."""

    run: str
    round: int
    seconds: float
    path: tuple[Step, ...]
    peer: str | None
    """Id of who made it slow; None: nobody in particular."""
    name: str
    phase: Phase | None
    lost: float
    """Seconds that it cost everyone."""
    evidence: str


def findings(rounds: Sequence[Round]) -> list[Finding]:
    """One per round, in order."""
    known = {(each.run, each.index): each for each in rounds}
    return [find(each, known.get((each.run, each.index - 1))) for each in rounds]


def find(round_: Round, before: Round | None = None) -> Finding:
    """Who made this round slow."""
    path = critical_path(round_, before)
    lost: dict[tuple[str, Phase], list[Step]] = defaultdict(list)
    for step in path:
        lost[step.peer, step.phase].append(step)
    suspects = sorted(lost.items(), key=lambda each: -_excess(each[1]))
    seconds = max(round_.seconds, sum(step.seconds for step in path))
    base = (round_.run, round_.index, round_.seconds, tuple(path))
    if not suspects or not _sticks_out(suspects[0][1], seconds):
        nothing = "no spans to tell" if not path else _even(path)
        return Finding(*base, None, NOBODY, None, 0.0, nothing)
    (peer, phase), steps = suspects[0]
    return Finding(*base, peer, round_.name(peer), phase, _excess(steps), evidence(round_, steps))


def evidence(round_: Round, steps: Sequence[Step]) -> str:
    """What speaks against a peer, in a line: its worst step, what the others took, and what moved how fast."""
    worst = max(steps, key=lambda step: step.excess)
    text = f"{worst.what}: {worst.seconds:.2f} s, usually {worst.usual:.2f} s"
    return ", ".join([text, *_more(round_, worst)])


def tally(found: Sequence[Finding]) -> list[tuple[str, str, int, float]]:
    """(name, phase, in how many rounds, seconds lost) of all culprits, the worst first; nobody last."""
    of: dict[tuple[str | None, str], list[Finding]] = defaultdict(list)
    for each in found:
        of[each.peer, str(each.phase or "")].append(each)
    lost = {key: sum(each.lost for each in those) for key, those in of.items()}
    ordered = sorted(of, key=lambda key: (key[0] is None, -lost[key]))
    return [(of[key][-1].name, key[1], len(of[key]), lost[key]) for key in ordered]


def _sticks_out(steps: Sequence[Step], seconds: float) -> bool:
    excess, usual = _excess(steps), sum(step.usual for step in steps)
    if excess < max(LEAST_SECONDS, LEAST_PART * seconds):
        return False
    return excess >= MUCH_SECONDS or excess + usual >= MUCH_TIMES * usual


def _excess(steps: Sequence[Step]) -> float:
    return sum(step.excess for step in steps)


def _even(path: Sequence[Step]) -> str:
    longest = max(path, key=lambda step: step.seconds)
    return f"longest: {longest.what}, {longest.seconds:.2f} s, usually {longest.usual:.2f} s"


def _more(round_: Round, worst: Step) -> list[str]:
    peer = round_.peers.get(worst.peer)
    if peer is None:
        return []
    inner = peer.phase("inner")
    if worst.phase is Phase.COMPUTE and inner is not None and inner.number("tokens"):
        return [f"{inner.number('tokens') / max(inner.seconds, 1e-3):,.0f} tokens/s"]
    if worst.phase is Phase.UPLINK:
        return _rate("served", [event for span in peer.all("round.serve") for event in span.events], "to")
    if worst.phase is Phase.DOWNLINK:
        return _rate("received", [event for span in peer.all("round.transfer") for event in span.events], "from")
    return []


def _rate(what: str, events: Sequence[Event], name: str) -> list[str]:
    of_it = [each for each in events if each.name == name]
    megabytes, busy = sum(each.number("bytes") for each in of_it) / 1e6, sum(each.number("seconds") for each in of_it)
    return [f"{what} {megabytes:.2f} MB at {8 * megabytes / busy:.1f} Mb/s"] if busy > 0 else []
