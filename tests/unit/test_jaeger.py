"""Spans from Jaeger, of now and of then."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from test_trace import PEERS, plan
from test_tracing import spans
from trace_cases import RUN, jaeger_v1, otlp

from elastic import trace
from elastic.config_local import TraceConfig
from elastic.errors import ConfigError
from elastic.messages import RoundIndex
from elastic.trace_ids import hex_trace, round_trace_id
from elastic.tracing import jaeger as room
from elastic.tracing.jaeger import Jaeger
from elastic.tracing.model import Span
from elastic.tracing.rounds import rounds_of

Elastic = Callable[..., tuple[int, str, str]]


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


def test_what_speaks_no_http_is_said_to_be_no_jaeger() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(ConfigError, match="does not answer"):
            Jaeger(f"http://127.0.0.1:{listener.getsockname()[1]}").rounds(RUN, [1])
        thread.join()


@pytest.mark.parametrize("url", ["http://127.0.0.1 x:1", "http://a\nb/", "http://" + "a" * 99 + ".b/"])
def test_an_address_that_leads_nowhere(url: str) -> None:
    with pytest.raises(ConfigError, match=r"does not answer|--jaeger"):
        Jaeger(url).rounds(RUN, [1])


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "localhost:16686", "ftp://x", "", "http://127.0.0.1:abc", "http://[::1", "http://:80",
     "http://a:99999"],
)  # fmt: skip
def test_only_http(url: str) -> None:
    with pytest.raises(ConfigError, match="--jaeger"):
        Jaeger(url)


@pytest.mark.skipif("not os.environ.get('JAEGER_URL')", reason="JAEGER_URL names no Jaeger")
def test_a_real_jaeger_gives_what_it_was_sent(tmp_path: Path) -> None:
    """Its page is at JAEGER_URL; it takes OTLP over HTTP at JAEGER_OTLP, by default port 4318 of the same machine."""
    url = os.environ["JAEGER_URL"]
    endpoint = os.environ.get("JAEGER_OTLP") or f"http://{urlsplit(url).hostname}:4318/v1/traces"
    # given a run that no one else has, of two peers
    run = f"test-{uuid4().hex}"
    for number, peer in enumerate(PEERS[:2]):
        config = TraceConfig(exporter="otlp", endpoint=endpoint)
        trace.setup(config, run=run, peer=peer, name=("ann", "bob")[number], state_dir=tmp_path)
        exporter = trace._tracing.exporter if trace._tracing is not None else None
        for index in (1, 2):
            with (
                trace.round_span(plan(peer, index).model_copy(update={"run": run})),
                trace.span(trace.FETCH, peer_from="cyd", bytes=7),
            ):
                trace.event("from", peer="cyd", bytes=7)
            if number == 0:
                trace.root_span(run, RoundIndex(index), trace.now_ns() - 10**9, trace.now_ns(), proposer=peer)
        trace.shutdown(30)
        assert exporter is not None and exporter.exported == 6 - 2 * number, "sent"
    # when they are asked for by number, and searched for, as soon as it has stored them
    jaeger, deadline = Jaeger(url), time.monotonic() + 60
    while sum(span.run == run for span in jaeger.rounds(run, [1, 2]).spans) < 10:
        assert time.monotonic() < deadline, "it does not give what it was sent"
        time.sleep(0.5)
    # then all of it is there, as it was sent
    for found in (jaeger.rounds(run, [1, 2]), jaeger.newest(run, 5)):
        assert found.skipped == 0
        rounds = rounds_of(found.spans)
        assert [(each.run, each.index, sorted(each.peers)) for each in rounds] == [
            (run, index, sorted(PEERS[:2])) for index in (1, 2)
        ]
        for each in rounds:
            assert each.root is not None and each.decider is each.peers[PEERS[0]]
            assert sorted(of.name for of in each.peers.values()) == ["ann", "bob"]
            for of in each.peers.values():
                (fetch,) = of.all("round.fetch")
                assert fetch.parent == of.round.id and fetch.number("bytes") == 7
                assert [event.text("peer") for event in fetch.events] == ["cyd"]


def test_slow_from_jaeger(elastic: Elastic, serve: Callable[[Server], str]) -> None:
    url = serve(Server(spans(1, 2, 3), v3=True))
    assert "3 of 3 rounds" in elastic("trace", "slow", "--jaeger", url)[1]
    assert "1 of 1 round," in elastic("trace", "slow", "--jaeger", url, "--run", RUN, "--rounds", "2")[1]
    assert "round 3: " in elastic("trace", "show", "3", "--jaeger", url)[1]
