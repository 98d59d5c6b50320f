"""The gate in front of the collector: honest peers get through, wherever they are, and nobody gets two accounts."""

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

GATE = (Path(__file__).parents[2] / "ops/gate.conf").read_text(encoding="utf-8")
ROSTER, PROCESSES = 48, 3
"""Peers of a full round, and of each its processes that export."""


def rate_of(zone: str) -> int:
    return int(re.search(rf"zone={zone}:\w+ rate=(\d+)r/s;", GATE)[1])  # type: ignore[index]


def test_a_whole_roster_at_one_address_is_let_through() -> None:
    asking = int(re.search(r"zone=peer burst=(\d+)", GATE)[1])  # type: ignore[index]
    connections = int(re.search(r"limit_conn connections (\d+);", GATE)[1])  # type: ignore[index]
    assert rate_of("peer") >= PROCESSES and asking >= 8192 / 512
    assert rate_of("address") >= ROSTER * PROCESSES
    assert connections >= ROSTER * PROCESSES


class Upstream(BaseHTTPRequestHandler):
    """A collector that takes everything."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """The gate on a socket of its own, with room for three requests of an address, in front of a collector."""
    if shutil.which("nginx") is None:
        pytest.skip("no nginx (Debian: nginx)")
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    text = GATE.replace("/tmp/gate", f"{tmp_path}/gate").replace("/dev/stderr", f"{tmp_path}/errors")
    text = text.replace("listen 4318;", f"listen unix:{tmp_path}/socket;\n        set_real_ip_from unix:;")
    text = text.replace("http://collector:4318", f"http://127.0.0.1:{collector.server_port}")
    text = text.replace("zone=address:4m rate=200r/s", "zone=address:4m rate=1r/m").replace("burst=400", "burst=2")
    (tmp_path / "gate.conf").write_text(text, encoding="utf-8")
    subprocess.run(["nginx", "-p", tmp_path, "-c", tmp_path / "gate.conf"], check=True, capture_output=True)
    yield tmp_path / "socket"
    os.kill(int((tmp_path / "gate.pid").read_text()), signal.SIGTERM)
    collector.shutdown()
    collector.server_close()


def ask(gate: Path, forwarded: str, password: str) -> int:
    """The status that a peer gets, sent on by a server in front."""
    connection = http.client.HTTPConnection("gate")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(gate))
    connection.request("POST", "/v1/traces", b"x", {"X-Forwarded-For": forwarded, "Authorization": password})
    status = connection.getresponse().status
    connection.close()
    return status


def test_behind_another_server_each_peer_has_an_account_of_its_own(gate: Path) -> None:
    assert [ask(gate, "203.0.113.1", f"a{n}") for n in range(4)] == [200, 200, 200, 429]
    assert ask(gate, "203.0.113.2", "b") == 200


def test_what_a_peer_says_of_itself_gets_it_no_other_account(gate: Path) -> None:
    asked = [ask(gate, f"198.51.100.{n}, 203.0.113.1", f"a{n}") for n in range(4)]
    assert asked == [200, 200, 200, 429]
