"""Reading spans: from our files and others', from Jaeger of now and of then; and what is drawn of them."""

import json
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_cases import RUN, Case, jaeger_v1, otlp, usual

from elastic import trace
from elastic.config import TraceConfig
from elastic.errors import ConfigError
from elastic.messages import PeerId, RoundIndex
from elastic.trace_ids import hex_trace, round_trace_id
from elastic.tracing import jaeger as room
from elastic.tracing.culprit import findings
from elastic.tracing.files import read_files, trace_files
from elastic.tracing.jaeger import Jaeger
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
    import os

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


# --- Jaeger ---


class Server:
    """Answers as a Jaeger does: some versions have both APIs, some one."""

    def __init__(self, known: list[Span], *, v3: bool, v1: bool = True, search_v1: bool = True) -> None:
        self.known, self.v3, self.v1, self.search_v1 = known, v3, v1, search_v1
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self.fault: bytes | int | None = None

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        self.asked.append((path, query))
        if isinstance(self.fault, int):
            return self.fault, b""
        if self.fault is not None:
            return 200, self.fault
        tree = self._v3(path, query) if path.startswith("/api/v3/") else self._v1(path, query)
        if tree is None:
            return 404, b"404 page not found"
        return (404 if "error" in tree else 200), json.dumps(tree).encode()

    def _v3(self, path: str, query: dict[str, list[str]]) -> dict[str, Any] | None:
        if not self.v3:
            return None
        if path == "/api/v3/services":
            return {"services": ["jaeger", *sorted({span.service for span in self.known})]}
        if path == "/api/v3/traces" and not {"query.start_time_min", "query.startTimeMax"} <= query.keys():
            return {"error": {"httpCode": 400, "message": "required"}}
        found = self._found(path, query.get("query.attributes"))
        return {"result": otlp(found)} if found else {"error": {"httpCode": 404, "message": "No traces found"}}

    def _v1(self, path: str, query: dict[str, list[str]]) -> dict[str, Any] | None:
        if not self.v1 or (path == "/api/traces" and not self.search_v1):
            return None
        if path == "/api/services":
            return {"data": sorted({span.service for span in self.known}), "total": 1}
        found = self._found(path, query.get("tags"))
        return jaeger_v1(found) if found else {"data": None, "error": [{"code": 404, "msg": "trace not found"}]}

    def _found(self, path: str, tags: list[str] | None) -> list[Span]:
        name = path.rpartition("/")[2]
        run = json.loads(tags[0]).get("swarm.run") if tags else None
        return [span for span in self.known if name in ("traces", span.trace) and run in (None, span.run)]


@pytest.fixture
def serve() -> Iterator[Callable[[Server], str]]:
    made: list[tuple[HTTPServer, threading.Thread]] = []

    def start(server: Server) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                code, body = server.answer(parts.path, parse_qs(parts.query))
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "http://127.0.0.1:1/login")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        http = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        made.append((http, thread))
        return f"http://127.0.0.1:{http.server_port}"

    yield start
    for http, thread in made:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.mark.parametrize("v3", [True, False])
def test_rounds_are_fetched_by_their_trace_ids(serve: Callable[[Server], str], v3: bool) -> None:
    server = Server(spans(1, 2, 3), v3=v3)
    found = Jaeger(serve(server)).rounds(RUN, [2, 3, 9])
    assert [each.index for each in rounds_of(found.spans)] == [2, 3]
    asked = [path for path, _ in server.asked[1:]]
    prefix = "/api/v3/traces/" if v3 else "/api/traces/"
    assert asked == [prefix + hex_trace(round_trace_id(RUN, index)) for index in (2, 3, 9)]


@pytest.mark.parametrize("v3", [True, False])
def test_the_newest_rounds_are_searched_for(serve: Callable[[Server], str], v3: bool) -> None:
    server = Server(spans(1, 2), v3=v3, search_v1=not v3)
    found = Jaeger(serve(server)).newest(RUN, 20)
    assert [each.index for each in rounds_of(found.spans)] == [1, 2]
    path, query = server.asked[-1]
    if v3:
        assert path == "/api/v3/traces"
        assert query["query.serviceName"] == query["query.service_name"] == ["peer-ann"]
        assert query["query.searchDepth"] == query["query.num_traces"] == ["20"]
        assert json.loads(query["query.attributes"][0]) == {"swarm.run": RUN}
        assert query["query.startTimeMin"][0] < query["query.startTimeMax"][0]
    else:
        assert path == "/api/traces"
        assert (query["service"], query["limit"]) == (["peer-ann"], ["20"])


def test_nothing_found_is_nothing(serve: Callable[[Server], str]) -> None:
    assert Jaeger(serve(Server([], v3=True))).newest(None, 5).spans == []


@pytest.mark.parametrize("fault", [b"<html>", b"[]", b"5", 500, 302, b'{"a":' + b"[" * 200_000])
def test_what_is_not_jaeger_is_said_to_be_so(serve: Callable[[Server], str], fault: Any) -> None:
    server = Server([], v3=True)
    server.fault = fault
    with pytest.raises(ConfigError, match=r"Jaeger"):
        Jaeger(serve(server)).newest(None, 5)


def test_an_answer_has_a_bound(serve: Callable[[Server], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_ANSWER", 100)
    with pytest.raises(ConfigError, match="too large"):
        Jaeger(serve(Server(spans(), v3=True))).rounds(RUN, [1])


def test_nobody_there() -> None:
    with pytest.raises(ConfigError, match="does not answer"):
        Jaeger("http://127.0.0.1:9").rounds(RUN, [1])


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:16686", "ftp://x", ""])
def test_only_http(url: str) -> None:
    with pytest.raises(ConfigError, match="--jaeger"):
        Jaeger(url)


@pytest.mark.skipif("not __import__('os').environ.get('JAEGER_URL')", reason="JAEGER_URL names no Jaeger")
def test_a_real_jaeger() -> None:
    import os

    assert Jaeger(os.environ["JAEGER_URL"]).newest(None, 5).skipped == 0


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
    from dataclasses import replace

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


def test_slow_from_jaeger(elastic: Elastic, serve: Callable[[Server], str]) -> None:
    url = serve(Server(spans(1, 2, 3), v3=True))
    assert "3 of 3 rounds" in elastic("trace", "slow", "--jaeger", url)[1]
    assert "1 of 1 round," in elastic("trace", "slow", "--jaeger", url, "--run", RUN, "--rounds", "2")[1]
    assert "round 3: " in elastic("trace", "show", "3", "--jaeger", url)[1]


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
