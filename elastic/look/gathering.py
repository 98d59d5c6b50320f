"""A run's rounds, put together bit by bit from what its peers wrote down; numbers in it may be any, and are bounded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from sys import intern
from typing import overload

from elastic.look.model import Cell, Own, Round
from elastic.messages import Amendment, Manifest, PeerId, RoundIndex
from elastic.reports import RoundEvidence, RoundReport

KEPT = 5_000
"""Rounds that are remembered, the newest."""
MOST = 1e9
"""Seconds, nats, tokens per second: who tells more is drawn with so much."""
FIRST_LOOK = 0.5
"""Seconds after a peer began to look at what others did: what it saw so soon may have been there for long."""


@dataclass(slots=True)
class _Known:
    """One round so far."""

    own: dict[PeerId, Own] = field(default_factory=dict)
    exact: dict[PeerId, list[float]] = field(default_factory=dict)
    """When a contribution was there, by those who were looking; and"""
    bounds: dict[PeerId, float] = field(default_factory=dict)
    """when at the latest, by those who were not yet."""
    verdicts: dict[PeerId, Counter[str]] = field(default_factory=dict)
    scores: dict[PeerId, float] = field(default_factory=dict)
    shares: dict[PeerId, float] | None = None
    """None: undecided, as far as is known."""
    proposer: PeerId | None = None
    pace: tuple[float, ...] = ()
    next_roster: tuple[PeerId, ...] = ()


class Gathering:
    """Takes in records in any order, twice if need be; gives rounds."""

    def __init__(self) -> None:
        self._rounds: dict[int, _Known] = {}
        self.dropped = 0
        """Rounds that were too many."""
        self.amendments: dict[RoundIndex, Amendment] = {}
        self.names: dict[PeerId, str] = {}
        """As peers called themselves in their reports."""

    def report(self, report: RoundReport) -> None:
        """A peer's own account of a round, with what it saw of others."""
        known, peer = self._at(report.round), _same(report.peer)
        own = Own(
            phases={intern(name): _seconds(told) for name, told in report.seconds.items() if name != "total"},
            total=_seconds(report.seconds.get("total", 0.0)), digest=report.digest, contributed=report.contributed,
            loss=bounded(report.loss), tokens=report.tokens, bytes_out=report.bytes_out, bytes_in=report.bytes_in,
            skipped=report.skipped or "",
        )  # fmt: skip
        self.names[peer] = report.name
        known.own[peer] = own
        for sender, verdict in report.verdicts.items():
            known.verdicts.setdefault(_same(sender), Counter())[intern(verdict)] += 1
        for sender, arrived in report.arrived.items():
            if sender != peer:
                committed = report.committed.get(sender, arrived)
                _see(known, _same(sender), _seconds(committed), _seconds(arrived), own.ready)

    def manifest(self, manifest: Manifest) -> None:
        """What counted."""
        known = self._at(manifest.round)
        known.shares = {_same(entry.peer): entry.share for entry in manifest.counted}
        known.proposer, known.pace = _same(manifest.proposer), manifest.pace
        known.next_roster = tuple(map(_same, manifest.roster))
        if manifest.amendment is not None:
            self.amendments[manifest.round] = manifest.amendment

    def evidence(self, seen: RoundEvidence) -> None:
        """Verdicts, for rounds of which no report is here."""
        known = self._at(seen.round)
        for each in seen.evidence:
            verdict = "accepted" if each.verdict.rejected is None else each.verdict.rejected.value
            known.verdicts.setdefault(_same(each.verdict.peer), Counter())[verdict] += 1

    def scores(self, round_: RoundIndex, scores: dict[PeerId, float]) -> None:
        """What the incentive thought after a round."""
        self._at(round_).scores = {peer: bounded(score) for peer, score in scores.items()}

    def rounds(self) -> list[Round]:
        """All from the first on, oldest first."""
        return [self._round(index) for index in sorted(self._rounds) if index > 0]

    def _round(self, index: int) -> Round:
        known, before = self._rounds[index], self._rounds.get(index - 1)
        roster = before.next_roster if before is not None else ()
        peers = {*roster, *known.verdicts, *known.own, *(known.shares or {})}
        paced = before is not None and known.pace and known.pace != before.pace
        return Round(
            index=RoundIndex(index),
            cells={peer: _cell(known, peer) for peer in sorted(peers)},
            scores=known.scores,
            decided=known.shares is not None,
            proposer=known.proposer,
            half_seconds=known.pace[-1] if paced else None,
        )

    def _at(self, index: int) -> _Known:
        found = self._rounds.get(index)
        if found is None:
            found = self._rounds[index] = _Known()
            if len(self._rounds) > KEPT + 1:
                del self._rounds[min(self._rounds)]
                self.dropped += 1
        return found


@overload
def bounded(value: float) -> float: ...


@overload
def bounded(value: float | None) -> float | None: ...


def bounded(value: float | None) -> float | None:
    """A number that can be drawn; None stays None."""
    return value if value is None else min(max(value, -MOST), MOST)


def _seconds(value: float) -> float:
    return min(max(value, 0.0), MOST)


def _see(known: _Known, sender: PeerId, committed: float, arrived: float, ready: float) -> None:
    """One peer saw another's contribution.

    It begins to fetch when its own work is done, at `ready`; a validator sees commitments before that. Had it been
    free, it would have had the bytes as long after the commitment as it took to fetch them.
    """
    if ready <= committed < ready + FIRST_LOOK:
        known.bounds[sender] = min(arrived, known.bounds.get(sender, arrived))
    else:
        known.exact.setdefault(sender, []).append(committed + max(0.0, arrived - max(committed, ready)))


def _cell(known: _Known, peer: PeerId) -> Cell:
    own, exact, bound = known.own.get(peer), known.exact.get(peer), known.bounds.get(peer)
    ready = own.ready if own is not None and own.contributed else None
    seconds, at_most = ready, False
    if exact:  # the median: each has a clock that began with its own round
        seconds = max(median(exact), ready or 0.0)
    elif ready is None and bound is not None:
        seconds, at_most = bound, True
    verdicts = known.verdicts.get(peer)
    verdict = min(verdicts, key=lambda each: (-verdicts[each], each)) if verdicts else ""
    return Cell(seconds, at_most, verdict, (known.shares or {}).get(peer), own)


def _same(peer: PeerId) -> PeerId:
    """One string for each peer: there are many."""
    return PeerId(intern(peer))
