"""A trace collector that writes what it gets into a file, as peers would without one."""

from __future__ import annotations

import gzip
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from elastic.trace_file import as_json

MAX_BODY = 16 * 2**20


class Keeper(ThreadingHTTPServer):
    """OTLP/HTTP in, a line of OTLP-JSON out."""

    daemon_threads = True

    def __init__(self, port: int, file: BinaryIO) -> None:
        super().__init__(("0.0.0.0", port), Post)
        self._file, self._lock = file, threading.Lock()

    def keep(self, line: bytes) -> None:
        with self._lock:
            self._file.write(line)
            self._file.flush()


class Post(BaseHTTPRequestHandler):
    """One request; it is answered once its spans are in the file."""

    protocol_version = "HTTP/1.1"
    server: Keeper

    def do_POST(self) -> None:
        body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), MAX_BODY))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.keep(as_json(ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name upstream gave it
        """Say nothing."""


def main() -> None:
    """`python -m elastic.bench.trace.collector PORT FILE`, until standard input closes."""
    with Path(sys.argv[2]).open("ab") as file:
        server = Keeper(int(sys.argv[1]), file)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
