"""`elastic plan` on the command line: the page, JSON, the simulator, mistakes; and that it needs no torch."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elastic.check import check_plugins, check_values
from elastic.config import load_config
from elastic.plan.checked import COVENANT, arithmetic, measured
from elastic.plan.describe import described
from tests.unit.conftest import Run
from tests.unit.plan_cases import COVENANT_FILE

ROOT = Path(__file__).parents[2]
PAGES = ("exchange.md", "churn.md")


@pytest.fixture
def run_file(elastic: Run, tmp_path: Path) -> Path:
    """A copy of the example."""
    return Path(shutil.copy(COVENANT_FILE, tmp_path / "run.toml"))


@pytest.fixture
def fails(elastic: Run) -> Callable[..., str]:
    def run(*args: object) -> str:
        code, out, err = elastic("plan", *args)
        assert (code, out) == (1, "")
        assert re.fullmatch(r"error: .+\n", err), err
        return err

    return run


def test_the_page_has_everything_that_the_plan_promises(elastic: Run) -> None:
    code, out, err = elastic("plan", COVENANT_FILE)
    assert (code, err) == (0, "")
    for part in (
        "70,599,843,840 parameters", "a payload is 1.34 GB, 210 times smaller", "GPU: AdamW", "memory: residual",
        "disk: anchors", "origin", "swarm", "bucket (used)", "inner steps", "write anchor", "utilisation 61.5%",
        "tokens, $", "In the way", "What limits", "What to change", "Checked against our own measured runs",
        "70 s take 4.5 Gb/s down",
    ):  # fmt: skip
        assert part in out, part
    assert max(map(len, out.splitlines())) <= 130
    assert "\x1b" not in out


def test_json_says_the_same(elastic: Run) -> None:
    code, out, _ = elastic("plan", COVENANT_FILE, "--json")
    tree = json.loads(out)
    assert code == 0
    assert tree["params"] == 70_599_843_840
    assert tree["round_seconds"] == pytest.approx(sum(tree["phases"].values()))
    for room in tree["groups"][0]["rooms"].values():
        assert room["bytes"] == pytest.approx(sum(room["items"].values()))
    assert set(tree["transfers"]) == {"origin", "swarm", "bucket"}
    assert not tree["in_time"] and tree["obstacles"]
    assert [row["what"] for row in tree["measured"]] == [row.what for row in measured()]


def test_a_plain_run_file_has_a_plan_too(elastic: Run) -> None:
    elastic("init")
    code, out, _ = elastic("plan", "run.toml")
    assert code == 0
    assert "8 peers: 1 × cpu" in out


def test_what_if(elastic: Run) -> None:
    def tree(*options: object) -> Any:
        return json.loads(elastic("plan", COVENANT_FILE, "--json", *options)[1])

    usual, fibre, hopper = tree(), tree("--up", 1000, "--down", 2000), tree("--gpu", "H100", "--gpus", 32)
    assert fibre["phases"]["exchange"] < usual["phases"]["exchange"] / 3
    group = hopper["groups"][0]
    assert (group["gpu"], group["gpus"], group["mfu"], group["usd_per_hour"]) == ("H100", 32, None, None)
    assert hopper["usd_per_day"] == 24 * 20 * 32 * 2.5


def test_the_simulator_shows_growth(elastic: Run) -> None:
    code, out, _ = elastic("plan", COVENANT_FILE, "--peers", "10", "100", "10000", "--churn", "0.01")
    assert code == 0
    rows = [line for line in out.splitlines() if re.match(r"[\d,]+ +\d", line)]
    assert [row.split()[0] for row in rows] == ["10", "100", "10,000"]
    assert "of 128 others" in out
    again = json.loads(elastic("plan", COVENANT_FILE, "--peers", "10", "--json")[1])
    assert again["rows"][0]["peers"] == again["rows"][0]["contributors"] == 10


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nowhere.toml"], "nowhere.toml: no such run file"),
        (["run.toml", "--peers", "10", "x"], "--peers x: expected numbers from 1 to 1,000,000"),
        (["run.toml", "--peers", "0"], "Invalid value for '--peers'"),
        (["run.toml", "--gpu", "H201"], '--gpu: no GPU is called "H201"; did you mean "H200"?'),
        (["run.toml", "--gpu", "abacus"], "known: RTX3090"),
        (["run.toml", "--up", "0"], "Invalid value for '--up'"),
        (["run.toml", "--churn", "-1"], "Invalid value for '--churn'"),
    ],
)
def test_a_mistake_is_one_line(run_file: Path, fails: Callable[..., str], args: list[str], says: str) -> None:
    assert says in fails(*args)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('gpu = "B200"', 'gpu = "B201"', '[plan] peers, entry 1.gpu: no GPU is called "B201"; did you mean "B200"?'),
        ("gpus = 8", "gpus = 0", "[plan] peers, entry 1.gpus: should be greater than or equal to 1 (got 0)"),
        ("count = 20", 'count = "20"', "[plan] peers, entry 1.count: should be a valid integer (got '20')"),
        ("up_mbps = 110", "up_mbps = nan", "[plan] peers, entry 1.up_mbps: "),
        ("mfu = 0.24", "mfu = 24", "[plan] peers, entry 1.mfu: should be less than or equal to 1 (got 24)"),
        ('topology = "bucket"', 'topologie = "bucket"', '[plan] unknown key "topologie"; did you mean "topology"?'),
        ('topology = "bucket"', 'topology = "star"', "[plan] topology: should be 'swarm', 'origin' or 'bucket'"),
        ("[[plan.peers]]", "[plan.peers]", "[plan] peers: should be a list, in [ ]"),
        ("cores = 128", "croes = 128", '"peers, entry 1.croes"'),
        ('preset = "72b"', 'preset = "73b"', 'no preset is called "73b"; did you mean "72b"?'),
        ('name = "sparseloco"', 'name = "sparseloco"\nk = 5000', "reducer sparseloco: k: should be from 1 to 4096"),
    ],
)
def test_a_wrong_plan_is_one_line(run_file: Path, fails: Callable[..., str], old: str, new: str, says: str) -> None:
    text = run_file.read_text()
    assert old in text
    run_file.write_text(text.replace(old, new, 1))
    assert says in fails("run.toml")


def test_check_reads_the_plan_and_no_peer_counts_it(elastic: Run, run_file: Path) -> None:
    config = load_config(run_file)
    check_values(config)
    check_plugins(config)
    assert described(config).peers[0].gpu == "B200"
    before = config.shared.digest()
    elastic("init", "other.toml")
    Path("other.toml").write_text(Path("other.toml").read_text() + '\n[plan]\ntopology = "star"\n')
    code, _, err = elastic("check", "other.toml")
    assert code == 1 and "[plan] topology: should be" in err
    run_file.write_text(run_file.read_text().partition("[plan]")[0])
    assert load_config(run_file).shared.digest() == before


WITHOUT = """
import sys
for library in ("torch", "ray", "hivemind", "numpy", "opentelemetry.sdk"):
    sys.modules[library] = None
from elastic.cli import main
main()
"""


def test_a_bare_installation_can_plan() -> None:
    command = [sys.executable, "-c", WITHOUT, "plan", str(COVENANT_FILE), "--plain"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "70,599,843,840 parameters" in done.stdout


def test_measured_figures_stand_in_the_pages_that_they_are_from() -> None:
    pages = {name: (ROOT / "docs" / name).read_text() for name in PAGES}
    for row in measured():
        assert re.search(rf"(?<![\d.]){row.measured:.1f}|(?<![\d.]){row.measured:g}(?![\d.])", pages[row.page]), row


def test_the_page_about_the_plan_has_its_figures() -> None:
    page = (ROOT / "docs" / "plan.md").read_text()
    for line in arithmetic(COVENANT):
        assert line.removeprefix("Covenant-72B: ") in page, line
    for row in measured():
        off = f"{row.off:+.0%}".replace("-", "−").replace("%", " %").replace("+0 ", "0 ").replace("−0 ", "0 ")
        assert off in page, row
