"""Pictures of a run: complete, small, and nothing that a stranger calls itself can do harm in them."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from look_cases import HOSTILE, NOW, Story, peer_id
from rich.cells import cell_len

from elastic import view
from elastic.look.collect import Collector
from elastic.look.html.draw import Grid, Scale, area, json_attribute, line
from elastic.look.html.page import pieces, report
from elastic.look.model import Picture
from elastic.look.terminal import leaves
from elastic.look.top import bar, screen, sparkline
from elastic.reports import PeerStatus, RoundEvidence, RoundReport

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    class Time:
        time = staticmethod(lambda: NOW + 1)

    monkeypatch.setattr(view, "time", Time)


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def rows(self, section: str) -> dict[str, list[str]]:
        """Name → classes of the paths in its row, in a grid."""
        found: dict[str, list[str]] = {}
        inside, name = False, ""
        for tag, attributes in self.tags:
            inside = attributes.get("id") == section if tag == "section" else inside
            if inside and tag == "g":
                name = attributes["data-peer"] or ""
                found[name] = []
            elif inside and tag == "path" and name:
                found[name].append(attributes["class"] or "")
        return found


def look(tmp_path: Path, story: Story, numbers: list[int] | None = None) -> Picture:
    story.write(tmp_path, numbers)
    return Collector(tmp_path).look()


def test_the_report_has_every_picture_and_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = report(look(tmp_path, Story(absent={(5, 0)}, copies={(7, 1)})))
    page = Page(text)
    assert page.open == []
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == [
        "loss", "heat", "phases", "seconds", "verdicts", "scores", "shares", "bytes", "terms", "peers",
    ]  # fmt: skip
    assert not re.search(r"https?:|src=|url\(|@import|href=", text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    words = " ".join(page.words)
    for told in (
        "Run demo", "12 of 12", "4, 4 of them here", "uniform", "2.310", "peer-1 wishes", "validator",
        "peer-3 was late or absent in 12 of 12 rounds, 8.", "incentive  reputation -> uniform, from round 7 on",
    ):  # fmt: skip
        assert told in words


def test_the_slow_peer_is_one_dark_band(tmp_path: Path) -> None:
    rows = Page(report(look(tmp_path, Story(peers=16, rounds=30, slow=5)))).rows("heat")
    assert len(rows) == 16
    assert set(rows.pop("peer-6")) <= {"fill-h7", "fill-h8"}
    assert {fill for fills in rows.values() for fill in fills} <= {"fill-h0", "fill-h1"}


def test_a_first_round_that_is_slow_for_all_hides_nobody(tmp_path: Path) -> None:
    class Cold(Story):
        def inner(self, round_: int, number: int) -> float:
            return super().inner(round_, number) + (60.0 if round_ == 1 else 0.0)

    rows = Page(report(look(tmp_path, Cold(peers=6, rounds=12)))).rows("heat")
    assert set(rows.pop("peer-3")) <= {"fill-h7", "fill-h8", "fill-h1", "fill-h2"}
    assert {fill for fills in rows.values() for fill in fills} <= {"fill-h0", "fill-h1"}


def test_a_peer_that_misses_every_round_is_a_band_too(tmp_path: Path) -> None:
    missed = {(round_, 2) for round_ in range(1, 13)}
    page = Page(report(look(tmp_path, Story(absent=missed), [0, 1])))
    assert page.rows("heat")["peer-3"] == ["fill-absent"]
    assert page.rows("verdicts")["peer-3"] == ["fill-absent"]
    assert "peer-3 was late or absent in 12 of 12 rounds" in " ".join(page.words)


def test_verdicts_have_a_colour_each(tmp_path: Path) -> None:
    rows = Page(report(look(tmp_path, Story(absent={(5, 0)}, copies={(7, 1)})))).rows("verdicts")
    assert rows == {
        "peer-1": ["fill-absent", "fill-counted"], "peer-2": ["fill-counted", "fill-refused"],
        "peer-3": ["fill-counted"], "peer-4": ["fill-counted"],
    }  # fmt: skip


def test_tips_say_what_a_cell_is(tmp_path: Path) -> None:
    story = Story(copies={(7, 1)})
    text = report(look(tmp_path, story))
    told = [attributes["data-tips"] or "" for _, attributes in Page(text).tags if "data-tips" in attributes]
    tips = next(json.loads(each) for each in told if '"cells"' in each)
    tenths, at_most, outcome, share, phases = tips["cells"][1][6]
    assert tips["names"][1] == "peer-2"
    assert tips["rounds"][6] == 7
    assert tips["outcomes"][outcome] == "copy"
    assert (at_most, share) == (0, 0)
    assert abs(tenths - 10 * (story.inner(7, 1) + 0.5)) < 3
    assert phases[tips["phases"].index("inner")] == round(10 * story.inner(7, 1))


def test_a_big_run_stays_a_small_file(tmp_path: Path) -> None:
    text = report(look(tmp_path, Story(peers=64, rounds=510, slow=40, amended=None), [0, 40]))
    assert len(text) < 1_500_000
    page = Page(text)
    assert "510 rounds are known; one in 2 is shown." in page.words
    assert len(page.rows("heat")) == 64


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 1e16, 5e-324, -1.0])
@pytest.mark.parametrize("rounds", [{1, 2, 3}, {2}], ids=["always", "once"])
def test_numbers_that_cannot_be_are_drawn_all_the_same(tmp_path: Path, value: float, rounds: set[int]) -> None:
    class Odd(Story):
        def report(self, round_: int, number: int) -> RoundReport:
            told = super().report(round_, number)
            if round_ not in rounds or number > 1:
                return told
            odd = {"seconds", "committed", "arrived"}
            changes: dict[str, object] = {name: dict.fromkeys(getattr(told, name), value) for name in odd}
            most = {"tokens": 2**53, "bytes_out": 2**53, "bytes_in": 2**53}
            return told.model_copy(update=changes | most | {"loss": value if number else -value})

        def evidence(self, round_: int, number: int) -> RoundEvidence:
            seen = super().evidence(round_, number)
            return seen.model_copy(
                update={"evidence": tuple(each.model_copy(update={"score": value}) for each in seen.evidence)}
            )

        def status(self, number: int) -> PeerStatus:
            odd = dict.fromkeys(("loss", "tokens_per_second", "held_out"), value if number else -value)
            return super().status(number).model_copy(update=odd)

    own = Odd(rounds=3, amended=2).write(tmp_path)
    (own / "run.toml").unlink()  # scores are as they were told
    picture = Collector(tmp_path).look()
    assert Page(report(picture)).open == []
    lines = screen(picture, 80, 24).plain.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert [line.split()[0] for line in lines[3:7]] == ["peer-1", "peer-2", "peer-3", "peer-4"]


@pytest.mark.parametrize("left", ["status.json", "rounds.jsonl", "chain.jsonl", "evidence.jsonl"])
def test_whatever_is_missing_there_is_a_report(tmp_path: Path, left: str) -> None:
    own = Story().write(tmp_path, [0])
    for path in set(own.iterdir()) - {own / left}:
        path.unlink()
    assert Page(report(Collector(own).look())).open == []


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=64)), min_size=4, max_size=4))
def test_no_name_is_ever_markup(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """Whatever peers call themselves, the page has the very same tags, and no name is an attribute's end."""
    names = [name.encode("utf-8", "ignore").decode() for name in names]  # what JSON cannot hold is never written
    plain = look(tmp_path_factory.mktemp("plain"), Story(rounds=3, amended=2))
    hostile = look(tmp_path_factory.mktemp("hostile"), Story(rounds=3, amended=2, names=names))
    before, after = Page(report(plain)), Page(report(hostile))
    assert after.open == []
    assert [tag for tag, _ in before.tags] == [tag for tag, _ in after.tags]
    assert [set(attributes) for _, attributes in before.tags] == [set(attributes) for _, attributes in after.tags]
    for _, attributes in after.tags:
        if "data-tips" in attributes:
            json.loads(attributes["data-tips"] or "")
    drawn = screen(hostile, 80)
    assert all(each.isprintable() or each == "\n" for each in drawn.plain)
    assert all(cell_len(each) <= 80 for each in drawn.plain.splitlines())


def test_json_in_an_attribute_comes_out_as_it_went_in() -> None:
    value = ["</script>", "'\"&amp;<>", "ü"]
    ((_, attributes),) = Page(f"<b x='{json_attribute(value)}'></b>").tags
    assert json.loads(attributes["x"] or "") == value


def test_equal_neighbours_are_one_stroke() -> None:
    drawn = Grid(["a"], [1, 2, 3, 4], [["x", "x", None, "y"]], [{}], {}).draw()
    assert re.findall(r'<path class="(.)" d="([^"]+)"', drawn) == [("x", "M0 0h2"), ("y", "M3 0h1")]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([2.2, 4.1], ["2.0", "2.5", "3.0", "3.5", "4.0", "4.5"]),
        ([0.0, 1.0], ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        ([3.0], ["3.0", "3.1", "3.2", "3.3"]),
        ([0.0, 0.0], ["0.000", "0.025", "0.050", "0.075", "0.100"]),
        ([1000.0, 9000.0], ["0", "2000", "4000", "6000", "8000", "10000"]),
    ],
)
def test_axes_have_round_numbers(values: list[float], ticks: list[str]) -> None:
    scale = Scale.over(values)
    labels = re.findall(r">([\d.]+)<", scale.labels())
    assert labels == ticks
    assert all(0 <= scale.y(value) <= 100 for value in values)


def test_a_line_is_broken_where_nothing_is_known() -> None:
    scale = Scale(0.0, 100.0, 0, (0.0, 100.0))
    drawn = line([100.0, 50.0, None, 0.0, None], scale, "c0")
    assert 'd="M0.5 0L1.5 50M3.25 100h.5"' in drawn
    assert 'd="M0 0V0h1V100h-1zM2 50V50h1V100h-1z"' in area([0.0, None, 0.0], [100.0, None, 50.0], scale, "f0")
    assert line([None], scale, "c0") == ""


def test_pieces_are_as_many_whatever_there_is(tmp_path: Path) -> None:
    """The dashboard replaces each by its successor."""
    nothing = Picture("demo", ())
    assert len(pieces(nothing)) == len(pieces(look(tmp_path, Story()))) == 11


# --- in the terminal -------------------------------------------------------------------------------------------------


def test_top_fits_a_small_terminal_and_says_who_is_late(tmp_path: Path) -> None:
    picture = look(tmp_path, Story(peers=30, slow=2), [0, 2, 3])
    lines = screen(picture, 80, 24, "q leaves").plain.splitlines()
    assert len(lines) <= 24
    assert max(map(cell_len, lines)) <= 80
    assert lines[0].split("  ")[:3] == ["demo", "round 12 of 12", "30 peers, 0 running here"]
    row = next(each for each in lines if each.startswith("peer-3"))
    assert re.search(r"\+8\.\d s +12/12 +1\.000 +3\.3%$", row)
    assert "iiii" in row
    assert any("late in most rounds: peer-3 (12 times)" in each for each in lines)
    assert any(re.fullmatch(r"… and \d+ more", each) for each in lines)
    assert any(each.startswith("nobody runs here now: `elastic quickstart`") for each in lines)
    assert lines[-1] == "q leaves"


def test_top_uses_the_room_of_a_wide_terminal(tmp_path: Path) -> None:
    picture = look(tmp_path, Story())
    wide = screen(picture, 160).plain.splitlines()
    bars = [each[29:].split()[0] for each in wide if each.startswith("peer-") and "iii" in each]
    assert len(bars) == 4
    assert {len(each) for each in bars} == {95}, "everyone waited for the slowest"
    assert bars[2].count("i") > 2 * bars[0].count("i")


def test_a_bar_is_as_long_as_its_round() -> None:
    assert bar({"inner": 5.0, "gather": 2.5, "outer": 2.5}, 10.0, 20).plain == "iiiiiiiiiigggggooooo"
    assert bar({"inner": 5.0}, 10.0, 20).plain == "i" * 10
    assert bar({}, 0.0, 20).plain == ""


def test_a_sparkline_shows_the_last_values() -> None:
    assert sparkline([9, 4, 3, 2, 1], 4) == "█▆▃▁"
    assert sparkline([1.0], 4) == "▁"
    assert sparkline([], 4) == ""


def test_commands_from_a_folder(tmp_path: Path, elastic: Run) -> None:
    own = Story().write(tmp_path)
    code, out, _ = elastic("top", str(tmp_path))
    assert code == 0
    assert out.splitlines()[3].startswith("peer-1*")
    assert elastic("top", "--once", str(own / "run.toml"))[0] == 0
    file = tmp_path / "out.html"
    assert elastic("report", str(tmp_path), "-o", str(file)) == (0, f"wrote {file}: run demo, 4 peers, 12 rounds\n", "")
    assert file.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("command", ["top", "report", "dashboard"])
def test_where_nobody_has_run_the_commands_say_what_to_do(tmp_path: Path, elastic: Run, command: str) -> None:
    code, out, error = elastic(command, str(tmp_path))
    assert (code, out) == (1, "")
    assert error == f"error: {tmp_path}: no peer has run here; `elastic quickstart` or `elastic join` starts one\n"


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path, elastic: Run) -> None:
    Story().write(tmp_path)
    code, _, error = elastic("report", str(tmp_path), "-o", str(tmp_path))
    assert (code, error) == (1, f"error: {tmp_path}: Is a directory\n")


@pytest.mark.parametrize("key", [b"q", b"\x03", b"xq", b"\x1b"], ids=["q", "ctrl-c", "others, then q", "escape"])
def test_the_live_view_leaves_the_terminal_as_it_was(tmp_path: Path, key: bytes) -> None:
    Story(stage="ready", updated=time.time() + 600).write(tmp_path)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    view_ = subprocess.Popen(
        [sys.executable, "-m", "elastic", "top", str(tmp_path)], stdin=slave, stdout=slave, stderr=slave,
        env=environment, start_new_session=True, preexec_fn=lambda: _own_terminal(slave),
    )  # fmt: skip
    try:
        seen = _read_until(master, b"q leaves")
        os.write(master, b"\x1b[A\x1bOB")  # arrows, or a mouse's wheel
        _read_until(master, b"q leaves")
        os.write(master, key)
        seen += _read_until(master, b"\x1b[?1049l")
        assert view_.wait(60) == 0
        assert b"peer-3" in seen
        assert b"Traceback" not in seen
        assert termios.tcgetattr(slave) == before
    finally:
        view_.kill()
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize(
    ("pressed", "leave"),
    [
        (None, False), (b"", True), (b"q", True), (b"xq", True), (b"Qx", True), (b"\x04", True), (b"x", False),
        (b"\x1b", True), (b"\x1b[A", False), (b"\x1bOA\x1bOA", False), (b"\x1bOQ", False), (b"\x1b[1;2Q", False),
        (b"\x1b[Aq", True),
    ],
)  # fmt: skip
def test_which_keys_leave(pressed: bytes | None, leave: bool) -> None:
    assert leaves(pressed) is leave


def _own_terminal(slave: int) -> None:
    """So that Ctrl-C there is a signal."""
    import fcntl

    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        ready, _, _ = select.select([descriptor], [], [], 60)
        assert ready, f"never came: {wanted!r}; came: {seen!r}"
        seen += os.read(descriptor, 65536)
    return seen


def test_without_its_extra_the_dashboard_says_what_to_install(tmp_path: Path) -> None:
    Story().write(tmp_path)
    code = f"""
import sys
sys.modules |= dict.fromkeys(("nicegui", "fastapi", "uvicorn", "starlette"))
sys.argv = ["elastic", "dashboard", {str(tmp_path)!r}]
from elastic.cli import main
main()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "is not installed: pip install 'elastic[dashboard]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_peer_has_an_id_of_its_own() -> None:
    assert len({peer_id(number) for number in range(64)}) == 64
