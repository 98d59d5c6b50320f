"""Spans in files: those that peers write, and what was saved from Jaeger."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from elastic.config import load_config
from elastic.errors import ConfigError
from elastic.tracing.model import Span
from elastic.tracing.otlp import Found, spans_in

TRACE_FILES = ("traces.1.jsonl", "traces.jsonl")
"""Of a state directory, the older first."""
MAX_LINE = 64 * 2**20
"""Bytes of a line, or of a file that is one JSON value."""
MAX_SPANS = 2_000_000
"""Read in all."""


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
    runs: dict[Path, list[Path]] = {}
    for name in TRACE_FILES:
        for pattern in (name, f"*/{name}", f"*/*/{name}"):
            for path in where.glob(pattern):
                runs.setdefault(path.parent if pattern == name else path.parent.parent, []).append(path)
    if not runs:
        raise ConfigError(
            f'{where}: no peer wrote traces here; they do so with local.trace.exporter = "file", which is the default '
            "(of a run whose spans go to a collector: --jaeger URL --run NAME)"
        )
    return sorted(max(runs.values(), key=lambda paths: max(path.stat().st_mtime for path in paths)))


def read_files(paths: list[Path], wanted: Callable[[Span], bool] = lambda span: True) -> Found:
    """Spans of these files that somebody wants; torn and hostile lines are skipped and counted.

    Raises:
        ConfigError: a file cannot be read, or there is more in them than anyone needs.
    """
    found = Found()
    for path in paths:
        try:
            for tree in _values(path):
                new = spans_in(tree)
                found.spans += [span for span in new.spans if wanted(span)]
                found.skipped += new.skipped
                if len(found.spans) > MAX_SPANS:
                    raise ConfigError(f"{path}: more than {MAX_SPANS:,} spans: say which --rounds")
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
            if number == 1 and tree is None and path.stat().st_size <= MAX_LINE:
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
