"""`elastic score` and `elastic incentives compare`, from evidence as it lies on a disk."""

from pathlib import Path

import pytest

from elastic.config import load_config
from elastic.messages import Evidence, PeerId, RejectReason, RoundIndex, Verdict
from elastic.reports import EVIDENCE_FILE, RoundEvidence
from elastic.wire.signing import Identity
from tests.unit.conftest import Run

ANN, BOB, CYD = PEERS = sorted(Identity.generate().peer for _ in range(3))
ROUNDS = 20
SUBNET = 'name = "subnet"\nnetuid = 3\n'


def seen(index: int, **rejected: RejectReason | None) -> RoundEvidence:
    """A round as cyd saw it; the peers are named by their variables."""
    evidence = tuple(
        Evidence(verdict=Verdict(peer=globals()[name], round=RoundIndex(index), rejected=why), tokens=100)
        for name, why in rejected.items()
    )
    return RoundEvidence(run="demo", round=RoundIndex(index), peer=PeerId(CYD), evidence=evidence)


def told(*rounds: RoundEvidence) -> Path:
    """They lie in the state directory of the run file's peer."""
    folder = load_config(Path("run.toml")).local.state_dir
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVIDENCE_FILE).write_bytes(b"".join(each.canonical() + b"\n" for each in rounds))
    return folder


@pytest.fixture
def ran(validator: Run) -> Path:
    """A run in which ann always did well, and bob until the last three rounds."""
    bad = RejectReason.MALFORMED
    return told(*(seen(each, ANN=None, BOB=bad if each > ROUNDS - 3 else None) for each in range(1, ROUNDS + 1)))


def compare(elastic: Run, where: Path, *options: object) -> tuple[int, str, str]:
    return elastic("incentives", "compare", where, "--run-file", "run.toml", *options)


def test_incentives_are_compared_by_name_and_by_file(elastic: Run, ran: Path) -> None:
    Path("my_subnet.toml").write_text(SUBNET)
    code, out, err = compare(elastic, ran, "--with", "reputation", "--with", "my_subnet.toml")
    assert (code, err) == (0, "")
    # then the run's own comes first, whatever was asked for
    assert out.splitlines()[1].split() == ["peer", "uniform", "reputation", "my_subnet.toml"]
    assert ANN[-6:] in out and BOB[-6:] in out


def test_settings_of_a_file_are_taken(elastic: Run, ran: Path) -> None:
    Path("slow.toml").write_text('name = "reputation"\nearn = 0.0\n')
    ann = next(line for line in compare(elastic, ran, "--with", "slow.toml")[1].splitlines() if ANN[-6:] in line)
    assert ann.split()[-2] == "0.000"


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ("subnet", ['name = "subnet"', "netuid = …", "--with FILE.toml"]),
        ("subnit", ['did you mean "subnet"?']),
        ("gone.toml", ["gone.toml: cannot be read"]),
        ("nameless.toml", ["nameless.toml: name is missing"]),
        ("wrong.toml", ["wrong.toml: ", "netuid"]),
    ],
)
def test_what_cannot_be_compared_says_what_to_write(elastic: Run, ran: Path, chosen: str, says: list[str]) -> None:
    Path("nameless.toml").write_text("netuid = 3\n")
    Path("wrong.toml").write_text('name = "subnet"\nnetuid = -1\n')
    code, out, err = compare(elastic, ran, "--with", chosen)
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert all(each in err for each in says)
