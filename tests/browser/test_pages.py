"""The report and the dashboard in a real browser: nothing to complain about, and the slow peer is to be seen."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from look_cases import HOSTILE, Story

from tests.browser.chromium import Browser

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
SEEN = """
const colours = {}
for (const row of document.querySelectorAll('#heat g[data-peer]')) {
  const widest = [...row.querySelectorAll('path')].sort((a, b) => b.getBBox().width - a.getBBox().width)[0]
  const box = row.getBBox(), scale = row.getScreenCTM(), style = getComputedStyle(widest)
  colours[row.dataset.peer] = [style.stroke, box.width * scale.a, parseFloat(style.strokeWidth) * scale.d]
}
return colours
"""
"""Peer → the colour that most of its row has, and how large the row is."""


def darkness(fill: str) -> float:
    """From "rgb(…)": 0 is white, 1 is black."""
    red, green, blue = map(int, fill.removeprefix("rgb(").removesuffix(")").split(", "))
    return 1 - (0.299 * red + 0.587 * green + 0.114 * blue) / 255


def redness(fill: str) -> float:
    """From "rgb(…)": how much more red there is than green and blue, of all."""
    red, green, blue = map(int, fill.removeprefix("rgb(").removesuffix(")").split(", "))
    return (red - (green + blue) / 2) / 255


def report_of(story: Story, folder: Path) -> str:
    story.write(folder / "run")
    file = folder / "report.html"
    command = [sys.executable, "-m", "elastic", "report", str(folder / "run"), "-o", str(file)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return file.as_uri()


@contextmanager
def dashboard(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its address, and the process."""
    command = [sys.executable, "-m", "elastic", "dashboard", str(folder), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0], process
    finally:
        process.kill()
        process.communicate()


def assert_the_slow_peer_is_a_dark_band(page: Browser) -> None:
    seen = page.run(SEEN)
    dark = {peer: darkness(fill) for peer, (fill, _, _) in seen.items()}
    assert dark.pop("peer-3") > max(dark.values()) + 0.45
    assert max(dark.values()) < 0.3
    assert all(width > 500 and height > 10 for _, width, height in seen.values())


def test_the_report_shows_the_slow_peer_as_a_dark_band(tmp_path: Path, chromium: Browser) -> None:
    chromium.resize(1100, 900)
    chromium.open(report_of(Story(peers=6, rounds=20), tmp_path))
    assert_the_slow_peer_is_a_dark_band(chromium)
    assert chromium.addresses() == []
    assert chromium.errors() == []


def test_a_cell_tells_its_phases_when_it_is_pointed_at(tmp_path: Path, chromium: Browser) -> None:
    chromium.open(report_of(Story(), tmp_path))
    tip = chromium.run("""
        const box = document.querySelector('#heat .plot').getBoundingClientRect()
        const at = {clientX: box.left + box.width * 2.5 / 12, clientY: box.top + box.height * 2.5 / 4, bubbles: true}
        document.querySelector('#heat svg').dispatchEvent(new PointerEvent('pointermove', at))
        return document.querySelector('.look-tip').innerText
    """)
    lines = tip.splitlines()
    assert lines[0] == "peer-3, round 3"
    assert lines[2] == "counted, share 25.0 %"
    assert f"inner {Story().inner(3, 2):.1f} s" in lines
    assert chromium.errors() == []


@pytest.mark.parametrize("width", [360, 820, 1400])
def test_nothing_overlaps_or_leaves_the_page(tmp_path: Path, chromium: Browser, width: int) -> None:
    chromium.resize(width, 900)
    chromium.open(report_of(Story(peers=12, rounds=40, names=["a name that is far too long to fit"]), tmp_path))
    assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")
    outside = """
        const spans = [...document.querySelectorAll('.columns span')]
        const boxes = spans.map(each => [each.parentElement, each.getBoundingClientRect()])
        const after = ([axis, box], i) => i && boxes[i - 1][0] === axis && boxes[i - 1][1].right > box.left
        return boxes.filter(after).length
    """
    assert chromium.run(outside) == 0


def test_dark_is_dark_and_the_slow_peer_is_a_dark_band_there_too(tmp_path: Path, chromium: Browser) -> None:
    chromium.dark(True)
    chromium.resize(1100, 900)
    chromium.open(report_of(Story(), tmp_path))
    assert darkness(chromium.run("return getComputedStyle(document.body).backgroundColor")) > 0.8
    assert_the_slow_peer_is_a_dark_band(chromium)
    # and it is no hole in the page: it is red, and what is unknown is grey
    assert redness(chromium.run(SEEN)["peer-3"][0]) > 0.4
    card = chromium.run("return getComputedStyle(document.querySelector('#heat')).backgroundColor")
    assert abs(redness(card)) < 0.1


@pytest.mark.parametrize("dark", [False, True])
def test_later_is_darker_and_pale_is_paler(tmp_path: Path, chromium: Browser, dark: bool) -> None:
    chromium.dark(dark)
    chromium.open(report_of(Story(), tmp_path))
    shown = chromium.run("""
        const svg = document.querySelector('#heat svg.cells')
        const colour = (classes) => {
          const path = svg.appendChild(document.createElementNS('http://www.w3.org/2000/svg', 'path'))
          path.setAttribute('class', classes)
          const canvas = new OffscreenCanvas(1, 1).getContext('2d')
          canvas.fillStyle = getComputedStyle(path).stroke
          canvas.fillRect(0, 0, 1, 1)
          return `rgb(${[...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).join(', ')})`
        }
        return [...Array(9).keys()].map(each => [colour(`fill-h${each}`), colour(`fill-h${each} at-most`)])
    """)
    exact, pale = ([darkness(each) for each in column] for column in zip(*shown, strict=True))
    for found in (exact, pale):
        assert all(one < other for one, other in pairwise(found))
    assert all(one < other for one, other in zip(pale, exact, strict=True))


def test_names_are_shown_as_they_are_and_run_nothing(tmp_path: Path, chromium: Browser) -> None:
    chromium.open(report_of(Story(peers=len(HOSTILE), rounds=4, amended=None, names=HOSTILE), tmp_path))
    assert chromium.errors() == []
    assert chromium.run("return document.querySelectorAll('script').length") == 1
    assert chromium.run("return document.querySelectorAll('img, iframe, object').length") == 0
    shown = chromium.run("return [...document.querySelectorAll('#heat .names span')].map(each => each.textContent)")
    assert "<script>alert(1)</scrip…" in shown


def test_the_dashboard_shows_the_same_and_goes_on_as_the_run_does(tmp_path: Path, chromium: Browser) -> None:
    pytest.importorskip("nicegui")
    story = Story(peers=6, rounds=20, stage="ready", updated=time.time() + 600)
    own = story.write(tmp_path / "run", [0, 2])
    chain, lines = own / "chain.jsonl", (own / "chain.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "peer-3" / "chain.jsonl").unlink()
    chain.write_bytes(b"".join(lines[:-2]))
    with dashboard(tmp_path / "run") as (url, process):
        chromium.resize(1100, 900)
        chromium.open(url)
        chromium.wait("return document.querySelector('#heat g[data-peer]') !== null")
        assert_the_slow_peer_is_a_dark_band(chromium)
        told = "return document.querySelector('header dl dd').innerText"
        assert chromium.run(told) == "18 of 20"
        chain.write_bytes(b"".join(lines))
        chromium.wait(f"return (() => {{ {told} }})() === '20 of 20'")
        assert all(each.startswith(url) for each in chromium.addresses())
        assert chromium.errors() == []
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
