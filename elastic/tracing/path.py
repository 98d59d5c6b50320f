"""The critical path of a round: what everyone waited for, from the manifest back to the slowest contribution.

Only durations on one peer's own clock are compared, so that clocks may be seconds apart:

    round of D, whose manifest it was    its last payload, from X: seen when, carried, checked · agreeing
    round of X                           how long X took until it had committed
    round of L, who was done last        what came behind the manifest: missing payloads, the outer step
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

from elastic.agreement.simplex import quorum
from elastic.messages import MAX_VALIDATORS
from elastic.tracing.links import Links, Phase
from elastic.tracing.model import Event, Span
from elastic.tracing.rounds import PeerRound, Round

THERE_ALREADY = 0.25
"""A commitment seen so soon was there before anyone looked: a look at the DHT and the pause between two."""
USUAL_SIGHT = 0.4
"""From a commitment to its being seen, where nothing better is known."""
DISK_SECONDS = 0.1
"""What a validator's ballots take to be on disk."""
ALONE_SECONDS, TALK_SECONDS = 0.3, 1.5
"""What agreeing takes one validator, and several: a few looks at the DHT."""
LEAST_BAD = 0.1
"""A line explains late talk only if payloads are slower over it by so many seconds."""
SPREAD = 0.5
"""Peers begin a round within so many seconds: the manifest of the one before is looked for now and then."""
WORTH = 0.7
"""Who was waited for longer than this is asked why."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that everyone waited for."""

    peer: str
    """Who did it,"""
    phase: Phase
    what: str
    """in words."""
    seconds: float
    usual: float
    """What the others take for the same."""

    @property
    def excess(self) -> float:
        """Seconds by which the round was longer than it need have been."""
        return max(0.0, self.seconds - self.usual)


def critical_path(round_: Round, before: Round | None = None) -> list[Step]:
    """What the round waited for, in order of time; empty if there are no spans to tell.

    Args:
        round_: with all its peers' spans, or some.
        before: the round before it, if there are spans of that: who was not done with it began late.
    """
    decider = round_.decider
    if decider is None:
        return []
    return list(_Walk(round_, before).steps(decider))


class _Walk:
    """From a round's end to its begin."""

    def __init__(self, round_: Round, before: Round | None) -> None:
        self._round, self._before, self._links = round_, before, Links.of(round_)

    def steps(self, decider: PeerRound) -> Iterator[Step]:
        """All, in order of time."""
        gather = decider.phase("gather")
        yield from self._gathering(decider) if gather is not None else self._making(decider)
        yield from self._agreeing(decider)
        yield from self._tail()

    # --- until everyone's work was there -----------------------------------------------------------------------------

    def _gathering(self, at: PeerRound) -> Iterator[Step]:
        """Until a validator had what it waited for."""
        gather = at.phase("gather")
        if gather is None:
            return
        absent = [event.text("peer") for event in gather.events if event.name == "missing"]
        if gather.attributes.get("swarm.late") and absent:
            yield from self._missing(at, gather, absent)
            return
        fetches = at.inside(gather, "round.fetch")
        last = max(fetches, key=lambda span: span.end, default=None)
        if last is None:
            yield from self._making(at)
            return
        maker = last.text("peer_from")
        waited = max((span.number("waited_s") for span in fetches), default=0.0)
        if maker == at.peer or waited <= THERE_ALREADY:
            yield from self._making(at)  # all others were there when it began to look
        else:
            yield from self._others(at, last, maker)
        yield from self._arrival(at, last, maker)

    def _others(self, at: PeerRound, last: Span, maker: str) -> Iterator[Step]:
        """Until another's commitment was seen."""
        other, seen = self._round.peers.get(maker), last.number("committed_s")
        if other is None:
            usual = median([each.since(_made(each)) for each in self._round.peers.values()])
            yield Step(maker, Phase.COMPUTE, "committed, as far as others saw", seen, usual)
            return
        late, elsewhere = self._lateness(at, last), self._latenesses(maker, at)
        others = [each for peer in self._round.peers if peer != maker for each in self._latenesses(peer, None, at)]
        # Others saw it in time, and others' were seen in time here.
        if late > WORTH and max(median(each or [late]) for each in (elsewhere, others)) < 0.5 * late:
            step = Step(at.peer, Phase.DHT, f"saw the commitment of {other.name} late", late, 0.0)
            yield self._talk(step, maker)
        else:
            yield from self._late(other, late)
        yield from self._making(other)

    def _latenesses(self, maker: str, but: PeerRound | None, of: PeerRound | None = None) -> list[float]:
        """By how much a peer's commitment was seen late, by everyone `but` one, or by one."""
        readers = [of] if of is not None else [each for each in self._round.peers.values() if each is not but]
        return [
            self._lateness(each, span)
            for each in readers
            if each.peer != maker
            for span in each.all("round.fetch")
            if span.text("peer_from") == maker and span.number("waited_s") > 0
        ]

    def _lateness(self, at: PeerRound, fetch: Span) -> float:
        """Seconds by which a commitment was seen later than if its maker had begun the round with the reader."""
        maker = self._round.peers[fetch.text("peer_from")]
        return fetch.number("committed_s") - maker.since(_made(maker)) - self._sight(at, maker.peer)

    def _arrival(self, at: PeerRound, last: Span, maker: str) -> Iterator[Step]:
        """The last payload's way, and its checks."""
        if maker != at.peer:
            seconds = last.number("transfer_s", last.seconds)
            yield self._transfer(maker, at.peer, seconds)
        checked = last.number("verify_s") + sum(span.seconds for span in at.all("round.verify"))
        usual = self._usual(at.peer, _checking)
        yield Step(at.peer, Phase.VALIDATION, f"checked the payload of {self._round.name(maker)}", checked, usual)

    def _missing(self, at: PeerRound, gather: Span, absent: list[str]) -> Iterator[Step]:
        """The deadline passed, and these had not come."""
        for maker in absent:
            other = self._round.peers.get(maker)
            tries = [span for span in at.inside(gather, "round.fetch") if span.text("peer_from") == maker]
            if tries:
                if other is not None:
                    yield from self._making(other)
                yield self._transfer(maker, at.peer, max(span.seconds for span in tries))
            elif other is None or other.phase("inner") is None:
                yield Step(maker, Phase.ABSENT, "did not come before the deadline", gather.seconds, 0.0)
            else:
                yield from self._making(other)

    def _making(self, of: PeerRound) -> Iterator[Step]:
        """One peer's own work, up to its commitment."""
        for name, what in (("inner", "inner steps"), ("compress", "compressing")):
            phase = of.phase(name)
            if phase is not None:
                yield from self._work(of, phase, name, what)
        for name, kind, what in (
            ("average", Phase.AVERAGING, "averaging"),
            ("commit", Phase.DHT, "posting its commitment"),
            ("publish", Phase.DISK, "offering its payload"),
        ):
            phase = of.phase(name)
            if phase is not None:
                step = Step(of.peer, kind, what, _alone(phase), self._usual(of.peer, _of_phase(name)))
                yield self._talk(step) if kind is Phase.DHT else step

    def _work(self, of: PeerRound, phase: Span, name: str, what: str) -> Iterator[Step]:
        """A phase of the trainer's: computing, the disk, and what Ray took to ask and to answer."""
        compute, disk, ray = _split(of, phase)
        yield Step(of.peer, Phase.COMPUTE, what, compute, self._usual(of.peer, _part(name, 0)))
        yield Step(of.peer, Phase.DISK, f"writing, after {what}", disk, self._usual(of.peer, _part(name, 1)))
        yield Step(of.peer, Phase.RAY, f"Ray, around {what}", ray, self._usual(of.peer, _part(name, 2)))

    def _late(self, of: PeerRound, seconds: float) -> Iterator[Step]:
        """It began this round late: because of what it did in the round before."""
        if seconds <= 0:
            return
        earlier = self._before.peers.get(of.peer) if self._before is not None else None
        steps = list(_Walk(self._before, None).after(earlier)) if self._before is not None and earlier else []
        worst = max(steps, key=lambda step: step.excess, default=None)
        if worst is None or worst.excess < 0.2 * seconds:
            yield self._talk(Step(of.peer, Phase.COMPUTE, "began late", seconds, SPREAD))
        else:
            yield Step(worst.peer, worst.phase, f"began late: {worst.what}, of the round before", seconds, 0.0)

    def _sight(self, at: PeerRound, but: str) -> float:
        """From a commitment to its being seen, with the others."""
        found = [
            span.number("committed_s") - other.since(_made(other))
            for span in at.all("round.fetch")
            if span.number("waited_s") > THERE_ALREADY
            and (maker := span.text("peer_from")) not in (but, at.peer)
            and (other := self._round.peers.get(maker)) is not None
        ]
        return max(0.0, min(median(found), USUAL_SIGHT)) if found else USUAL_SIGHT

    # --- until the manifest ------------------------------------------------------------------------------------------

    def _agreeing(self, at: PeerRound) -> Iterator[Step]:
        agree = at.phase("agree")
        if agree is None:
            return
        usual = ALONE_SECONDS if self._deciding(agree) == 1 else TALK_SECONDS
        whom = self._awaited(at, agree)
        written = agree.number("disk_s")
        yield Step(at.peer, Phase.DISK, "writing its ballots", written, DISK_SECONDS)
        seconds = agree.seconds - written
        if _thinking(agree, "drafts", "proposes") > 0.5 * (seconds - usual):
            yield Step(at.peer, Phase.VALIDATION, "agreeing", seconds, usual)
        elif whom in ("", at.peer) or seconds - usual < WORTH:
            yield self._talk(Step(at.peer, Phase.VALIDATION, "agreeing", seconds, usual), whom)
        else:
            yield from self._slow_vote(at, agree, whom, seconds, usual)

    def _deciding(self, agree: Span) -> int:
        """How many validators there are, those that left no spans included."""
        known = sum(each.decides for each in self._round.peers.values())
        return max(1, known, min(int(agree.number("validators")), MAX_VALIDATORS))

    def _awaited(self, at: PeerRound, agree: Span) -> str:
        """Whose vote was waited for, or turn to propose, if it was another's and came to nothing; empty: who knows."""
        view = max((int(_whole(event.text("view"))) for event in agree.events if event.name == "proposes"), default=0)
        if view > 0 and agree.text("first") not in ("", at.peer):
            return agree.text("first")
        known = [each.peer for each in self._round.peers.values() if each.decides]
        return _last_of_quorum(agree, at.peer, known + [""] * (self._deciding(agree) - len(known)))

    def _slow_vote(self, at: PeerRound, agree: Span, whom: str, seconds: float, usual: float) -> Iterator[Step]:
        """Another validator was waited for so long: it was late, wrote or thought for long, or there is a bad line."""
        other = self._round.peers.get(whom)
        own = other.phase("agree") if other is not None else None
        if other is None or own is None:
            yield Step(whom, Phase.ABSENT, f"{at.name} waited for its vote", seconds, usual)
            return
        too_long = seconds - usual
        late = other.since(own.start) - at.since(agree.start)
        steps = list(self._gathering(other)) if late > 0.5 * too_long else []
        what = f"{at.name} waited for the vote of {other.name}"
        if sum(step.excess for step in steps) > 0.3 * too_long:
            yield from steps
        elif own.number("disk_s") > 0.5 * too_long:
            what = f"{at.name} waited for the ballots of {other.name}"
            yield Step(whom, Phase.DISK, what, own.number("disk_s"), DISK_SECONDS)
        elif _thinking(own, "looks at", "looked at") > 0.5 * too_long:
            yield Step(whom, Phase.VALIDATION, what, seconds, usual)
        else:
            yield self._talk(Step(whom, Phase.VALIDATION, what, seconds, usual), at.peer)

    def _talk(self, step: Step, *others: str) -> Step:
        """Small talk of the DHT took long, or seems to have: over the one bad line, if there is one. Whoever's it is,
        records are kept by some peers and read by all. Else it is as the step says, which waited for these others.
        """
        bad = self._links.worst((step.peer, *others))
        if bad is None or bad.excess < LEAST_BAD:
            return step
        way = f" (the way between {self._round.name(bad.peer)} and {self._round.name(bad.other)})" if bad.other else ""
        return replace(step, peer=bad.peer, phase=bad.phase, what=step.what + way)

    # --- behind the manifest -----------------------------------------------------------------------------------------

    def _tail(self) -> Iterator[Step]:
        """What the peer did that was done last."""
        behind = {peer: _behind(each) for peer, each in self._round.peers.items()}
        if behind:
            yield from self.after(self._round.peers[max(behind, key=lambda peer: behind[peer])])

    def after(self, of: PeerRound) -> Iterator[Step]:
        """What one peer did behind the manifest."""
        agree, outer = of.phase("agree"), of.phase("outer")
        if outer is None:
            return
        if agree is not None:
            between = max(0.0, (outer.start - agree.end) / 1e9)
            yield Step(of.peer, Phase.VALIDATION, "assessing", between, self._usual(of.peer, _assessing))
        for span in of.inside(outer, "round.fetch"):
            yield self._transfer(span.text("peer_from"), of.peer, span.seconds)
        yield from self._work(of, outer, "outer", "the outer step")

    # --- what is usual -----------------------------------------------------------------------------------------------

    def _transfer(self, maker: str, receiver: str, seconds: float) -> Step:
        total = max(seconds, self._links.seconds.get((maker, receiver), 0.0))
        peer, phase, usual = self._links.blame(maker, receiver, total)
        what = f"the payload of {self._round.name(maker)} on its way to {self._round.name(receiver)}"
        return Step(peer, phase, what, seconds, usual)

    def _usual(self, but: str, measure: Callable[[PeerRound], float | None]) -> float:
        """The median of what the others measure; of one alone, what it measures itself."""
        values = {peer: value for peer, each in self._round.peers.items() if (value := measure(each)) is not None}
        others = [value for peer, value in values.items() if peer != but]
        return median(others) if others else values.get(but, 0.0)


def _made(of: PeerRound) -> int:
    """When its commitment was posted; without one, when its round was over."""
    commit = of.phase("commit")
    return commit.end if commit is not None else of.round.end


def _alone(phase: Span) -> float:
    """Without what it waited for others."""
    return max(0.0, phase.seconds - phase.number("waited_s"))


def _of_phase(name: str) -> Callable[[PeerRound], float | None]:
    def measure(each: PeerRound) -> float | None:
        phase = each.phase(name)
        return None if phase is None else _alone(phase)

    return measure


def _part(name: str, number: int) -> Callable[[PeerRound], float | None]:
    def measure(each: PeerRound) -> float | None:
        phase = each.phase(name)
        return None if phase is None else _split(each, phase)[number]

    return measure


def _split(of: PeerRound, phase: Span) -> tuple[float, float, float]:
    """Seconds of a phase: (computing, writing, in Ray); what it fetched is none of them."""
    workers = of.inside(phase, "worker.")
    fetching = [(span.start, span.end) for span in of.inside(phase, "round.fetch")]
    fetched = (max(end for _, end in fetching) - min(start for start, _ in fetching)) / 1e9 if fetching else 0.0
    busy: dict[float, float] = {}  # of each rank; they work side by side
    for span in workers:
        busy[span.number("rank")] = busy.get(span.number("rank"), 0.0) + span.seconds
    working = max(busy.values(), default=0.0)
    inside = min(working, sum(span.number("disk_s") for span in workers))
    disk, whole = inside + phase.number("disk_s"), max(0.0, phase.seconds - fetched)
    if not workers:
        return max(0.0, whole - disk), min(disk, whole), 0.0
    return max(0.0, working - inside), min(disk, whole), max(0.0, whole - working - phase.number("disk_s"))


def _checking(each: PeerRound) -> float | None:
    spans = [span.number("verify_s") for span in each.all("round.fetch") if span.number("verify_s") > 0]
    return (median(spans) if spans else 0.0) + sum(span.seconds for span in each.all("round.verify"))


def _assessing(each: PeerRound) -> float | None:
    agree, outer = each.phase("agree"), each.phase("outer")
    return max(0.0, (outer.start - agree.end) / 1e9) if agree is not None and outer is not None else None


def _behind(each: PeerRound) -> float:
    agree = each.phase("agree")
    return (each.round.end - agree.end) / 1e9 if agree is not None else 0.0


def _within(span: Span, event: Event) -> float:
    """Seconds into a span."""
    return max(0.0, (event.at - span.start) / 1e9)


def _last_of_quorum(agree: Span, own: str, validators: list[str]) -> str:
    """Of those first heard, as many as decide: the last one; who never spoke counts to the end."""
    heard: dict[str, float] = {}
    for event in agree.events:
        if event.name == "heard":
            heard.setdefault(event.text("peer"), _within(agree, event))
    times = sorted((0.0 if peer == own else heard.get(peer, agree.seconds), peer) for peer in validators)
    return times[quorum(len(times)) - 1][1]


def _thinking(own: Span, begins: str, ends: str) -> float:
    """Seconds between events: what a validator took to make up its mind, without what it waited for."""
    begun = [event.at for event in own.events if event.name == begins]
    return sum(
        (event.at - max(before)) / 1e9
        for event in own.events
        if event.name == ends and (before := [at for at in begun if at <= event.at])
    )


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 0
