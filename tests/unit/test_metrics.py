"""Metrics: one table, every line of it emitted, bounded whatever strangers do, and never in training's way."""

import asyncio
import gzip
import logging
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from elastic import metrics_export, trace
from elastic.actors.mailbox import Mailbox
from elastic.actors.measuring import Measuring, alarms, landed_ago
from elastic.check import check_values, notes
from elastic.config_local import MetricsConfig, TraceConfig
from elastic.errors import ConfigError, MissingExtraError
from elastic.messages import PeerId, RejectReason
from elastic.metrics import FAILED, INSTRUMENTS, MAX_PEERS, OTHER, Instrument, Meters, PeerTally, reason_of
from elastic.metrics_export import Exports, register
from elastic.reports import PeerStatus
from elastic.schedule.decide import Skip, decide_commit
from elastic.view import status_table
from tests.unit.metrics_cases import ANN, BOB, config, exposed, fed, live, plan, report

ROOT = Path(__file__).parents[2]
RESOURCE = {"service.name": "peer-ann"}


def strangers(count: int) -> list[PeerId]:
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopq"
    return [PeerId("12D3KooX" + (letters[n // 40] + letters[n % 40]) * 22) for n in range(count)]


@contextmanager
def exporting(meters: Meters, **settings: Any) -> Iterator[Exports]:
    exports = Exports(MetricsConfig.model_validate(settings), meters, RESOURCE)
    yield exports
    exports.close()


def emitted(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Instrument → attributes of each number that the SDK collects of it."""
    reader, meters = InMemoryMetricReader(), fed(folder)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    register(provider.get_meter("elastic"), meters)
    live(meters, folder)
    data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    return {
        metric.name: [dict(point.attributes or {}) for point in metric.data.data_points] for metric in scope.metrics
    }


def row(instrument: Instrument) -> str:
    attributes = ", ".join(f"`{each}`" for each in instrument.attributes)
    return f"| `{instrument.name}` | {instrument.kind} | {instrument.unit} | {attributes} | {instrument.description} |"


def test_the_table_in_the_docs_is_the_table_in_the_code() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `swarm.")]
    assert rows == [row(each) for each in INSTRUMENTS]


def test_names_are_ours_and_units_such_that_every_exporter_names_them_alike() -> None:
    assert len({each.name for each in INSTRUMENTS}) == len(INSTRUMENTS)
    for each in INSTRUMENTS:
        assert re.fullmatch(r"swarm(\.[a-z]+)+", each.name), each
        assert re.fullmatch(r"s|By|\{[a-z]+\}(/s)?", each.unit), each  # "1" is nothing here and "_ratio" elsewhere
        assert all(attribute.startswith("swarm.") for attribute in each.attributes), each


def test_every_instrument_is_emitted_with_exactly_its_attributes(tmp_path: Path) -> None:
    found = emitted(tmp_path)
    assert sorted(found) == sorted(each.name for each in INSTRUMENTS)
    for each in INSTRUMENTS:
        for attributes in found[each.name]:
            assert sorted(attributes) == sorted(each.attributes), each.name


def test_prometheus_sees_them_all_and_whose_they_are(tmp_path: Path) -> None:
    series = exposed(tmp_path)
    for each in INSTRUMENTS:
        begin = each.name.replace(".", "_")
        assert any(name.startswith(begin) for name in series), each.name
    assert {
        "service_name": "peer-ann", "service_namespace": "demo", "service_instance_id": ANN, "swarm_peer": BOB,
    } in series["swarm_score"]  # fmt: skip


def test_a_rounds_numbers_are_those_of_its_report(tmp_path: Path) -> None:
    meters = fed(tmp_path)
    live(meters, tmp_path)
    live(meters, tmp_path)
    assert meters.numbers("swarm.tokens") == {(): 2000}
    assert meters.numbers("swarm.loss") == {(): 5.5}
    assert meters.numbers("swarm.rounds.skipped") == {(("swarm.reason", "copy"),): 2}
    assert meters.numbers("swarm.verdicts") == {
        (("swarm.verdict", "accepted"),): 2,
        (("swarm.verdict", "copy"),): 2,
    }
    assert meters.numbers("swarm.rounds.last") == {(("swarm.peer", BOB),): 2}
    assert meters.numbers("swarm.round.pace") == {(): 3.0}
    assert meters.numbers("swarm.round.deadline") == {(): 9.0}


def test_a_round_without_a_manifest_does_not_make_a_peer_young_again() -> None:
    now = [0.0]
    meters = Meters(lambda: now[0])
    now[0] = 5.0
    meters.recorded(report(manifest=None))
    assert meters.numbers("swarm.round.age") == {(): 5.0}
    meters.recorded(report())
    now[0] = 7.0
    assert meters.numbers("swarm.round.age") == {(): 2.0}


def test_a_crowd_of_names_makes_no_crowd_of_series_and_hides_nobody_on_the_roster() -> None:
    tally, crowd = PeerTally(), strangers(500)
    for peer in crowd:
        tally.add(peer, (), 1, {ANN})
    tally.add(ANN, (), 5, {ANN})
    for peer in crowd:
        tally.add(peer, (), 1, {ANN})
    numbers = {dict(labels)["swarm.peer"]: count for labels, count in tally.numbers().items()}
    assert len(numbers) == MAX_PEERS + 1
    assert numbers[ANN] == 5
    assert sum(numbers.values()) == 1005
    assert numbers[OTHER] > 800


def test_when_all_who_have_a_place_matter_the_next_is_among_the_rest() -> None:
    tally, roster = PeerTally(), strangers(MAX_PEERS + 1)
    for peer in roster:
        tally.add(peer, (), 1, roster)
    assert tally.numbers()[(("swarm.peer", OTHER),)] == 1


def test_what_is_no_peer_id_gets_no_series() -> None:
    tally = PeerTally()
    tally.add('"} evil 1\n', (), 1, ())
    assert tally.numbers() == {(("swarm.peer", OTHER),): 1}


def test_bytes_by_peer_go_on_when_who_counts_them_begins_anew() -> None:
    meters = Meters()
    meters.began(plan())
    for totals in ((100, 10), (150, 10), (20, 5)):  # the network actor was started again before the last
        meters.moved({BOB: totals})
    labels = {direction: (("swarm.direction", direction), ("swarm.peer", BOB)) for direction in ("out", "in")}
    numbers = meters.numbers("swarm.peer.bytes")
    assert (numbers[labels["out"]], numbers[labels["in"]]) == (170, 15)


def test_scores_are_those_of_the_roster() -> None:
    from elastic.messages import RoundIndex, Scoreboard

    meters = Meters()
    meters.began(plan())
    board = Scoreboard(round=RoundIndex(1), scores=dict.fromkeys([*strangers(100), ANN], 0.5))
    assert meters.scores(board) == {(("swarm.peer", ANN),): 0.5}
    assert meters.scores(None) == {}


@pytest.mark.parametrize(
    ("skipped", "reason"),
    [
        *((str(each), str(each)) for each in RejectReason),
        ("void: nobody's contribution counted", "void"),
        ("arrived after the round was decided", "late"),
        ("3 of 5 payloads that count could not be fetched yet", "payloads missing"),
        ("averaging demo-3: whatever a stranger said", FAILED),
    ],
)
def test_reasons_are_words_of_ours(skipped: str, reason: str) -> None:
    assert reason_of(skipped) == reason


def test_a_round_that_is_not_decided_has_a_reason_too() -> None:
    decision = decide_commit(plan(), None, [])
    assert isinstance(decision, Skip)
    assert reason_of(decision.because) == "no manifest"


def test_a_number_that_cannot_be_had_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    meters = Meters()
    meters.watch("swarm.disk.free", lambda: 1 / 0)
    with exporting(meters, prometheus="127.0.0.1:0") as exports:
        for _ in range(3):
            text = urllib.request.urlopen(exports.address).read().decode()
    assert "swarm_rounds_counted_total" in text
    assert "swarm_disk_free" not in text
    assert [record.getMessage() for record in caplog.records] == ["swarm.disk.free is not measured: division by zero"]


def test_a_port_that_is_taken_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with exporting(Meters(), prometheus="127.0.0.1:0") as first:
        where = first.address.removeprefix("http://").removesuffix("/metrics")
        with exporting(Meters(), prometheus=where) as second:
            assert second.address == ""
    assert f"no Prometheus endpoint at {where}, training goes on" in caplog.text


def test_off_starts_and_loads_nothing() -> None:
    code = """
import sys, threading
from pathlib import Path
from elastic.config import parse_config
from elastic.actors.mailbox import Mailbox
from elastic.actors.measuring import Measuring
from elastic.metrics import Meters
peer = "12D3KooW" + "A" * 44
config = parse_config({"shared": {"run": "demo", "agreement": {"validators": [peer]}}}, base=Path("nowhere"))
measuring = Measuring(config, peer, Meters())
assert measuring.start(Mailbox(), None) == ""
measuring.close()
loaded = [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
assert not loaded, loaded
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_without_the_sdk_the_message_is_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "elastic.metrics_export", None)
    measuring = Measuring(config(tmp_path, prometheus="127.0.0.1:0"), ANN, Meters())
    with pytest.raises(MissingExtraError, match=r"pip install 'elastic\[otel\]'"):
        measuring.start(Mailbox(), None)  # type: ignore[arg-type]


async def test_the_exchange_is_asked_only_once_it_has_started(tmp_path: Path) -> None:
    meters, asked = Meters(), asyncio.Event()

    async def moved() -> dict[PeerId, tuple[int, int]]:
        asked.set()
        return {BOB: (3, 4)}

    measuring = Measuring(config(tmp_path, prometheus="127.0.0.1:0"), ANN, meters)
    measuring.start(Mailbox(), None)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert not asked.is_set()
    measuring.follow(moved)
    await asked.wait()
    measuring.close()
    assert sum(meters.numbers("swarm.peer.bytes").values()) == 7


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str | None, ExportMetricsServiceRequest]]]]:
    received: list[tuple[str | None, ExportMetricsServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = gzip.decompress(self.rfile.read(int(self.headers["Content-Length"])))
            assert "X-Other" not in self.headers
            received.append((self.headers["Authorization"], ExportMetricsServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/metrics", received
        server.shutdown()
        thread.join()


def test_otlp_reaches_a_collector_that_wants_to_know_who_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given variables that are meant for others, too
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20b3RoZXI=,x-other=secret")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    (tmp_path / "auth").write_text("Basic YW5uOnNlY3JldA==\n")
    with collector() as (url, received), exporting(
        Meters(), otlp=url, authorization=tmp_path / "auth", seconds=3600
    ):  # fmt: skip
        pass
    (authorization, request) = received[0]
    assert authorization == "Basic YW5uOnNlY3JldA=="
    names = {metric.name for metric in request.resource_metrics[0].scope_metrics[0].metrics}
    assert "swarm.rounds.counted" in names


def test_a_dead_endpoint_delays_the_end_by_seconds_only_and_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_export, "EXPORT_SECONDS", 0.2)
    with caplog.at_level(logging.WARNING, "elastic"), exporting(Meters(), otlp="http://127.0.0.1:9/v1/metrics"):
        pass
    assert [record.getMessage()[:16] for record in caplog.records if record.name.startswith("elastic")] == [
        "metrics are lost"
    ]


@pytest.mark.parametrize("content", [b"", b"two\nlines", "Bäsic".encode()])
def test_a_secret_that_is_no_line_is_a_warning(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "auth").write_bytes(content)
    with exporting(Meters(), otlp="http://127.0.0.1:9", authorization=tmp_path / "auth"):
        pass
    assert "no metrics go to http://127.0.0.1:9, training goes on" in caplog.text


def test_spans_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trace.counts() == (0, 0, 0)
    trace.setup(TraceConfig(), run="demo", peer=ANN, name="ann", state_dir=tmp_path)
    tracing = trace._tracing
    for _ in range(5):
        with trace.span("x"):
            pass
    assert trace.counts()[0] + trace.counts()[1] == 5
    trace.shutdown()
    assert tracing is not None
    assert (tracing.exporter.exported, tracing.exporter.dropped) == (5, 0)


def test_spans_that_are_pushed_out_are_counted_as_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "EXPORT_DELAY_MS", 3_600_000)
    monkeypatch.setattr(trace, "MAX_QUEUED_SPANS", 512)
    trace.setup(TraceConfig(), run="demo", peer=ANN, name="ann", state_dir=tmp_path)
    (tmp_path / "traces.jsonl").mkdir()  # nothing can be written
    for _ in range(2000):
        with trace.span("x"):
            pass
    tracing = trace._tracing
    assert tracing is not None
    trace.shutdown()
    assert (tracing.exporter.exported, tracing.exporter.dropped) == (0, 2000)


def test_a_settlers_news_are_read_and_others_mean_nothing() -> None:
    assert landed_ago({"landed": 90.0}, 100.0) == 10.0
    assert landed_ago({"landed": 200.0}, 100.0) == 0.0
    assert landed_ago({"landed": None}, 100.0) is None
    assert landed_ago({}, 100.0) is landed_ago(None, 100.0) is None
    assert alarms({"alarms": [{"level": "error"}, {"level": "odd"}]}) == {
        (("swarm.level", "warning"),): 0,
        (("swarm.level", "error"),): 1,
    }
    assert alarms(None) == {}


@pytest.mark.parametrize("where", ["9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "http://127.0.0.1:1", "a b:1"])
def test_an_endpoint_is_a_host_and_a_port(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError, match=r"local\.metrics"):
        config(tmp_path, prometheus=where)


def test_a_secret_lies_beside_the_run_file_and_is_missed_before_the_run(tmp_path: Path) -> None:
    found = config(tmp_path, otlp="http://127.0.0.1:4318/v1/metrics", authorization="auth")
    assert found.local.metrics.authorization == tmp_path / "auth"
    validators = found.shared.model_copy(
        update={"agreement": found.shared.agreement.model_copy(update={"validators": ()})}
    )
    with pytest.raises(ConfigError, match=r"local\.metrics\.authorization: there is no file"):
        check_values(found.model_copy(update={"shared": validators}))


def test_an_endpoint_for_everyone_is_worth_a_second_look(tmp_path: Path) -> None:
    assert not any("local.metrics" in note for note in notes(config(tmp_path, prometheus="127.0.0.1:9464")))
    assert any("without a password" in note for note in notes(config(tmp_path, prometheus="0.0.0.0:9464")))


def test_the_status_tells_where_the_endpoint_is() -> None:
    import time

    status = PeerStatus(
        peer=ANN, name="ann", run="demo", stage="ready", updated=time.time(), pid=1,
        metrics="http://127.0.0.1:4242/metrics",
    )  # fmt: skip
    assert "ann: metrics at http://127.0.0.1:4242/metrics" in status_table([status], 120)
