"""A program beside a quickstart: what it says comes through, and it is gone afterwards, whatever it does."""

from pathlib import Path

import psutil
import pytest

from elastic.actors import child
from elastic.actors.child import Child


def say_seven(sut: Child, more: str = "") -> None:
    sut.stdin.write(f"print(7, flush=True){more}\n")
    sut.stdin.flush()
    assert sut.stdout.readline().endswith("7\n")


def test_a_child_ends_when_nobody_speaks_to_it_any_more(tmp_path: Path) -> None:
    # given Python's own console, whose banner goes to standard error
    sut = Child(tmp_path / "log", "code")
    say_seven(sut)
    # when
    sut.close()
    # then
    assert not psutil.pid_exists(sut.pid)
    assert "InteractiveConsole" in (tmp_path / "log").read_text()


def test_a_child_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given one that is busy and does not listen
    monkeypatch.setattr(child, "LEAVE_SECONDS", 0.0)
    sut = Child(tmp_path / "log", "code")
    say_seven(sut, "; import threading; threading.Event().wait()")
    # when
    sut.close()
    # then
    assert not psutil.pid_exists(sut.pid)
