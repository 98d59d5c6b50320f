"""Agreement under loss, delay, reordering, partitions, crashes and lies: safe always, done once the network heals."""

import pytest

from elastic.agreement.simplex import max_liars, proposer_of, quorum
from elastic.messages import RoundIndex, View
from tests.sim.agreement import NAMES, RUN, Sim, ViolationError
from tests.sim.mutants import MUTANTS

SEEDS = 400
RARE = {
    "takes proposals that repeat something else": 1298,
    "keeps nothing of what it was told": 620,
}
"""Bugs that more schedules are needed for, and a seed that shows it."""


@pytest.mark.parametrize("start", range(0, SEEDS, 50))
def test_validators_agree_whatever_happens(start: int) -> None:
    for seed in range(start, start + 50):
        try:
            Sim(seed).run()
        except ViolationError as violation:
            pytest.fail(f"seed {seed}: {violation}")


def test_a_schedule_is_the_same_every_time() -> None:
    def history(seed: int) -> list[object]:
        sim = Sim(seed)
        sim.run()
        return [sim.now, sim.events, sorted((peer, final.manifest) for peer, final in sim.final.items())]

    assert history(11) == history(11) != history(12)


@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in RARE])
def test_the_simulation_finds_planted_bugs(name: str) -> None:
    for seed in range(SEEDS):
        try:
            Sim(seed, MUTANTS[name]).run()
        except ViolationError:
            return
    pytest.fail(f"{SEEDS} schedules did not show it")


@pytest.mark.parametrize("name", RARE)
def test_rare_bugs_are_found_too(name: str) -> None:
    with pytest.raises(ViolationError):
        Sim(RARE[name], MUTANTS[name]).run()


def test_quorums_overlap_in_an_honest_validator() -> None:
    for n in range(1, 50):
        f, q = max_liars(n), quorum(n)
        assert 2 * q - n > f, "two quorums share more than the liars"
        assert q <= n - f, "the honest ones are a quorum"


def test_one_validator_is_its_own_quorum() -> None:
    assert (max_liars(1), quorum(1)) == (0, 1)


def test_proposers_take_turns_and_differ_from_round_to_round() -> None:
    # given
    validators = NAMES[:5]
    # when / then
    turns = [proposer_of(RUN, RoundIndex(3), View(view), validators) for view in range(5)]
    assert sorted(turns) == sorted(validators)
    assert proposer_of(RUN, RoundIndex(3), View(5), list(reversed(validators))) == turns[0]
    assert len({proposer_of(RUN, RoundIndex(round_), View(0), validators) for round_ in range(50)}) == 5
