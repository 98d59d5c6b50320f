"""Many peers, some of which die: rounds played out with random numbers, where `estimate` has one usual round.

What is played: equal peers need unequal time (`spread`); a peer that dies begins its round again when it is back; who
is not there by the deadline is not counted and not waited for; in the next round a peer that sat out takes its place.
The deadline is the run file's rule (`elastic.schedule.plan`), without its bound where a usual round is beyond that
already. Bytes and lines are those of `estimate`.

Not played: lies, partitions, void rounds for want of a quorum, lines that differ from hour to hour, searches in a DHT
of thousands of nodes.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median_low

from elastic.plan.estimate import Case, Estimate, estimate
from elastic.schedule.plan import SLACK_SECONDS

ROUNDS = 400
PACE_ROUNDS = 8
"""Of whose pace the median sets the deadline."""
TIMES_DEAD = 20
"""A peer that dies as often in one round is out of it."""


@dataclass(frozen=True, slots=True)
class Life:
    """What the simulator needs of a round; seconds."""

    work: float
    """From the beginning until the payload has arrived, usually."""
    tail: float
    """From then until the next round."""
    restart: float
    """From a death until the peer works again."""
    spread: float
    factor: float
    """`deadline_factor`."""
    bound: float
    """Nobody waits longer."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of some rounds."""

    round_seconds: float
    """On average."""
    counted: float
    """Contributions of a round, on average."""
    longest: float


@dataclass(frozen=True, slots=True)
class Row:
    """A swarm of that many peers."""

    usual: Estimate
    outcome: Outcome
    goodput: float
    """Tokens per second ÷ those of the same swarm if all were always there and equally fast."""

    @property
    def tokens_per_day(self) -> float:
        """Of contributions that counted."""
        return self.usual.tokens_per_day * self.goodput


def grow(case: Case, peers: list[int], churn: float, seed: int) -> Iterator[Row]:
    """The same swarm with so many peers, its groups in the same proportion.

    Args:
        case: the run.
        peers: how many peers each swarm has.
        churn: deaths per peer and usual round.
        seed: of all random numbers.
    """
    for count in peers:
        usual = estimate(_of_size(case, count))
        outcome = play(_life(usual), usual.case.makers, count - usual.case.makers, churn, seed)
        goodput = (outcome.counted / usual.case.makers) * usual.round_seconds / outcome.round_seconds
        yield Row(usual, outcome, goodput)


def play(life: Life, makers: int, others: int, churn: float, seed: int, rounds: int = ROUNDS) -> Outcome:
    """Rounds, one after the other, with deaths as a Poisson process in their time."""
    rng = random.Random(seed)
    usual = life.work + life.tail
    free, now = [0.0] * makers, 0.0
    pace, counted, longest = [life.work], 0, 0.0
    for _ in range(rounds):
        deadline = now + min(life.bound, life.factor * median_low(pace[-PACE_ROUNDS:]) + SLACK_SECONDS)
        arrivals = [_arrival(rng, life, max(now, since), deadline, usual / churn if churn else None) for since in free]
        came = sorted(moment for moment in arrivals if moment <= deadline)
        counted += len(came)
        if len(came) >= (makers + 1) // 2:
            pace.append(came[(makers + 1) // 2 - 1] - now)
        end = (came[-1] if len(came) == makers else deadline) + life.tail
        missing = [index for index, moment in enumerate(arrivals) if moment > deadline]
        free = [end] * makers
        for index in missing[others:]:  # nobody is left to take its place: it begins when it is back
            free[index] = end + life.restart
        longest, now = max(longest, end - now), end
    return Outcome(now / rounds, counted / rounds, longest)


def _arrival(rng: random.Random, life: Life, begin: float, deadline: float, lifetime: float | None) -> float:
    """When a peer's payload is everywhere; it starts again after each death, until it would be too late."""
    for _ in range(TIMES_DEAD):
        ready = begin + life.work * math.exp(rng.gauss(0.0, life.spread))
        death = begin + rng.expovariate(1 / lifetime) if lifetime else math.inf
        if death >= ready or begin > deadline:
            return ready
        begin = death + life.restart
    return math.inf


def _life(usual: Estimate) -> Life:
    plan, group = usual.case.plan, usual.case.plan.peers[0]
    state = 8.0 * usual.case.sizes.num_params() / (group.disk_gb_per_second * 1e9)
    work = min(usual.arrival, usual.round_seconds)  # with overlap part of it is the next round's time
    bound = usual.bound if usual.in_time else math.inf
    return Life(
        work=work, tail=usual.round_seconds - work, restart=plan.restart_seconds + state, spread=plan.spread,
        factor=usual.case.shared.round.deadline_factor, bound=bound,
    )  # fmt: skip


def _of_size(case: Case, count: int) -> Case:
    """Groups in the same proportion; the largest get what is left over."""
    exact = [group.count * count / case.peers for group in case.plan.peers]
    counts = [math.floor(each) for each in exact]
    for index in sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])[: count - sum(counts)]:
        counts[index] += 1
    groups = [
        group.model_copy(update={"count": each}) for group, each in zip(case.plan.peers, counts, strict=True) if each
    ]
    return case.with_plan(peers=tuple(groups))
