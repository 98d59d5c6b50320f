"""`elastic bench attack`: cells are made once, and the table says what came of them."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from elastic.bench.attack.measure import Cell, Outcome
from elastic.bench.attack.suite import cells, chosen, collect, defended, key, read, run
from elastic.bench.attack.swarm import DEFENCES, USUAL, Setting
from elastic.bench.attack.table import most, slashes, table
from elastic.bench.attack.zoo import ABSENT, CONTROL, QUICK, ZOO
from elastic.errors import ConfigError

SETTING = Setting(peers=8, rounds=4)


def outcome(cell: Cell, held_out: float = 2.0, **changes: object) -> Outcome:
    fields = {
        "kind": cell.kind, "defence": cell.defence, "seed": cell.seed, "peers": 8, "rounds": 4, "bad": 2, "detected": 1,
        "ejected_after": [3], "honest": 6, "slashed": 0, "gets": 0.1, "held_out": held_out, "validator_cost": 0.25,
        "round_seconds": 5.0,
    } | changes  # fmt: skip
    return Outcome(**fields)  # type: ignore[arg-type]


def test_the_first_seed_comes_first_with_every_kind_and_what_it_is_compared_with() -> None:
    todo = cells(["copy"], USUAL, SETTING, range(4, 6))
    assert [(cell.kind, cell.defence) for cell in todo[: len(todo) // 2]] == [
        (kind, name) for kind in (ABSENT, CONTROL, "copy") for name in USUAL
    ]
    assert [cell.seed for cell in todo] == [4] * 6 + [5] * 6


def test_kinds_are_named_or_all_of_them() -> None:
    assert chosen([], quick=False) == list(ZOO)
    assert chosen([], quick=True) == list(QUICK)
    assert chosen(["noise"], quick=True) == ["noise"]
    with pytest.raises(ConfigError, match="--kinds dragon: expected some of sign flip"):
        chosen(["dragon"], quick=False)


def test_finished_cells_are_not_made_again(tmp_path: Path) -> None:
    # given all of them in a file
    kept, todo, said = tmp_path / "kept.json", cells(["copy"], USUAL, SETTING, [0]), []
    collect([(cell, outcome(cell)) for cell in todo], {}, len(todo), kept, said.append)
    # when
    again = run(todo, 1, kept, said.append)
    # then nothing is measured
    assert again == [outcome(cell) for cell in todo]
    assert "6 kept from before" in said[-1]
    assert "0 s to go" in said[-2]
    # and other settings are other cells
    assert key(todo[0]) != key(cells(["copy"], USUAL, Setting(peers=8, rounds=5), [0])[0])


def test_defences_are_named_or_the_usual_ones() -> None:
    assert defended([]) == list(USUAL)
    assert defended(["subnet"]) == ["subnet"]
    assert set(USUAL) < set(DEFENCES)
    with pytest.raises(ConfigError, match="--defences moat: expected some of none"):
        defended(["moat"])


@pytest.mark.parametrize("content", ["no json", "[]", '{"a": {"kind": 1}}', '{"a": 3}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text(content)
    with pytest.raises(ConfigError, match="not a file of this benchmark"):
        read(kept)


def test_the_table_sets_losses_against_the_run_without_bad_peers_of_the_same_seed() -> None:
    # given two seeds whose losses differ
    absent = [outcome(Cell(ABSENT, "none", seed, SETTING), 2.0 + seed, bad=0, ejected_after=[]) for seed in (0, 1)]
    bad = [outcome(Cell("copy", "none", seed, SETTING), 1.1 * (2.0 + seed), slashed=1) for seed in (0, 1)]
    # when
    lines = table([*absent, *bad]).splitlines()
    # then
    (row,) = [line for line in lines if line.startswith("| copy")]
    assert "50 %" in row and "+10.0 % (+10.0 to +10.0)" in row and "2 of 12" in row
    assert all(len(line) == len(lines[0]) <= 120 for line in lines)


def test_outcomes_are_plain_numbers() -> None:
    assert json.loads(json.dumps(asdict(outcome(Cell("copy", "none", 0, SETTING)))))


def test_the_bound_on_a_rate_is_that_of_clopper_and_pearson() -> None:
    assert most(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300))
    assert most(1, 100) == pytest.approx(0.04656, abs=1e-5)
    assert most(5, 5) == 1.0


def test_only_runs_in_which_somebody_assesses_tell_how_often_honest_peers_are_shut_out() -> None:
    scored = [outcome(Cell("copy", "reputation", seed, SETTING), slashed=seed) for seed in (0, 1)]
    free = outcome(Cell("copy", "none", 0, SETTING), validator_cost=0.0)
    assert slashes([*scored, free]).startswith(
        "honest peers shut out where validators assess: 1 of 12 peer-runs, at most "
    )
    assert "of 12 different peers, 2 runs" in slashes([*scored, free])
    assert "0 of 0 peer-runs, at most -" in slashes([free])
