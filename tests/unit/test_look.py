"""What is to be seen of a run: put together from what its peers wrote, however much of that is there."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from look_cases import NOW, Story, digest, peer_id

from elastic import view
from elastic.errors import ConfigError
from elastic.look import files
from elastic.look.collect import Collector, Watch
from elastic.look.files import Growing
from elastic.look.model import COUNTED, Cell, Picture, Round, slow_peers, thinned, totals
from elastic.messages import Amendment, Manifest, PeerId, RoundIndex
from elastic.names import labels
from elastic.reports import EVIDENCE_FILE, ROUNDS_FILE, STATUS_FILE
from elastic.state.chain import CHAIN_FILE

SLOW = PeerId(peer_id(2))


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    class Time:
        time = staticmethod(lambda: NOW + 1)

    monkeypatch.setattr(view, "time", Time)


def told_by(picture: Picture, peer: PeerId) -> list[int]:
    """Rounds of which there is a peer's own account."""
    return [each.index for each, cell in picture.cells(peer) if cell.own is not None]


def test_all_peers_of_a_folder_are_seen_with_what_each_round_was_for_them(tmp_path: Path) -> None:
    story = Story(absent={(5, 0)}, copies={(7, 1)})
    story.write(tmp_path)
    picture = Collector(tmp_path).look()
    assert (picture.run, picture.planned, picture.notes) == ("demo", 12, ())
    assert [each.name for each in picture.members] == ["peer-1", "peer-2", "peer-3", "peer-4"]
    assert all(each.here and each.validator and each.status for each in picture.members)
    assert [each.index for each in picture.rounds] == list(range(1, 13))
    cells = picture.rounds[4].cells
    assert [cells[peer].outcome for peer in story.ids] == ["missing", COUNTED, COUNTED, COUNTED]
    assert cells[story.ids[1]].share == pytest.approx(1 / 3)
    assert cells[story.ids[0]].absent
    assert picture.rounds[6].cells[story.ids[1]].outcome == "copy"
    own = cells[SLOW].own
    assert own is not None
    assert own.phases["inner"] == pytest.approx(story.inner(5, 2))
    assert (own.bytes_out, own.bytes_in, own.digest) == (50_002, 60_002, digest("anchor", 6))
    assert picture.rounds[4].proposer == story.ids[1]
    assert picture.rounds[4].half_seconds == pytest.approx(4.55)
    assert picture.rounds[4].loss == pytest.approx(sum(story.loss(5, n) for n in range(4)) / 4)
    assert len(picture.rounds[4].digests) == 1


@pytest.mark.parametrize("folder", [None, 0, 1, 3], ids=["all folders", "a validator's", "a contributor's", "another"])
def test_the_slow_peer_is_found_whoever_looks(tmp_path: Path, folder: int | None) -> None:
    own = Story(peers=6).write(tmp_path, None if folder is None else [folder])
    picture = Collector(tmp_path if folder is None else own).look()
    ((member, times, behind),) = slow_peers(picture)
    assert member.peer == SLOW
    assert times == 12
    assert 7 < behind < 9
    assert all(each.late() == [SLOW] for each in picture.rounds)


def test_one_peers_folder_shows_what_it_knows_of_the_others(tmp_path: Path) -> None:
    own = Story(peers=5, absent={(3, 4)}).write(tmp_path, [1])
    picture = Collector(own).look()
    members = {each.peer: each for each in picture.members}
    assert [members[peer_id(n)].here for n in range(5)] == [False, True, False, False, False]
    assert members[peer_id(0)].name == "peer-1", "as validators call themselves to each other"
    assert members[peer_id(4)].name == f"…{peer_id(4)[-6:]}", "of whom only the id is known"
    third = picture.rounds[2].cells
    assert {peer: cell.outcome for peer, cell in third.items()} == {
        peer_id(n): "missing" if n == 4 else COUNTED for n in range(5)
    }
    assert third[SLOW].seconds == pytest.approx(Story(peers=5).inner(3, 2) + 0.6, abs=0.2)
    assert picture.rounds[2].scores
    assert all(cell.own is None for each in picture.rounds for peer, cell in each.cells.items() if peer != peer_id(1))


def test_a_slow_peer_cannot_tell_who_came_when_before_it_looked(tmp_path: Path) -> None:
    story = Story(slow=1)  # no validator's early looks: it sees the others when its own work is done
    own = story.write(tmp_path, [1])
    picture = Collector(own).look()
    for each in picture.rounds:
        mine = each.cells[peer_id(1)]
        assert not mine.at_most
        others = [each.cells[peer_id(n)] for n in (0, 2, 3)]
        assert all(cell.at_most and cell.seconds == pytest.approx((mine.seconds or 0) + 0.1) for cell in others)
        assert each.late() == [], "nobody is called late without knowing"


def test_without_any_report_verdicts_come_from_evidence(tmp_path: Path) -> None:
    own = Story(copies={(4, 3)}).write(tmp_path, [0])
    (own / ROUNDS_FILE).unlink()
    picture = Collector(own).look()
    assert picture.rounds[3].cells[peer_id(3)].outcome == "copy"
    assert picture.rounds[3].cells[peer_id(3)].seconds is None
    assert picture.rounds[3].seconds == pytest.approx(4.54), "as validators agreed: until half were there"


@pytest.mark.parametrize("left", [STATUS_FILE, ROUNDS_FILE, CHAIN_FILE, EVIDENCE_FILE])
def test_any_one_file_is_something_to_look_at(tmp_path: Path, left: str) -> None:
    own = Story().write(tmp_path, [0])
    for name in {STATUS_FILE, ROUNDS_FILE, CHAIN_FILE, EVIDENCE_FILE, "run.toml", "wishes.json"} - {left}:
        (own / name).unlink()
    picture = Collector(own).look()
    assert picture.run == "demo"
    assert peer_id(0) in {each.peer for each in picture.members}
    assert len(picture.rounds) == (0 if left == STATUS_FILE else 12)


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    own = Story().write(tmp_path, [0])
    reports = (own / ROUNDS_FILE).read_bytes().splitlines()
    reports[2], reports[4] = b"\x00\xff garbage", reports[4][:-7]
    (own / ROUNDS_FILE).write_bytes(b"\n".join(reports) + b'\n{"torn')
    (own / STATUS_FILE).write_bytes(b"{")
    (own / CHAIN_FILE).write_bytes(b"\n\n" + (own / CHAIN_FILE).read_bytes()[:-9])
    picture = Collector(own).look()
    assert picture.notes == ("2 damaged lines left out",)
    assert told_by(picture, peer_id(0)) == [1, 2, 4, 6, 7, 8, 9, 10, 11, 12]
    assert picture.rounds[2].counted == 4, "the chain knows"


def test_a_folder_full_of_nothing_that_can_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "peer-1").mkdir()
    (tmp_path / "peer-1" / STATUS_FILE).write_bytes(b"?")
    with pytest.raises(ConfigError, match="nothing there can be read"):
        Collector(tmp_path)
    with pytest.raises(ConfigError, match=r"no peer has run here; `elastic quickstart` or"):
        Collector(tmp_path / "nowhere")


def test_what_is_added_is_seen_at_the_next_look(tmp_path: Path) -> None:
    own = Story().write(tmp_path, [0])
    whole = {name: (own / name).read_bytes().splitlines(keepends=True) for name in (ROUNDS_FILE, CHAIN_FILE)}
    for name, lines in whole.items():
        (own / name).write_bytes(b"".join(lines[:5]) + lines[5][:40])
    collector = Collector(own)
    assert told_by(collector.look(), peer_id(0)) == [1, 2, 3, 4, 5]
    for name, lines in whole.items():
        (own / name).write_bytes(b"".join(lines))
    assert told_by(collector.look(), peer_id(0)) == list(range(1, 13))
    assert collector.look() == Collector(own).look()


def test_a_file_that_is_put_aside_between_two_looks_loses_nothing(tmp_path: Path) -> None:
    path, old = tmp_path / "a", tmp_path / "b"
    old.write_bytes(b"0\n")
    path.write_bytes(b"1\n2\n")
    file = Growing(path, old)
    assert list(file.lines()) == [b"0", b"1", b"2"]
    with path.open("ab") as end:
        end.write(b"3\n")
    path.replace(old)
    path.write_bytes(b"4\n5")
    assert list(file.lines()) == [b"3", b"4"]
    assert list(file.lines()) == []
    with path.open("ab") as end:
        end.write(b"5\n")
    assert list(file.lines()) == [b"55"]
    path.write_bytes(b"6\n")  # shorter: somebody began anew
    assert list(file.lines()) == [b"6"]
    path.unlink()
    assert list(file.lines()) == []


def test_of_a_huge_file_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 25)
    monkeypatch.setattr(files, "LINE_BYTES", 10)
    path = tmp_path / "a"
    path.write_bytes(b"0123456789\n" * 9 + b"0123456789x\nend\n")
    file = Growing(path)
    assert list(file.lines()) == [b"end"]
    assert file.skipped == 100 + 2 - 3 + 4 - 4


def test_the_run_that_was_last_active_is_looked_at(tmp_path: Path) -> None:
    for age, run in ((200, "before"), (100, "after")):
        Story(run=run, rounds=3, amended=None).write(tmp_path / run)
        touch(tmp_path / run, NOW - age)
    assert Collector(tmp_path).look().run == "after"
    assert Collector(tmp_path / "before").look().run == "before"


def test_peers_of_two_runs_side_by_side_are_not_mixed(tmp_path: Path) -> None:
    Story(run="one", rounds=3, amended=None).write(tmp_path, [0, 1])
    Story(run="two", rounds=3, amended=None).write(tmp_path, [2, 3])
    picture = Collector(tmp_path).look()
    assert sum(each.here for each in picture.members) == 2


def test_a_run_file_leads_to_its_state_directory(tmp_path: Path) -> None:
    own = Story().write(tmp_path, [0])
    picture = Collector(own / "run.toml").look()
    assert [each.name for each in picture.members if each.here] == ["peer-1"]


def test_a_new_run_takes_the_place_of_one_that_has_ended(tmp_path: Path) -> None:
    Story(run="before", rounds=3, amended=None).write(tmp_path / "before")
    watch = Watch(tmp_path)
    assert watch.look().run == "before"
    Story(run="after", rounds=2, amended=None, stage="ready").write(tmp_path / "after")
    touch(tmp_path / "after", NOW * 2)
    assert watch.look().run == "after"
    touch(tmp_path / "before", NOW * 3)
    assert watch.look().run == "after", "while somebody lives there"


def test_peers_that_come_later_are_here_too(tmp_path: Path) -> None:
    # given a run that is looked at while its first peer begins, and another one beside it
    Story(run="other", rounds=3, amended=None).write(tmp_path / "other")
    story = Story(stage="ready", rounds=3, amended=None)
    story.write(tmp_path / "one", [0])
    touch(tmp_path / "one", NOW * 2)
    watch = Watch(tmp_path)
    assert [each.here for each in watch.look().members] == [True, False, False, False]
    # when the others write their first status, and the other run is active too
    story.write(tmp_path / "one", [1, 2, 3])
    touch(tmp_path / "other", NOW * 3)
    # then they are seen, with all that they told
    picture = watch.look()
    assert (picture.run, [each.here for each in picture.members]) == ("demo", [True] * 4)
    assert told_by(picture, SLOW) == [1, 2, 3]


def touch(folder: Path, when: float) -> None:
    for path in folder.rglob("*.json*"):
        os.utime(path, (when, when))


def test_changes_and_wishes_are_told_in_words(tmp_path: Path) -> None:
    picture = Collector(Story().write(tmp_path)).look()
    assert picture.changes == ("incentive  reputation -> uniform, from round 7 on",)
    assert picture.wishes == ("peer-1 wishes: incentive  uniform -> reputation",)
    assert picture.incentive == "uniform"


def test_scores_are_the_incentives_of_the_best_informed(tmp_path: Path) -> None:
    Story(copies={(4, 3)}).write(tmp_path)
    last = Collector(tmp_path).look().rounds[3]
    assert last.scores == {peer_id(0): 1.0, peer_id(1): 1.0, peer_id(2): 1.0, peer_id(3): 0.0}, "uniform, as agreed"


def test_without_a_run_file_scores_are_what_assessments_amount_to(tmp_path: Path) -> None:
    own = Story().write(tmp_path, [0])
    (own / "run.toml").unlink()
    picture = Collector(own).look()
    assert picture.rounds[0].scores == {peer_id(n): 0.5 + 0.1 * n for n in range(4)}
    assert picture.notes == ("scores are what assessments amount to, not the incentive's: no run file is here",)
    assert picture.planned is None


def test_code_that_only_others_named_is_not_loaded(tmp_path: Path) -> None:
    class Elsewhere(Story):
        def chain(self) -> list[Manifest]:
            named = Amendment(validators=None, incentive='{"name":"no_such_package.x:Y"}')
            return [
                each.model_copy(update={"amendment": named if each.amendment else None}) for each in super().chain()
            ]

    picture = Collector(Elsewhere().write(tmp_path, [0])).look()
    assert picture.incentive == "no_such_package.x:Y"
    assert "is none that this machine takes up" in picture.notes[0]
    assert picture.rounds[11].scores == {peer_id(n): 0.5 + 0.1 * n for n in range(4)}


def test_totals_of_a_peer(tmp_path: Path) -> None:
    Story(absent={(5, 0)}, copies={(7, 0)}, slow=None).write(tmp_path)
    known = totals(Collector(tmp_path).look())[peer_id(0)]
    assert (known.rounds, known.counted, known.late) == (12, 10, 1)
    assert (known.bytes_out, known.bytes_in) == (12 * 50_000, 12 * 60_000)
    assert (known.share, known.score) == (0.25, 1.0)
    assert known.loss == pytest.approx(Story().loss(12, 0))
    assert list(known.phases) == ["inner", "compress", "commit", "publish", "gather", "agree", "outer"]


@pytest.mark.parametrize(
    ("seconds", "late"),
    [
        ([4.0, 4.1, 4.2, 9.0], [3]),
        ([4.0, 4.1, 4.2, 4.9], []),
        ([0.1, 0.1, 0.1, 0.4], []),  # a hiccup
        ([4.0, 4.0, 9.0, 12.0, 4.0], [3, 2]),
        ([4.0], []),
        ([], []),
    ],
)
def test_who_is_late(seconds: list[float], late: list[int]) -> None:
    cells = {peer_id(n): Cell(each, verdict="accepted", share=0.1) for n, each in enumerate(seconds)}
    assert Round(RoundIndex(1), cells).late() == [peer_id(n) for n in late]


def test_who_did_not_come_is_late_first_of_all() -> None:
    cells = {
        peer_id(0): Cell(4.0, verdict="accepted", share=0.5), peer_id(1): Cell(4.0, verdict="accepted", share=0.5),
        peer_id(2): Cell(9.0, verdict="accepted"), peer_id(3): Cell(verdict="missing"),
    }  # fmt: skip
    assert Round(RoundIndex(1), cells).late() == [peer_id(3), peer_id(2)]


def test_too_much_is_thinned_and_that_is_said(tmp_path: Path) -> None:
    own = Story(peers=9, rounds=25, slow=7).write(tmp_path, [0])
    picture = thinned(Collector(own).look(), peers=4, rounds=10)
    assert len(picture.members) == 4
    assert {peer_id(0), peer_id(7)} < {each.peer for each in picture.members}, "who is here, and who is late"
    assert [each.index for each in picture.rounds] == [1, 4, 7, 10, 13, 16, 19, 22, 25]
    assert picture.notes == (
        "9 peers took part; 4 are shown: those here, and the latest",
        "25 rounds are known; one in 3 is shown",
    )
    assert thinned(picture, peers=4, rounds=10) == picture


def test_names_are_short_printable_and_nobody_elses() -> None:
    a, b, c, d = map(peer_id, range(4))
    called = labels([a, b, c, d], {a: "ann", b: "ann", c: "x" * 99, d: "\x1b[31m\u202ered\n\n you"})
    assert called == {
        a: f"ann …{a[-6:]}", b: f"ann …{b[-6:]}", c: "x" * 23 + "…", d: "[31m red you",
    }  # fmt: skip


async def test_whatever_goes_wrong_the_page_is_drawn_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("nicegui")
    from elastic.look import dashboard

    class Odd:
        """Fails at the second look."""

        looks, later = 0, threading.Event()

        def look(self) -> Picture:
            self.looks += 1
            if self.looks == 2:
                raise OverflowError("nobody thought of that")
            if self.looks == 4:  # what the third saw is drawn
                self.later.set()
            return Picture(f"run {self.looks}", ())

    watch = Odd()
    monkeypatch.setattr(dashboard, "SECONDS", 0.0)
    board = dashboard.Board(watch)  # type: ignore[arg-type]
    drawing = asyncio.create_task(board.draw())
    assert await asyncio.to_thread(watch.later.wait, 30)
    assert "Run run 1" not in board.drawn[0]
    assert "nobody thought of that" in caplog.text
    drawing.cancel()
