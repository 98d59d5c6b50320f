"""The table of peers, and bytes for people."""

from types import SimpleNamespace
from typing import Any

import pytest

from elastic import view
from elastic.messages import Digest, PeerId
from elastic.reports import PeerStatus
from elastic.view import alive, doing, size, status_table

NOW = 1_000_000.0


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "time", SimpleNamespace(time=lambda: NOW))


def status(name: str = "ann", **changes: Any) -> PeerStatus:
    fields: dict[str, Any] = {
        "peer": PeerId("1" * 46), "name": name, "run": "demo", "stage": "ready", "updated": NOW - 1, "pid": 1,
    }  # fmt: skip
    return PeerStatus(**(fields | changes))


def test_the_table_shows_what_a_peer_does_and_has_done() -> None:
    text = status_table(
        [
            status("bob", phase="waiting for peers (1 of 2)"),
            status(
                "ann", phase="inner", round=7, step=12, loss=4.25, tokens_per_second=12345.6, rounds_counted=5,
                rounds_contributed=6, bytes_out=1_234_567, bytes_in=999, digest=Digest("ab" * 32),
            ),
        ],
        columns=80,
    )  # fmt: skip
    lines = text.splitlines()
    assert [cell.strip() for cell in lines[1].strip("┃").split("┃")] == [
        *("peer", "doing", "round", "step", "loss", "tokens/s", "counted", "sent", "received", "anchor"),
    ]
    ann, bob = (next(line for line in lines if name in line) for name in ("ann", "bob"))
    assert lines.index(ann) < lines.index(bob)
    assert [cell.strip() for cell in ann.strip("│").split("│")] == [
        *("ann", "inner", "7", "12", "4.250", "12,346", "5/6", "1.2 MB", "999 B", "abababab"),
    ]
    assert "waiting for peers (1 of 2)" in bob
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(
    ("changes", "word", "lives"),
    [
        ({"phase": "gather"}, "gather", True),
        ({"phase": ""}, "ready", True),
        ({"updated": NOW - 14}, "ready", True),
        ({"updated": NOW - 16, "phase": "gather"}, "gone", False),
        ({"stage": "left", "phase": "the run is over"}, "left", False),
        ({"stage": "left", "updated": NOW - 3600}, "left", False),
        ({"stage": "failed"}, "failed", False),
        ({"stage": "finished", "phase": "held-out loss 2.000"}, "held-out loss 2.000", True),
    ],
)
def test_a_peer_is_alive_gone_or_has_ended(changes: dict[str, Any], word: str, lives: bool) -> None:
    assert doing(status(**changes)) == word
    assert alive(status(**changes)) == lives


def test_what_made_a_peer_fail_is_told_below_the_table() -> None:
    text = status_table([status("ann", stage="failed", error="no space left"), status("bob")], columns=200)
    assert text.splitlines()[-1] == "ann failed: no space left"


@pytest.mark.parametrize("name", ["[red]", "[/]", "[bold]x[/bold]", "a\\[b"])
def test_a_name_is_no_markup(name: str) -> None:
    assert name in status_table([status(name)], columns=100)


def test_the_slowest_is_marked_in_the_live_table() -> None:
    (column, *_) = view.table([status("ann"), status("bob")], slowest="bob").columns
    assert list(map(str, column.cells)) == ["ann", "bob (last)"]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1049, "1.0 kB"),
        (1050, "1.1 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (1_234_567, "1.2 MB"),
        (999_999_999, "1.0 GB"),
        (12_345_678_901, "12.3 GB"),
        (10**15, "1000.0 TB"),
    ],
)
def test_bytes_for_people(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


def test_a_peer_that_came_back_says_so_below_the_table() -> None:
    text = status_table([status("ann"), status("bob", restarts=3, restarted_after="the network died")], columns=80)
    assert text.splitlines()[-1] == "bob restarted 3 times, the last time after this: the network died"
    assert "ann restarted" not in text
