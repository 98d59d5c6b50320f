"""The examples are what they say: the run file passes `elastic check`, the incentive keeps an incentive's promises."""

import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from elastic.check import check_plugins, check_values, notes
from elastic.config import load_config
from elastic.contracts import Incentive
from elastic.messages import ContributionHeader, Digest, Evidence, PeerId, RejectReason, RoundIndex, Verdict
from elastic.registry import build
from elastic.sections import PluginChoice

EXAMPLES = Path(__file__).parents[2] / "examples"
PEERS = [PeerId("12D3KooW" + letter * 44) for letter in "ABCDEFGH"]


def made(**settings: Any) -> Incentive:
    """As a run file names it: by module and class, with the examples' folder on the path."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        incentive: Incentive = build(
            "incentive", PluginChoice.model_validate({"name": "your_incentive:YourIncentive", **settings})
        )
    finally:
        sys.path.remove(str(EXAMPLES))
    return incentive


def live(incentive: Incentive, rounds: list[dict[PeerId, RejectReason | None]]) -> None:
    for index, verdicts in enumerate(rounds, start=1):
        round_ = RoundIndex(index)
        incentive.score(
            round_, [Evidence(verdict=Verdict(peer=p, round=round_, rejected=r)) for p, r in verdicts.items()]
        )


def header(peer: PeerId, tokens: int) -> ContributionHeader:
    return ContributionHeader(
        run="demo", round=RoundIndex(50), peer=peer, anchor=Digest("a" * 64), proof=Digest("c" * 64),
        payload=Digest("b" * 64), size_bytes=1,
        steps=1, tokens=tokens, loss=1.0,
    )  # fmt: skip


def headers(claimed: dict[PeerId, int]) -> list[ContributionHeader]:
    return [header(peer, tokens) for peer, tokens in claimed.items()]


def test_your_incentive_admits_members_only_and_each_in_turn() -> None:
    incentive = made(members=PEERS[:4])
    chosen = [set(incentive.select(RoundIndex(index), PEERS, 2)) for index in range(1, 9)]
    assert set().union(*chosen) == set(PEERS[:4])
    assert all(len(each) == 2 for each in chosen)


def test_your_incentive_counts_the_reliable_double() -> None:
    incentive = made()
    live(incentive, [{PEERS[0]: None, PEERS[1]: RejectReason.MISSING}])
    assert incentive.shares(headers({PEERS[0]: 10, PEERS[1]: 10})) == pytest.approx({PEERS[0]: 2 / 3, PEERS[1]: 1 / 3})


def test_the_example_run_file_is_complete(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "swarm.toml", tmp_path / "run.toml")
    config = load_config(tmp_path / "run.toml")
    check_values(config)
    check_plugins(config)
    (note,) = notes(config)
    assert note.startswith("shared.agreement.validators names 1")
    from elastic.actors.offline import check_corpus

    assert "pride_and_prejudice" in check_corpus(config)


def test_the_example_of_joining_says_what_is_wrong_with_a_run_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (EXAMPLES / "swarm.toml").read_text()
    (tmp_path / "run.toml").write_text(re.sub(r'"/ip4/.*"', "", text))
    monkeypatch.setattr(sys, "argv", ["join.py", str(tmp_path / "run.toml")])
    with pytest.raises(SystemExit, match=r"^error: local\.network.bootstrap is empty"):
        runpy.run_path(str(EXAMPLES / "join.py"), run_name="__main__")


def test_the_example_of_joining_does_what_the_command_does() -> None:
    """Every step of `elastic join`, in the same order."""
    steps = r"(load_config|validate|check_corpus|require_bootstrap|attach|connect|start_peer|follow)\("
    command = (EXAMPLES.parent / "elastic" / "cli.py").read_text()
    command = command[command.index("def join(") : command.index("def status(")]
    example = (EXAMPLES / "join.py").read_text()
    assert re.findall(steps, example) == re.findall(steps, command)


@pytest.mark.parametrize(("name", "lines"), [("join.py", 40), ("your_incentive.py", 60)])
def test_the_examples_are_short(name: str, lines: int) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < lines
