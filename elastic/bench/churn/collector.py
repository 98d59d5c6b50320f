"""A trace collector that takes everything and keeps nothing: what is of interest here is its death."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BODY = 16 * 2**20


class Taker(BaseHTTPRequestHandler):
    """Answers every POST of OTLP/HTTP with success."""

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(min(length, MAX_BODY))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name upstream gave it
        """Say nothing."""


def main() -> None:
    """`python -m elastic.bench.churn.collector PORT`, until standard input closes."""
    server = ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Taker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
