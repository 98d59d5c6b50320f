"""A reputation per peer, without tokens or a chain: slow to earn, fast to lose, fading when unused.

It knows only whether contributions passed the cheap checks, not whether they helped the model: it keeps
broken and absent peers from crowding out dependable ones, and it stops nobody who sends well-formed nonsense.
Names are free, so a refused peer can come back as a newcomer; what it cannot have again is a reputation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, isfinite
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from elastic.errors import StateError
from elastic.messages import (
    JSON,
    ContributionHeader,
    Evidence,
    PeerId,
    RejectReason,
    RoundIndex,
    Scoreboard,
)
from incentives.uniform import capped_tokens, draw, normalised

Fraction = Annotated[float, Field(ge=0, le=1)]

NOT_CHARGED = frozenset({RejectReason.NOT_IN_ROSTER})
"""It was not asked to contribute."""
ABSENT = frozenset({RejectReason.MISSING, RejectReason.UNFETCHABLE, RejectReason.STALE})
"""It may be the network's fault: charged mildly, and only in rounds in which most others arrived."""
UNPROVEN = frozenset({RejectReason.COPY, RejectReason.DIVERGED})
"""The one refused may be the victim: charged mildly. Who does it every time still earns nothing."""


@dataclass(frozen=True)
class Record:
    """What is remembered of one peer."""

    reputation: float
    """In [0, 1], as of `last`."""
    rounds: int
    """Rounds with evidence so far."""
    last: int
    """The last of them."""


class Reputation:
    """Shares by tokens × reputation; places for those with the most of it, and always some for newcomers."""

    class Config(BaseModel):
        """[shared.incentive] name = "reputation"."""

        model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

        earn: Fraction = 0.05
        """An accepted contribution closes this part of the distance to 1: half way after 14 rounds."""
        lose: Fraction = 0.5
        """A fault that only the contribution's author can have made costs this part of the reputation."""
        miss: Fraction = 0.1
        """An absence, or a fault that may be another's, costs this part."""
        decay: Fraction = 0.01
        """A round without evidence costs this part."""
        newcomers: Fraction = 0.25
        """At least this part of the places goes to peers still on trial, as long as there are such."""
        trial_rounds: Annotated[int, Field(ge=1)] = 20
        """A peer is a newcomer until there is evidence of so many rounds."""
        memory_rounds: Annotated[int, Field(ge=1)] = 1000
        """A peer not seen for so many rounds is forgotten; bounds the memory that strangers can fill."""
        floor: Annotated[float, Field(gt=0, le=1)] = 0.25
        """A newcomer's share is this against floor + 1 for the best reputation, at equal tokens."""
        cap: Annotated[float, Field(ge=1)] = 4.0
        """Nobody counts for more than this many times the median tokens: tokens are only claimed."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._records: dict[PeerId, Record] = {}

    def select(self, round_: RoundIndex, candidates: Sequence[PeerId], limit: int) -> Sequence[PeerId]:
        """The newcomers' places are drawn, anew every round; the others go by reputation. In PeerId order."""
        drawn = sorted(set(candidates), key=lambda peer: draw(round_, peer))
        trials = [peer for peer in drawn if self._on_trial(peer)]
        chosen = trials[: ceil(self._config.newcomers * limit)]
        rest = sorted((peer for peer in drawn if peer not in set(chosen)), key=lambda peer: -self._at(round_, peer))
        return sorted((chosen + rest)[:limit])

    def shares(self, accepted: Sequence[ContributionHeader]) -> Mapping[PeerId, float]:
        tokens = capped_tokens(accepted, self._config.cap)
        standing = {each.peer: self._config.floor + self._at(each.round, each.peer) for each in accepted}
        return normalised({peer: tokens[peer] * standing[peer] for peer in tokens})

    def score(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> Scoreboard:
        """Take in a round's evidence; evidence of a round that was taken in already changes nothing."""
        most_arrived = 2 * sum(each.verdict.accepted for each in evidence) > len(evidence)
        for each in sorted(evidence, key=lambda each: (each.verdict.peer, each.verdict.accepted)):
            self._take_in(round_, each, most_arrived)
        oldest = round_ - self._config.memory_rounds
        self._records = {peer: record for peer, record in self._records.items() if record.last > oldest}
        return Scoreboard(round=round_, scores={peer: self._at(round_, peer) for peer in sorted(self._records)})

    async def settle(self, board: Scoreboard) -> None:
        """Nothing to write anywhere: reputations are this peer's own view."""

    def state(self) -> JSON:
        return {"peers": {peer: asdict(record) for peer, record in sorted(self._records.items())}}

    def restore(self, state: JSON) -> None:
        """Take back what `state` returned; a reputation that is not a finite number counts as none.

        Raises:
            StateError: something else.
        """
        try:
            self._records = {PeerId(peer): _record(fields) for peer, fields in state["peers"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StateError(f"not a state of the reputation incentive: {error!r}") from error

    def _take_in(self, round_: RoundIndex, evidence: Evidence, most_arrived: bool) -> None:
        peer, rejected = evidence.verdict.peer, evidence.verdict.rejected
        record = self._records.get(peer, Record(reputation=0.0, rounds=0, last=-1))
        if rejected in NOT_CHARGED or record.last >= round_:
            return
        reputation = self._at(round_, peer)
        if rejected is None:
            reputation += self._config.earn * (1 - reputation)
        elif rejected in UNPROVEN or (rejected in ABSENT and most_arrived):
            reputation *= 1 - self._config.miss
        elif rejected not in ABSENT:
            reputation *= 1 - self._config.lose
        self._records[peer] = Record(reputation, record.rounds + 1, round_)

    def _at(self, round_: RoundIndex, peer: PeerId) -> float:
        """Reputation in a round, faded by the rounds without evidence before it."""
        record = self._records.get(peer)
        if record is None:
            return 0.0
        unused = max(0, round_ - record.last - 1)
        return float(record.reputation * (1 - self._config.decay) ** unused)

    def _on_trial(self, peer: PeerId) -> bool:
        record = self._records.get(peer)
        return record is None or record.rounds < self._config.trial_rounds


def _record(fields: JSON) -> Record:
    reputation = float(fields["reputation"])
    known = min(max(reputation, 0.0), 1.0) if isfinite(reputation) else 0.0
    return Record(reputation=known, rounds=int(fields["rounds"]), last=int(fields["last"]))
