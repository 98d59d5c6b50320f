"""Who helps, as a validator finds out over the rounds: assessments in, ratings out.

Each round the contributions that were assessed play one match, ranked by how much they lower the loss on tokens that
their authors did not train on. Beside it goes a mean of whether they help most on the tokens that were assigned: who
copies, or trains on something else, cannot show that.

Source: Gauntlet, arXiv 2505.21684; we differ in that a rating is kept over restarts, that an absence counts only in
rounds in which most arrived, and that what may be another's fault never plays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from statistics import median_low

from openskill.models import PlackettLuce, PlackettLuceRating

from elastic.errors import StateError
from elastic.messages import JSON, Evidence, PeerId, RejectReason, RoundIndex

BETA, TAU = 7.0, 0.1
"""OpenSkill: how far luck reaches in one match, and how much a skill may change from one to the next."""
MEAN, SPREAD = 25.0, 25.0 / 3.0
"""OpenSkill's own: what is thought of a newcomer. Three spreads below that mean lies 0."""
WORK_PACE = 0.05
"""Weight of the last assessment in the mean of proofs of work."""
WORK_FLOOR, WORK_TRIAL = 0.10, 20
"""A mean below this floor counts as none, from this number of assessments on: after 10, luck alone brings one in
fourteen honest peers below it where four in five of their proofs are good (`elastic bench attack`)."""
LEAST_GAIN = 0.25
"""Who helps less than this part of what is usual does not help: it idles, or worse."""
CLEAR = 4.0
"""So many standard deviations of its round below what is usual one contribution shows it; else only the mean does."""
HELP_PACE, HELP_TRIAL = 0.2, 4
"""Weight of the last assessment in the mean of how much of the usual a peer helps, and how many tell anything."""
HELP_BOUND = 2.0
"""No single round says more than this, for or against."""
ROUNDING = 1.001
"""Sums of products may exceed a bound by so much."""
PART_PACE = 0.1
"""Weight of the last assessment in what part of the usual a peer helps, were all rounds alike. They are not: a round
weighs as what was asked in it, for where there is less to gain noise is as loud as ever."""
WARM_UP = 5
"""A newcomer's first assessments say little: its optimizer is cold and its residual empty, so that it helps some 0.2,
0.3, 0.4, … of what those do who were there before. Only harm is held against it."""
AGAIN = 6 * WARM_UP
"""Who was away comes back with a cold optimizer too, and warms up again; but not more often than after so many
assessments, or being away would be a way not to be measured."""
SEASONED = HELP_TRIAL + 2
"""Assessments of one peer until a bad one is shut out for what they show: an opinion before is an amnesty."""
USEFUL = 0.6
"""Who helps this part of what is usual is not charged for a few unlucky rounds: late in a run, where gains drown in
noise, peers that were charged falsely had helped 0.88 and more of it (`elastic bench attack`)."""
HARM = 0.4
"""But for this much harm in the mean of the last rounds: honest peers' was never below -0.33, that of who turns against
the run below -0.5 after four rounds (`elastic bench attack --kinds traitor`)."""
LEAST_ASKED = 0.25
"""Who trained on few tokens is asked for less, but for no less than this part."""
FEW = 3
"""Fewer assessments in a round do not show what is usual in it."""
FADE = 0.99
"""Left of a score after each round without an assessment."""
MEMORY_ROUNDS = 10_000
"""A peer not heard of for so many rounds is forgotten: names are free."""

AT_FAULT = frozenset(
    {
        RejectReason.MALFORMED,
        RejectReason.OVERSIZED,
        RejectReason.WRONG_ANCHOR,
        RejectReason.NO_PROOF,
        RejectReason.WRONG_DIGEST,
        RejectReason.BAD_SIGNATURE,
        RejectReason.LOUD,
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
    help: float = 0.0
    """Weighted sum of how much of the usual it helps, and"""
    weight: float = 0.0
    """of the weights, in [0, 1]."""
    gained: float = 0.0
    """Weighted sum of its gains, and"""
    asked: float = 0.0
    """of what was asked of it."""
    assessed: int = 0
    """Assessments so far, and"""
    warm: int = 0
    """since its optimizer was cold."""
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

    @property
    def helps(self) -> bool | None:
        """Whether it helps as a contributor should, over the rounds; None: too few assessments to tell."""
        enough = self.weight >= 1 - (1 - HELP_PACE) ** HELP_TRIAL - 1e-9
        useful = self.gained >= USEFUL * self.asked and self.help >= -HARM * self.weight
        return (useful or self.help >= LEAST_GAIN * self.weight) if enough else None

    @property
    def part(self) -> float | None:
        """How much of the usual it helps: what it gained of late against what was asked of it; None: unknown."""
        return self.gained / self.asked if self.asked > 0 else None

    def score(self, round_: int) -> float:
        """What the assessments up to that round amount to: at least 0, without an upper bound."""
        if self.works is False:
            return 0.0
        return max(0.0, self.ordinal) * max(0.0, self.work) * float(FADE ** max(0, round_ - self.last))


NEWCOMER = Standing()


@dataclass(frozen=True, slots=True)
class Help:
    """What one round shows of one contribution."""

    part: float
    """Of what is usual for its tokens, within ± HELP_BOUND."""
    asked: float
    """What is usual for its tokens, a gain above 0."""
    clear: bool
    """Whether this round alone shows that it did not help."""


def helps(evidence: Sequence[Evidence]) -> dict[PeerId, Help]:
    """Assessed peer → how much of the usual it helped; empty if the round shows no usual gain.

    Towards the end of a run nobody helps much, and single gains drown in noise: each is held against the others, and
    against how far those lie apart. What is asked grows with the tokens that a peer says it trained on.
    """
    gains = {each.verdict.peer: each.assessment.gain_heldout for each in evidence if each.assessment is not None}
    if len(gains) < FEW or (usual := median_low(gains.values())) <= 0:
        return {}
    spread = 1.4826 * median_low(abs(gain - usual) for gain in gains.values())  # of a normal distribution: its sd
    tokens = {each.verdict.peer: each.tokens for each in evidence if each.verdict.peer in gains}
    most = median_low(tokens.values())
    found = {}
    for peer, gain in gains.items():
        asked = usual * max(LEAST_ASKED, min(1.0, tokens[peer] / most if most else 1.0))
        clear = gain < LEAST_GAIN * asked and gain < asked - CLEAR * spread
        found[peer] = Help(max(-HELP_BOUND, min(HELP_BOUND, gain / asked)), asked, clear)
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
        shown = self._without_newcomers(helps(evidence))
        for each in sorted(fresh, key=lambda each: each.verdict.peer):
            self._cool(each)
            self._prove_work(round_, each)
            self._weigh(each.verdict.peer, shown.get(each.verdict.peer))
        self._play(round_, fresh)
        self._standings = {
            peer: known for peer, known in self._standings.items() if known.played > round_ - MEMORY_ROUNDS
        }
        return [self._rated(round_, each, shown.get(each.verdict.peer)) for each in evidence]

    def _rated(self, round_: RoundIndex, each: Evidence, shown: Help | None) -> Evidence:
        known = self[each.verdict.peer]
        helped = None if shown is None else known.helps is not False and not shown.clear
        score = known.score(round_) if known.assessed else None
        return each.model_copy(update={"helped": helped, "part": known.part, "works": known.works, "score": score})

    @property
    def seasoned(self) -> bool:
        """Whether we measured long enough for others to hear what we think."""
        return any(known.assessed >= SEASONED for known in self._standings.values())

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

    def _without_newcomers(self, shown: Mapping[PeerId, Help]) -> dict[PeerId, Help]:
        """What a round shows of those who can be compared; of others no more than that they did harm."""
        usual = median_low(self[peer].warm for peer in shown) if shown else 0
        late = {peer for peer in shown if self[peer].warm < WARM_UP <= usual}
        return {peer: help_ for peer, help_ in shown.items() if peer not in late or (help_.clear and help_.part < 0)}

    def _cool(self, each: Evidence) -> None:
        known = self[each.verdict.peer]
        if each.verdict.rejected in ABSENT and known.warm >= AGAIN:
            self._standings[each.verdict.peer] = replace(known, warm=0)

    def _prove_work(self, round_: RoundIndex, each: Evidence) -> None:
        if each.assessment is None:
            return
        known = self[each.verdict.peer]
        worked = 1.0 if each.assessment.gain_assigned > each.assessment.gain_heldout else -1.0
        work = (1 - WORK_PACE) * known.work + WORK_PACE * worked
        self._standings[each.verdict.peer] = replace(
            known, work=work, assessed=known.assessed + 1, warm=known.warm + 1, last=round_, played=round_
        )

    def _weigh(self, peer: PeerId, shown: Help | None) -> None:
        if shown is None:
            return
        known = self[peer]
        total = (1 - HELP_PACE) * known.help + HELP_PACE * shown.part
        weight = (1 - HELP_PACE) * known.weight + HELP_PACE
        gained = (1 - PART_PACE) * known.gained + PART_PACE * shown.part * shown.asked
        asked = (1 - PART_PACE) * known.asked + PART_PACE * shown.asked
        self._standings[peer] = replace(known, help=total, weight=weight, gained=gained, asked=asked)

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
    mean, spread, work, help_, weight = (float(fields[name]) for name in ("mean", "spread", "work", "help", "weight"))
    gained, asked = float(fields["gained"]), float(fields["asked"])
    skilled = isfinite(mean) and isfinite(spread) and spread > 0 and abs(work) <= 1
    helped = abs(help_) <= HELP_BOUND and 0 <= weight <= 1
    if not (skilled and helped and 0 <= asked < inf and abs(gained) <= HELP_BOUND * asked * ROUNDING):
        raise ValueError(f"out of range: {fields}")
    whole = (int(fields[name]) for name in ("assessed", "warm", "last", "played"))
    return Standing(mean, spread, work, help_, weight, gained, asked, *whole)
