"""`elastic eval`: any model that can be opened, measured on tasks; as a table, and as JSON."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from elastic.actors.anchors import subject_of
from elastic.errors import ConfigError
from elastic.evals.subject import LONGEST, Subject, shipped_text
from elastic.models.opened import Opened, open_model
from elastic.names import printable
from elastic.reports import Measured

OnProgress = Callable[[int, int], None]
HEADINGS = {"task": "left", "metric": "left", "value": "right", "± stderr": "right", "of": "right"}
"""Columns of the table, and how each is justified."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done, and how much at once."""

    limit: int | None
    """Examples of each task, the first ones; None: all."""
    batch: int
    """Texts at a time, at most."""
    context: int | None
    """Tokens of each that the model reads at a time, at most; None: what is usual for it."""


def evaluate(
    where: Path, run_file: Path | None, tasks: Sequence[str], effort: Effort, on_progress: OnProgress
) -> tuple[str, list[Measured]]:
    """What the model is, for people, and what was measured of it; see `elastic.evals.harness.measure`.

    Raises:
        ModuleNotFoundError: lm-eval is not installed.
        ElasticError: there is no such model or task, or what it needs is not here.
    """
    from elastic.evals.harness import measure

    opened = open_model(where, run_file)
    subject = subject_of(opened.held) if opened.held is not None else _of_folder(opened)
    if effort.context is not None:
        subject = replace(subject, longest=_possible(effort.context, opened.model))
    return opened.origin, measure(subject, tasks, effort.limit, effort.batch, on_progress)


def _possible(context: int, model: Any) -> int:
    longest = model.shape.max_sequence_length if hasattr(model, "shape") else context
    if context > longest:
        raise ConfigError(f"--context {context}: this model reads {longest} tokens at a time, at most")
    return context


def _of_folder(opened: Opened) -> Subject:
    longest = min(LONGEST, opened.model.shape.max_sequence_length)
    return Subject(opened.model, opened.tokenizer, opened.ends, longest, shipped_text())


def table(results: Sequence[Measured]) -> str:
    """As people read it."""
    shown = Table(box=None, pad_edge=False)
    for heading, justify in HEADINGS.items():
        shown.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for each in results:
        stderr = "-" if each.stderr is None else f"{each.stderr:.4f}"
        shown.add_row(printable(each.task), each.metric, f"{each.value:.4f}", stderr, str(each.samples))
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def write_json(path: Path, origin: str, limit: int | None, results: Sequence[Measured]) -> None:
    """As programs read it.

    Raises:
        ConfigError: it cannot be written.
    """
    tree = {"model": origin, "limit": limit, "results": [each.model_dump(mode="json") for each in results]}
    try:
        path.write_bytes(orjson.dumps(tree, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


@contextmanager
def progress(out: TextIO) -> Iterator[OnProgress]:
    """A bar while this lasts, if somebody is looking."""
    columns: list[Any] = [TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(file=out), transient=True, disable=not out.isatty()) as bar:
        task = bar.add_task("")

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield tell
