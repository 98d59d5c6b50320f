"""What a peer counts about itself: the table of its instruments, and the numbers behind them.

The peer's journal tells `Meters` what it tells everyone else; nothing here waits, reaches out, or loads the
OpenTelemetry SDK. Whoever exports (`elastic.metrics_export`, if the run file wants it) asks for the numbers from a
thread of its own. Whatever strangers could make more of is bounded: at most `MAX_PEERS` peers are told apart, and
verdicts and reasons are words of ours.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median_low
from typing import Literal

from elastic.messages import PEER_ID, PeerId, PeerStage, RejectReason, RoundPlan, Scoreboard
from elastic.reports import Evaluation, PeerStatus, RoundReport

logger = logging.getLogger(__name__)

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[tuple[str, str], ...]
"""Attributes of one number, in a form that can be a key."""

MAX_PEERS = 64
"""So many peers are told apart at a time. A roster has 48 at most; each costs its reader a few series."""
OTHER = "other"
"""All peers that are not told apart."""
BOUNDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 90, 120, 180, 300, 600, 1200, 1800)
"""Upper bounds of a histogram's buckets, in seconds: from a phase on loopback to the longest round."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """One line of the table; docs/metrics.md shows them all."""

    name: str
    kind: Kind
    unit: str
    """As OpenTelemetry has it: "s", "By", or what is counted in { }."""
    attributes: tuple[str, ...]
    description: str


INSTRUMENTS: tuple[Instrument, ...] = (
    Instrument("swarm.loss", "gauge", "{nat}", (), "Training loss in nats per token, of the last step or round"),
    Instrument("swarm.tokens", "counter", "{token}", (), "Tokens trained on in rounds that are over"),
    Instrument("swarm.tokens.rate", "gauge", "{token}/s", (), "Tokens per second of the inner steps"),
    Instrument("swarm.inner.steps", "counter", "{step}", (), "Inner steps of rounds that are over"),
    Instrument("swarm.round.number", "gauge", "{round}", (), "The round under way"),
    Instrument("swarm.round.age", "gauge", "s", (), "Since this peer finished a round, or began"),
    Instrument("swarm.round.duration", "histogram", "s", (), "How long a round took"),
    Instrument("swarm.phase.duration", "histogram", "s", ("swarm.phase",), "How long a phase of a round took"),
    Instrument("swarm.round.deadline", "gauge", "s", (), "How long a round's contributions are waited for"),
    Instrument("swarm.round.pace", "gauge", "s", (), "Until half of the roster contributes, as the manifests have it"),
    Instrument("swarm.rounds.finished", "counter", "{round}", (), "Rounds that ended with a manifest"),
    Instrument("swarm.rounds.contributed", "counter", "{round}", (), "Rounds to which this peer contributed"),
    Instrument("swarm.rounds.counted", "counter", "{round}", (), "Rounds in which its contribution counted"),
    Instrument(
        "swarm.rounds.skipped", "counter", "{round}", ("swarm.reason",),
        "Rounds in which its contribution did not count, or no outer step was taken",
    ),
    Instrument("swarm.rounds.last", "counter", "{round}", ("swarm.peer",), "Rounds in which that peer arrived last"),
    Instrument("swarm.verdicts", "counter", "{verdict}", ("swarm.verdict",), "This peer's verdicts on contributions"),
    Instrument("swarm.score", "gauge", "{score}", ("swarm.peer",), "What the incentive thinks of who is on the roster"),
    Instrument("swarm.bytes", "counter", "By", ("swarm.direction",), "Payloads, anchors, records and averages moved"),
    Instrument(
        "swarm.peer.bytes", "counter", "By", ("swarm.direction", "swarm.peer"),
        "Parts of payloads and anchors that went to that peer, or came from it",
    ),
    Instrument("swarm.payload.size", "gauge", "By", (), "This peer's last payload"),
    Instrument("swarm.peers.known", "gauge", "{peer}", (), "Cards in the DHT, this peer's own included"),
    Instrument("swarm.peers.ready", "gauge", "{peer}", (), "Of these, who can take part in a round"),
    Instrument("swarm.stage", "gauge", "{peer}", ("swarm.stage",), "1 for the stage this peer is at, 0 for the others"),
    Instrument("swarm.restarts", "counter", "{restart}", (), "Processes of this peer that were started again"),
    Instrument("swarm.mailbox.waiting", "gauge", "{command}", (), "Commands that the trainer has not answered yet"),
    Instrument("swarm.spans.waiting", "gauge", "{span}", (), "Spans of the peer actor that wait to be exported"),
    Instrument("swarm.spans.exported", "counter", "{span}", (), "Spans of the peer actor that were exported"),
    Instrument("swarm.spans.dropped", "counter", "{span}", (), "Spans of the peer actor that were lost"),
    Instrument("swarm.chain.weights.age", "gauge", "s", (), "Since weights of this peer landed on the chain"),
    Instrument("swarm.chain.alarms", "gauge", "{alarm}", ("swarm.level",), "What the settler wants people to look at"),
    Instrument(
        "swarm.evaluation.value", "gauge", "{value}", ("swarm.task",),
        "What an evaluator measured last",
    ),
    Instrument(
        "swarm.evaluation.stderr", "gauge", "{value}", ("swarm.task",),
        "Its standard error, if it has one",
    ),
    Instrument("swarm.evaluation.round", "gauge", "{round}", (), "The round that starts from the model it measured"),
    Instrument("swarm.evaluations.failed", "counter", "{evaluation}", (), "Evaluations that came to nothing"),
    Instrument("swarm.disk.free", "gauge", "By", (), "Free on the disk of the state directory"),
    Instrument("swarm.disk.size", "gauge", "By", (), "Size of that disk"),
    Instrument("swarm.gpu.memory.used", "gauge", "By", (), "GPU memory in use where worker 0 trains, by anyone"),
    Instrument("swarm.gpu.memory.size", "gauge", "By", (), "All memory of that GPU"),
)  # fmt: skip

STAGES = (*(str(stage) for stage in PeerStage), "finished", "left", "failed")
LEVELS = ("warning", "error")
FAILED = "failed"
"""A reason for a skipped round that is an error of our own: its words are in the log."""
REASONS = {
    "no manifest": "no manifest",
    "the manifest applies to another anchor": "another anchor",
    "void": "void",
    "arrived after": "late",
    **{str(reason): str(reason) for reason in RejectReason},
}
"""How a report's reason begins → what it is called here."""
FROM_ONE_ON = (
    "swarm.tokens", "swarm.inner.steps", "swarm.rounds.finished", "swarm.rounds.contributed", "swarm.rounds.counted",
    "swarm.restarts",
)  # fmt: skip
"""Counters that are there, with 0, before anything happened: else their first increase would go unseen."""


class Meters:
    """All numbers of one peer. Told from its event loop, asked from other threads."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._finished = now, now()
        self._numbers: dict[str, dict[Labels, float]] = {name: {(): 0.0} for name in FROM_ONE_ON}
        self._lock = threading.Lock()
        self._sources: dict[str, Callable[[], Mapping[Labels, float]]] = {
            "swarm.round.age": lambda: {(): self._now() - self._finished}
        }
        self._failing: set[str] = set()
        self._by_peer = {name: PeerTally() for name in ("swarm.rounds.last", "swarm.peer.bytes")}
        self._moved: dict[PeerId, tuple[int, int]] = {}
        self._roster: frozenset[PeerId] = frozenset()
        self.on_seconds: list[Callable[[str, float, Labels], None]] = []
        """Are told what goes into a histogram: its name, seconds, and attributes."""

    def numbers(self, name: str) -> Mapping[Labels, float]:
        """Of one counter or gauge, now; nothing if it cannot be had."""
        if name in self._sources:
            try:
                return self._sources[name]()
            except Exception as error:  # noqa: BLE001  telemetry never takes down training
                if name not in self._failing:
                    self._failing.add(name)
                    logger.warning("%s is not measured: %s", name, error)
                return {}
        with self._lock:
            return self._by_peer[name].numbers() if name in self._by_peer else dict(self._numbers.get(name, {}))

    def watch(self, name: str, source: Callable[[], float | Mapping[Labels, float] | None]) -> None:
        """From now on ask for that number when somebody wants it, in whatever thread; None: there is none."""

        def ask() -> Mapping[Labels, float]:
            found = source()
            if found is None:
                return {}
            return found if isinstance(found, Mapping) else {(): found}

        self._sources[name] = ask

    # --- what the journal tells -----------------------------------------------------------------------------------

    def noted(self, status: PeerStatus) -> None:
        """The peer's status has changed."""
        with self._lock:
            if status.loss is not None:
                self._set("swarm.loss", status.loss)
            self._set("swarm.tokens.rate", status.tokens_per_second)
            self._set("swarm.round.number", status.round)
            self._set("swarm.peers.known", status.peers)
            self._set("swarm.peers.ready", status.ready)
            self._set("swarm.restarts", status.restarts)
            self._set("swarm.bytes", status.bytes_out, direction="out")
            self._set("swarm.bytes", status.bytes_in, direction="in")
            for stage in STAGES:
                self._set("swarm.stage", float(stage == status.stage), stage=stage)

    def began(self, plan: RoundPlan) -> None:
        """A round starts."""
        self._roster = frozenset((*plan.roster, *plan.validators, plan.peer))
        with self._lock:
            self._set("swarm.round.deadline", plan.gather_seconds)
            if plan.pace:
                self._set("swarm.round.pace", median_low(plan.pace))

    def recorded(self, report: RoundReport) -> None:
        """A round is over."""
        if report.manifest is not None:
            self._finished = self._now()
        with self._lock:
            self._add("swarm.tokens", report.tokens)
            self._add("swarm.inner.steps", report.steps)
            self._add("swarm.rounds.finished", report.manifest is not None)
            self._add("swarm.rounds.contributed", report.contributed)
            self._add("swarm.rounds.counted", report.counted)
            if report.skipped is not None:
                self._add("swarm.rounds.skipped", 1, reason=reason_of(report.skipped))
            if report.payload_bytes:
                self._set("swarm.payload.size", report.payload_bytes)
            for verdict in report.verdicts.values():
                self._add("swarm.verdicts", 1, verdict=verdict)
            if report.last is not None:
                self._by_peer["swarm.rounds.last"].add(report.last, (), 1, self._roster)
        for phase, seconds in report.seconds.items():
            name, labels = ("swarm.round.duration", ()) if phase == "total" else ("swarm.phase.duration", (phase,))
            for tell in self.on_seconds:
                tell(name, seconds, tuple(("swarm.phase", label) for label in labels))

    def evaluates(self) -> None:
        """This peer is an evaluator: its counter is there, with 0, before anything happened."""
        with self._lock:
            self._add("swarm.evaluations.failed", 0)

    def evaluated(self, evaluation: Evaluation) -> None:
        """The model of a round was measured: one number for each task that ships with the project."""
        with self._lock:
            for each in evaluation.results:
                self._set("swarm.evaluation.value", each.value, task=each.task)
                if each.stderr is not None:
                    self._set("swarm.evaluation.stderr", each.stderr, task=each.task)
            self._set("swarm.evaluation.round", evaluation.round)

    def evaluation_failed(self) -> None:
        """It could not be."""
        with self._lock:
            self._add("swarm.evaluations.failed", 1)

    # --- what is asked for while there is an exporter -------------------------------------------------------------

    def moved(self, by_peer: Mapping[PeerId, tuple[int, int]]) -> None:
        """Bytes out and in so far, by peer; smaller ones than before: who counts them has begun anew."""
        tally = self._by_peer["swarm.peer.bytes"]
        with self._lock:
            for peer, totals in by_peer.items():
                before = self._moved.get(peer, (0, 0))
                for direction, total, was in zip(("out", "in"), totals, before, strict=True):
                    new = total - was if total >= was else total
                    tally.add(peer, (("swarm.direction", direction),), new, self._roster)
            self._moved = dict(by_peer)

    def scores(self, board: Scoreboard | None) -> Mapping[Labels, float]:
        """Of those on the roster, who are few; strangers, who may be many, have none."""
        known = board.scores if board is not None else {}
        return {(("swarm.peer", peer),): known[peer] for peer in sorted(known.keys() & self._roster)[:MAX_PEERS]}

    def gpu(self, used: int, size: int) -> None:
        """Memory of the GPU that worker 0 trains on, in bytes."""
        with self._lock:
            self._set("swarm.gpu.memory.used", used)
            self._set("swarm.gpu.memory.size", size)

    def _set(self, name: str, value: float, **attributes: str) -> None:
        self._numbers.setdefault(name, {})[_labels(attributes)] = value

    def _add(self, name: str, amount: float, **attributes: str) -> None:
        numbers, labels = self._numbers.setdefault(name, {}), _labels(attributes)
        numbers[labels] = numbers.get(labels, 0.0) + amount


class PeerTally:
    """Counts by peer, for `MAX_PEERS` of them at most; the rest is counted together.

    A stranger takes a place only if one is free. Who matters takes a stranger's if none is, so that a crowd can neither
    hide those on the roster nor make a new series of each of its names.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Counter[Labels]] = {}
        self._rest: Counter[Labels] = Counter()

    def add(self, peer: str, labels: Labels, amount: float, matter: Iterable[str]) -> None:
        """Count it as that peer's, or among the rest."""
        if peer not in self._counts and not self._place(peer, frozenset(matter)):
            self._rest[labels] += amount  # type: ignore[assignment]
        else:
            self._counts.setdefault(peer, Counter())[labels] += amount  # type: ignore[assignment]

    def numbers(self) -> dict[Labels, float]:
        """All of them, by their attributes."""
        every = [*self._counts.items(), *([(OTHER, self._rest)] if self._rest else [])]
        return {(*labels, ("swarm.peer", peer)): count for peer, counts in every for labels, count in counts.items()}

    def _place(self, peer: str, matter: frozenset[str]) -> bool:
        """Whether that peer may have a place of its own; one is made if it matters."""
        if re.fullmatch(PEER_ID, peer) is None:
            return False
        if len(self._counts) < MAX_PEERS:
            return True
        stranger = next((each for each in self._counts if each not in matter), None)
        if peer not in matter or stranger is None:
            return False
        self._rest.update(self._counts.pop(stranger))
        return True


def reason_of(skipped: str) -> str:
    """A report's reason in one of a few words."""
    if skipped.endswith("could not be fetched yet"):
        return "payloads missing"
    return next((short for begin, short in REASONS.items() if skipped.startswith(begin)), FAILED)


def _labels(attributes: Mapping[str, str]) -> Labels:
    return tuple((f"swarm.{key}", value) for key, value in attributes.items())
