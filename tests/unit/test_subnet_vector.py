"""Scores become weights that sum to 1, burn what was asked for, and are never odd."""

from math import inf, isfinite, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incentives.subnet.vector import vector

HOTKEYS = [f"hotkey{number}" for number in range(8)]
UIDS = {hotkey: number for number, hotkey in enumerate(HOTKEYS[:6])}
OWN = HOTKEYS[0]

scores = st.dictionaries(st.sampled_from(HOTKEYS), st.floats(allow_nan=True, allow_infinity=True))
fractions = st.floats(0, 1)


@given(scores, fractions, st.none() | st.integers(0, 9))
def test_weights_are_positive_and_sum_to_1_or_there_are_none(
    given_scores: dict[str, float], burn: float, burn_uid: int | None
) -> None:
    made = vector(given_scores, UIDS, own=OWN, burn=burn, burn_uid=burn_uid)
    assert all(isfinite(weight) and 0 < weight <= 1 + 1e-9 for weight in made.weights.values())
    assert list(made.weights) == sorted(made.weights)
    assert not made.weights or sum(made.weights.values()) == pytest.approx(1, abs=1e-9)
    assert burn_uid == UIDS[OWN] or UIDS[OWN] not in made.weights


@given(st.dictionaries(st.sampled_from(HOTKEYS[1:5]), st.floats(0.001, 1e6), min_size=1), fractions)
def test_the_burn_is_exact_whatever_the_burn_uid_scored(given_scores: dict[str, float], burn: float) -> None:
    with_it = vector({**given_scores, HOTKEYS[5]: 1e9}, UIDS, own=OWN, burn=burn, burn_uid=5)
    assert with_it == vector(given_scores, UIDS, own=OWN, burn=burn, burn_uid=5)
    assert with_it.weights.get(5, 0.0) == pytest.approx(burn)


@given(st.dictionaries(st.sampled_from(HOTKEYS[1:6]), st.floats(1e-3, 1e3), min_size=2))
def test_without_burn_weights_are_in_proportion_to_scores(given_scores: dict[str, float]) -> None:
    made = vector(given_scores, UIDS, own=OWN).weights
    for one, other in zip(given_scores, list(given_scores)[1:], strict=False):
        ratio = given_scores[one] / given_scores[other]
        assert made[UIDS[one]] / made[UIDS[other]] == pytest.approx(ratio)


@given(scores)
def test_those_without_a_uid_are_named(given_scores: dict[str, float]) -> None:
    named = vector(given_scores, UIDS, own=OWN).dropped
    assert set(named) == {
        hotkey for hotkey, score in given_scores.items() if hotkey in HOTKEYS[6:] and isfinite(score) and score > 0
    }


@pytest.mark.parametrize("score", [nan, inf, -inf, -1.0, 0.0, -0.0])
def test_what_is_no_positive_number_counts_as_none(score: float) -> None:
    assert vector({HOTKEYS[1]: score, HOTKEYS[2]: 1.0}, UIDS, own=OWN).weights == {2: 1.0}


@pytest.mark.parametrize("large", [5e-324, 1e308])
def test_the_smallest_and_the_largest_numbers_are_no_trouble(large: float) -> None:
    assert vector(dict.fromkeys(HOTKEYS[1:5], large), UIDS, own=OWN).weights == dict.fromkeys(range(1, 5), 0.25)


def test_when_nobody_scores_everything_is_burnt_or_nothing_is_set() -> None:
    assert vector({OWN: 5.0}, UIDS, own=OWN, burn=0.2, burn_uid=4).weights == {4: 1.0}
    assert vector({}, UIDS, own=OWN).weights == {}
