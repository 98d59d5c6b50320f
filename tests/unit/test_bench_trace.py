"""The benchmark of the traces: it plants what it says, and judges what it found, not what it hoped for."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from elastic.bench.churn.swarm import RUN
from elastic.bench.churn.wan import LinkSpeed
from elastic.bench.trace import cost, faulty
from elastic.bench.trace.collector import Keeper
from elastic.bench.trace.faults import ANSWERS, COLLECTOR_LOSS, WRITES, Ails, Fault, Kind, ails, draw, heal, plant
from elastic.bench.trace.suite import Completeness, accuracy, completeness, judged, table
from elastic.messages import RoundIndex
from elastic.trace_ids import round_trace_id, sampled
from elastic.tracing.culprit import Finding
from elastic.tracing.files import read_files
from elastic.tracing.links import Phase
from elastic.tracing.model import Span

PEERS = 5


@pytest.fixture
def swarm(tmp_path: Path) -> Any:
    """Hosts with folders, of which the first two decide; and a network that remembers what it was last told."""
    hosts = [SimpleNamespace(host=host, folder=tmp_path / str(host)) for host in range(PEERS)]
    for each in hosts:
        each.folder.mkdir()
    told: dict[str, Any] = {}
    wan = SimpleNamespace(hosts=PEERS + 2, speed=LinkSpeed(), change=told.update, told=told)
    return SimpleNamespace(hosts=hosts, validators=lambda: hosts[:2], wan=wan)


def fault(kind: Kind, *hosts: int, **more: Any) -> Fault:
    return Fault(kind, hosts or (2,), 2.0, **more)


def found(index: int, name: str, phase: Phase | None, seconds: float = 9.0, evidence: str = "because") -> Finding:
    return Finding(RUN, index, seconds, (), None, name, phase, 0.0, evidence)


def test_stragglers_are_the_same_for_a_seed_each_kind_as_often_and_validators_where_they_must_be(swarm: Any) -> None:
    planted = draw(70, 3, swarm, 1.0, 2.0)
    assert planted == draw(70, 3, swarm, 1.0, 2.0) != draw(70, 4, swarm, 1.0, 2.0)
    assert set(Counter(each.kind for each in planted).values()) == {10}
    assert {each.hosts[0] for each in planted if each.kind is Kind.VALIDATOR} == {0, 1}
    assert all(len(set(each.hosts)) == 1 + (each.kind is Kind.PAIR) for each in planted)
    assert ANSWERS.keys() == set(Kind)


def test_a_straggler_is_slow_in_one_way_and_no_longer_when_it_is_healed(swarm: Any) -> None:
    heal(swarm)
    well = {name: list(values) for name, values in swarm.wan.told.items()}
    for kind, told in (
        (Kind.UPLINK, {"up"}), (Kind.DOWNLINK, {"down"}), (Kind.LOSS, {"loss", "down_loss"}), (Kind.PAIR, {"narrow"}),
        (Kind.CPU, set()), (Kind.DISK, set()), (Kind.VALIDATOR, set()),
    ):  # fmt: skip
        plant(swarm, fault(kind, *((1, 2) if kind is Kind.PAIR else (2,)), loss=0.1), payload=1000)
        assert {name for name, values in swarm.wan.told.items() if list(values) != well[name]} == told
        sick = [each.host for each in swarm.hosts if ails(each.folder) != Ails()]
        assert sick == ([] if told else [2])
        heal(swarm)
        assert swarm.wan.told == well
        assert all(ails(each.folder) == Ails() for each in swarm.hosts)


def test_the_way_to_the_collector_is_always_lossy(swarm: Any) -> None:
    for change in (heal, lambda each: plant(each, fault(Kind.LOSS, 2, loss=0.1), payload=1000)):
        change(swarm)
        assert swarm.wan.told["loss"][-1] == swarm.wan.told["down_loss"][-1] == COLLECTOR_LOSS


@pytest.mark.parametrize(
    ("kind", "more", "does", "seconds"),
    [
        (Kind.DISK, {}, lambda: faulty.os.fsync(0), 2.0 / WRITES),
        (Kind.VALIDATOR, {}, lambda: faulty.seen.check_payload(), 2.0),
        (Kind.VALIDATOR, {"sign": True}, lambda: faulty.deliberate.own_manifest(), 2.0),
        (Kind.VALIDATOR, {"sign": True}, lambda: faulty.deliberate.objection(), 2.0),
    ],
)
def test_a_machine_is_slow_as_long_as_the_file_says_so(
    kind: Kind, more: Any, does: Callable[[], Any], seconds: float, swarm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process on a machine that nothing ails
    did: list[Any] = []
    monkeypatch.setattr(faulty, "time", SimpleNamespace(sleep=did.append))
    monkeypatch.setattr(faulty.os, "fsync", lambda _: did.append("done"))
    for where, name, used in (
        (faulty.checks, "check_payload", faulty.seen), (faulty.propose, "own_manifest", faulty.deliberate),
        (faulty.propose, "objection", faulty.deliberate),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, lambda: did.append("done"))
        monkeypatch.setattr(used, name, None)
    faulty.slow_machine(swarm.hosts[2].folder)
    # when something ails it for a while
    does()
    plant(swarm, fault(kind, **more), payload=1000)
    does()
    heal(swarm)
    does()
    # then it did everything, and took its time meanwhile
    assert did == [0.0, "done", seconds, "done", 0.0, "done"]


def test_the_longest_round_it_had_to_do_with_says_whether_it_was_named() -> None:
    planted = [
        (fault(Kind.CPU, 2), RoundIndex(10)), (fault(Kind.UPLINK, 2), RoundIndex(12)),
        (fault(Kind.PAIR, 1, 2), RoundIndex(14)), (fault(Kind.DISK, 0), RoundIndex(16)),
        (fault(Kind.CPU, 3), RoundIndex(18)),
    ]  # fmt: skip
    told = [
        found(10, "peer-3", Phase.COMPUTE), found(11, "peer-1", Phase.DISK, 5.0),  # right, in its own round
        found(12, "nobody", None, 5.0), found(13, "peer-3", Phase.DOWNLINK),  # the peer, and not the phase
        found(14, "peer-2", Phase.PAIR, evidence="to peer-3"), found(15, "peer-2", Phase.PAIR, 5.0),  # right: both
        found(16, "peer-1", Phase.DISK, 5.1), found(17, "peer-1", Phase.DISK, 5.0),  # nobody waited for it
    ]  # fmt: skip
    trials = list(judged(planted, told, usual=5.0))
    assert [each.right for each in trials] == [True, False, True, True, False]
    assert [each.right_peer for each in trials] == [True, True, True, True, False]
    assert [each.slowed for each in trials] == [True, True, True, False, True]  # of the last there are no spans at all
    assert accuracy(trials) == pytest.approx(2 / 4)
    shown = table(trials, 5.0)
    assert "wrong: slow uplink, peer-3, 2.0 s; round 13 of 9.0 s" in shown
    assert "left out: stuck disk 1" in shown


def test_without_anyone_who_was_slow_nothing_was_shown() -> None:
    assert accuracy([]) == 0.0
    assert "all" in table([], 5.0)


def test_spans_are_complete_if_each_that_was_made_is_there_once() -> None:
    def span(id_: str, parent: str = "") -> Span:
        return Span("t", id_, parent, "round", 0, 1, "peer", "peer", RUN)

    spans = [span("root"), span("a", "root"), span("a", "root"), span("b", "nowhere")]
    assert completeness(spans, made=4) == Completeness(made=4, kept=3, dangling=1)
    assert completeness(spans, made=4).part == 0.75


def test_the_cost_is_that_of_traced_rounds_beside_others() -> None:
    # given two peers whose traced rounds cost 20 ms more than others, on a machine that becomes slower
    rounds = range(1, 80)
    traced = {index for index in rounds if sampled(round_trace_id(RUN, index), cost.SAMPLE)}
    cpu = {index: 1.0 + 1e-4 * index + 0.02 * (index in traced) for index in rounds}
    seconds = dict.fromkeys(rounds, 4.0)
    # when
    made = cost.compared([cpu, cpu], [seconds, seconds], rounds)
    # then
    assert made.pairs >= 20
    assert made.more_cpu == pytest.approx(0.02, abs=2e-3)
    assert made.part == pytest.approx(0.005, abs=5e-4)
    assert "+0.5" in cost.table(made)


def test_seconds_of_cpu_are_told_as_sums() -> None:
    assert cost.used({3: 10.0, 4: 11.5, 6: 20.0}) == {4: 1.5}


@contextmanager
def keeper(path: Path) -> Iterator[str]:
    with path.open("ab") as file, Keeper(0, file) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip], ids=lambda each: each.name)
def test_the_collector_keeps_what_the_traces_are_read_from(tmp_path: Path, compression: Compression) -> None:
    # given
    path, now = tmp_path / "spans.jsonl", time.time_ns()
    provider = TracerProvider(shutdown_on_exit=False)
    with keeper(path) as url:
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(url, compression=compression)))
        # when
        provider.get_tracer("test").start_span("round", start_time=now).end(now + 7)
        provider.shutdown()
    # then
    [span] = read_files([path]).spans
    assert (span.name, span.start, span.end) == ("round", now, now + 7)
