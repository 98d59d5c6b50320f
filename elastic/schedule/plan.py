"""From the last manifest to what this peer does in the next round: pure, and the same on every peer."""

from collections.abc import Mapping, Sequence
from math import inf
from statistics import median_low

from elastic.config import RoundConfig, Shared
from elastic.messages import PACE_ROUNDS, Digest, Manifest, PeerCard, PeerId, PeerStage, RoundIndex, RoundPlan

SHORTEST = 0.001
"""Seconds; a round takes time, whatever the clock says."""
SLACK_SECONDS = 2.0
"""Added to every adaptive deadline: a round of 100 ms must not be lost to one slow packet."""
MOST_PATIENCE = 16.0
"""More helps only whoever is that many times slower than most, and every death in a swarm that stands still would cost
everyone so much more."""
TRAIN_PART = 0.8
"""Part of the deadline that a slow peer may spend on inner steps; the rest is for getting its payload out."""


def plan_round(
    shared: Shared, head: Manifest, anchor: Digest, peer: PeerId, validators: Sequence[PeerId] = ()
) -> RoundPlan:
    """The plan of the round after `head`.

    Args:
        shared: the run.
        head: the last final manifest.
        anchor: digest of the anchor we hold, after applying it.
        peer: us.
        validators: who decides it.
    """
    deadline = round_deadline(shared.round, head.pace)
    return RoundPlan(
        run=shared.run,
        round=RoundIndex(head.round + 1),
        previous=head.digest(),
        anchor=anchor,
        peer=peer,
        roster=head.roster,
        slot=head.roster.index(peer) if peer in head.roster else None,
        inner_steps=shared.inner.steps,
        seed=shared.seed,
        pace=head.pace,
        validators=tuple(validators),
        amended=head.amends,
        train_seconds=min(shared.round.train_seconds, deadline * TRAIN_PART if head.pace else deadline),
        gather_seconds=deadline,
    )


def round_deadline(config: RoundConfig, pace: Sequence[float]) -> float:
    """Seconds from the start of a round after which nobody is waited for.

    Nothing is known of the first round, so it gets the bound. From then on it is `deadline_factor` times what the
    faster half of the swarm usually needs. The slower half contributes what it has by then, and moves nothing.
    """
    bound = config.train_seconds + config.gather_seconds
    if not pace:
        return bound
    return min(bound, config.deadline_factor * median_low(pace) + SLACK_SECONDS)


def next_patience(patience: float, ended: bool, seconds: float, plan: RoundPlan) -> float:
    """How many times as long as planned the next round may take, after one that took so many seconds.

    Who is needed and always too late, a validator that takes long to check a payload, would else be waited for in vain
    for ever: the plan follows from the last manifest, and there is none. Where patience was of use it stays.

    Args:
        patience: of the round that is over.
        ended: it had a manifest.
        seconds: that it took.
        plan: of it.
    """
    if not ended:
        return min(2 * patience, MOST_PATIENCE)
    return patience if seconds > plan.gather_seconds else max(1.0, patience / 2)


def next_pace(plan: RoundPlan, arrivals: Mapping[PeerId, float]) -> tuple[float, ...]:
    """What a manifest says of how long rounds take; as before, if fewer than half of the roster came.

    Args:
        arrivals: when each contribution that may count was here, in seconds since the round began; inf: too late.
    """
    half = (len(plan.roster) + 1) // 2
    came = sorted(seconds for peer, seconds in arrivals.items() if peer in plan.roster)[:half]
    if len(came) < half or not came or not came[-1] < inf:
        return plan.pace
    return (*plan.pace, max(round(came[-1], 3), SHORTEST))[-PACE_ROUNDS:]


def candidates(cards: Sequence[PeerCard], plan: RoundPlan, shared_digest: str, arrived: set[PeerId]) -> list[PeerId]:
    """Who may be in the roster after this round, in PeerId order.

    Whoever contributed stays. Whoever was expected and did not arrive is out until it is seen ready for a round
    that it was not expected in, so a dead peer delays one round only. If nobody arrived at all (an all-reduce broke),
    nobody can be blamed and every live peer stays.
    """
    ready = {
        card.peer
        for card in cards
        if card.stage is PeerStage.READY and card.shared == shared_digest and card.round >= plan.round
    }
    late = set(plan.roster) - arrived if arrived else set()
    unwilling = {card.peer for card in cards if card.stage in (PeerStage.LEAVING, PeerStage.WATCHING)}
    return sorted(((ready | arrived) - late) - unwilling)
