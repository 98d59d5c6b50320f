"""How long rounds take is remembered, and nothing that is wrong with the file stops anyone."""

from pathlib import Path

import pytest

from elastic.messages import Seconds
from elastic.state.pace import KEPT, PACE_FILE, Pace


def test_the_next_life_knows_what_the_last_one_saw(tmp_path: Path) -> None:
    pace = Pace(tmp_path / PACE_FILE)
    for seconds in (1.0, 2.5):
        pace.note(Seconds(seconds))
    assert Pace(tmp_path / PACE_FILE).history == [1.0, 2.5]


def test_only_the_last_rounds_are_kept(tmp_path: Path) -> None:
    pace = Pace(tmp_path / PACE_FILE)
    for number in range(KEPT + 5):
        pace.note(Seconds(number + 1.0))
    assert pace.history == Pace(tmp_path / PACE_FILE).history == [float(number + 6) for number in range(KEPT)]


@pytest.mark.parametrize("content", [b"", b"{", b"[1, null]", b'"x"', b"3", b"\xff"])
def test_a_damaged_file_is_a_fresh_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PACE_FILE).write_bytes(content)
    assert Pace(tmp_path / PACE_FILE).history == []


def test_what_is_no_duration_is_left_out(tmp_path: Path) -> None:
    (tmp_path / PACE_FILE).write_bytes(b"[1.0, NaN, -2, 0, Infinity, 3]")
    assert Pace(tmp_path / PACE_FILE).history == [1.0, 3.0]


def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path) -> None:
    pace = Pace(tmp_path / "not there" / PACE_FILE)
    pace.note(Seconds(1.0))
    assert pace.history == [1.0]


def test_without_a_file_nothing_is_remembered() -> None:
    pace = Pace()
    pace.note(Seconds(1.0))
    assert pace.history == [1.0]
    assert Pace().history == []
