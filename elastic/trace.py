"""One trace per round for the whole swarm, without anyone coordinating it.

The trace id of a round is a hash of (run, round), and so is the id of the root that every contributor's round
hangs under: all peers compute the same, and their spans meet in one trace. The root itself is emitted by the
proposer alone, at the end of the round. Spans name the verbs of `elastic.round`; their attributes begin with
`swarm.`, and docs/tracing.md has a list. Which rounds are traced follows from the trace id too, alike on every peer.

Telemetry never stops training: exporters are guarded, queues bounded, and with `exporter = "off"` nothing is
loaded. Anyone can compute the ids, so anyone can add spans to a round: traces are for people, not for scores.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry import trace as otel
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from elastic.config_local import TraceConfig
from elastic.errors import MissingExtraError
from elastic.messages import PeerId, RoundIndex, RoundPlan
from elastic.trace_ids import fine_trace_id, hex_id, round_trace_id, sampled, span_id, unpack_context
from elastic.trace_ids import pack_context as _pack

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from elastic.trace_file import GuardedExporter

logger = logging.getLogger(__name__)

SWARM_ROUND = "swarm.round"
"""The root: one round of the whole swarm."""
ROUND = "round"
"""One peer's round."""
INNER = "round.inner"
COMPRESS = "round.compress"
COMMIT = "round.commit"
PUBLISH = "round.publish"
AVERAGE = "round.average"
GATHER = "round.gather"
FETCH = "round.fetch"
"""One payload: waited for, carried, checked."""
TRANSFER = "round.transfer"
"""One blob on its way, as the network sees it."""
VERIFY = "round.verify"
ASSESS = "round.assess"
AGREE = "round.agree"
OUTER = "round.outer"
SERVE = "round.serve"
"""What others took of us during the round."""
CATCH_UP = "round.catch_up"
WORKER = "worker."
"""And a verb of the trainer: what a Ray Train worker did of a phase."""
FINE_ROUND = "fine.round"
"""The root of a peer's own trace of single steps and chunks."""

MAX_QUEUED_SPANS = 8192
"""Spans that wait for the exporter, ~1 kB each; beyond it new ones push out old ones. Less loses bursts."""
EXPORT_DELAY_MS = 1000
"""Between two exports: what a SIGKILL loses. Longer loses more, shorter makes more and smaller requests."""
EXPORT_SECONDS = 5.0
"""One OTLP request, retries included, may take so long; it bounds `shutdown` together with its argument."""
MAX_EVENTS, MAX_TEXT = 128, 300
"""Events of a span; letters of a text in it. What others said may be long."""
MAX_FINE = 2048
"""Fine spans of one phase."""


@dataclass(frozen=True)
class _Tracing:
    """What `setup` made in this process."""

    provider: TracerProvider
    exporter: GuardedExporter
    tracer: otel.Tracer
    started: int
    config: TraceConfig
    name: str
    """What the peer is called."""
    now: Callable[[], int]


_tracing: _Tracing | None = None
_forced: ContextVar[tuple[int, int] | None] = ContextVar("forced_ids", default=None)
_attempts = itertools.count()


def service_name(peer: PeerId, name: str = "") -> str:
    """What a peer is called in the trace viewer; all PeerIds begin alike, so without a name it is the end."""
    return name if name.startswith("peer-") else f"peer-{name or peer[-8:]}"


def setup(
    config: TraceConfig, *, run: str, peer: PeerId, name: str, state_dir: Path, now: Callable[[], int] = time.time_ns
) -> None:
    """Start exporting this process's spans; a second call does nothing.

    Args:
        config: where they go, and which.
        run: name of the run.
        peer: whose spans they are.
        name: what the peer is called.
        state_dir: for the file, if they go there.
        now: Unix time in nanoseconds.

    Raises:
        MissingExtraError: an exporter is chosen and the OpenTelemetry SDK is not installed. Nothing else is
            raised: if the exporter cannot be made, that is logged and spans stay no-ops.
    """
    global _tracing
    if _tracing is not None or config.exporter == "off":
        return
    identity = {"service.name": service_name(peer, name), "service.namespace": run, "service.instance.id": peer}
    try:
        from elastic.trace_file import Bounds, provide, run_file_alone

        bounds = Bounds(MAX_QUEUED_SPANS, EXPORT_DELAY_MS, EXPORT_SECONDS, MAX_EVENTS, MAX_TEXT)
        with run_file_alone():
            provider, exporter = provide(config, identity | {"swarm.peer.id": peer}, state_dir, _forced, bounds)
            _tracing = _Tracing(provider, exporter, provider.get_tracer("elastic"), time.time_ns(), config, name, now)
    except ImportError as error:
        raise MissingExtraError(
            f'local.trace.exporter = "{config.exporter}" needs the OpenTelemetry SDK: '
            "pip install 'elastic[otel]', or set it to \"off\""
        ) from error
    except Exception as error:  # noqa: BLE001  telemetry never takes down training
        logger.warning("no traces from this process, training goes on: %s", error)
        return
    atexit.register(shutdown)


def shutdown(seconds: float = 3.0) -> None:
    """Flush and stop; spans are no-ops from now on. Returns within about `seconds` + `EXPORT_SECONDS`."""
    global _tracing
    tracing, _tracing = _tracing, None
    if tracing is None:
        return
    atexit.unregister(shutdown)
    tracing.exporter.stop_by(time.monotonic() + seconds)
    try:
        tracing.provider.shutdown()
    except Exception as error:  # noqa: BLE001  telemetry never takes down training
        logger.warning("the last spans may be lost: %s", error)


def counts() -> tuple[int, int, int]:
    """How many spans of this process wait, were exported, and were dropped: pushed out by newer ones, or refused."""
    exporter = _tracing.exporter if _tracing is not None else None
    return (exporter.waiting(), exporter.exported, exporter.dropped) if exporter is not None else (0, 0, 0)


@contextmanager
def round_span(plan: RoundPlan, *, incarnation: int | None = None) -> Iterator[Span]:
    """One peer's round: a span in the round's trace, under the root that the proposer will emit.

    Args:
        plan: the round; its attributes go onto the span, and `swarm.round` and `swarm.peer` onto every span inside.
        incarnation: how often this peer has begun this round, if the caller knows: others can then compute
            the span's id. By default a number that no other start of this peer has, so that a restart never
            repeats an id.
    """
    if _tracing is None:
        yield otel.INVALID_SPAN
        return
    trace_id = round_trace_id(plan.run, plan.round)
    flags = TraceFlags(TraceFlags.SAMPLED if sampled(trace_id, _tracing.config.sample) else TraceFlags.DEFAULT)
    root = SpanContext(trace_id, span_id(plan.run, plan.round, "root"), True, flags)
    begun = incarnation if incarnation is not None else f"{_tracing.started}.{next(_attempts)}"
    own = span_id(plan.run, plan.round, plan.peer, ROUND, begun)
    context = otel.set_span_in_context(NonRecordingSpan(root), Context())
    for key, value in {"round": str(plan.round), "peer": plan.peer, "of": hex_id(own)}.items():
        context = baggage.set_baggage(f"swarm.{key}", value, context)
    about = {
        "run": plan.run, "round": plan.round, "peer": plan.peer, "name": _tracing.name or None, "slot": plan.slot,
        "anchor": plan.anchor, "decides": plan.decides, "roster": len(plan.roster), "deadline_s": plan.gather_seconds,
    }  # fmt: skip
    begin = _tracing.now()
    with _ids(trace_id, own):
        span_ = _tracing.tracer.start_span(ROUND, context, attributes=_swarm(**about), start_time=begin)
    try:
        with _within(context), _open(span_):
            yield span_
    finally:
        if flags.sampled:
            _end_fine(trace_id, own, begin, about)


def root_span(run: str, round_: RoundIndex, start_ns: int, end_ns: int, **attributes: object) -> None:
    """Emit the root of a round; the proposer calls it once, when the round is over (Unix time in ns)."""
    if _tracing is None:
        return
    about = _swarm(**attributes, run=run, round=round_)
    with _ids(round_trace_id(run, round_), span_id(run, round_, "root")):
        root = _tracing.tracer.start_span(SWARM_ROUND, Context(), attributes=about, start_time=start_ns)
    root.end(end_ns)


def now_ns() -> int:
    """Unix time in nanoseconds, as spans have it."""
    return _tracing.now() if _tracing is not None else time.time_ns()


@contextmanager
def span(
    name: str, /, *, remote: str | None = None, links: tuple[bytes, ...] = (), **attributes: object
) -> Iterator[Span]:
    """A child of the current span. An exception that leaves it marks it as failed, in one line, no stack.

    Args:
        name: one of the constants above.
        remote: `service_name` of the peer at the other end, if there is one; viewers draw an arrow to it.
        links: spans of others in the same trace that have to do with it, as `wire_context` gives them. What anyone
            said is of another trace, or nothing of the kind, is left out.
        attributes: numbers and text, `swarm.` is put before their names; None is left out.
    """
    if _tracing is None:
        yield otel.INVALID_SPAN
        return
    values = _common() | _swarm(**attributes)
    if remote is not None:
        # The first is the convention now, the second is what Jaeger's UI reads.
        values |= {"service.peer.name": remote, "peer.service": remote}
    here = otel.get_current_span().get_span_context().trace_id
    named = [ids for each in links if (ids := unpack_context(each)) is not None and ids[0] == here]
    found = [Link(SpanContext(*ids, True, TraceFlags(TraceFlags.SAMPLED))) for ids in named]
    with _open(_tracing.tracer.start_span(name, attributes=values, links=found, start_time=_tracing.now())) as span_:
        yield span_


def annotate(**attributes: object) -> None:
    """Add attributes to the current span: what is known only at its end."""
    otel.get_current_span().set_attributes(_swarm(**attributes))


def event(name: str, /, **attributes: object) -> None:
    """Something that happened during the current span."""
    if active():
        otel.get_current_span().add_event(name, _swarm(**attributes), now_ns())


def tally(**amounts: float) -> None:
    """Add to attributes of the current span: seconds, bytes."""
    span_ = otel.get_current_span()
    known: Mapping[str, Any] = getattr(span_, "attributes", None) or {}
    span_.set_attributes({f"swarm.{key}": known.get(f"swarm.{key}", 0) + value for key, value in amounts.items()})


def failed(because: str) -> None:
    """The current span did not come to what it was for; no exception says so."""
    otel.get_current_span().set_status(Status(StatusCode.ERROR, because[:MAX_TEXT]))


def active() -> bool:
    """Whether the current span, of this process or another, is one that somebody will see: else gather nothing."""
    return _tracing is not None and otel.get_current_span().get_span_context().trace_flags.sampled


def carrier() -> dict[str, str]:
    """The current span as W3C headers, to be taken into another process or actor of this peer."""
    headers: dict[str, str] = {}
    if _tracing is not None:
        TraceContextTextMapPropagator().inject(headers)
        W3CBaggagePropagator().inject(headers)
    return headers


@contextmanager
def attached(headers: Mapping[str, str]) -> Iterator[None]:
    """Spans made inside are children of the span whose `carrier()` this is: one of our own peer."""
    if _tracing is None or not headers:
        yield
        return
    context = TraceContextTextMapPropagator().extract(dict(headers), Context())
    with _within(W3CBaggagePropagator().extract(dict(headers), context)):
        yield


def wire_context() -> bytes:
    """The current span as other peers get it, see `trace_ids.pack_context`; nothing if nobody will see it."""
    if not active():
        return b""
    context = otel.get_current_span().get_span_context()
    return _pack(context.trace_id, context.span_id)


class Marks:
    """Takes fine spans of one phase; see `fine`."""

    def __init__(self, context: Context | None = None) -> None:
        self.active = context is not None
        """Whether anyone wants them."""
        self._context, self._room = context, MAX_FINE

    def add(self, name: str, start_ns: int, end_ns: int, **attributes: object) -> None:
        """One step, one chunk. From any thread."""
        if self.active and self._room > 0 and _tracing is not None:
            self._room -= 1
            values = _swarm(**attributes)
            _tracing.tracer.start_span(name, self._context, attributes=values, start_time=start_ns).end(end_ns)


@contextmanager
def fine(name: str, /, **attributes: object) -> Iterator[Marks]:
    """A phase in the peer's own trace of this round, if `local.trace.fine` wants one; it links to the peer's round."""
    if _tracing is None or not _tracing.config.fine or not active():
        yield Marks()
        return
    own = str(baggage.get_baggage("swarm.of") or "")
    here = otel.get_current_span().get_span_context()
    if len(own) != 16:  # outside of any round
        yield Marks()
        return
    sampled_, of = TraceFlags(TraceFlags.SAMPLED), int(own, 16)
    root = SpanContext(fine_trace_id(here.trace_id, of), of, True, sampled_)
    link = Link(SpanContext(here.trace_id, of, True, sampled_))
    context = otel.set_span_in_context(NonRecordingSpan(root), Context())
    phase = _tracing.tracer.start_span(
        name, context, attributes=_common() | _swarm(**attributes), links=[link], start_time=_tracing.now()
    )
    try:
        yield Marks(otel.set_span_in_context(phase, Context()))
    finally:
        phase.end(now_ns())


def _end_fine(trace_id: int, own: int, begin: int, about: Mapping[str, object]) -> None:
    """The root of the peer's own trace, which never has a link: a viewer may take that for its parent."""
    if _tracing is None or not _tracing.config.fine:
        return
    with _ids(fine_trace_id(trace_id, own), own):
        root = _tracing.tracer.start_span(FINE_ROUND, Context(), attributes=_swarm(**about), start_time=begin)
    root.end(_tracing.now())


@contextmanager
def _ids(trace_id: int, span_id_: int) -> Iterator[None]:
    token = _forced.set((trace_id, span_id_))
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def _within(context: Context) -> Iterator[None]:
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


@contextmanager
def _open(span_: Span) -> Iterator[Span]:
    with otel.use_span(span_, end_on_exit=False, record_exception=False, set_status_on_exception=False):
        try:
            yield span_
        except (asyncio.CancelledError, GeneratorExit):
            # No error: a deadline passed, or nobody waits any more.
            span_.set_attribute("swarm.cancelled", True)
            raise
        except BaseException as error:
            span_.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"[:MAX_TEXT]))
            raise
        finally:
            span_.end(now_ns())


def _common() -> dict[str, Any]:
    """What every span of a round has."""
    round_, peer = baggage.get_baggage("swarm.round"), baggage.get_baggage("swarm.peer")
    known = int(round_) if isinstance(round_, str) and round_.isdecimal() else None
    return _swarm(round=known, peer=peer)


def _swarm(**attributes: object) -> dict[str, Any]:
    return {f"swarm.{key}": _plain(value) for key, value in attributes.items() if value is not None}


def _plain(value: object) -> str | bool | int | float:
    """OTLP's integers have 64 bits; everything that is not a number becomes text."""
    if isinstance(value, bool | float):
        return value
    return value if isinstance(value, int) and abs(value) < 2**63 else str(value)[:MAX_TEXT]
