"""Whether something that died is started again, and when. Pure: who starts it is in `handle` and `trainer`."""

from dataclasses import dataclass

from elastic.messages import Seconds

FIRST_PAUSE = Seconds(1.0)
"""Before the first restart."""
LONGEST_PAUSE = Seconds(30.0)
"""Pauses double up to here."""
MAX_DEATHS = 7
"""In a row, without anything done in between: what dies so often dies of a mistake that no restart mends."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after a pause."""

    pause: Seconds


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell a person."""

    because: str


@dataclass(frozen=True, slots=True)
class Past:
    """What a life of a peer must know of the ones before it."""

    restarts: int = 0
    """Of any of its processes."""
    because: str = ""
    """What the last life died of."""
    met: bool = False
    """Whether the peer was ever in the swarm: then an unreachable swarm is no mistake in its run file."""


FIRST_LIFE = Past()


def after_death(deaths: int) -> Restart | GiveUp:
    """What follows a death.

    Args:
        deaths: in a row, this one included; the count begins anew with each piece of work that was finished.
    """
    if deaths >= MAX_DEATHS:
        return GiveUp(f"died {deaths} times in a row and got nothing done in between")
    return Restart(Seconds(min(FIRST_PAUSE * 2 ** (deaths - 1), LONGEST_PAUSE)))
