"""Rounds as spans, made by hand: every peer takes the usual, but for what a test changes."""

from dataclasses import dataclass, field
from typing import Any

from elastic.agreement.simplex import quorum
from elastic.trace_ids import hex_id, hex_trace, round_trace_id, span_id
from elastic.tracing.model import Event, Span

RUN = "demo"
BEGIN = 1_700_000_000.0
"""Unix time at which round 1 begins."""
LENGTH = 10.0
"""Seconds between the begins of two rounds."""


@dataclass
class Times:
    """What one peer takes in a round, in seconds."""

    late: float = 0.0
    inner: float = 2.0
    ray: float = 0.01
    disk: float = 0.02
    compress: float = 0.1
    commit: float = 0.05
    publish: float = 0.01
    verify: float = 0.02
    vote: float = 0.1
    think: float = 0.0
    """Of that, making up its mind."""
    ballots: float = 0.0
    """Of the vote, writing it down."""
    outer: float = 0.1
    clock: float = 0.0
    """Its clock's error."""
    decides: bool = False
    inner_only: bool = False
    """Still busy when the others are done."""


@dataclass
class Case:
    """One round of some peers; the first one proposes."""

    peers: dict[str, Times]
    index: int = 1
    transfers: dict[tuple[str, str], float] = field(default_factory=dict)
    """(maker, receiver) → seconds, if not 0.05."""
    unseen: dict[tuple[str, str], float] = field(default_factory=dict)
    """(maker, reader) → seconds for which a commitment is not seen, if not 0.1."""
    missing: tuple[str, ...] = ()
    """Who did not come before the deadline."""
    silent: tuple[str, ...] = ()
    """Who leaves no spans."""
    deadline: float = 8.0

    def spans(self) -> list[Span]:
        """All of it."""
        return [span for peer in self.peers if peer not in self.silent for span in _Writer(self, peer).spans()] + [
            self.root()
        ]

    def root(self) -> Span:
        first = next(iter(self.peers))
        begin = BEGIN + LENGTH * self.index
        return _span(self, first, "swarm.round", begin, self.decided(), hex_id(span_id(RUN, self.index, "root")), "",
                     {"proposer": first, "round": self.index, "run": RUN})  # fmt: skip

    def committed(self, peer: str) -> float:
        """In true time."""
        own = self.peers[peer]
        work = own.inner + own.compress + 2 * (own.ray + own.disk) + own.commit
        return BEGIN + LENGTH * self.index + own.late + work

    def transfer(self, maker: str, receiver: str) -> float:
        return 0.0 if maker == receiver else self.transfers.get((maker, receiver), 0.05)

    def ready(self, peer: str) -> float:
        """When it begins to gather."""
        return self.committed(peer) + self.peers[peer].publish

    def sight(self, maker: str, receiver: str) -> float:
        return max(self.committed(maker) + self.unseen.get((maker, receiver), 0.1), self.ready(receiver) + 0.03)

    def arrived(self, maker: str, receiver: str) -> float:
        return self.sight(maker, receiver) + self.transfer(maker, receiver) + self.peers[receiver].verify

    def gathered(self, peer: str) -> float:
        come = [self.arrived(maker, peer) for maker in self.peers if maker not in self.missing]
        until = BEGIN + LENGTH * self.index + self.deadline if self.missing else 0.0
        return max(*come, until)

    def voted(self, peer: str) -> float:
        return self.gathered(peer) + self.peers[peer].vote

    def decided(self) -> float:
        votes = sorted(self.voted(peer) for peer, own in self.peers.items() if own.decides)
        return max([self.voted(next(iter(self.peers))), *votes[: quorum(len(votes))]])


class _Writer:
    """Writes one peer's spans, on its own clock."""

    def __init__(self, case: Case, peer: str) -> None:
        self.case, self.peer, self.own = case, peer, case.peers[peer]
        self.found: list[Span] = []

    def spans(self) -> list[Span]:
        case, own = self.case, self.own
        begin = BEGIN + LENGTH * case.index + own.late
        first = next(iter(case.peers))
        end = max(case.decided() + 0.2, case.gathered(self.peer)) + own.outer + own.ray + own.disk
        if self.peer in case.missing:
            end = max(end, case.committed(self.peer))
        about = {"run": RUN, "round": case.index, "peer": self.peer, "decides": own.decides, "proposer": first}
        root = hex_id(span_id(RUN, case.index, "root"))
        top = self.put("round", begin, end, root, **about)
        at = begin
        for name, verb, seconds in (
            ("inner", "inner_steps", own.inner),
            ("compress", "compress", own.compress),
        ):
            whole = seconds + own.ray + own.disk
            phase = self.put(f"round.{name}", at, at + whole, top, **({"tokens": 1000} if name == "inner" else {}))
            self.put(f"worker.{verb}", at + own.ray, at + whole, phase, disk_s=own.disk, rank=0)
            at += whole
        self.put("round.commit", at, at + own.commit, top)
        at += own.commit
        self.put("round.publish", at, at + own.publish, top, waited_s=0.0)
        if self.peer not in case.missing:
            self._gather(top, begin)
            self._decide(top, end)
        return self.found

    def _gather(self, top: str, begin: float) -> None:
        case = self.case
        ready, done = case.ready(self.peer), case.gathered(self.peer)
        events = tuple(self.event("missing", done, peer=each) for each in case.missing)
        gather = self.put("round.gather", ready, done, top, events, late=bool(case.missing))
        for maker in case.peers:
            seen = case.sight(maker, self.peer)
            if maker in case.missing and seen > done:
                continue
            seconds = case.transfer(maker, self.peer)
            fetch = self.put(
                "round.fetch", seen, min(done, case.arrived(maker, self.peer)), gather, peer_from=maker,
                committed_s=seen - begin, waited_s=seen - ready, transfer_s=seconds, verify_s=self.own.verify,
                bytes=1000,
            )  # fmt: skip
            if maker != self.peer:
                event = self.event("from", seen, peer=maker, bytes=1000, seconds=seconds)
                self.put("round.transfer", seen, seen + seconds, fetch, (event,))
        self.put("round.verify", done, done + 0.001, top, accepted=len(case.peers))

    def _decide(self, top: str, end: float) -> None:
        case, own = self.case, self.own
        heard = [peer for peer, each in case.peers.items() if each.decides and peer not in case.missing]
        events = tuple(self.event("heard", case.voted(peer), peer=peer) for peer in heard) if own.decides else ()
        if own.think:
            proposes, voted = self.peer == next(iter(case.peers)), case.voted(self.peer)
            names = ("drafts", "proposes") if proposes else ("looks at", "looked at")
            events += (self.event(names[0], voted - own.think), self.event(names[1], voted))
        outer = end - own.outer - own.ray - own.disk
        self.put(
            "round.agree", case.gathered(self.peer), outer - 0.01, top, events, decides=own.decides, disk_s=own.ballots
        )
        phase = self.put("round.outer", outer, end, top)
        self.put("worker.outer_step", outer + own.ray, end, phase, disk_s=own.disk, rank=0)

    def put(
        self, name: str, begin: float, end: float, parent: str, events: tuple[Event, ...] = (), **about: Any
    ) -> str:
        id_ = hex_id(span_id(RUN, self.case.index, self.peer, len(self.found)))
        shift = self.own.clock
        self.found.append(_span(self.case, self.peer, name, begin + shift, end + shift, id_, parent, about, events))
        return id_

    def event(self, name: str, at: float, **about: Any) -> Event:
        return Event(name, round((at + self.own.clock) * 1e9), {f"swarm.{key}": value for key, value in about.items()})


def _span(
    case: Case, peer: str, name: str, begin: float, end: float, id_: str, parent: str, about: dict[str, Any],
    events: tuple[Event, ...] = (),
) -> Span:  # fmt: skip
    return Span(
        trace=hex_trace(round_trace_id(RUN, case.index)), id=id_, parent=parent, name=name,
        start=round(begin * 1e9), end=round(max(begin, end) * 1e9), peer=peer, service=f"peer-{peer}", run=RUN,
        attributes={f"swarm.{key}": value for key, value in ({"round": case.index, "peer": peer} | about).items()},
        events=events,
    )  # fmt: skip


def usual(*names: str, validators: int = 1) -> dict[str, Times]:
    """Peers that differ a little; the first ones decide."""
    return {name: Times(inner=2.0 + 0.05 * number, decides=number < validators) for number, name in enumerate(names)}


def otlp(spans: list[Span]) -> dict[str, Any]:
    """The same as OTLP's JSON has it, each span with a resource of its own."""
    return {"resourceSpans": [_resource(span) for span in spans]}


def _resource(span: Span) -> dict[str, Any]:
    about = {"service.name": span.service, "service.namespace": span.run, "swarm.peer.id": span.peer}
    body = {
        "traceId": span.trace, "spanId": span.id, "name": span.name, "kind": 1,
        "startTimeUnixNano": str(span.start), "endTimeUnixNano": str(span.end), "attributes": _pairs(span.attributes),
        "events": [
            {"name": each.name, "timeUnixNano": str(each.at), "attributes": _pairs(each.attributes)}
            for each in span.events
        ],
        "status": {},
    } | ({"parentSpanId": span.parent} if span.parent else {})  # fmt: skip
    return {"resource": {"attributes": _pairs(about)}, "scopeSpans": [{"scope": {}, "spans": [body]}]}


def _pairs(values: Any) -> list[dict[str, Any]]:
    def value(each: Any) -> dict[str, Any]:
        if isinstance(each, bool):
            return {"boolValue": each}
        if isinstance(each, int):
            return {"intValue": str(each)}
        return {"doubleValue": each} if isinstance(each, float) else {"stringValue": each}

    return [{"key": key, "value": value(each)} for key, each in values.items()]


def jaeger_v1(spans: list[Span]) -> dict[str, Any]:
    """The same as Jaeger's API v1 has it, one trace after the other."""
    peers = sorted({span.peer for span in spans})
    processes = {
        f"p{peers.index(span.peer)}": {
            "serviceName": span.service,
            "tags": _tags({"service.namespace": span.run, "swarm.peer.id": span.peer}),
        }
        for span in spans
    }
    return {
        "data": [
            {
                "traceID": trace.lstrip("0"),
                "spans": [_v1(span, f"p{peers.index(span.peer)}") for span in spans if span.trace == trace],
                "processes": processes,
                "warnings": None,
            }
            for trace in dict.fromkeys(span.trace for span in spans)
        ],
        "total": 0, "limit": 0, "offset": 0, "errors": None,
    }  # fmt: skip


def _v1(span: Span, process: str) -> dict[str, Any]:
    references = [{"refType": "CHILD_OF", "traceID": span.trace, "spanID": span.parent}] if span.parent else []
    begin = span.start // 1000
    return {
        "traceID": span.trace, "spanID": span.id.lstrip("0"), "operationName": span.name, "references": references,
        "startTime": begin, "duration": span.end // 1000 - begin, "tags": _tags(span.attributes),
        "logs": [
            {"timestamp": each.at // 1000, "fields": _tags({"event": each.name, **each.attributes})}
            for each in span.events
        ],
        "processID": process, "warnings": None,
    }  # fmt: skip


def _tags(values: Any) -> list[dict[str, Any]]:
    kinds = {bool: "bool", int: "int64", float: "float64", str: "string"}
    return [{"key": key, "type": kinds[type(value)], "value": value} for key, value in values.items()]
