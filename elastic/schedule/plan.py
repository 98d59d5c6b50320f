"""From the last manifest to what this peer does in the next round: pure, and the same on every peer."""

from collections.abc import Sequence
from statistics import median

from elastic.config import RoundConfig, Shared
from elastic.messages import Digest, Manifest, PeerCard, PeerId, PeerStage, RoundIndex, RoundPlan, Seconds

HISTORY = 8
"""Rounds that the adaptive deadline looks back on."""
SLACK_SECONDS = 2.0
"""Added to every adaptive deadline: a round of 100 ms must not be lost to one slow packet."""
TRAIN_PART = 0.8
"""Part of the deadline that a slow peer may spend on inner steps; the rest is for getting its payload out."""


def plan_round(shared: Shared, head: Manifest, anchor: Digest, peer: PeerId, history: Sequence[Seconds]) -> RoundPlan:
    """The plan of the round after `head`.

    Args:
        anchor: digest of the anchor we hold, after applying `head`.
        history: durations of the last rounds in which everyone arrived, newest last.
    """
    deadline = round_deadline(shared.round, history)
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
        train_seconds=min(shared.round.train_seconds, deadline * TRAIN_PART if history else deadline),
        gather_seconds=deadline,
    )


def round_deadline(config: RoundConfig, history: Sequence[Seconds]) -> float:
    """Seconds from the start of a round after which nobody is waited for.

    Nothing is known of the first round, so it gets the bound. From then on it is `deadline_factor` times the usual
    duration, so one slow peer delays a round by a bounded amount, and the bound follows what the swarm really does.
    """
    bound = config.train_seconds + config.gather_seconds
    if not history:
        return bound
    return min(bound, config.deadline_factor * median(history[-HISTORY:]) + SLACK_SECONDS)


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
    leaving = {card.peer for card in cards if card.stage is PeerStage.LEAVING}
    return sorted(((ready | arrived) - late) - leaving)
