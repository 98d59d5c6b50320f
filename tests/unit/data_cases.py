"""Prepared tokens for tests: small, quickly made, and the same each time."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from model_zoo.documents import Reading
from model_zoo.prepare import prepare, settings_for
from model_zoo.prepared import Index

KEY = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"


def made(folder: Path, letter: str = "a", size: int = 5000, shard_tokens: int = 1000) -> Index:
    """Prepare documents of one letter and numbers, about `size` bytes, as bytes."""
    text = folder.with_name(folder.name + ".jsonl")
    rows = [json.dumps({"text": f"{letter}{number} " * 15}) for number in range(1000, 1000 + size // 91)]
    text.write_text("\n".join(rows))
    settings = settings_for("bytes", None, [text], Reading(), shard_tokens, 0.1)
    return prepare([text], folder, settings, workers=1)


def tokens_of(folder: Path, index: Index) -> np.ndarray[Any, Any]:
    """All of them."""
    return np.concatenate([index.open(folder / shard.name, shard) for shard in index.shards])


@contextmanager
def serving(folder: Path, answer: Callable[[Any], bool] = lambda request: False) -> Iterator[tuple[str, list[str]]]:
    """A web server with that folder that takes ranges; gives its address and what it was asked.

    `answer` may answer a request itself, and says whether it did.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            asked.append(f"{self.path[1:]} {wanted or ''}".strip())
            if answer(self):
                return
            path = folder / self.path[1:]
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            if wanted is None:
                self.send_response(200)
            else:
                start, stop = (int(each) for each in wanted.removeprefix("bytes=").split("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{min(stop, len(data) - 1)}/{len(data)}")
                data = data[start : stop + 1]
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def tree(*sources: tuple[str, str, float], places: dict[str, str], **data: Any) -> dict[str, Any]:
    """A run file of these sources, (name, digest of the index, weight), and where they lie."""
    mixed = [{"name": name, "index": index, "weight": weight} for name, index, weight in sources]
    return {
        "shared": {
            "run": "demo", "agreement": {"validators": [KEY]}, "data": {"sources": mixed, **data},
            "inner": {"steps": 2, "batch_size": 4, "sequence_length": 16},
        },
        "local": {"state_dir": "state", "data": {"sources": places}},
    }  # fmt: skip
