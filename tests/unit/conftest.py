"""What the tests of several commands need."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from elastic.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def elastic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in an empty folder; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["elastic", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]

    return run


@pytest.fixture
def validator(elastic: Run) -> Run:
    """The same, in a folder with the run file of a validator."""
    elastic("init", "run.toml", "--name", "demo")
    return elastic
