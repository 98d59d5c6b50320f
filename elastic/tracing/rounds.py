"""Spans sorted into rounds and peers, and how far peers' clocks are apart. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

from elastic import trace_ids
from elastic.messages import PeerId
from elastic.names import labels
from elastic.tracing.model import Span

ROUND, ROOT = "round", "swarm.round"
MAX_PEERS = 1024
"""Of a round; anyone can add spans to it."""


@dataclass(frozen=True)
class PeerRound:
    """One peer's round."""

    peer: str
    name: str
    round: Span
    """The span that holds the others; of several starts the last."""
    spans: Sequence[Span]
    """Those inside, in order of their begin."""

    @cached_property
    def _children(self) -> Mapping[str, list[Span]]:
        found = defaultdict(list)
        for span in self.spans:
            found[span.parent].append(span)
        return found

    @cached_property
    def _phases(self) -> Mapping[str, list[Span]]:
        found = defaultdict(list)
        for span in self.spans:
            found[span.name].append(span)
        return found

    def all(self, name: str) -> list[Span]:
        """Spans of that name."""
        return self._phases.get(name, [])

    def phase(self, name: str) -> Span | None:
        """The phase `round.<name>`, directly in the round; the last, if there are several."""
        found = [span for span in self.all(f"round.{name}") if span.parent == self.round.id]
        return found[-1] if found else None

    def inside(self, span: Span, name: str) -> list[Span]:
        """Direct children of a span whose names begin so."""
        return [each for each in self._children.get(span.id, ()) if each.name.startswith(name)]

    def since(self, instant: int) -> float:
        """Seconds from the begin of this peer's round, on its own clock."""
        return (instant - self.round.start) / 1e9

    @property
    def decides(self) -> bool:
        """Whether it is a validator, as it says."""
        return bool(self.round.attributes.get("swarm.decides", False))


@dataclass(frozen=True)
class Round:
    """One round of the swarm, as far as there are spans of it."""

    run: str
    index: int
    root: Span | None
    peers: Mapping[str, PeerRound]
    """By peer id."""

    @property
    def seconds(self) -> float:
        """Until its proposer was done with it, or, without a root, the longest of the peers' rounds."""
        longest = max((each.round.seconds for each in self.peers.values()), default=0.0)
        return self.root.seconds if self.root is not None else longest

    def name(self, peer: str) -> str:
        """What a peer is called."""
        known = self.peers.get(peer)
        return known.name if known is not None else peer[-6:] or "?"

    @cached_property
    def decider(self) -> PeerRound | None:
        """Whose manifest it was, as the root says, or most peers; else the validator that was done first."""
        said = [self.root.text("proposer")] if self.root is not None else []
        said += [each.round.text("proposer") for each in self.peers.values()]
        votes = [peer for peer in said if peer in self.peers]
        if votes:
            return self.peers[max(votes, key=votes.count)]
        validators = [each for each in self.peers.values() if each.decides] or list(self.peers.values())
        return min(validators, key=lambda each: each.round.seconds, default=None)


def rounds_of(spans: Iterable[Span]) -> list[Round]:
    """All rounds that these spans are of, in order, by run; those whose trace is not of the round it claims are left
    out. No two peers have the same name.

    Args:
        spans: in any order; one that came twice counts once.
    """
    traces: dict[str, dict[tuple[str, str], Span]] = defaultdict(dict)
    for span in spans:
        traces[span.trace][span.peer, span.id] = span
    found = []
    for trace, members in traces.items():
        claim = _claim(trace, members.values())
        if claim is not None:
            found.append(_round(*claim, list(members.values())))
    return _named(sorted(found, key=lambda each: (each.run, each.index)))


def _claim(trace: str, spans: Iterable[Span]) -> tuple[str, int] | None:
    """(run, round) that this is the trace of."""
    tried = set()
    for span in spans:
        claim = span.text("run"), int(span.number("round", -1))
        if span.name in (ROUND, ROOT) and claim not in tried:
            tried.add(claim)
            if trace_ids.hex_trace(trace_ids.round_trace_id(*claim)) == trace:
                return claim
    return None


def _round(run: str, index: int, spans: list[Span]) -> Round:
    root_id = trace_ids.hex_id(trace_ids.span_id(run, index, "root"))
    roots = [span for span in spans if span.id == root_id and span.name == ROOT]
    by_peer: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        if span.peer in by_peer or len(by_peer) < MAX_PEERS:
            by_peer[span.peer].append(span)
    peers = {peer: made for peer, members in by_peer.items() if (made := _peer(peer, members)) is not None}
    return Round(run, index, max(roots, key=lambda span: span.end, default=None), dict(sorted(peers.items())))


def _peer(peer: str, spans: list[Span]) -> PeerRound | None:
    begun = [span for span in spans if span.name == ROUND]
    if not begun:
        return None
    last = max(begun, key=lambda span: span.start)
    inside = sorted((span for span in spans if span is not last), key=lambda span: (span.start, span.end))
    return PeerRound(peer, last.text("name") or last.service.removeprefix("peer-"), last, inside)


def _named(rounds: list[Round]) -> list[Round]:
    """With names that tell peers apart, the same ones in all rounds; anyone may call itself anything."""
    said = {PeerId(peer): made.name for each in rounds for peer, made in each.peers.items()}
    names = labels(said, said)
    return [
        replace(each, peers={peer: replace(made, name=names[PeerId(peer)]) for peer, made in each.peers.items()})
        for each in rounds
    ]


def offsets(round_: Round) -> dict[str, float]:
    """Seconds to add to each peer's clock, so that nobody sees a commitment before it was made.

    Clocks that can be right are left alone; the decider's always is.
    """
    base = round_.decider
    if base is None:
        return {}
    found = {base.peer: 0.0}
    for peer, other in round_.peers.items():
        if other is not base:
            least, most = _bound(other, base), _bound(base, other)
            # The other's commitment was seen later than it was made: offset ≤ −least; and ours likewise: ≥ most.
            found[peer] = min(max(0.0, most), -least) if most <= -least else (most - least) / 2
    return found


def _bound(maker: PeerRound, reader: PeerRound) -> float:
    """Seconds by which the maker's clock is ahead of the reader's at least: it committed after it was seen to."""
    commit = maker.phase("commit")
    seen = [span.start for span in reader.all("round.fetch") if span.text("peer_from") == maker.peer]
    return (commit.end - min(seen)) / 1e9 if commit is not None and seen else -inf


def chosen(text: str) -> range:
    """Rounds as written: "7", or "3-9".

    Raises:
        ValueError: they are not.
    """
    first, _, last = text.partition("-")
    rounds = range(int(first), int(last or first) + 1)
    if not rounds or rounds.start < 0 or len(rounds) > 10_000:
        raise ValueError(text)
    return rounds


def newest_run(rounds: Sequence[Round]) -> Iterator[Round]:
    """Of several runs, the rounds of the one that went on last."""
    if rounds:
        last = max(rounds, key=lambda each: max(peer.round.end for peer in each.peers.values()) if each.peers else 0)
        yield from (each for each in rounds if each.run == last.run)
