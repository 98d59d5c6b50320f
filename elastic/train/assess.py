"""What one contribution alone would do to the loss: on tokens it was to train on, and on others.

    θ' = θ − η · D̂,   gain = (loss(θ) − loss(θ')) / loss(θ)

η is a part of the outer learning rate: the whole step of a single peer is noisy. All contributions of a round are
measured on the same tokens of others, so that luck with the tokens ranks nobody.

Source: Gauntlet, arXiv 2505.21684, whose validators drew other tokens for each peer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from elastic.messages import Assessment, ContributionHeader, RoundPlan
from elastic.train.tokens import cut

if TYPE_CHECKING:
    from torch import Tensor

    from elastic.train.session import Session

Sequences = npt.NDArray[np.int64]

WORST = -10.0
"""A relative gain is not measured below this; a loss that is no number counts as this."""


def assess(
    session: Session, plan: RoundPlan, header: ContributionHeader, payload: bytes, seed: int, beside: bytes | None
) -> Assessment:
    """Try one contribution on the session's anchor.

    The session's params are overwritten: the next inner steps start from the anchor anyway.

    Args:
        session: whose anchor is the plan's.
        plan: of any peer of the round.
        header: whose contribution it is, and on how many tokens; a peer of the plan's roster.
        payload: accepted by the cheap checks.
        beside: another payload, to which a louder one is clipped: the gain of being loud is not for sale.
        seed: draws the tokens; nobody else may know it beforehand, and it should be one and the same in a round.
    """
    rng = np.random.default_rng(seed)
    others = _draw(rng, _of_others(session, plan, header), session)
    own = _draw(rng, _assigned(session, plan, header), session)
    parts = [(session.reducer.decode(payload, session.like), 1.0)]
    if beside is not None:
        parts.append((session.reducer.decode(beside, session.like), 0.0))
    session.anchor_into_params()
    before = _loss(session, own), _loss(session, others)
    session.fitted.fill(partial(_tried, session, parts), session.owners)
    after = _loss(session, own), _loss(session, others)
    return Assessment(
        peer=header.peer, round=plan.round,
        gain_assigned=_gain(before[0], after[0]), gain_heldout=_gain(before[1], after[1]),
    )  # fmt: skip


def _assigned(session: Session, plan: RoundPlan, header: ContributionHeader) -> Sequences:
    """Of the sequences that this peer was to train on, those that it says it did."""
    theirs = session.assign(_plan_of(plan, plan.roster.index(header.peer)))
    trained = max(1, header.tokens // session.shared.inner.sequence_length)
    return theirs[:trained]


def _of_others(session: Session, plan: RoundPlan, header: ContributionHeader) -> Sequences:
    """Sequences that nobody trains on in this round; if the text has none left, those of all others."""
    count = plan.inner_steps * session.shared.inner.batch_size
    slots = range(len(plan.roster))
    spare = [session.assign(_plan_of(plan, slot, 2 * plan.inner_steps))[count:] for slot in slots]
    if sum(map(len, spare)) < session.shared.scoring.sequences:
        mine = plan.roster.index(header.peer)
        spare = [session.assign(_plan_of(plan, slot)) for slot in slots if slot != mine or len(plan.roster) == 1]
    return np.concatenate(spare)


def _plan_of(plan: RoundPlan, slot: int, inner_steps: int | None = None) -> RoundPlan:
    return plan.model_copy(update={"slot": slot, "inner_steps": inner_steps or plan.inner_steps})


def _draw(rng: np.random.Generator, some: Sequences, session: Session) -> Sequences:
    count = min(session.shared.scoring.sequences, len(some))
    return rng.choice(some, count, replace=False)


def _tried(session: Session, parts: Sequence[tuple[Any, float]], name: str) -> Tensor:
    """θ' of one tensor."""
    step = session.shared.scoring.step * session.shared.outer.learning_rate
    found = session.reducer.aggregate(parts, {name: session.like[name]})[name]
    return session.anchor[name] - found * step


def _loss(session: Session, sequences: Sequences) -> float:
    inner = session.shared.inner
    starts = range(0, len(sequences), inner.batch_size)
    return session.mean_loss(
        cut(session.corpus, sequences[start : start + inner.batch_size], inner.sequence_length) for start in starts
    )


def _gain(before: float, after: float) -> float:
    gain = (before - after) / before if before > 0 else 0.0
    return max(WORST, gain) if np.isfinite(gain) else WORST
