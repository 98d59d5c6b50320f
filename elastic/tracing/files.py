"""Spans in files: those that peers write, and what was saved from Jaeger."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from elastic.config import load_config
from elastic.errors import ConfigError
from elastic.folders import by_run, last_active, peers_in
from elastic.tracing.model import Span
from elastic.tracing.otlp import Found, spans_in
from elastic.tracing.rounds import ROUND

TRACE_FILES = ("traces.jsonl", "traces.1.jsonl")
"""Of a state directory, the newer first: what is put aside meanwhile is read twice rather than not at all."""
MAX_LINE = 64 * 2**20
"""Bytes of a line, or of a file that is one JSON value."""
MAX_SPANS = 300_000
"""Kept in all; each takes about 4 kB of memory."""


def trace_files(where: Path) -> list[Path]:
    """The trace files of a file, a run file's peer, a state directory, a quickstart's folder, or a folder of runs: of
    those, the ones of the run that wrote last.

    Raises:
        ConfigError: there are none.
    """
    if where.suffix == ".toml":
        where = load_config(where).local.state_dir
    if where.is_file():
        return [where]
    runs = by_run(peers_in(where, TRACE_FILES))
    if not runs:
        raise ConfigError(
            f'{where}: no peer wrote traces here; they do so with local.trace.exporter = "file", which is the default '
            "(of a run whose spans go to a collector: --jaeger URL --run NAME)"
        )
    newest = runs[last_active(runs, TRACE_FILES)]
    return [path for folder in newest for name in TRACE_FILES if (path := folder / name).exists()]


def read_files(paths: list[Path], run: str | None = None, rounds: Collection[int] | None = None) -> Found:
    """Spans of these files; torn and hostile lines are skipped and counted.

    Args:
        paths: as `trace_files` gives them; what was put aside and is gone meanwhile is nothing.
        run: of other runs nothing but which rounds they had; None: all runs.
        rounds: of other rounds nothing but that they were; None: all rounds.

    Raises:
        ConfigError: a file cannot be read, or there is more in them than anyone needs.
    """
    found = Found()

    def wanted(span: Span) -> bool:
        inside = run in (None, span.run) and (rounds is None or int(span.number("round", -1)) in rounds)
        return inside or span.name == ROUND

    for path in paths:
        try:
            for tree in _values(path):
                new = spans_in(tree)
                found.spans += filter(wanted, new.spans)
                found.skipped += new.skipped
                if len(found.spans) > MAX_SPANS:
                    raise ConfigError(f"{path}: more than {MAX_SPANS:,} spans: say which --rounds")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
    return found


def _values(path: Path) -> Iterator[Any]:
    """The JSON values of a file, one in each line, or all of it; what is none comes as None."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            tree = _parsed(line)
            if number == 1 and tree is None and os.fstat(file.fileno()).st_size <= MAX_LINE:
                whole = _parsed(line + file.read(MAX_LINE))
                if whole is not None:
                    yield whole
                    return
                file.seek(len(line))
            if line.strip():
                yield tree


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
