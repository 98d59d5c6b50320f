"""`elastic score`: what moved a peer's score, round by round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from elastic.audit.evidence import Witness
from elastic.contracts import Incentive
from elastic.messages import Evidence, PeerId, RoundIndex
from elastic.verify.ratings import WORK_FLOOR, WORK_TRIAL, Ratings, Standing


@dataclass(frozen=True, slots=True)
class Move:
    """One round of one peer."""

    round: RoundIndex
    evidence: Evidence
    standing: Standing
    """After it, as assessments say;"""
    score: float
    """and what the incentive makes of everything so far."""

    def because(self) -> str:
        """What happened, in words."""
        verdict, assessment = self.evidence.verdict, self.evidence.assessment
        if not verdict.accepted:
            return f"{verdict.rejected}: {verdict.detail}" if verdict.detail else str(verdict.rejected)
        if assessment is None:
            return "accepted, not assessed"
        gains = f"{assessment.gain_heldout:+.3%} on others' tokens, {assessment.gain_assigned:+.3%} on its own"
        found = [gains]
        if self.evidence.part is not None:
            found.append(f"{self.evidence.part:.0%} of the usual over the rounds")
        if self.evidence.helped is False:
            found.append("did not help as is usual")
        if self.evidence.works is False:
            found.append("does not train on what it is assigned")
        elif self.standing.assessed < WORK_TRIAL:
            found.append(f"too early for its proof of work: {self.standing.assessed} of {WORK_TRIAL} assessments")
        return "; ".join(found)


def history(witness: Witness, peer: PeerId, incentive: Incentive) -> Iterator[Move]:
    """Play a run's evidence through fresh ratings and a fresh incentive, and follow one peer."""
    ratings = Ratings()
    for seen in witness.rounds:
        rated = ratings.take_in(seen.round, seen.evidence)
        incentive.hear(seen.invitations)
        board = incentive.score(seen.round, rated)
        for each in rated:
            if each.verdict.peer == peer:
                yield Move(seen.round, each, ratings[peer], board.scores.get(peer, 0.0))


def line(move: Move) -> str:
    """A row of the table."""
    known = move.standing
    return (
        f"{move.round:6d}  {move.score:7.3f}  {known.score(move.round):7.2f}  {known.ordinal:7.2f}  "
        f"{known.work:5.2f}  {move.because()}"
    )


HEADER = " round    score   rating  ordinal   work  what moved it"
LEGEND = f"""\
score    what the incentive thinks of it
rating   what validators' assessments amount to: ordinal x work, a little less after each round without one
ordinal  how well it helps on tokens that others train on, as far as that is almost certain (OpenSkill)
work     proof of work: whether it trains on the tokens that it is assigned. An assessment in which it helps more
         on these than on others' says +1, any other -1; this is their running mean, from 0 on. A copy stays near
         0. Known from {WORK_TRIAL} assessments on, about as many rounds of a validator: single ones may be luck. Then a
         mean below about {WORK_FLOOR:g} says that it does not, and its rating is 0"""
