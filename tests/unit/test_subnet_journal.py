"""What is on its way to the chain, and what became of it, survives whoever wrote it."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from elastic.errors import StateError
from incentives.subnet.errors import KeyFileError, LockedError
from incentives.subnet.journal import INTENTION, RECEIPTS, Alarm, Journal, overdue
from incentives.subnet.keys import hotkey_file
from incentives.subnet.publisher import Lock
from incentives.subnet.receipts import Intention, Outcome, Receipt


def intention(**fields: Any) -> Intention:
    usual: dict[str, Any] = {
        "kind": "weights", "hotkey": "5Me", "netuid": 3, "genesis": "0xab", "nonce": 4, "birth": 100, "period": 16,
        "hash": "0xcd", "expected": ((1, 65535), (2, 7)), "weights": {"1": 0.9, "2": 0.1}, "dropped": ("5Gone",),
    }  # fmt: skip
    return Intention(**{**usual, **fields})


def receipt(**fields: Any) -> Receipt:
    named: dict[str, Any] = {"intention": intention(), "outcome": Outcome.LANDED, "block": 103, "settled": 105}
    return Receipt(**{**named, "time": 1.5, **fields})


def test_an_open_intention_is_found_again_after_a_restart(tmp_path: Path) -> None:
    Journal(tmp_path).begin(intention())
    again = Journal(tmp_path)
    assert again.open == intention()
    assert again.open.death == 116
    again.close(receipt())
    assert Journal(tmp_path).open is None
    assert Journal(tmp_path).last == receipt()


def test_it_is_remembered_when_weights_landed_and_not_when_anything_else_did(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.landed is None
    for each in (
        receipt(time=1.0),
        receipt(time=2.0, intention=intention(kind="commit")),
        receipt(time=3.0, intention=intention(kind="binding")),
        receipt(time=4.0, outcome=Outcome.FAILED),
    ):
        journal.begin(each.intention)
        journal.close(each)
    assert journal.landed == Journal(tmp_path).landed == 2.0


def test_there_is_one_at_a_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(intention())
    with pytest.raises(StateError, match="on its way already"):
        journal.begin(intention(nonce=5))
    assert Journal(tmp_path).open == intention()


def test_a_crash_between_receipt_and_intention_settles_it_twice_at_worst(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(intention())
    kept = (tmp_path / INTENTION).read_bytes()
    journal.close(receipt())
    (tmp_path / INTENTION).write_bytes(kept)
    again = Journal(tmp_path)
    assert (again.open, again.last) == (intention(), receipt())


def test_a_torn_line_spoils_only_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.close(receipt())
    path = tmp_path / RECEIPTS
    path.write_bytes(path.read_bytes() + b'{"intention": {"ki')
    again = Journal(tmp_path)
    again.close(receipt(outcome=Outcome.LOST, block=None))
    assert [each.outcome for each in Journal(tmp_path).receipts()] == [Outcome.LANDED, Outcome.LOST]


def test_a_damaged_intention_stops_everything_until_a_person_looked(tmp_path: Path) -> None:
    (tmp_path / INTENTION).write_bytes(b"{}")
    with pytest.raises(StateError, match="wait 16 blocks, then delete"):
        Journal(tmp_path)


def test_receipts_are_json_lines_and_bounded(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_bytes=2000)
    for number in range(20):
        journal.close(receipt(settled=number))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 6000
    assert [each.settled for each in journal.receipts()][-3:] == [17, 18, 19]
    lines = (tmp_path / RECEIPTS).read_text().splitlines()
    assert all(json.loads(line)["outcome"] == "landed" for line in lines)


def test_a_disk_that_takes_nothing_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "there")
    for path in (tmp_path / "there").iterdir():
        path.unlink()
    (tmp_path / "there").rmdir()
    with pytest.raises(StateError, match="not written"):
        journal.begin(intention())
    assert journal.open is None


@pytest.mark.parametrize(
    ("silent", "level"), [(0, None), (360, None), (361, "warning"), (720, "warning"), (721, "error")]
)
def test_silence_is_noticed_after_one_tempo_and_is_grave_after_two(silent: int, level: str | None) -> None:
    alarm = overdue(5000, 5000 - silent, 360)
    assert (alarm and alarm.level) == level
    assert alarm is None or isinstance(alarm, Alarm)


def test_silence_is_counted_from_when_this_peer_began(tmp_path: Path) -> None:
    # given a hotkey whose last weights are old, and a peer that has just begun
    assert overdue(5000, 0, 360, began=4900) is None
    alarm = overdue(5261, 0, 360, began=4900)
    assert alarm == Alarm(
        "warning", "no weights on the chain since block 4900, when this peer began: more than a tempo of 360 blocks"
    )
    assert overdue(5261, 4950, 360, began=4900) is None
    assert "since block 4950:" in str(overdue(5700, 4950, 360, began=4900))
    # and a restart is no new beginning
    journal = Journal(tmp_path)
    assert journal.began is None
    journal.begin(intention())
    assert Journal(tmp_path).began == intention().birth
    journal.close(receipt())
    assert Journal(tmp_path).began == intention().birth


def test_one_process_at_a_time_has_a_hotkey_on_a_subnet(tmp_path: Path) -> None:
    with Lock(tmp_path, "5Me", 3):
        with pytest.raises(LockedError, match=f"process {os.getpid()} publishes with hotkey 5Me on subnet 3"):
            Lock(tmp_path, "5Me", 3)
        Lock(tmp_path, "5Me", 4).release()
    Lock(tmp_path, "5Me", 3).release()


def test_a_lock_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be written"):
        Lock(tmp_path / "nowhere", "5Me", 3)


def key_file(root: Path, mode: int) -> Path:
    path = root / "cold" / "hotkeys" / "hot"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o622])
def test_a_key_that_others_may_read_is_refused_with_advice(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, mode)
    with pytest.raises(KeyFileError, match=f"chmod 600 {path}"):
        hotkey_file(tmp_path, "cold", "hot")


def test_a_key_of_ones_own_is_taken(tmp_path: Path) -> None:
    path = key_file(tmp_path, 0o600)
    assert hotkey_file(tmp_path, "cold", "hot") == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", ".", "..", "../cold", "a/b", "a\0b", "-x"])
def test_names_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="not the name"):
        hotkey_file(tmp_path, "cold", name)


def test_a_missing_key_comes_with_advice(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="btcli wallet new-hotkey"):
        hotkey_file(tmp_path, "cold", "hot")
