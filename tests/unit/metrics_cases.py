"""A peer that has something to say for every instrument, and what Prometheus makes of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from elastic.actors.journal import Journal
from elastic.actors.mailbox import Mailbox
from elastic.actors.measuring import Measuring
from elastic.config import RunConfig, parse_config
from elastic.messages import Digest, PeerId, RoundIndex, RoundPlan, Scoreboard
from elastic.metrics import Meters
from elastic.reports import Evaluation, Measured, RoundReport

ANN, BOB = PeerId("12D3KooW" + "A" * 44), PeerId("12D3KooW" + "B" * 44)
DIGEST = Digest("ab" * 32)


def config(folder: Path, **metrics: Any) -> RunConfig:
    tree = {
        "shared": {"run": "demo", "agreement": {"validators": [ANN]}},
        "local": {"state_dir": str(folder), "name": "ann", "metrics": metrics},
    }
    return parse_config(tree, base=folder)


def plan(roster: tuple[PeerId, ...] = (ANN, BOB)) -> RoundPlan:
    return RoundPlan(
        run="demo", round=RoundIndex(3), previous=DIGEST, anchor=DIGEST, peer=ANN, roster=roster, slot=0,
        inner_steps=3, seed=0, train_seconds=1.0, gather_seconds=9.0, pace=(2.0, 3.0, 4.0),
    )  # fmt: skip


def report(**changes: Any) -> RoundReport:
    fields: dict[str, Any] = {
        "run": "demo", "round": RoundIndex(3), "peer": ANN, "name": "ann", "contributed": True, "counted": False,
        "skipped": "copy", "loss": 5.5, "tokens": 1000, "steps": 3, "payload_bytes": 77, "digest": DIGEST,
        "manifest": DIGEST, "verdicts": {ANN: "accepted", BOB: "copy"}, "last": BOB,
        "seconds": {"inner": 2.0, "gather": 0.5, "total": 4.0},
    }  # fmt: skip
    return RoundReport(**(fields | changes))


def board() -> Scoreboard:
    return Scoreboard(round=RoundIndex(3), scores={ANN: 0.5, BOB: -1.0})


def news() -> dict[str, Any]:
    return {"landed": 1000.0, "alarms": [{"level": "error", "text": "no weights"}]}


def evaluation() -> Evaluation:
    results = (
        Measured(task="facts", metric="acc", value=0.25, stderr=0.1, samples=20),
        Measured(task="bits_per_byte", metric="bits_per_byte", value=2.5, samples=1),
    )
    return Evaluation(run="demo", round=RoundIndex(3), anchor=DIGEST, seconds=1.5, results=results)


def fed(folder: Path) -> Meters:
    """Numbers of a peer that has lived through one round, by its journal's account and whatever else is asked."""
    meters = Meters()
    journal = Journal(config(folder), ANN, meters=meters)
    Measuring(config(folder), ANN, meters)._watch(Mailbox(), SimpleNamespace(board=board, news=news))
    journal.note(stage="ready", peers=3, ready=2, bytes_out=10, bytes_in=20, restarts=1)
    meters.moved({BOB: (7, 8)})
    meters.gpu(5, 9)
    meters.evaluates()
    journal.evaluated(evaluation())
    return meters


def live(journal_meters: Meters, folder: Path) -> None:
    """One round, after those who export have begun: what goes into histograms is told once."""
    journal = Journal(config(folder), ANN, meters=journal_meters)
    journal.begin(plan())
    journal.progress(2, 5.0)
    journal.record(report(), {})


def samples(text: str) -> dict[str, list[dict[str, str]]]:
    """What Prometheus reads: series name → the labels of each series."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def exposed(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Every series of a peer, named and labelled by the exporter itself."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
    from opentelemetry.sdk.resources import Resource

    from elastic.metrics_export import RESOURCE_LABELS, register

    registry, meters = CollectorRegistry(), fed(folder)
    reader = PrometheusMetricReader(
        scope_info_enabled=False, registry=registry, resource_attribute_filter=RESOURCE_LABELS.__contains__
    )
    resource = Resource({"service.name": "peer-ann", "service.namespace": "demo", "service.instance.id": ANN})
    provider = MeterProvider(
        [reader], resource=resource, exemplar_filter=AlwaysOffExemplarFilter(), shutdown_on_exit=False
    )
    register(provider.get_meter("elastic"), meters)
    live(meters, folder)
    text = generate_latest(registry).decode()
    provider.shutdown()
    return samples(text)
