"""One trace per round for the whole swarm, without anyone coordinating it.

The trace id of a round is a hash of (run, round), and so is the id of the root that every contributor's round
hangs under: all peers compute the same, and their spans meet in one trace. The root itself is emitted by the
proposer alone, at the end of the round. Spans name the verbs of `elastic.round`; their attributes begin with
`swarm.`.

Telemetry never stops training: exporters are guarded, queues bounded, and with `exporter = "off"` nothing is
loaded. Anyone can compute the ids, so anyone can add spans to a round: traces are for people, not for scores.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
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
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from elastic.config import TraceConfig
from elastic.errors import MissingExtraError
from elastic.messages import PeerId, RoundIndex, RoundPlan

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
VERIFY = "round.verify"
AGREE = "round.agree"
OUTER = "round.outer"
CATCH_UP = "round.catch_up"

MAX_QUEUED_SPANS = 8192
"""Spans that wait for the exporter, ~1 kB each; beyond it new ones push out old ones. Less loses bursts."""
EXPORT_DELAY_MS = 1000
"""Between two exports: what a SIGKILL loses. Longer loses more, shorter makes more and smaller requests."""
EXPORT_SECONDS = 5.0
"""One OTLP request, retries included, may take so long; it bounds `shutdown` together with its argument."""


@dataclass(frozen=True)
class _Tracing:
    """What `setup` made in this process."""

    provider: TracerProvider
    exporter: GuardedExporter
    tracer: otel.Tracer
    started: int


_tracing: _Tracing | None = None
_forced: ContextVar[tuple[int, int] | None] = ContextVar("forced_ids", default=None)
_attempts = itertools.count()


def round_trace_id(run: str, round_: int) -> int:
    """The 128-bit trace id of a round, the same on every peer."""
    return int.from_bytes(_hash("trace", run, round_)[:16], "big") or 1


def span_id(run: str, round_: int, *key: object) -> int:
    """The 64-bit id of a span that others can name without having met it; `("root",)` is the round's root."""
    return int.from_bytes(_hash("span", run, round_, *key)[:8], "big") or 1


def service_name(peer: PeerId, name: str = "") -> str:
    """What a peer is called in the trace viewer; all PeerIds begin alike, so without a name it is the end."""
    return f"peer-{name or peer[-8:]}"


def setup(config: TraceConfig, *, run: str, peer: PeerId, name: str, state_dir: Path) -> None:
    """Start exporting this process's spans; a second call does nothing.

    Raises:
        MissingExtraError: an exporter is chosen and the OpenTelemetry SDK is not installed. Nothing else is
            raised: if the exporter cannot be made, that is logged and spans stay no-ops.
    """
    global _tracing
    if _tracing is not None or config.exporter == "off":
        return
    try:
        _tracing = _start(config, service_name(peer, name), run, peer, state_dir)
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
        plan: the round; its attributes go onto the span, and `swarm.round` onto every span inside.
        incarnation: how often this peer has begun this round, if the caller knows: others can then compute
            the span's id. By default a number that no other start of this peer has, so that a restart never
            repeats an id.
    """
    if _tracing is None:
        yield otel.INVALID_SPAN
        return
    trace_id = round_trace_id(plan.run, plan.round)
    root = SpanContext(trace_id, span_id(plan.run, plan.round, "root"), True, TraceFlags(TraceFlags.SAMPLED))
    context = otel.set_span_in_context(NonRecordingSpan(root), Context())
    context = baggage.set_baggage("swarm.round", str(plan.round), context)
    begun = incarnation if incarnation is not None else f"{_tracing.started}.{next(_attempts)}"
    about = {
        "run": plan.run,
        "round": plan.round,
        "peer": plan.peer,
        "slot": plan.slot,
        "anchor": plan.anchor,
    }
    with _ids(trace_id, span_id(plan.run, plan.round, plan.peer, ROUND, begun)):
        span_ = _tracing.tracer.start_span(ROUND, context, attributes=_swarm(**about, roster=len(plan.roster)))
    with _within(context), _open(span_):
        yield span_


def root_span(run: str, round_: RoundIndex, start_ns: int, end_ns: int, **attributes: object) -> None:
    """Emit the root of a round; the proposer calls it once, when the round is over (Unix time in ns)."""
    if _tracing is None:
        return
    about = _swarm(**attributes, run=run, round=round_)
    with _ids(round_trace_id(run, round_), span_id(run, round_, "root")):
        root = _tracing.tracer.start_span(SWARM_ROUND, Context(), attributes=about, start_time=start_ns)
    root.end(end_ns)


@contextmanager
def span(name: str, /, *, remote: str | None = None, **attributes: object) -> Iterator[Span]:
    """A child of the current span. An exception that leaves it marks it as failed, in one line, no stack.

    Args:
        name: one of the constants above.
        remote: `service_name` of the peer at the other end, if there is one; viewers draw an arrow to it.
        attributes: numbers and text, `swarm.` is put before their names; None is left out.
    """
    if _tracing is None:
        yield otel.INVALID_SPAN
        return
    values = _swarm(round=_current_round()) | _swarm(**attributes)
    if remote is not None:
        # The first is the convention now, the second is what Jaeger's UI reads.
        values |= {"service.peer.name": remote, "peer.service": remote}
    with _open(_tracing.tracer.start_span(name, attributes=values)) as span_:
        yield span_


def annotate(**attributes: object) -> None:
    """Add attributes to the current span: what is known only at its end."""
    otel.get_current_span().set_attributes(_swarm(**attributes))


def carrier() -> dict[str, str]:
    """The current span as W3C headers, to be taken into another process or actor of this peer."""
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    W3CBaggagePropagator().inject(headers)
    return headers


@contextmanager
def attached(headers: Mapping[str, str]) -> Iterator[None]:
    """Spans made inside are children of the span whose `carrier()` this is: one of our own peer."""
    context = TraceContextTextMapPropagator().extract(dict(headers), Context())
    with _within(W3CBaggagePropagator().extract(dict(headers), context)):
        yield


def _start(config: TraceConfig, service: str, run: str, peer: PeerId, state_dir: Path) -> _Tracing:
    """Everything is passed explicitly: what is left out the SDK would read from environment variables."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

    from elastic.trace_file import CountedBatches, GuardedExporter, SwarmIds, make_exporter

    exporter = GuardedExporter(make_exporter(config, state_dir, EXPORT_SECONDS))
    identity = {"service.name": service, "service.namespace": run, "service.instance.id": peer}
    provider = TracerProvider(
        sampler=ParentBased(ALWAYS_ON),
        resource=Resource({**identity, "swarm.peer.id": peer}),
        shutdown_on_exit=False,
        id_generator=SwarmIds(_forced),
    )
    batches = CountedBatches(
        exporter,
        max_queue_size=MAX_QUEUED_SPANS,
        schedule_delay_millis=EXPORT_DELAY_MS,
        max_export_batch_size=512,
        export_timeout_millis=1000 * EXPORT_SECONDS,
    )
    provider.add_span_processor(batches)
    return _Tracing(provider, exporter, provider.get_tracer("elastic"), started=time.time_ns())


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
    with otel.use_span(span_, end_on_exit=True, record_exception=False):
        try:
            yield span_
        except asyncio.CancelledError:
            # No error: a deadline passed, or nobody waits any more.
            span_.set_attribute("swarm.cancelled", True)
            raise


def _current_round() -> int | None:
    value = baggage.get_baggage("swarm.round")
    return int(value) if isinstance(value, str) and value.isdecimal() else None


def _swarm(**attributes: object) -> dict[str, Any]:
    return {f"swarm.{key}": _plain(value) for key, value in attributes.items() if value is not None}


def _plain(value: object) -> str | bool | int | float:
    """OTLP's integers have 64 bits; everything that is not a number becomes text."""
    if isinstance(value, bool | float):
        return value
    return value if isinstance(value, int) and abs(value) < 2**63 else str(value)


def _hash(*key: object) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
