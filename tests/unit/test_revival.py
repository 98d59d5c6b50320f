"""Whether something that died is started again, and when."""

from itertools import pairwise

from elastic.actors.revival import FIRST_PAUSE, LONGEST_PAUSE, MAX_DEATHS, GiveUp, Restart, after_death


def test_the_first_death_is_followed_by_a_restart_almost_at_once() -> None:
    assert after_death(1) == Restart(FIRST_PAUSE)


def test_pauses_grow_and_are_bounded() -> None:
    # given
    restarts = [after_death(deaths) for deaths in range(1, MAX_DEATHS)]
    # when
    pauses = [each.pause for each in restarts if isinstance(each, Restart)]
    # then
    assert len(pauses) == MAX_DEATHS - 1
    assert all(first < second or second == LONGEST_PAUSE for first, second in pairwise(pauses))
    assert max(pauses) <= LONGEST_PAUSE


def test_what_dies_again_and_again_is_given_up_in_one_line() -> None:
    for deaths in (MAX_DEATHS, MAX_DEATHS + 1):
        decision = after_death(deaths)
        assert isinstance(decision, GiveUp)
        assert f"{deaths} times in a row" in decision.because and "\n" not in decision.because
