"""What a peer tells the people who run it: written whole, readable by machines, never in training's way."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from elastic.actors import journal as module
from elastic.actors.journal import Journal, describe, newest_statuses
from elastic.actors.live import complete_rounds, over, round_line, slowest
from elastic.actors.revival import Past
from elastic.amend import read_wishes
from elastic.config import RunConfig, parse_config
from elastic.errors import ConfigError, TrainerFailedError
from elastic.messages import Digest, PeerId, RoundIndex, RoundPlan
from elastic.reports import PeerStatus, RoundReport, Wishes
from elastic.verify.ratings import Ratings, Standing
from incentives.reputation import Reputation

PEER, OTHER = PeerId("12D3KooW" + "A" * 44), PeerId("12D3KooW" + "B" * 44)
DIGEST = Digest("ab" * 32)
DOCUMENTED = {"round", "peer", "loss", "tokens", "bytes_out", "bytes_in", "digest", "verdicts", "seconds"}


def config(folder: Path, **local: Any) -> RunConfig:
    tree = {
        "shared": {"run": "demo", "agreement": {"validators": [PEER]}},
        "local": {"state_dir": str(folder / "state"), "report": str(folder / "out" / "report.jsonl"), **local},
    }
    return parse_config(tree, base=folder)


def report(round_: int = 1, peer: PeerId = PEER, **changes: Any) -> RoundReport:
    fields: dict[str, Any] = {
        "run": "demo", "round": RoundIndex(round_), "peer": peer, "name": peer[-1], "contributed": True,
        "counted": True, "loss": 5.5, "tokens": 1000, "steps": 3, "digest": DIGEST,
        "verdicts": {PEER: "accepted", OTHER: "copy"}, "last": OTHER, "seconds": {"inner": 2.0, "total": 4.0},
    }  # fmt: skip
    return RoundReport(**(fields | changes))


def plan(slot: int | None = 0) -> RoundPlan:
    return RoundPlan(
        run="demo", round=RoundIndex(3), previous=DIGEST, anchor=DIGEST, peer=PEER, roster=(PEER,), slot=slot,
        inner_steps=3, seed=0, train_seconds=1.0, gather_seconds=1.0,
    )  # fmt: skip


def written(folder: Path) -> PeerStatus:
    return PeerStatus.from_bytes((folder / "state" / "status.json").read_bytes())


@pytest.fixture
def time_stands_still(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that moves when told."""
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0]))
    return now


def test_the_status_is_on_disk_whole_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    journal = Journal(config(tmp_path, name="ann"), PEER)
    journal.note(stage="ready", phase="inner")
    status = written(tmp_path)
    assert (status.name, status.stage, status.phase, status.run) == ("ann", "ready", "inner", "demo")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["status.json"]


def test_what_validators_wish_for_is_kept_for_its_people(tmp_path: Path) -> None:
    journal = Journal(config(tmp_path), PEER)
    for round_ in (7, 8):
        wishes = Wishes(run="demo", round=RoundIndex(round_), amended=RoundIndex(0), wishes={}, names={PEER: "ann"})
        journal.wished(wishes)
    assert read_wishes(tmp_path / "state") == wishes


def test_a_reader_never_sees_half_a_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(config(tmp_path), PEER)
    journal.note(stage="ready")

    def fails(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fails)
    journal.note(stage="finished")
    assert written(tmp_path).stage == "ready"


def test_the_status_is_rewritten_now_and_then_but_a_new_stage_at_once(
    tmp_path: Path, time_stands_still: list[float]
) -> None:
    journal = Journal(config(tmp_path), PEER)
    journal.note(stage="ready", step=1)
    journal.note(step=2)
    assert written(tmp_path).step == 1
    time_stands_still[0] += 1
    journal.note(step=3)
    assert written(tmp_path).step == 3
    journal.note(stage="left", step=4)
    assert (written(tmp_path).stage, written(tmp_path).step) == ("left", 4)


def test_a_round_shows_in_the_status_from_its_plan_to_its_report(
    tmp_path: Path, time_stands_still: list[float]
) -> None:
    journal = Journal(config(tmp_path), PEER)
    journal.begin(plan())
    assert (journal.status.round, journal.status.phase, journal.status.step) == (3, "inner", 0)
    time_stands_still[0] += 2
    journal.progress(10, 5.0)
    assert journal.status.tokens_per_second == 10 * 8 * 128 / 2
    journal.record(report(3), {})
    assert (journal.status.loss, journal.status.digest, journal.status.tokens_per_second) == (5.5, DIGEST, 500.0)
    journal.record(report(4, counted=False, contributed=False, loss=None), {})
    assert (journal.status.rounds_counted, journal.status.rounds_contributed, journal.status.loss) == (1, 1, 5.5)
    journal.begin(plan(slot=None))
    assert journal.status.phase == "sitting out"


def test_reports_are_appended_as_lines_of_json_with_the_documented_keys(tmp_path: Path) -> None:
    journal = Journal(config(tmp_path), PEER)
    for round_ in (1, 2):
        journal.record(report(round_), {})
    Journal(config(tmp_path), PEER).record(report(3), {})
    lines = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_bytes().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert set(lines[0]) >= DOCUMENTED
    assert lines[0]["verdicts"] == {PEER: "accepted", OTHER: "copy"}
    assert lines[0]["seconds"] == {"inner": 2.0, "total": 4.0}
    assert [each.round for each in journal.reports] == [1, 2]


@pytest.mark.parametrize("blocked", ["state", "out"])
def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, blocked: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / blocked).write_text("a file where a folder should be")
    journal = Journal(config(tmp_path), PEER)
    with caplog.at_level(logging.WARNING):
        journal.note(stage="ready")
        journal.record(report(), {"any": "thing"})
        journal.failed(TrainerFailedError("broken"))
    assert any(
        record.levelno == logging.WARNING and str(tmp_path / blocked) in record.message for record in caplog.records
    )
    assert journal.status.stage == "failed"


def test_a_failure_is_told_with_its_reason(tmp_path: Path) -> None:
    journal = Journal(config(tmp_path), PEER)
    journal.note(stage="ready")
    journal.failed(TrainerFailedError("x" * 1000))
    assert (written(tmp_path).stage, written(tmp_path).error) == ("failed", "x" * 500)


def test_a_restart_is_on_disk_at_once(tmp_path: Path) -> None:
    # given a status that was written just now
    journal = Journal(config(tmp_path), PEER)
    journal.note(stage="ready")
    # when a process of the peer dies, and the peer right after it
    journal.restarted("the network died")
    # then whoever starts it again can read it
    (status,) = newest_statuses(tmp_path)
    assert (status.restarts, status.restarted_after) == (1, "the network died")


def test_an_incentive_remembers_across_lives(tmp_path: Path) -> None:
    record = {"reputation": 0.5, "rounds": 3, "last": 3, "strikes": 0.0, "shut": 0, "until": 0, "help": 1.0}
    state = {"peers": {PEER: record}, "heard": [], "invited": [], "two_faced": [], "out": []}
    ratings = {PEER: asdict(Standing(mean=30.0, spread=2.0, work=0.5, assessed=3, last=3, played=3))}
    Journal(config(tmp_path), PEER).record(report(), {"incentive": state, "ratings": ratings})
    incentive, rated, journal = Reputation(Reputation.Config()), Ratings(), Journal(config(tmp_path), PEER)
    journal.restore("incentive", incentive)
    journal.restore("ratings", rated)
    assert (incentive.state(), rated.state()) == (state, ratings)


@pytest.mark.parametrize("saved", [b"", b'{"peers": ', b"\xff", b"{}", b'{"rounds": 1}', b"[]"])
def test_a_damaged_memory_or_another_incentives_is_a_warning_and_a_fresh_start(
    tmp_path: Path, saved: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "incentive.json").write_bytes(saved)
    with caplog.at_level(logging.WARNING):
        incentive = Reputation(Reputation.Config())
        Journal(config(tmp_path), PEER).restore("incentive", incentive)
    assert incentive.state() == {"peers": {}, "heard": [], "invited": [], "two_faced": [], "out": []}
    assert "begins anew" in caplog.text


def test_a_memory_that_is_no_json_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Journal(config(tmp_path), PEER).record(report(), {"incentive": {"peers": {PEER}}})
    assert "is not JSON" in caplog.text


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "loss 5.500 | counted | 1 of 2 peers | 4.0 s | anchor abababababab"),
        ({"counted": False, "skipped": "late"}, "loss 5.500 | late | 1 of 2 peers | 4.0 s | anchor abababababab"),
        ({"counted": False, "loss": None}, "sat out | followed | 1 of 2 peers | 4.0 s | anchor abababababab"),
    ],
)
def test_a_report_in_one_line_for_people(changes: dict[str, Any], line: str) -> None:
    assert describe(report(**changes)) == line


def test_a_round_is_complete_when_every_peer_has_reported_it_once() -> None:
    again = report(1, seconds={"total": 9.0})
    reports = [report(2), report(1), report(1, OTHER), again, report(3), report(3, OTHER)]
    complete = complete_rounds(reports, 2)
    assert [entries[0].round for entries in complete] == [1, 3]
    assert again in complete[0]


def test_the_slowest_is_who_most_peers_saw_arrive_last() -> None:
    third = PeerId("12D3KooW" + "C" * 44)
    entries = [report(1, PEER, last=OTHER), report(1, OTHER, last=PEER), report(1, third, last=OTHER)]
    assert slowest(entries) == "B"
    assert slowest([report(1, last=None)]) is None
    assert slowest([]) is None


def test_a_swarms_round_in_one_line() -> None:
    line = round_line([report(3), report(3, OTHER, loss=4.5, digest=Digest("cd" * 32))], 12)
    assert line == (
        "round   3/12 | loss 5.000 |    500 tokens/s | 2 of 2 counted | anchors DIFFERENT abababab | 4.0 s, last B"
    )
    assert "nobody trained" in round_line([report(3, loss=None)], 12)


def put(folder: Path, updated: float, run: str = "demo", name: str = "a") -> None:
    folder.mkdir(parents=True)
    status = PeerStatus(peer=PEER, name=name, run=run, stage="ready", updated=updated, pid=1)
    (folder / "status.json").write_bytes(status.canonical())


def names(folder: Path) -> list[str]:
    return sorted(status.name for status in newest_statuses(folder))


def test_the_newest_run_of_a_folder_is_found(tmp_path: Path) -> None:
    put(tmp_path / "quickstart-1/peer-1", 30.0, name="old-1")
    put(tmp_path / "quickstart-2/peer-1", 20.0, name="peer-1")
    put(tmp_path / "quickstart-2/peer-2", 40.0, name="peer-2")
    put(tmp_path / "austen", 10.0, run="austen", name="mine")
    assert names(tmp_path) == ["peer-1", "peer-2"]
    assert names(tmp_path / "quickstart-1") == ["old-1"]
    assert names(tmp_path / "austen") == ["mine"]
    put(tmp_path / "dickens", 50.0, run="dickens", name="other")
    assert names(tmp_path) == ["other"]


def test_a_folder_without_peers_says_what_starts_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="no peer has run here; `elastic quickstart` or `elastic join` starts"):
            newest_statuses(folder)


def test_a_damaged_status_hides_no_other(tmp_path: Path) -> None:
    put(tmp_path / "q/peer-1", 1.0)
    (tmp_path / "q/peer-2").mkdir()
    (tmp_path / "q/peer-2/status.json").write_text("{}")
    assert names(tmp_path) == ["a"]
    with pytest.raises(ConfigError, match="damaged, or written by another version"):
        newest_statuses(tmp_path / "q/peer-2")


def test_a_later_life_says_how_often_it_was_restarted_and_why(tmp_path: Path) -> None:
    # given
    journal = Journal(config(tmp_path), PEER, Past(restarts=2, because="its process died", met=True))
    journal.note(stage="ready")
    assert (written(tmp_path).restarts, written(tmp_path).restarted_after) == (2, "its process died")
    # when
    journal.restarted("the network died")
    # then
    assert (journal.status.restarts, journal.status.restarted_after) == (3, "the network died")


def test_a_round_without_a_manifest_is_not_finished(tmp_path: Path) -> None:
    journal = Journal(config(tmp_path), PEER)
    journal.record(report(1), {})
    journal.record(report(1, manifest=DIGEST), {})
    assert journal.status.rounds_finished == 1


def test_a_round_is_over_when_everyone_or_who_lives_is_further() -> None:
    # given two peers, one of which died after round 1 and came back in round 6
    ann, bob = [report(number) for number in range(1, 7)], [report(1, OTHER), report(6, OTHER)]
    # then rounds are shown once those who live are some rounds further
    assert [entries[0].round for entries in over(ann[:4] + bob[:1], 2)] == [1, 2]
    # and all of them, in order, when both are
    assert [entries[0].round for entries in over(ann + bob, 2)] == [1, 2, 3, 4, 5, 6]


def lines(path: Path) -> list[RoundReport]:
    return [RoundReport.from_bytes(line) for line in path.read_bytes().splitlines()]


def test_reports_are_kept_in_the_state_directory_whatever_the_run_file_says(tmp_path: Path) -> None:
    journal = Journal(config(tmp_path, report=None), PEER)
    for round_ in (1, 2):
        journal.record(report(round_), {})
    assert lines(tmp_path / "state" / "rounds.jsonl") == [report(1), report(2)]


def test_a_file_of_reports_that_grew_too_large_is_put_aside_and_one_such_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROUNDS_BYTES", 2 * len(report(1).canonical() + b"\n"))
    journal = Journal(config(tmp_path), PEER)
    for round_ in range(1, 8):
        journal.record(report(round_), {})
    kept = [each.round for name in ("rounds.old.jsonl", "rounds.jsonl") for each in lines(tmp_path / "state" / name)]
    assert kept == [4, 5, 6, 7]
