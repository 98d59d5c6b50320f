"""Reading spans: from our files and others', from Jaeger of now and of then; and what is drawn of them."""

import json
import os
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_cases import RUN, Case, jaeger_v1, otlp, usual

from elastic import trace
from elastic.config_local import TraceConfig
from elastic.messages import PeerId, RoundIndex
from elastic.trace_ids import hex_trace, round_trace_id
from elastic.tracing.culprit import findings, tally
from elastic.tracing.files import read_files, trace_files
from elastic.tracing.links import Phase
from elastic.tracing.model import MAX_NAME, MAX_TEXT, Span
from elastic.tracing.otlp import spans_in
from elastic.tracing.rounds import chosen, rounds_of
from elastic.tracing.show import slow_table, waterfall

DATA = Path(__file__).parents[1] / "data"
Elastic = Callable[..., tuple[int, str, str]]


def case(index: int = 1) -> Case:
    made = Case(usual("ann", "bob", "cyd"), index=index)
    made.peers["cyd"].inner = 5.0
    return made


def spans(*indices: int) -> list[Span]:
    return [span for index in indices or (1,) for span in case(index).spans()]


# --- files ---


def test_what_we_write_is_read_back(tmp_path: Path) -> None:
    trace.setup(TraceConfig(), run=RUN, peer=PeerId("ada"), name="ada", state_dir=tmp_path)
    trace.root_span(RUN, RoundIndex(3), 1_000, 2_000, counted=2, proposer="ada")
    with pytest.raises(ValueError, match="broken"), trace.span("round.outer", bytes=5, gain=0.5, ok=True, why="so"):
        trace.event("from", peer="bob", bytes=7)
        raise ValueError("broken")
    trace.shutdown()
    found = read_files(trace_files(tmp_path))
    root, outer = sorted(found.spans, key=lambda span: span.start)
    assert (root.trace, root.start, root.end) == (hex_trace(round_trace_id(RUN, 3)), 1_000, 2_000)
    assert (root.peer, root.service, root.run, root.text("proposer")) == ("ada", "peer-ada", RUN, "ada")
    assert outer.error == "ValueError: broken"
    assert (outer.number("bytes"), outer.number("gain"), outer.text("why")) == (5, 0.5, "so")
    assert [(each.name, each.text("peer"), each.number("bytes")) for each in outer.events] == [("from", "bob", 7)]
    assert found.skipped == 0


def test_other_forms_say_the_same() -> None:
    given_, tree = spans(), otlp(spans())
    assert spans_in(tree).spans == given_
    assert spans_in({"result": tree}).spans == given_
    for group in tree["resourceSpans"]:
        span = group["scopeSpans"][0]["spans"][0]
        for key in {"traceId", "spanId", "parentSpanId"} & span.keys():
            span[key] = b64encode(bytes.fromhex(span[key])).decode()
    assert spans_in(tree).spans == given_


def test_jaegers_old_form_says_the_same_to_the_microsecond() -> None:
    given_ = sorted(spans(), key=lambda span: (span.peer, span.id))
    found = sorted(spans_in(jaeger_v1(spans())).spans, key=lambda span: (span.peer, span.id))
    for one, other in zip(found, given_, strict=True):
        assert (one.trace, one.id, one.parent, one.name, one.peer) == (
            other.trace, other.id, other.parent, other.name, other.peer,
        )  # fmt: skip
        assert one.attributes == other.attributes and len(one.events) == len(other.events)
        assert abs(one.start - other.start) < 2000 and abs(one.end - other.end) < 2000


@pytest.mark.parametrize("name", ["jaeger_v3.json", "jaeger_v1.json"])
def test_recorded_answers_of_jaeger(name: str) -> None:
    found = spans_in(json.loads((DATA / name).read_text()))
    assert found.skipped == 0
    (round_,) = rounds_of(found.spans)
    assert (round_.run, round_.index, len(round_.peers)) == ("demo", 7, 2)
    assert round_.root is not None and round_.seconds == pytest.approx(4.25)
    ann = next(each for each in round_.peers.values() if each.name == "ann")
    (fetch,) = ann.all("round.fetch")
    assert fetch.error == "unfetchable: nobody gave it"
    assert fetch.events[0].text("because") == "nobody gave it"
    assert fetch.number("transfer_s") == 1.5 and ann.decides


HOSTILE = [
    None, 7, "x", [], {}, {"resourceSpans": 5}, {"data": {}}, {"resourceSpans": [5, None, {"scopeSpans": 1}]},
    {"resourceSpans": [{"scopeSpans": [{"spans": [{}, 5, {"traceId": "zz", "spanId": "1", "name": "x"}]}]}]},
    {"data": [{"spans": [{"processID": "nobody"}], "processes": {}}, 5]},
    {"result": {"result": {"result": 5}}},
]  # fmt: skip


@pytest.mark.parametrize("tree", HOSTILE, ids=str)
def test_what_is_no_span_is_counted_and_left_out(tree: Any) -> None:
    assert spans_in(tree).spans == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["resourceSpans", "scopeSpans", "spans", "resource", "attributes", "traceId", "spanId", "name", "events",
             "startTimeUnixNano", "endTimeUnixNano", "data", "result", "processes", "processID", "tags", "key", "value",
             "intValue", "status", "code", "startTime", "duration", "references", "logs", "timestamp", "fields"]
        ), inner, max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None)
@given(json_values)
def test_no_json_raises(tree: Any) -> None:
    for each in (tree, {"resourceSpans": tree}, {"resourceSpans": [tree]}, {"data": [tree]}):
        assert spans_in(each).skipped >= 0


def test_what_strangers_write_is_bounded_and_printable() -> None:
    tree = otlp(spans()[:1])
    span = tree["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span["name"] = "\x1b[31m" + "n" * 5000
    span["attributes"] = [
        {"key": f"k{at}", "value": {"stringValue": "\x1b]0;\u202e" + "v" * 5000}} for at in range(500)
    ]
    span["events"] = [{"name": "e", "timeUnixNano": "1"}] * 5000
    span["status"] = {"code": 2, "message": "\r\n\x07" * 500}
    (found,) = spans_in(tree).spans
    assert len(found.name) <= MAX_NAME and found.name.isprintable()
    assert len(found.attributes) <= 64 and len(found.events) <= 128
    assert all(len(str(value)) <= MAX_TEXT and str(value).isprintable() for value in found.attributes.values())
    assert found.error is not None and found.error.isprintable()


@pytest.mark.parametrize(("start", "end"), [(5, 4), (-1, 4), (0, 2**63), (0, 10**18)])
def test_times_that_cannot_be_are_not_believed(start: int, end: int) -> None:
    tree = otlp(spans()[:1])
    span = tree["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span |= {"startTimeUnixNano": str(start), "endTimeUnixNano": str(end)}
    found = spans_in(tree)
    assert (found.spans, found.skipped) == ([], 1)


def test_torn_and_hostile_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    whole = json.dumps(otlp(spans())).encode()
    lines = [b"\xff\xfe", whole, b"[" * 100_000, b"", whole[: len(whole) // 2]]
    (tmp_path / "traces.jsonl").write_bytes(b"\n".join(lines))
    found = read_files([tmp_path / "traces.jsonl"])
    assert len(found.spans) == len(spans())
    assert found.skipped == 3


def test_a_file_that_is_one_value_over_many_lines(tmp_path: Path) -> None:
    (tmp_path / "saved.json").write_text(json.dumps({"result": otlp(spans())}, indent=2))
    assert len(read_files(trace_files(tmp_path / "saved.json")).spans) == len(spans())


def test_of_a_folder_of_runs_the_one_that_wrote_last(tmp_path: Path) -> None:
    for at, (run, peer) in enumerate([("new", "a"), ("new", "b"), ("old", "a")]):
        folder = tmp_path / run / peer
        folder.mkdir(parents=True)
        (folder / "traces.jsonl").write_text("{}\n")
        os.utime(folder / "traces.jsonl", (1000 - at, 1000 - at))
    assert [path.parent.name for path in trace_files(tmp_path)] == ["a", "b"]
    assert {path.parent.parent.name for path in trace_files(tmp_path)} == {"new"}
    assert len(trace_files(tmp_path / "old")) == len(trace_files(tmp_path / "old" / "a")) == 1


def test_the_rotated_file_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "traces.1.jsonl").write_text(json.dumps(otlp(spans(1))) + "\n")
    (tmp_path / "traces.jsonl").write_text(json.dumps(otlp(spans(2))) + "\n")
    assert [each.index for each in rounds_of(read_files(trace_files(tmp_path)).spans)] == [1, 2]


def test_a_file_that_is_put_aside_meanwhile_is_no_fault(tmp_path: Path) -> None:
    written(tmp_path, 1)
    paths = trace_files(tmp_path)
    # when the peer puts its file aside before it is read, or between finding it and asking when it was written
    (tmp_path / "ann" / "traces.jsonl").replace(tmp_path / "ann" / "traces.1.jsonl")
    assert {span.peer for span in read_files(paths).spans} == {"bob", "cyd"}
    (tmp_path / "bob" / "traces.jsonl").unlink()
    (tmp_path / "bob" / "traces.jsonl").symlink_to("gone")
    assert [path.parent.name for path in trace_files(tmp_path)] == ["ann", "cyd"]


def test_of_a_named_round_only_its_spans_are_kept(tmp_path: Path) -> None:
    written(tmp_path, *range(1, 21))
    every, some = read_files(trace_files(tmp_path)), read_files(trace_files(tmp_path), RUN, range(4, 6))
    assert [each.index for each in rounds_of(some.spans)] == list(range(1, 21)), "which rounds there are is known"
    kept = {each.index: each for each in rounds_of(some.spans) if each.index in (4, 5)}
    assert kept == {each.index: each for each in rounds_of(every.spans) if each.index in (4, 5)}
    assert 5 * len(some.spans) < len(every.spans)
    others = read_files(trace_files(tmp_path), "another")
    assert {span.name for span in others.spans} == {"round"}


# --- what is drawn ---


def test_the_table_names_the_culprit_and_sums_up() -> None:
    text = slow_table(findings(rounds_of(spans(1, 2))), 120, plain=True)
    assert "\x1b" not in text
    assert all(line.isprintable() and len(line) <= 120 for line in text.splitlines())
    assert text.count("cyd") == 3 and "166 tokens/s" not in text and "inner steps: 5.00 s" in text
    assert text.splitlines()[-1] == "cyd, compute: 2 of 2 rounds, 5.9 s lost"
    assert "\x1b[" in slow_table(findings(rounds_of(spans())), 120, plain=False)


@pytest.mark.parametrize("columns", [20, 60, 80, 200])
def test_the_waterfall_fits_its_width(columns: int) -> None:
    (round_,) = rounds_of(spans())
    lines = waterfall(round_, None, columns, plain=True).splitlines()
    body = lines[1:-1]
    assert all(len(line) <= max(columns, 60) for line in body)
    assert [line.split()[0] for line in body if "━" in line] == ["ann*", "bob", "cyd"]
    bars = {line.split()[0] + str(at): line.count("█") for at, line in enumerate(body) if line.startswith("  inner")}
    assert max(bars, key=lambda key: bars[key]) == max(bars)  # cyd's, the last one, is the longest
    assert lines[-1].startswith("slow: cyd, compute")


def test_a_span_that_says_it_began_before_its_round_is_drawn_from_the_begin_on() -> None:
    made = spans()
    (early,) = [span for span in made if span.peer == "ann" and span.name == "round.compress"]
    made = [replace(s, start=s.start - 10**12) if s is early else s for s in made]
    (round_,) = rounds_of(made)
    lines = waterfall(round_, None, 80, plain=True).splitlines()
    assert all(len(line) <= 80 for line in lines[1:-1])
    (row,) = [line for line in lines if line.startswith("  compress") and "1000." in line]
    assert row.rstrip().endswith("s  " + "█" * row.count("█"))


def test_two_peers_of_one_name_are_two_culprits() -> None:
    # given a slow peer, and in the other round a slow stranger that calls itself the same
    other = Case(usual("ann", "bob", "stranger"), index=2)
    other.peers["stranger"].inner = 5.0
    named = [replace(s, service="peer-cyd") if s.peer == "stranger" else s for s in other.spans()]
    found = findings(rounds_of([*spans(1), *named]))
    assert [each.peer for each in found] == ["cyd", "stranger"]
    # then each has its own line
    assert [(name, times) for name, _, times, _ in tally(found)] == [("cyd …cyd", 1), ("cyd …ranger", 1)]
    text = slow_table(found, 140, plain=True)
    assert text.splitlines()[-2].startswith("cyd …cyd, compute: 1 of 2") and text.count("cyd …ranger") == 2


def test_the_waterfall_of_a_crowd_is_bounded() -> None:
    made = Case(usual(*(f"p{at}" for at in range(60))))
    (round_,) = rounds_of(made.spans())
    lines = waterfall(round_, None, 100, plain=True).splitlines()
    assert len(lines) <= 410
    assert sum("━" in line for line in lines) == 60
    assert any("shorter spans are left out" in line for line in lines)


def test_a_cycle_of_parents_ends() -> None:
    made = spans()
    ring = [s for s in made if s.name == "round.fetch"][:2]
    made = [s for s in made if s not in ring] + [
        replace(ring[0], parent=ring[1].id), replace(ring[1], parent=ring[0].id),
    ]  # fmt: skip
    (round_,) = rounds_of(made)
    assert waterfall(round_, None, 100, plain=True)


@pytest.mark.parametrize(("text", "rounds"), [("7", range(7, 8)), ("3-9", range(3, 10))])
def test_rounds_as_written(text: str, rounds: range) -> None:
    assert chosen(text) == rounds


@pytest.mark.parametrize("text", ["", "x", "9-3", "-3", "1-99999"])
def test_rounds_as_they_cannot_be_written(text: str) -> None:
    with pytest.raises(ValueError):
        chosen(text)


# --- the commands ---


def written(folder: Path, *indices: int) -> None:
    for peer in ("ann", "bob", "cyd"):
        (folder / peer).mkdir(parents=True)
        mine = [span for span in spans(*indices) if span.peer == peer]
        (folder / peer / "traces.jsonl").write_text(json.dumps(otlp(mine)) + "\n")


def test_slow_and_show_on_the_newest_run(elastic: Elastic, tmp_path: Path) -> None:
    written(tmp_path / "runs" / "one", 1, 2, 3)
    code, out, err = elastic("trace", "slow")
    assert (code, err) == (0, "")
    assert out.startswith("run demo\n") and "cyd, compute: 3 of 3 rounds, " in out
    _, out, _ = elastic("trace", "slow", "runs/one", "--rounds", "2-3", "--plain")
    assert "2 of 2 rounds" in out
    _, out, _ = elastic("trace", "show", "2", "--plain")
    assert out.startswith("run demo, round 2: ")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("slow",), "no peer wrote traces here"),
        (("slow", "--jaeger", "x"), "--jaeger x"),
        (("slow", "one", "--rounds", "x"), "--rounds x"),
        (("slow", "one", "--rounds", "9"), "no traces of round 9: there are some of rounds 1-2"),
        (("show", "9", "one"), "no traces of round 9: there are some of rounds 1-2"),
        (("slow", "one", "--run", "other"), 'no traces of rounds of the run "other"; there is demo'),
        (("slow", "nowhere.json"), "nowhere.json"),
    ],
)
def test_errors_say_what_there_is(elastic: Elastic, tmp_path: Path, args: tuple[str, ...], says: str) -> None:
    written(tmp_path / "one", 1, 2)
    code, _, err = elastic("trace", *args)
    assert code == 1
    assert err.startswith("error: ") and says in err


def test_what_is_left_out_is_told(elastic: Elastic, tmp_path: Path) -> None:
    written(tmp_path / "one", 1)
    with (tmp_path / "one" / "ann" / "traces.jsonl").open("a") as file:
        file.write("garbage\n")
    assert "1 lines or spans of one are none, and were left out" in elastic("trace", "slow", "one")[2]


def test_phases_are_those_that_the_docs_name() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tracing.md").read_text()
    assert all(f"| {phase} |" in text for phase in Phase)
