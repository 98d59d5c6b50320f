"""The collector's file: who sends is stamped, and what one peer may add to everyone's numbers is finite.

The rules are read here as OTTL's own documentation has them, by a few lines that turn them into Python; the collector
itself is not run.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from elastic import trace
from elastic.evals.tasks import SHIPPED
from elastic.messages import RejectReason
from elastic.metrics import BOUNDS, FAILED, INSTRUMENTS, LEVELS, OTHER, REASONS, STAGES, Instrument, reason_of

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"
COLLECTOR = yaml.safe_load((OPS / "otel-collector.yaml").read_text(encoding="utf-8"))
ROSTER = [f"12D3KooW{number:044}" for number in range(48)]
KNOWN = {"${env:RUNS}": "demo", "${env:PEERS}": "|".join(ROSTER)}
"""What the operator tells the collector, by ops/secrets/swarm.env."""
TYPES = {
    "counter": "METRIC_DATA_TYPE_SUM",
    "gauge": "METRIC_DATA_TYPE_GAUGE",
    "histogram": "METRIC_DATA_TYPE_HISTOGRAM",
}


def test_every_part_of_the_collector_is_used_and_there() -> None:
    for kind in ("receivers", "processors", "exporters"):
        used = {each for pipeline in COLLECTOR["service"]["pipelines"].values() for each in pipeline[kind]}
        assert used == COLLECTOR[kind].keys(), kind
    assert set(COLLECTOR["service"]["extensions"]) == COLLECTOR["extensions"].keys()


def test_everyone_proves_who_it_is_and_is_stamped_before_anything_mixes_them() -> None:
    for receiver in COLLECTOR["receivers"].values():
        for protocol in receiver["protocols"].values():
            assert protocol["auth"]["authenticator"] in COLLECTOR["extensions"]
            assert protocol["max_request_body_size"] <= 4 * 2**20
    for pipeline in COLLECTOR["service"]["pipelines"].values():
        order = pipeline["processors"]
        assert order[0] == "memory_limiter"
        assert order.index("batch") == len(order) - 1
        assert order.index("resource/who") < order.index("transform/who") < order.index("transform/bounds")
    for name, key in (("resource/who", "attributes"), ("attributes/who", "actions")):
        actions = COLLECTOR["processors"][name][key]
        stamped = [each for each in actions if each["key"] == "swarm.peer.id"]
        assert [each["action"] for each in stamped] == ["delete", "upsert"]  # what was claimed is gone in any case
        assert stamped[-1]["from_context"] == "auth.username"
    for each in COLLECTOR["processors"].values():
        assert each.get("error_mode", "propagate") == "propagate"  # what a rule fails on is not let through


def test_a_peer_is_called_as_its_own_tracer_would_call_it() -> None:
    statement = COLLECTOR["processors"]["transform/who"]["trace_statements"][0]["statements"][0]
    start, length = map(int, re.search(r"Substring\([^,]+, (\d+), (\d+)\)", statement).groups())  # type: ignore[union-attr]
    peer = "12D3KooW" + "".join(chr(ord("a") + n % 10) for n in range(44))
    assert f"peer-{peer[start : start + length]}" == trace.service_name(peer)  # type: ignore[arg-type]


def test_the_collector_lets_through_our_spans_and_no_others() -> None:
    (rule,) = COLLECTOR["processors"]["filter/ours"]["traces"]["span"]
    is_span = re.compile(re.search(r'"(.*)"', rule)[1])  # type: ignore[index]
    ours = [
        value for name, value in vars(trace).items()
        if name.isupper() and isinstance(value, str) and re.fullmatch(r"[a-z_.]+", value)
    ]  # fmt: skip
    assert trace.ROUND in ours
    assert all(is_span.match(name.rstrip(".")) for name in ours)
    for other in ("", "GET /", "round.inner evil", "ROUND"):
        assert not is_span.match(other)


def test_attributes_that_the_collector_names_exist() -> None:
    text = (OPS / "otel-collector.yaml").read_text(encoding="utf-8")
    source = (ROOT / "elastic/trace.py").read_text(encoding="utf-8")
    of_metrics = {name for each in INSTRUMENTS for name in (each.name, *each.attributes)}
    for key in set(re.findall(r"\bswarm\.[a-z.]+[a-z]", text)) - {"swarm.claimed.name"}:
        word = key.removeprefix("swarm.")
        assert key in of_metrics or f'"{key}"' in source or re.search(rf'"{word}":|\b{word}=', source), key


# --- what one peer may add ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One number that a peer sends."""

    name: str
    unit: str
    type: str
    attributes: dict[str, str] = field(default_factory=dict)
    run: str = "demo"
    monotonic: bool | None = None
    temporality: str | None = "AGGREGATION_TEMPORALITY_CUMULATIVE"
    bounds: int = 0

    def series(self) -> tuple[object, ...]:
        return (self.name, self.unit, self.type, self.run, *sorted(self.attributes.items()))


def holds(rule: str, point: Point) -> bool:
    """Whether a condition of OTTL is true of it."""
    for name, value in KNOWN.items():
        rule = rule.replace(name, value)
    rule = re.sub(r"resource\.attributes\[(.*?)\]", r"resource.get(\1)", rule)
    rule = re.sub(r"(?<![.\w])attributes\[(.*?)\]", r"attributes.get(\1)", rule)
    rule = re.sub(r"\bmetric\.(name|unit|type)\b", r"\1", rule)
    values = {
        "name": point.name, "unit": point.unit, "type": point.type, "attributes": point.attributes,
        "resource": {"service.namespace": point.run}, "is_monotonic": point.monotonic,
        "aggregation_temporality": point.temporality, "explicit_bounds": range(point.bounds),
        "nil": None, "true": True, "Len": len, "Concat": lambda parts, between: between.join(parts),
        "IsMatch": lambda text, pattern: text is not None and re.search(pattern, text) is not None,
        **{word: word for word in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", rule)},
    }  # fmt: skip
    return bool(eval(" ".join(rule.split()), {"__builtins__": {}}, values))


def kept(point: Point) -> Point:
    """With the attributes that the collector leaves it."""
    (statements,) = (
        each["statements"] for each in COLLECTOR["processors"]["transform/bounds"]["metric_statements"]
        if each["context"] == "datapoint"
    )  # fmt: skip
    for statement in statements:
        keys, where = re.fullmatch(r"keep_keys\(attributes, \[(.*)\]\) where (.*)", statement).groups()  # type: ignore[union-attr]
        if holds(where, point):
            left = {key: value for key, value in point.attributes.items() if f'"{key}"' in keys}
            point = replace(point, attributes=left)
    return point


def through(point: Point) -> Point | None:
    """What Prometheus gets of it."""
    ours, words = (COLLECTOR["processors"][name]["metrics"] for name in ("filter/ours", "filter/words"))
    if any(holds(rule, point) for rule in ours["metric"]):
        return None
    point = kept(point)
    return None if any(holds(rule, point) for rule in words["datapoint"]) else point


def words_of_ours() -> dict[str, set[str]]:
    source = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "elastic").glob("*.py"))
    return {
        "swarm.phase": set(re.findall(r'\bphases\("(\w+)"\)', source)),
        "swarm.reason": {*REASONS.values(), FAILED, reason_of("3 payloads could not be fetched yet")},
        "swarm.verdict": {"accepted", *map(str, RejectReason)},
        "swarm.direction": {"in", "out"},
        "swarm.stage": set(STAGES),
        "swarm.level": set(LEVELS),
        "swarm.task": set(SHIPPED),
        "swarm.peer": {OTHER, *ROSTER},
    }


def honest(instrument: Instrument) -> Iterator[Point]:
    """Every number that a peer of ours can send."""
    plain = Point(
        instrument.name, instrument.unit, TYPES[instrument.kind], monotonic=instrument.kind == "counter" or None,
        temporality=None if instrument.kind == "gauge" else Point.temporality,
        bounds=len(BOUNDS) * (instrument.kind == "histogram"),
    )  # fmt: skip
    pools = words_of_ours()
    for values in itertools.product(*(sorted(pools[key]) for key in instrument.attributes)):
        yield replace(plain, attributes=dict(zip(instrument.attributes, values, strict=True)))


@pytest.mark.parametrize("instrument", INSTRUMENTS, ids=lambda each: each.name)
def test_what_a_peer_of_ours_measures_arrives_as_it_is(instrument: Instrument) -> None:
    for point in honest(instrument):
        assert through(point) == point


@pytest.mark.parametrize("instrument", INSTRUMENTS, ids=lambda each: each.name)
def test_no_invented_name_kind_unit_run_or_bucket_becomes_a_series(instrument: Instrument) -> None:
    point = next(honest(instrument))
    others = {*TYPES.values(), "METRIC_DATA_TYPE_EXPONENTIAL_HISTOGRAM", "METRIC_DATA_TYPE_SUMMARY"} - {point.type}
    invented = [
        replace(point, name=f"{point.name}.x"), replace(point, name=point.name.replace(".", "x")),
        replace(point, name=f"x{point.name}"), replace(point, unit="x"), replace(point, unit=f"{point.unit}x"),
        replace(point, run="other"), replace(point, run="demo2"), *(replace(point, type=other) for other in others),
        replace(point, type="METRIC_DATA_TYPE_SUM", monotonic=False),
    ]  # fmt: skip
    if instrument.kind != "gauge":
        invented.append(replace(point, temporality="AGGREGATION_TEMPORALITY_DELTA"))
    if instrument.kind == "histogram":
        invented += [replace(point, bounds=bounds) for bounds in (0, len(BOUNDS) + 1, 500_000)]
    for each in invented:
        assert through(each) is None, each


@pytest.mark.parametrize("instrument", INSTRUMENTS, ids=lambda each: each.name)
def test_invented_attributes_and_their_values_add_no_series(instrument: Instrument) -> None:
    real = {point.series() for point in honest(instrument)}
    for point in itertools.islice(honest(instrument), 3):
        for key in (*words_of_ours(), "evil"):
            for value in ("evil", "", f"x{ROSTER[0]}", f"{ROSTER[0]}x", "12D3KooW" + "z" * 44):
                arrived = through(replace(point, attributes=point.attributes | {key: value}))
                assert arrived is None or arrived.series() in real


def test_nobody_can_use_up_the_room_for_everybodys_numbers() -> None:
    buckets = {"histogram": len(BOUNDS) + 3}  # and +Inf, the sum, the count
    # An attribute may also be missing.
    without = {key: len(values) + 1 for key, values in words_of_ours().items()}
    of_one = 0
    for instrument in INSTRUMENTS:
        everything = kept(replace(next(honest(instrument)), attributes=dict.fromkeys(without, "")))
        assert everything.attributes.keys() == set(instrument.attributes)
        series = buckets.get(instrument.kind, 1)
        for key in everything.attributes:
            series *= without[key]
        of_one += series
    prometheus = yaml.safe_load((OPS / "prometheus.yaml").read_text(encoding="utf-8"))
    (room,) = (job["sample_limit"] for job in prometheus["scrape_configs"] if job["job_name"] == "swarm")
    assert of_one * len(ROSTER) < room


def test_what_libraries_call_themselves_makes_no_series() -> None:
    (scope,) = (
        each["statements"] for each in COLLECTOR["processors"]["transform/bounds"]["metric_statements"]
        if each["context"] == "scope"
    )  # fmt: skip
    assert {re.match(r"\w+\((\w+)", statement)[1] for statement in scope} == {
        "name",
        "version",
        "schema_url",
        "attributes",
    }  # type: ignore[index]
