"""Who helps, as a validator finds out over the rounds: assessments in, ratings out.

Each round the contributions that were assessed play one match, ranked by how much they lower the loss on tokens that
their authors did not train on. Beside it goes a mean of whether they help most on the tokens that were assigned: who
copies, or trains on something else, cannot show that.

Source: Gauntlet, arXiv 2505.21684; we differ in that a rating is kept over restarts, that an absence counts only in
rounds in which most arrived, and that what may be another's fault never plays.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from statistics import median_low

from openskill.models import PlackettLuce, PlackettLuceRating

from elastic.errors import StateError
from elastic.messages import JSON, Assessment, Evidence, PeerId, RejectReason, RoundIndex

BETA, TAU = 7.0, 0.1
"""OpenSkill: how far luck reaches in one match, and how much a skill may change from one to the next."""
MEAN, SPREAD = 25.0, 25.0 / 3.0
"""OpenSkill's own: what is thought of a newcomer. Three spreads below that mean lies 0."""
WORK_PACE = 0.05
"""Weight of the last assessment in the mean of proofs of work."""
WORK_FLOOR, WORK_TRIAL = 0.10, 20
"""A mean below this floor counts as none, from this number of assessments on. After Gauntlet's 10, honest peers that
help most on their own tokens in three rounds of four would often be found below it."""
LEAST_GAIN = 0.25
"""Who helps less than this part of what is usual in its round does not help: it idles, or worse."""
FADE = 0.99
"""Left of a score after each round without an assessment."""
MEMORY_ROUNDS = 10_000
"""A peer not heard of for so many rounds is forgotten: names are free."""

AT_FAULT = frozenset(
    {
        RejectReason.MALFORMED,
        RejectReason.OVERSIZED,
        RejectReason.WRONG_ANCHOR,
        RejectReason.WRONG_DIGEST,
        RejectReason.BAD_SIGNATURE,
        RejectReason.EQUIVOCAL,
    }
)
"""What only the author of a contribution can have done."""
ABSENT = frozenset({RejectReason.MISSING, RejectReason.UNFETCHABLE})
"""What may be the network's doing."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one peer."""

    mean: float = MEAN
    spread: float = SPREAD
    """Of its skill; see OpenSkill."""
    work: float = 0.0
    """Mean proof of work, in [-1, 1]."""
    assessed: int = 0
    """Assessments so far."""
    last: int = 0
    """Round of the last one."""
    played: int = 0
    """Round of the last match, which may have been without an assessment."""

    @property
    def ordinal(self) -> float:
        """The skill that it has almost certainly."""
        return self.mean - 3 * self.spread

    @property
    def works(self) -> bool | None:
        """Whether it trains on the tokens it is assigned; None: too few assessments to tell."""
        known = 1 - (1 - WORK_PACE) ** self.assessed  # the mean began at 0
        return self.work >= WORK_FLOOR * known if self.assessed >= WORK_TRIAL else None

    def score(self, round_: int) -> float:
        """What the assessments up to that round amount to: at least 0, without an upper bound."""
        if self.works is False:
            return 0.0
        return max(0.0, self.ordinal) * max(0.0, self.work) * float(FADE ** max(0, round_ - self.last))


NEWCOMER = Standing()


def who_helped(assessments: Sequence[Assessment]) -> dict[PeerId, bool]:
    """Peer → whether its contribution did what a contribution should; left out where that cannot be told.

    Towards the end of a run nobody helps much, and single gains drown in noise: so each is held against the others.
    """
    usual = median_low([each.gain_heldout for each in assessments]) if assessments else 0.0
    found = {}
    for each in assessments:
        harmful = each.gain_heldout < 0 and each.gain_assigned < 0
        if usual > 0:
            found[each.peer] = each.gain_heldout >= LEAST_GAIN * usual
        elif harmful or each.gain_heldout > 0:
            found[each.peer] = not harmful
    return found


class Ratings:
    """One validator's view of everybody; nobody else's is in it."""

    def __init__(self) -> None:
        self._standings: dict[PeerId, Standing] = {}
        self._model = PlackettLuce(mu=MEAN, sigma=SPREAD, beta=BETA, tau=TAU)

    def __getitem__(self, peer: PeerId) -> Standing:
        return self._standings.get(peer, NEWCOMER)

    def take_in(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> list[Evidence]:
        """Learn from one round; a round that a peer has played already changes nothing for it.

        Returns:
            The evidence, with what is thought of it now.
        """
        fresh = [each for each in evidence if self[each.verdict.peer].played < round_]
        for each in sorted(fresh, key=lambda each: each.verdict.peer):
            self._prove_work(round_, each)
        self._play(round_, fresh)
        self._standings = {
            peer: known for peer, known in self._standings.items() if known.played > round_ - MEMORY_ROUNDS
        }
        helped = who_helped([each.assessment for each in evidence if each.assessment is not None])
        return [self._rated(round_, each, helped.get(each.verdict.peer)) for each in evidence]

    def _rated(self, round_: RoundIndex, each: Evidence, helped: bool | None) -> Evidence:
        known = self[each.verdict.peer]
        score = known.score(round_) if known.assessed else None
        return each.model_copy(update={"helped": helped, "works": known.works, "score": score})

    def order(self, peers: Sequence[PeerId]) -> list[PeerId]:
        """Whom to assess first: who was not for longest, then of whom least is known."""
        return sorted(peers, key=lambda peer: (self[peer].last, -self[peer].spread, peer))

    def state(self) -> JSON:
        """Everything that must survive a restart: else it would be an amnesty."""
        return {peer: asdict(known) for peer, known in sorted(self._standings.items())}

    def restore(self, state: JSON) -> None:
        """Take back what `state` returned.

        Raises:
            StateError: something else.
        """
        try:
            self._standings = {PeerId(peer): _standing(fields) for peer, fields in state.items()}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StateError(f"not a state of ratings: {error!r}") from error

    def _prove_work(self, round_: RoundIndex, each: Evidence) -> None:
        if each.assessment is None:
            return
        known = self[each.verdict.peer]
        worked = 1.0 if each.assessment.gain_assigned > each.assessment.gain_heldout else -1.0
        work = (1 - WORK_PACE) * known.work + WORK_PACE * worked
        self._standings[each.verdict.peer] = replace(
            known, work=work, assessed=known.assessed + 1, last=round_, played=round_
        )

    def _play(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> None:
        """One match: the assessed by their gain, and behind them who sent nothing that could be."""
        gains = {each.verdict.peer: each.assessment.gain_heldout for each in evidence if each.assessment is not None}
        most_arrived = 2 * sum(each.verdict.accepted for each in evidence) > len(evidence)
        last = {
            each.verdict.peer
            for each in evidence
            if each.verdict.rejected in AT_FAULT or (each.verdict.rejected in ABSENT and most_arrived)
        } - set(gains)
        players = sorted(set(gains) | last)
        if len(players) < 2 or not gains:
            return
        behind: list[float] = [
            sum(other > gains[peer] for other in gains.values()) if peer in gains else len(gains) for peer in players
        ]
        after = self._model.rate([[self._rating(peer)] for peer in players], ranks=behind)
        for peer, (rating,) in zip(players, after, strict=True):
            self._standings[peer] = replace(self[peer], mean=rating.mu, spread=rating.sigma, played=round_)

    def _rating(self, peer: PeerId) -> PlackettLuceRating:
        return self._model.rating(mu=self[peer].mean, sigma=self[peer].spread)


def _standing(fields: JSON) -> Standing:
    mean, spread, work = (float(fields[name]) for name in ("mean", "spread", "work"))
    if not (isfinite(mean) and isfinite(spread) and spread > 0 and abs(work) <= 1):
        raise ValueError(f"out of range: {fields}")
    return Standing(mean, spread, work, *(int(fields[name]) for name in ("assessed", "last", "played")))
