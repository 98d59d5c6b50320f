"""Spans on their way out: what is lost is counted, and what arrives at others' collectors is whole."""

import gzip
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from test_trace import PEERS, attributes, lines, plan

from elastic import trace, trace_file
from elastic.config_local import TraceConfig
from elastic.trace_ids import fine_trace_id, pack_context, sampled


@pytest.fixture(autouse=True)
def _off_afterwards() -> Iterator[None]:
    yield
    trace.shutdown()


def setup(state_dir: Path, **config: Any) -> None:
    trace.setup(
        TraceConfig.model_validate(config), run="demo", peer=PEERS[0], name="ada", state_dir=state_dir
    )  # fmt: skip


def written(state_dir: Path) -> list[dict[str, Any]]:
    trace.shutdown()
    path = state_dir / "traces.jsonl"
    groups = [group for line in lines(path) for group in line["resourceSpans"]] if path.exists() else []
    return [span for group in groups for scope in group["scopeSpans"] for span in scope["spans"]]


# --- what spans tell ---


def test_amounts_add_up_and_events_and_failures_are_told(tmp_path: Path) -> None:
    setup(tmp_path)
    with trace.round_span(plan()), trace.span(trace.OUTER):
        trace.tally(disk_s=0.5, disk_bytes=10)
        trace.tally(disk_s=0.25, disk_bytes=5)
        trace.event("refused", peer=PEERS[1], because="x" * 5000, nothing=None)
        trace.failed("no quorum " + "x" * 5000)
    outer = next(span for span in written(tmp_path) if span["name"] == trace.OUTER)
    assert attributes(outer)["swarm.disk_s"] == 0.75 and attributes(outer)["swarm.disk_bytes"] == "15"
    (event,) = outer["events"]
    assert event["name"] == "refused"
    assert {key: len(value) for key, value in attributes(event).items()} == {
        "swarm.peer": len(PEERS[1]), "swarm.because": trace.MAX_TEXT,
    }  # fmt: skip
    assert outer["status"]["code"] == 2 and len(outer["status"]["message"]) == trace.MAX_TEXT


def test_outside_of_spans_and_without_tracing_nothing_is_told(tmp_path: Path) -> None:
    trace.tally(disk_s=1.0)
    trace.event("lost")
    trace.failed("lost")
    assert not trace.active() and trace.wire_context() == b"" and trace.carrier() == {}
    with trace.fine("fine.x") as marks:
        assert not marks.active
    setup(tmp_path)
    trace.tally(disk_s=1.0)
    trace.event("lost")
    assert not trace.active() and trace.wire_context() == b""
    assert written(tmp_path) == []


def test_links_are_to_spans_of_the_same_trace_only(tmp_path: Path) -> None:
    setup(tmp_path)
    with trace.round_span(plan()) as round_:
        own = trace.wire_context()
        ids = round_.get_span_context()
        assert own == pack_context(ids.trace_id, ids.span_id)
        others = (pack_context(ids.trace_id + 1, 5), b"garbage", b"", b"\xff" * 26)
        with trace.span(trace.SERVE, links=(own, *others)):
            pass
    serve = next(span for span in written(tmp_path) if span["name"] == trace.SERVE)
    assert [link["spanId"] for link in serve["links"]] == [f"{ids.span_id:016x}"]


def test_a_round_that_is_not_sampled_leaves_nothing_here_or_in_its_actors(tmp_path: Path) -> None:
    out = next(round_ for round_ in range(100) if not sampled(trace.round_trace_id("demo", round_), 0.5))
    setup(tmp_path, sample=0.5, fine=True)
    with trace.round_span(plan(round_=out)):
        assert not trace.active()
        headers = trace.carrier()
        with trace.span(trace.INNER), trace.fine("fine.x") as marks:
            marks.add("fine.step", 0, 1)
    with trace.attached(headers), trace.span("worker.inner_steps"):
        assert not trace.active()
    trace.root_span("demo", plan(round_=out).round, 0, 1)
    assert written(tmp_path) == []


def test_fine_spans_are_in_a_trace_of_the_peers_own_that_links_to_its_round(tmp_path: Path) -> None:
    setup(tmp_path, fine=True)
    with trace.round_span(plan()) as round_, trace.span(trace.INNER):
        headers = trace.carrier()
    with trace.attached(headers), trace.span("worker.inner_steps"), trace.fine("fine.inner_steps") as marks:
        for step in range(trace.MAX_FINE + 10):
            marks.add("fine.step", step, step + 1, step=step)
    spans = written(tmp_path)
    ids = round_.get_span_context()
    own = [span for span in spans if span["traceId"] == f"{fine_trace_id(ids.trace_id, ids.span_id):032x}"]
    (root,) = [span for span in own if "parentSpanId" not in span]
    (phase,) = [span for span in own if span["name"] == "fine.inner_steps"]
    steps = [span for span in own if span["name"] == "fine.step"]
    assert root["name"] == trace.FINE_ROUND and "links" not in root
    assert phase["parentSpanId"] == root["spanId"]
    assert [(link["traceId"], link["spanId"]) for link in phase["links"]] == [
        (f"{ids.trace_id:032x}", f"{ids.span_id:016x}")
    ]
    assert len(steps) == trace.MAX_FINE
    assert {span["parentSpanId"] for span in steps} == {phase["spanId"]} and "links" not in steps[0]


def test_without_being_asked_for_there_are_no_fine_spans(tmp_path: Path) -> None:
    setup(tmp_path)
    with trace.round_span(plan()), trace.span(trace.INNER), trace.fine("fine.x") as marks:
        assert not marks.active
    assert {span["name"] for span in written(tmp_path)} == {trace.ROUND, trace.INNER}


# --- what is lost ---


class Gate(SpanExporter):
    """Takes nothing until it is opened."""

    def __init__(self) -> None:
        self.open, self.blocked = threading.Event(), threading.Event()
        self.taken = 0

    def export(self, spans: Any) -> SpanExportResult:
        self.blocked.set()
        self.open.wait(30)
        self.taken += len(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to free."""


def test_what_an_exporter_is_too_slow_for_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    monkeypatch.setattr(trace, "MAX_QUEUED_SPANS", 1000)
    monkeypatch.setattr(trace_file, "make_exporter", lambda *_: gate)
    setup(tmp_path)
    for _ in range(5000):
        with trace.span("many"):
            pass
    assert gate.blocked.wait(30)
    tracing = trace._tracing
    assert tracing is not None
    gate.open.set()
    trace.shutdown(30)
    lost = 5000 - gate.taken
    assert 3000 <= lost <= 4000
    assert tracing.exporter.dropped == lost
    assert [record.getMessage() for record in caplog.records] == [
        "spans are lost, training goes on: they end faster than they are exported",
        f"{lost} of 5000 spans of this process were lost",
    ]


class Flaky(SpanExporter):
    """Refuses the first so many batches."""

    def __init__(self, refuses: int) -> None:
        self.refuses = refuses
        self.taken: list[Any] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.refuses -= 1
        if self.refuses >= 0:
            return SpanExportResult.FAILURE
        self.taken += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to free."""


def offered(exporter: trace_file.GuardedExporter, batches: int, size: int) -> None:
    """So many batches, of numbers in place of spans."""
    for batch in range(batches):
        spans: list[Any] = list(range(batch * size, (batch + 1) * size))
        for _ in spans:
            exporter.note_end()
        exporter.export(spans)


def test_an_endpoint_that_comes_back_gets_what_it_missed(caplog: pytest.LogCaptureFixture) -> None:
    # given an endpoint that is away for two batches
    endpoint = Flaky(2)
    exporter = trace_file.GuardedExporter(endpoint)
    # when
    with caplog.at_level(logging.INFO, "elastic"):
        offered(exporter, batches=4, size=10)
        exporter.shutdown()
    # then it has each span once
    assert sorted(endpoint.taken) == list(range(40))
    assert (exporter.exported, exporter.dropped) == (40, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "spans cannot be exported, training goes on: the endpoint did not take them",
        "spans are exported again; 0 were lost so far",
    ]


def test_what_an_endpoint_missed_is_kept_within_bounds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_file, "MAX_REFUSED", 25)
    endpoint = Flaky(5)
    exporter = trace_file.GuardedExporter(endpoint)
    offered(exporter, batches=7, size=10)
    exporter.shutdown()
    # the oldest batches were given up
    assert sorted(endpoint.taken) == list(range(30, 70))
    assert (exporter.exported, exporter.dropped) == (40, 30)
    assert caplog.messages[-1] == "30 of 70 spans of this process were lost"


class Picky(SpanExporter):
    """Takes everything but some spans, ever."""

    def __init__(self, never: set[int]) -> None:
        self.never, self.offers = never, 0

    def export(self, spans: Any) -> SpanExportResult:
        self.offers += 1
        return SpanExportResult.FAILURE if self.never & set(spans) else SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to free."""


def test_a_batch_that_is_never_taken_is_given_up_and_not_told_again_and_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoint = Picky({15})
    exporter = trace_file.GuardedExporter(endpoint)
    with caplog.at_level(logging.INFO, "elastic"):
        offered(exporter, batches=20, size=10)
        exporter.shutdown()
    assert endpoint.offers == 20 + trace_file.MOST_TRIES
    assert (exporter.exported, exporter.dropped) == (190, 10)
    assert [record.getMessage() for record in caplog.records] == [
        "spans cannot be exported, training goes on: the endpoint did not take them",
        "spans are exported again; 0 were lost so far",
        "10 of 200 spans of this process were lost",
    ]


def test_what_waits_to_be_offered_again_goes_before_the_end_if_there_is_time() -> None:
    for seconds, missed in ((60.0, 0), (-1.0, 20)):
        endpoint = Flaky(3)
        exporter = trace_file.GuardedExporter(endpoint)
        offered(exporter, batches=4, size=10)  # the first of three is offered again at once
        exporter.stop_by(time.monotonic() + seconds)
        exporter.shutdown()
        assert (exporter.exported, exporter.dropped) == (40 - missed, missed)


def test_nothing_lost_is_nothing_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    setup(tmp_path)
    for _ in range(1000):
        with trace.span("many"):
            pass
    assert len(written(tmp_path)) == 1000
    assert caplog.records == []


# --- collectors ---


@pytest.fixture
def collector() -> Iterator[tuple[int, list[Any], threading.Event]]:
    """Port, the spans that came (protobuf), and an event that is set when one did."""
    found: list[Any] = []
    came = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                named = {each.key: each.value.string_value for each in group.resource.attributes}
                named["header"] = self.headers.get("X-Other", "")
                found.extend((named, span) for scope in group.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()
            came.set()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port, found, came
        server.shutdown()
        thread.join()


def a_round(count: int) -> None:
    with trace.round_span(plan()):
        for at in range(count):
            with trace.span(trace.FETCH, peer_from=PEERS[1], bytes=at):
                trace.event("from", peer=PEERS[1], bytes=at)
    trace.root_span("demo", plan().round, 1_000, 2_000)


def check(found: list[Any], count: int) -> None:
    """Every span came once, whole and in its place."""
    spans = {span.span_id: span for _, span in found}
    assert len(spans) == len(found) == count + 2
    assert {named["service.name"] for named, _ in found} == {"peer-ada"}
    assert {span.trace_id for span in spans.values()} == {trace.round_trace_id("demo", 7).to_bytes(16, "big")}
    (root,) = [span for span in spans.values() if not span.parent_span_id]
    (round_,) = [span for span in spans.values() if span.name == trace.ROUND]
    assert (root.name, round_.parent_span_id) == (trace.SWARM_ROUND, root.span_id)
    fetches = [span for span in spans.values() if span.name == trace.FETCH]
    assert {span.parent_span_id for span in fetches} == {round_.span_id}
    told = [{each.key: each.value for each in span.events[0].attributes}["swarm.bytes"].int_value for span in fetches]
    assert sorted(told) == list(range(count))


def test_an_otlp_collector_gets_every_span(tmp_path: Path, collector: tuple[int, list[Any], threading.Event]) -> None:
    port, found, _ = collector
    setup(tmp_path, exporter="otlp", endpoint=f"http://127.0.0.1:{port}/v1/traces")
    a_round(1500)
    trace.shutdown(30)
    check(found, 1500)


def test_variables_that_are_meant_for_others_change_nothing(
    tmp_path: Path, collector: tuple[int, list[Any], threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, found, _ = collector
    # given an environment in which other programs are told to be silent, or whom to tell
    others = {
        "OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_HEADERS": "x-other=secret", "OTEL_SERVICE_NAME": "other",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=other",
    }  # fmt: skip
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    # then the run file's word counts
    setup(tmp_path, exporter="otlp", endpoint=f"http://127.0.0.1:{port}/v1/traces")
    a_round(3)
    trace.shutdown(30)
    check(found, 3)
    assert {named["header"] for named, _ in found} == {""}
    # and the others find what they were told
    assert {name: os.environ[name] for name in others} == others


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(holds: Callable[[], bool], event: threading.Event | None = None) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        if event is None or not event.wait(0.05):
            time.sleep(0.02)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_collector_of_somebody_else_in_between(
    tmp_path: Path, collector: tuple[int, list[Any], threading.Event]
) -> None:
    rotel = pytest.importorskip("rotel", reason="rotel is not installed")
    agent = Path(rotel.__file__).parent / "rotel-agent"
    port, found, came = collector
    http, grpc = free_port(), free_port()
    command = [
        agent, "start", "--otlp-http-endpoint", f"127.0.0.1:{http}", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}",
        "--exporter", "otlp", "--otlp-exporter-endpoint", f"http://127.0.0.1:{port}", "--otlp-exporter-protocol",
        "http", "--batch-timeout", "100ms",
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ROTEL_")}
    with (tmp_path / "rotel.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until(lambda: answers(http) or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "rotel.log").read_text()
        setup(tmp_path, exporter="otlp", endpoint=f"http://127.0.0.1:{http}/v1/traces")
        a_round(1500)
        trace.shutdown(30)
        until(lambda: len(found) >= 1502, came)
    finally:
        process.terminate()
        process.wait(30)
    check(found, 1500)
