"""The command line: a mistake is one line on stderr and exit code 1; every command says what comes next."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elastic import __version__
from elastic.config import load_config
from elastic.messages import PeerId
from elastic.reports import PeerStatus
from elastic.usage import spelled_out
from elastic.wire.signing import Identity
from tests.unit.conftest import Run

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "quickstart", "doctor", "plan", "data", "init", "id", "check", "bootstrap", "join", "status",
    "top", "dashboard", "trace", "amend", "score", "incentives", "report", "replay",
    "generate", "eval", "export", "bench",
]  # fmt: skip
LEAVES = [each for each in COMMANDS if each not in ("trace", "incentives", "bench", "data")]


@pytest.fixture
def fails(elastic: Run) -> Callable[..., str]:
    """Runs what must fail; gives the message."""

    def run(*args: object) -> str:
        code, out, err = elastic(*args)
        assert (code, out) == (1, "")
        assert re.fullmatch(r"error: .+\n", err), err
        return err.removeprefix("error: ").rstrip()

    return run


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_version(elastic: Run) -> None:
    assert elastic("--version") == (0, f"elastic {__version__}\n", "")


def test_help_lists_every_command_in_one_whole_sentence(elastic: Run) -> None:
    code, out, _ = elastic("--help")
    assert code == 0
    # in the order in which people meet them
    assert re.findall(r"^  ([a-z]+) +[A-Z].+\.$", out.partition("Commands:")[2], re.MULTILINE) == COMMANDS
    assert "..." not in out.partition("Commands:")[2]
    assert elastic() == (0, out, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reducer", "--device", "foo"), "'foo' is not one of"),
        (("reducer", "--device", "cuda"), "torch sees no GPU here"),
        (("reducer", "--json", "."), "cannot be written"),
        (("reducer", "--json", "nowhere/x.json"), "there is no folder"),
        (("reducer", "--peers", "0"), "greater than or equal to 1"),
        (("convergence", "--plot", "x.xyz"), "expected a name that ends in .svg, .png, .pdf"),
        (("convergence", "--json", "nowhere/x.json"), "there is no folder"),
        (("exchange", "--peers", "8", "100"), "at most 64"),
        (("train", "--device", "cuda"), "torch sees no GPU here"),
        (("train", "--preset", "nan", "--alone"), 'did you mean "nano"'),
        (("train", "--preset", "nano", "--sequence", "4096", "--alone"), "nano takes 512 tokens"),
        (("train", "--precision", "fp8"), "'fp8' is not one of"),
    ],
)
def test_a_benchmark_says_what_is_wrong_before_it_measures(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert message in fails("bench", *arguments)


def test_the_benchmarks_are_listed_in_one_whole_sentence_each(elastic: Run) -> None:
    code, out, _ = elastic("bench", "--help")
    assert code == 0 and "..." not in out.partition("Commands:")[2], out


@pytest.mark.parametrize("command", LEAVES)
def test_every_command_explains_itself_and_its_options(elastic: Run, command: str) -> None:
    code, out, _ = elastic(command, "--help")
    assert code == 0
    options = re.findall(r"^  (--?[\w-]+|\w+ <path>).*(?:\n {10,}.*)*", out, re.MULTILINE)
    assert "--help" in options
    for line in out.partition("Options:")[2].splitlines():
        assert re.fullmatch(r"|  -.*  +\S.*| {6,}\S.*", line), line


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["chek"], "No such command 'chek'"),
        (["check"], "Missing argument 'run_file'. (see `elastic check --help`)"),
        (["check", "nowhere.toml"], "nowhere.toml: no such run file; `elastic init nowhere.toml` writes one"),
        (["join", "nowhere.toml"], "nowhere.toml: no such run file"),
        (["status", "nowhere.toml"], "nowhere.toml: no such run file"),
        (["status"], "runs: no peer has run here; `elastic quickstart` or `elastic join` starts one"),
        (["init", "--name", "two words"], "--name two words: "),
        (["init", "--nam", "x"], "No such option: --nam"),
        (["quickstart", "--peers", "many"], "Invalid value for '--peers'"),
        (["quickstart", "--peers", "0"], "Invalid value for '--peers'"),
        (["quickstart", "--workers", "two"], '--workers two: expected a number, or one per peer as in "2,1,1"'),
        (["quickstart", "--workers", ""], "expected a number"),
        (["quickstart", "--workers", "2,1"], "--workers 2,1: expected one number of at least 1, or 3 of them"),
        (["quickstart", "--workers", "0"], "expected one number of at least 1"),
        (["quickstart", "--workers", "1,1,0"], "expected one number of at least 1"),
        (["quickstart", "--reducer", "sparse"], 'no implementation is called "sparse"; did you mean "sparseloco"?'),
        (["quickstart", "--incentive", "reputation:"], '"reputation:" does not name a class'),
        (["quickstart", "--incentive", "nobodys:Class"], "No module named 'nobodys'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    fails: Callable[..., str], tmp_path: Path, args: list[str], says: str
) -> None:
    assert says in fails(*args)
    assert not list(tmp_path.iterdir())


def test_init_writes_a_file_that_passes_check_and_names_the_next_commands(elastic: Run, tmp_path: Path) -> None:
    code, out, _ = elastic("init", "sub/folder/run.toml", "--name", "austen")
    assert code == 0
    config = load_config(tmp_path / "sub/folder/run.toml")
    assert config.shared.run == "austen"
    assert config.shared.agreement.validators == (Identity.load(config.key_path).peer,)
    assert config.key_path == tmp_path / "sub/folder/runs/austen/peer.key"
    for command in ("elastic bootstrap", "elastic check sub/folder/run.toml", "elastic join sub/folder/run.toml"):
        assert command in out
    code, out, _ = elastic("check", "sub/folder/run.toml")
    assert code == 0
    assert config.shared.digest() in out
    assert "684,767 tokens" in out
    assert "note     local.network.bootstrap is empty" in out
    assert out.endswith("next: ray start --head && elastic join sub/folder/run.toml\n")


def test_init_writes_run_toml_and_never_over_a_file(elastic: Run, fails: Callable[..., str], tmp_path: Path) -> None:
    assert elastic("init")[0] == 0
    before = (tmp_path / "run.toml").read_text()
    assert fails("init") == "run.toml exists: choose another name, or remove it first"
    assert (tmp_path / "run.toml").read_text() == before


def test_init_where_nothing_can_be_written(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    assert "blocked" in fails("init", "blocked/run.toml")


def test_init_again_keeps_the_key_and_so_the_validator(elastic: Run, tmp_path: Path) -> None:
    elastic("init", "one.toml")
    elastic("init", "two.toml")
    assert (tmp_path / "one.toml").read_text() == (tmp_path / "two.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rounds = 1000", "rouds = 1000", 'run.toml: unknown key "shared.rouds"; did you mean "rounds"?'),
        ("rounds = 1000", "rounds = ", "run.toml: not valid TOML"),
        ('preset = "nano"', 'preset = "nanno"', 'model llama: no preset is called "nanno"; did you mean "nano"?'),
        ('name = "sparseloco"', 'name = "sparseloko"', 'did you mean "sparseloco"?'),
        ("# k = 64", "k = 100_000 #", "reducer sparseloco: k: "),
        ("workers = 1", "workers = 9", "there are only shared.inner.batch_size = 8 sequences in a batch"),
        ("bootstrap = []", 'bootstrap = ["10.0.0.1:4001"]', "is not an address; expected /ip4/"),
        ("sequence_length = 128", "sequence_length = 1024", "is more than the model takes (512)"),
        (
            "batch_size = 8",
            "batch_size = 1024",
            "a round takes 30,720 sequences of 128 tokens for each peer, and the text has 5,082: lower",
        ),
        ('sha256 = "2e44', 'sha256 = "0e44', 'corpus "pride_and_prejudice" has SHA-256 2e44'),
        ('corpus = "pride_and_prejudice"', 'corpus = "emma"', 'no text called "emma" ships with the project'),
    ],
)
def test_check_finds_what_is_wrong(elastic: Run, fails: Callable[..., str], old: str, new: str, says: str) -> None:
    elastic("init")
    edited(Path("run.toml"), old, new)
    assert says in fails("check", "run.toml")
    assert says in fails("join", "run.toml")


def test_check_notes_what_is_allowed_and_unusual(elastic: Run) -> None:
    elastic("init")
    edited(Path("run.toml"), "nesterov = 0.0", "nesterov = 0.9")
    code, out, _ = elastic("check", "run.toml")
    assert code == 0
    assert "note     shared.outer.nesterov = 0.9 comes on top of sparseloco's residual" in out


def test_join_without_an_entry_point_is_for_the_validator_only(elastic: Run, fails: Callable[..., str]) -> None:
    elastic("init")
    edited(Path("run.toml"), 'state_dir = "runs/my-run"', 'state_dir = "runs/another"')
    assert "put the address there that `elastic bootstrap` printed" in fails("join", "run.toml")


WITHOUT = """
import sys
for library in sys.argv.pop(1).split(","):
    sys.modules[library] = None
from elastic.cli import main
main()
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("rounds = 1000", "rouds = 1000"), 'unknown key "shared.rouds"; did you mean "rounds"?'),
        (("bootstrap = []", 'bootstrap = ["x"]'), "is not an address"),
        (("", ""), "pip install 'elastic["),
    ],
)
def test_a_bare_installation_checks_the_run_file_before_it_asks_for_more(
    elastic: Run, tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    elastic("init")
    edited(tmp_path / "run.toml", *change)
    command = [sys.executable, "-c", WITHOUT, "torch,ray,hivemind,numpy,opentelemetry.sdk", "check", "run.toml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: .+\n", done.stderr), done.stderr
    assert says in done.stderr


def test_python_m_elastic_is_elastic() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "elastic", "--version"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == f"elastic {__version__}\n"


def put(folder: Path, name: str, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {
        "peer": PeerId("1" * 46), "name": name, "run": "demo", "stage": "ready", "phase": "inner",
        "updated": time.time(), "pid": 1,
    }  # fmt: skip
    (folder / "status.json").write_bytes(PeerStatus(**(fields | changes)).canonical())


def test_status_shows_the_newest_run_under_runs(elastic: Run, tmp_path: Path) -> None:
    put(tmp_path / "runs/quickstart-1/peer-1", "old", updated=1.0)
    put(tmp_path / "runs/quickstart-2/peer-1", "ann")
    put(tmp_path / "runs/quickstart-2/peer-2", "bob", updated=1.0)
    code, out, _ = elastic("status")
    assert code == 0
    assert re.search(r"ann +│ inner", out)
    assert re.search(r"bob +│ gone", out)
    assert "old" not in out
    assert "none of them is running" not in out


def test_status_takes_a_run_file_a_state_directory_or_a_quickstarts_folder(elastic: Run, tmp_path: Path) -> None:
    elastic("init")
    put(tmp_path / "runs/my-run", "mine", updated=1.0)
    put(tmp_path / "runs/quickstart-2/peer-1", "ann")
    for where, name in (("run.toml", "mine"), ("runs/my-run", "mine"), ("runs/quickstart-2", "ann")):
        code, out, _ = elastic("status", where)
        assert code == 0
        assert name in out
        assert ("none of them is running" in out) == (name == "mine")


def test_status_of_a_run_file_whose_peer_never_ran(elastic: Run, fails: Callable[..., str]) -> None:
    elastic("init")
    message = fails("status", "run.toml")
    assert "runs/my-run: no peer has run here" in message
    assert "`elastic join`" in message


@pytest.mark.parametrize(
    ("given", "means"),
    [
        (["quickstart", "--chaos"], ["quickstart", "--chaos", "20"]),
        (["quickstart", "--chaos", "--plain"], ["quickstart", "--chaos", "20", "--plain"]),
        (["quickstart", "--chaos", "8"], ["quickstart", "--chaos", "8"]),
        (["quickstart", "--plain"], ["quickstart", "--plain"]),
        ([], []),
    ],
)
def test_chaos_may_stand_without_its_seconds(given: list[str], means: list[str]) -> None:
    assert spelled_out(given) == means
