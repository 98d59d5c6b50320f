"""What the OpenTelemetry SDK needs from us. Only `elastic.trace` imports this, when tracing is set up."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import threading
import time
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from elastic.config_local import TraceConfig

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 32 * 2**20
"""Bytes of `traces.jsonl` before it becomes `traces.1.jsonl`: about 30,000 spans, and twice this on disk."""


MOST_TRIES = 3
"""A batch that is refused so often while others are taken is given up: something in it is not to the liking there."""
MAX_REFUSED = 8192
"""Spans that an exporter did not take and that it is offered again: a lost packet or a collector that starts anew must
not cost a round its trace."""


class FileExporter(SpanExporter):
    """OTLP-JSON, one line per batch: what Jaeger's UI and the OpenTelemetry collector read.

    Several processes of a peer may write the same file; a lock keeps lines whole and rotation single.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append one line.

        Raises:
            OSError: it could not be written; no part of it is left in the file.
        """
        line = otlp_json(spans)
        descriptor = self._locked(len(line))
        try:
            _append(descriptor, line)
        finally:
            os.close(descriptor)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is held open between batches."""

    def _locked(self, room: int) -> int:
        """A locked descriptor of a file with room for so many bytes."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if self._usable(descriptor, room):
                    return descriptor
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _usable(self, descriptor: int, room: int) -> bool:
        """False: another process rotated the file away while we waited for the lock, or we did now."""
        if not _is_at(descriptor, self._path):
            return False
        size = os.fstat(descriptor).st_size
        if size == 0 or size + room <= self._max_bytes:
            return True
        os.replace(self._path, self._path.with_suffix(".1" + self._path.suffix))
        return False


def make_exporter(config: TraceConfig, state_dir: Path, timeout: float) -> SpanExporter:
    """The exporter that the run file chooses; one request may take `timeout` seconds, retries included."""
    if config.exporter == "file":
        return FileExporter(state_dir / "traces.jsonl")
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    headers = {"Authorization": read_secret(config.authorization)} if config.authorization is not None else {}
    return OTLPSpanExporter(config.endpoint, headers=headers, timeout=timeout, compression=Compression.Gzip)


def read_secret(path: Path) -> str:
    """What a file holds that a run file names instead of the secret itself: one line.

    Raises:
        OSError, ValueError: it cannot be read, or is no line of a header.
    """
    text = path.read_text(encoding="ascii").strip()
    if not text.isprintable() or not text:
        raise ValueError(f"{path}: expected one line of text")
    return text


class SwarmIds(IdGenerator):
    """Forced ids where a span must be nameable by others, random ones elsewhere.

    From `secrets`, not from `random` as the SDK's own: training seeds `random`, equally on all peers.
    """

    def __init__(self, forced: ContextVar[tuple[int, int] | None]) -> None:
        self._forced = forced

    def generate_trace_id(self) -> int:
        forced = self._forced.get()
        return forced[0] if forced else secrets.randbits(128) or 1

    def generate_span_id(self) -> int:
        forced = self._forced.get()
        return forced[1] if forced else secrets.randbits(64) or 1

    def is_trace_id_random(self) -> bool:
        return True


class GuardedExporter(SpanExporter):
    """Any exporter, made harmless: it never raises, says once that it fails, is offered again what it did not take, in
    bounds, counts what is lost, stops when told."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._failing = self._crowded = False
        self._reason = ""
        self._refused: deque[tuple[Sequence[ReadableSpan], int]] = deque()
        """Batches, the oldest first, and how often each was refused."""
        self._deadline = float("inf")
        self._lock = threading.Lock()
        self.waiting: Callable[[], int] = lambda: 0
        """How many stand in the queue before it."""
        self.ended = 0
        """Spans that ended;"""
        self.exported = 0
        """that were exported;"""
        self.dropped = 0
        """and that never will be, as of the last export: pushed out by newer ones."""
        # The SDK logs every failed request, and what it drops; one line at the first and one at the end is enough.
        for name in ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def note_end(self) -> None:
        """One more span ended, and was put into the queue."""
        with self._lock:
            self.ended += 1

    def stop_by(self, deadline: float) -> None:
        """Drop what is not exported at this time (`time.monotonic`)."""
        self._deadline = deadline

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._reckon(under_way=len(spans)) and not self._crowded:
            self._crowded = True
            logger.warning("spans are lost, training goes on: they end faster than they are exported")
        if time.monotonic() > self._deadline:
            return SpanExportResult.FAILURE
        if self._offer(spans):
            self._again()
            self._tell(None)
            return SpanExportResult.SUCCESS
        self._tell(self._reason)
        self._refused.append((spans, 1))
        while sum(len(batch) for batch, _ in self._refused) > MAX_REFUSED:
            self.dropped += len(self._refused.popleft()[0])
        return SpanExportResult.FAILURE

    def _again(self) -> None:
        """Offer the oldest batch that was refused once more: others are taken now."""
        if self._refused and time.monotonic() <= self._deadline:
            batch, tries = self._refused.popleft()
            taken = self._offer(batch)
            if not taken and tries < MOST_TRIES:
                self._refused.appendleft((batch, tries + 1))
            elif not taken:
                self.dropped += len(batch)

    def _offer(self, spans: Sequence[ReadableSpan]) -> bool:
        """Whether they were taken."""
        self._reason = "the endpoint did not take them"
        try:
            taken = self._inner.export(spans) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001  telemetry never takes down training
            self._reason, taken = str(error), False
        self.exported += len(spans) * taken
        return taken

    def shutdown(self) -> None:
        while self._refused and not self._failing and time.monotonic() <= self._deadline:
            self._again()
        try:
            self._inner.shutdown()
        except Exception as error:  # noqa: BLE001  telemetry never takes down training
            logger.debug("closing the span exporter: %s", error)
        self.waiting = lambda: 0  # nobody asks for them any more
        self._refused.clear()
        self._reckon(under_way=0)
        if self.dropped:
            logger.warning("%d of %d spans of this process were lost", self.dropped, self.ended)

    def _reckon(self, under_way: int) -> bool:
        """Count anew what was dropped; whether it has become more: then some were pushed out."""
        before, ended = self.dropped, self.ended  # these first: what ends meanwhile waits
        kept = sum(len(batch) for batch, _ in self._refused)
        self.dropped = max(before, ended - self.exported - self.waiting() - under_way - kept)
        return self.dropped > before

    def _tell(self, reason: str | None) -> None:
        if reason is not None and not self._failing:
            logger.warning("spans cannot be exported, training goes on: %s", reason)
        if self._failing and reason is None:
            logger.info("spans are exported again; %d were lost so far", self.dropped)
        self._failing = reason is not None


class CountedBatches(BatchSpanProcessor):
    """Spans that wait for a guarded exporter, which is told how many ended and how many wait."""

    def __init__(self, exporter: GuardedExporter, **settings: Any) -> None:
        super().__init__(exporter, **settings)
        self._guarded = exporter
        exporter.waiting = lambda: len(self._batch_processor._queue)

    def on_end(self, span: ReadableSpan) -> None:
        super().on_end(span)
        if span.context is not None and span.context.trace_flags.sampled:
            self._guarded.note_end()


@contextmanager
def run_file_alone() -> Iterator[None]:
    """What OpenTelemetry makes inside is as the run file says; OTEL_… variables, meant for others, change nothing."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("OTEL_")}
    try:
        yield
    finally:
        os.environ.update(hidden)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What spans may cost."""

    queued: int
    """Spans that wait."""
    delay_ms: float
    """Between two exports."""
    export_seconds: float
    """One export, retries included."""
    events: int
    """Of one span."""
    letters: int
    """Of one text."""


def provide(
    config: TraceConfig,
    identity: Mapping[str, str],
    state_dir: Path,
    forced: ContextVar[tuple[int, int] | None],
    bounds: Bounds,
) -> tuple[TracerProvider, GuardedExporter]:
    """The SDK, set up; within `run_file_alone`, as it reads variables in many places."""
    exporter = GuardedExporter(make_exporter(config, state_dir, bounds.export_seconds))
    limits = SpanLimits(
        max_span_attributes=64, max_events=bounds.events, max_links=16, max_event_attributes=16,
        max_link_attributes=4, max_attribute_length=bounds.letters, max_span_attribute_length=bounds.letters,
    )  # fmt: skip
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.sample)),
        resource=Resource(identity),
        shutdown_on_exit=False,
        id_generator=SwarmIds(forced),
        span_limits=limits,
    )
    batches = CountedBatches(
        exporter,
        max_queue_size=bounds.queued,
        schedule_delay_millis=bounds.delay_ms,
        max_export_batch_size=512,
        export_timeout_millis=1000 * bounds.export_seconds,
    )
    provider.add_span_processor(batches)
    return provider, exporter


def otlp_json(spans: Sequence[ReadableSpan]) -> bytes:
    """Spans as one line of OTLP-JSON."""
    return as_json(encode_spans(spans))


def as_json(request: ExportTraceServiceRequest) -> bytes:
    """One line of OTLP-JSON: protobuf's JSON, but ids in hex and enums as numbers, as OTLP demands."""
    tree = MessageToDict(request, use_integers_for_enums=True)
    for resource in tree.get("resourceSpans", ()):
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                _ids_to_hex(span)
    return json.dumps(tree, separators=(",", ":")).encode() + b"\n"


def _ids_to_hex(span: dict[str, Any]) -> None:
    for holder in (span, *span.get("links", ())):
        for key in ("traceId", "spanId", "parentSpanId"):
            if key in holder:
                holder[key] = b64decode(holder[key]).hex()


def _append(descriptor: int, line: bytes) -> None:
    size = os.fstat(descriptor).st_size
    try:
        written = 0
        while written < len(line):
            written += os.write(descriptor, line[written:])
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
