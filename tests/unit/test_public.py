"""Reading what a stranger's URL names: what is refused, what is bounded, and that it works at all."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from elastic.exchange.bucket.public import is_bucket, is_public, reading
from elastic.exchange.limits import Limits

QUICK = Limits(idle_seconds=1.0, open_seconds=1.0, grace_seconds=0.5, min_bytes_per_second=1000.0)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/blob")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/drip":
            self.send_response(206)
            self.end_headers()
            for _ in range(40):
                self.wfile.write(b".")
                time.sleep(0.2)
        elif self.path == "/short":
            self.send_response(206)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"abc")
        elif self.path == "/whole":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"0123456789")
        elif self.path == "/blob":
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.end_headers()
            self.wfile.write(b"0123456789"[first : last + 1])
        else:
            self.send_response(404)
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.daemon_threads = True
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def read(url: str, start: int = 0, length: int = 4, private: bool = True) -> bytes:
    with reading(url, start, length, private, QUICK) as read_on:
        return read_on(length)


def test_a_range_is_read(server: str) -> None:
    assert read(f"{server}/blob", 3, 4) == b"3456"


def test_a_file_is_read_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "with space").write_bytes(b"0123456789")
    url = (tmp_path / "with space").as_uri()
    assert read(url, 3, 4) == b"3456"
    with pytest.raises(PermissionError):
        read(url, private=False)


def test_a_server_that_knows_no_ranges_gives_a_beginning_only(server: str) -> None:
    assert read(f"{server}/whole", 0, 4) == b"0123"
    with pytest.raises(OSError, match="status 200"):
        read(f"{server}/whole", 4, 4)


def test_what_is_not_there_is_told_apart_from_what_fails(server: str, tmp_path: Path) -> None:
    for missing in (f"{server}/nothing", (tmp_path / "nothing").as_uri()):
        with pytest.raises(FileNotFoundError):
            read(missing)


def test_no_redirect_is_followed(server: str) -> None:
    with pytest.raises(OSError, match="status 302"):
        read(f"{server}/moved")


def test_a_body_that_ends_early_is_an_error(server: str) -> None:
    with pytest.raises((OSError, EOFError)):
        read(f"{server}/short", 0, 100)


def test_who_sends_a_byte_now_and_then_is_cut_off(server: str) -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="too slow"):
        read(f"{server}/drip", 0, 10**6)  # for which the whole request would have 1000 s
    assert time.monotonic() - start < 4.0


def test_headers_that_never_end_are_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble() -> None:
            connection, _ = listener.accept()
            try:
                while True:
                    connection.sendall(b"X")
                    time.sleep(0.2)
            except OSError:
                connection.close()

        threading.Thread(target=babble, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(OSError):
            read(f"http://127.0.0.1:{listener.getsockname()[1]}/blob")
        assert time.monotonic() - start < 4.0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0.0.0.0"])
def test_our_own_network_is_not_read_for_a_stranger(server: str, host: str) -> None:
    port = server.rpartition(":")[2]
    with pytest.raises(OSError) as caught:
        read(f"http://{host}:{port}/blob", private=False)
    assert isinstance(caught.value, PermissionError | socket.gaierror)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True),
        ("10.0.0.1", False), ("172.16.0.1", False), ("192.168.1.1", False), ("127.0.0.1", False), ("0.0.0.0", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("224.0.0.1", False), ("255.255.255.255", False),
        ("::1", False), ("fe80::1%eth0", False), ("fc00::1", False), ("::ffff:10.0.0.1", False),
        ("2002:0a00:0001::", False), ("64:ff9b::10.0.0.1", False), ("64:ff9b::8.8.8.8", True),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/1.2.3.4/tcp/1", "ftp://host/x", "gopher://host", "https://", "https:///x", "http://user@host/", "https://h:0/",
        "http://u:p@host/", "https://host/?key=1", "https://host/#x", "https://host:99999/", "https://[::1/",
        "https://host/\r\nX: y", "https://host/a b", "https://höst/", "https://host/" + "a" * 256, "file:///etc", "",
    ],
)  # fmt: skip
def test_what_names_no_bucket(address: str) -> None:
    assert not is_bucket(address)


def test_what_names_a_bucket() -> None:
    assert is_bucket("https://bucket.example.org/run")
    assert is_bucket("http://203.0.113.5:9000/bucket/run/")
    assert is_bucket("file:///shared", private=True)
    assert not is_bucket("file:relative", private=True)
