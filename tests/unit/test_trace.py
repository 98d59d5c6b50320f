"""One trace per round: ids that all peers compute alike, spans that nest, and exporters that cannot hurt."""

import asyncio
import gzip
import json
import logging
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from elastic import trace, trace_file
from elastic.config_local import TraceConfig
from elastic.errors import MissingExtraError
from elastic.messages import Digest, PeerId, RoundIndex, RoundPlan

PEERS = [PeerId("12D3KooW" + letter * 44) for letter in "AB"]


def plan(peer: PeerId = PEERS[0], round_: int = 7) -> RoundPlan:
    return RoundPlan(
        run="demo",
        round=RoundIndex(round_),
        previous=Digest("a" * 64),
        anchor=Digest("b" * 64),
        peer=peer,
        roster=tuple(PEERS),
        slot=0,
        inner_steps=1,
        seed=0,
        train_seconds=1.0,
        gather_seconds=1.0,
    )


def setup(state_dir: Path, exporter: str = "file", peer: PeerId = PEERS[0]) -> None:
    config = TraceConfig.model_validate({"exporter": exporter})
    trace.setup(config, run="demo", peer=peer, name="ada", state_dir=state_dir)


@pytest.fixture(autouse=True)
def _off_afterwards() -> Iterator[None]:
    yield
    trace.shutdown()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def spans(state_dir: Path) -> dict[str, dict[str, Any]]:
    """Name → span, from the file."""
    trace.shutdown()
    groups = [scope for line in lines(state_dir / "traces.jsonl") for scope in line["resourceSpans"]]
    return {span["name"]: span for group in groups for scope in group["scopeSpans"] for span in scope["spans"]}


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in span.get("attributes", ())}


def test_ids_are_the_same_in_every_process() -> None:
    code = "from elastic.trace import *; print(round_trace_id('demo', 7), span_id('demo', 7, 'root'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.split() == [str(trace.round_trace_id("demo", 7)), str(trace.span_id("demo", 7, "root"))]


def test_ids_differ_between_runs_rounds_and_spans() -> None:
    assert len({trace.round_trace_id(run, round_) for run in ("a", "b") for round_ in range(50)}) == 100
    assert len({trace.span_id("a", round_, key) for round_ in range(50) for key in ("root", "x")}) == 100


def test_two_peers_meet_in_one_trace_under_one_root(tmp_path: Path) -> None:
    found = []
    for index, peer in enumerate(PEERS):
        setup(tmp_path / str(index), peer=peer)
        with trace.round_span(plan(peer)):
            pass
        if index == 0:
            trace.root_span("demo", RoundIndex(7), 1_000, 2_000, counted=2)
        found.append(spans(tmp_path / str(index)))
    root = found[0][trace.SWARM_ROUND]
    rounds = [each[trace.ROUND] for each in found]
    assert {each["traceId"] for each in (root, *rounds)} == {f"{trace.round_trace_id('demo', 7):032x}"}
    assert {each["parentSpanId"] for each in rounds} == {root["spanId"]}
    assert rounds[0]["spanId"] != rounds[1]["spanId"]
    assert "parentSpanId" not in root
    assert (root["startTimeUnixNano"], root["endTimeUnixNano"]) == ("1000", "2000")
    assert attributes(root)["swarm.counted"] == "2"


def test_a_named_incarnation_gives_an_id_that_others_can_compute(tmp_path: Path) -> None:
    setup(tmp_path)
    with trace.round_span(plan(), incarnation=3):
        pass
    expected = trace.span_id("demo", 7, PEERS[0], trace.ROUND, 3)
    assert spans(tmp_path)[trace.ROUND]["spanId"] == f"{expected:016x}"


def test_a_round_begun_twice_has_two_ids(tmp_path: Path) -> None:
    setup(tmp_path)
    with trace.round_span(plan()) as first:
        pass
    with trace.round_span(plan()) as second:
        pass
    assert first.get_span_context().span_id != second.get_span_context().span_id


def test_spans_nest_and_carry_the_round(tmp_path: Path) -> None:
    setup(tmp_path)
    with (
        trace.round_span(plan()),
        trace.span(trace.GATHER),
        trace.span(trace.FETCH, remote="peer-bob", peer_from=PEERS[1], bytes=10, nothing=None),
    ):
        trace.annotate(verdict="accepted")
    found = spans(tmp_path)
    assert found[trace.FETCH]["parentSpanId"] == found[trace.GATHER]["spanId"]
    assert found[trace.GATHER]["parentSpanId"] == found[trace.ROUND]["spanId"]
    assert attributes(found[trace.FETCH]) == {
        "swarm.round": "7",
        "swarm.peer": PEERS[0],
        "swarm.peer_from": PEERS[1],
        "swarm.bytes": "10",
        "swarm.verdict": "accepted",
        "service.peer.name": "peer-bob",
        "peer.service": "peer-bob",
    }


async def test_tasks_keep_their_own_place_in_the_tree(tmp_path: Path) -> None:
    setup(tmp_path)

    async def fetch(name: str) -> None:
        with trace.span(name):
            await asyncio.sleep(0)
            with trace.span(f"{name}.inner"):
                await asyncio.sleep(0)

    with trace.round_span(plan()):
        await asyncio.gather(fetch("a"), fetch("b"))
    found = spans(tmp_path)
    for name in ("a", "b"):
        assert found[f"{name}.inner"]["parentSpanId"] == found[name]["spanId"]
        assert found[name]["parentSpanId"] == found[trace.ROUND]["spanId"]


def test_a_carrier_takes_the_context_into_another_actor(tmp_path: Path) -> None:
    setup(tmp_path)
    with trace.round_span(plan()):
        headers = trace.carrier()
    with trace.attached(json.loads(json.dumps(headers))), trace.span(trace.INNER):
        pass
    with trace.span("elsewhere"):
        pass
    found = spans(tmp_path)
    assert found[trace.INNER]["parentSpanId"] == found[trace.ROUND]["spanId"]
    assert attributes(found[trace.INNER])["swarm.round"] == "7"
    assert found["elsewhere"]["traceId"] != found[trace.INNER]["traceId"]


def test_what_goes_wrong_shows_in_one_line(tmp_path: Path) -> None:
    setup(tmp_path)
    with pytest.raises(ValueError, match="broken"), trace.span(trace.OUTER):
        raise ValueError("broken")
    with pytest.raises(asyncio.CancelledError), trace.span(trace.FETCH):
        raise asyncio.CancelledError
    found = spans(tmp_path)
    assert found[trace.OUTER]["status"] == {"code": 2, "message": "ValueError: broken"}
    assert "events" not in found[trace.OUTER]
    assert attributes(found[trace.FETCH]) == {"swarm.cancelled": True}


def test_the_file_is_otlp_json(tmp_path: Path) -> None:
    setup(tmp_path)
    with trace.round_span(plan()), trace.span(trace.INNER, huge=2**70, loss=1.5, odd=Path("x")):
        pass
    trace.shutdown()
    (line,) = lines(tmp_path / "traces.jsonl")
    for scope in line["resourceSpans"][0]["scopeSpans"]:
        for span in scope["spans"]:
            assert isinstance(span["kind"], int)
            for key in (
                "traceId",
                "spanId",
                "parentSpanId",
            ):  # protobuf's own JSON has base64 where OTLP has hex
                span[key] = b64encode(bytes.fromhex(span[key])).decode()
    request = ParseDict(line, ExportTraceServiceRequest())
    (resource,) = request.resource_spans
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert named["service.name"] == "peer-ada"
    assert named["service.namespace"] == "demo"
    assert named["service.instance.id"] == PEERS[0]
    (scope,) = resource.scope_spans
    inner = scope.spans[0]
    assert inner.trace_id == trace.round_trace_id("demo", 7).to_bytes(16, "big")
    values = {each.key: each.value for each in inner.attributes}
    assert values["swarm.huge"].string_value == str(2**70)
    assert values["swarm.loss"].double_value == 1.5
    assert values["swarm.odd"].string_value == "x"


def test_a_nameless_peer_is_called_by_the_end_of_its_id() -> None:
    assert trace.service_name(PEERS[1]) == "peer-BBBBBBBB"


def test_the_file_is_rotated_at_its_bound(tmp_path: Path) -> None:
    exporter = trace_file.FileExporter(tmp_path / "t.jsonl", max_bytes=600)
    with TracerProvider().get_tracer("test").start_as_current_span("one") as span:
        pass
    for _ in range(5):
        exporter.export([span])  # type: ignore[list-item]
    assert len(lines(tmp_path / "t.jsonl")) >= 1
    assert len(lines(tmp_path / "t.1.jsonl")) >= 1
    assert all(path.stat().st_size <= 700 for path in tmp_path.iterdir())


def test_a_failed_write_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = trace_file.FileExporter(tmp_path / "t.jsonl")
    with TracerProvider().get_tracer("test").start_as_current_span("one") as span:
        pass
    exporter.export([span])  # type: ignore[list-item]
    write = trace_file.os.write
    steps = iter([lambda fd, data: write(fd, data[:10]), None])

    def full(descriptor: int, data: bytes) -> int:
        step = next(steps)
        if step is None:
            raise OSError(28, "No space left on device")
        return step(descriptor, data)

    monkeypatch.setattr(trace_file.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        exporter.export([span])  # type: ignore[list-item]
    assert len(lines(tmp_path / "t.jsonl")) == 1


def test_setup_twice_is_setup_once(tmp_path: Path) -> None:
    setup(tmp_path / "first")
    setup(tmp_path / "second")
    with trace.span("only"):
        pass
    assert "only" in spans(tmp_path / "first")
    assert not (tmp_path / "second").exists()


def test_off_loads_no_sdk_and_costs_nothing() -> None:
    code = """
import sys
from pathlib import Path
from elastic import trace
from elastic.config_local import TraceConfig
trace.setup(TraceConfig(exporter="off"), run="r", peer="p", name="", state_dir=Path("nowhere"))
with trace.span("x", a=1) as span:
    span.set_attribute("b", 2)
    trace.annotate(c=3)
trace.root_span("r", 1, 0, 1)
with trace.attached(trace.carrier()):
    pass
trace.shutdown()
assert not any("opentelemetry.sdk" in name or "google.protobuf" in name for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_sdk_the_message_is_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "elastic.trace_file")
    with pytest.raises(MissingExtraError, match=r"pip install 'elastic\[otel\]'"):
        setup(tmp_path)


class Broken(SpanExporter):
    """An exporter of which everything fails."""

    def export(self, spans: Any) -> SpanExportResult:
        raise RuntimeError("broken")

    def shutdown(self) -> None:
        raise RuntimeError("broken too")


def test_a_broken_exporter_never_raises_and_says_so_once_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trace_file, "make_exporter", lambda *_: Broken())
    setup(tmp_path)
    for _ in range(1000):
        with trace.span("lost"):
            pass
    trace.shutdown()
    assert [record.getMessage() for record in caplog.records] == [
        "spans cannot be exported, training goes on: broken", "1000 of 1000 spans of this process were lost",
    ]  # fmt: skip


def test_an_unwritable_directory_never_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    setup(tmp_path / "file")
    with trace.span("lost"):
        pass
    trace.shutdown()
    assert "spans cannot be exported" in caplog.text


def test_an_exporter_that_cannot_be_made_leaves_spans_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> SpanExporter:
        raise ValueError("bad endpoint")

    monkeypatch.setattr(trace_file, "make_exporter", refuse)
    setup(tmp_path)
    with trace.span("lost") as span:
        assert not span.is_recording()
    assert "bad endpoint" in caplog.text


def test_otlp_reaches_a_collector(tmp_path: Path) -> None:
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = gzip.decompress(self.rfile.read(int(self.headers["Content-Length"])))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        config = TraceConfig(exporter="otlp", endpoint=f"http://127.0.0.1:{server.server_port}/v1/traces")
        trace.setup(config, run="demo", peer=PEERS[0], name="ada", state_dir=tmp_path)
        with trace.round_span(plan()):
            pass
        trace.shutdown()
        server.shutdown()
        thread.join()
    (span,) = received[0].resource_spans[0].scope_spans[0].spans
    assert span.parent_span_id == trace.span_id("demo", 7, "root").to_bytes(8, "big")


def test_a_dead_endpoint_delays_the_end_by_seconds_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "EXPORT_SECONDS", 0.2)
    config = TraceConfig(exporter="otlp", endpoint="http://127.0.0.1:9/v1/traces")
    trace.setup(config, run="demo", peer=PEERS[0], name="", state_dir=tmp_path)
    with caplog.at_level(logging.WARNING, "elastic"):
        for _ in range(2000):
            with trace.span("lost"):
                pass
        trace.shutdown(0.2)
    assert "spans cannot be exported" in caplog.text
