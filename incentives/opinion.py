"""What one peer thinks of the others: slow to earn, fast to lose, fading when unused."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from elastic.messages import JSON, Evidence, PeerId, RejectReason, RoundIndex

Fraction = Annotated[float, Field(ge=0, le=1)]

NOT_CHARGED = frozenset({RejectReason.NOT_IN_ROSTER})
"""It was not asked to contribute."""
ABSENT = frozenset({RejectReason.MISSING, RejectReason.UNFETCHABLE, RejectReason.STALE})
"""It may be the network's fault: charged mildly, and only in rounds in which most others arrived."""
UNPROVEN = frozenset({RejectReason.COPY, RejectReason.DIVERGED})
"""The one refused may be the victim: charged mildly. Who does it every time still earns nothing."""
UNPROVEN_STRIKE = 0.35
"""Strikes for what may be another's fault, or bad luck: only who is found so time after time is shut out for it."""
STRIKES_KEPT = 0.8
"""Part of the strikes that is left after each round with evidence."""
NO_HELP, WHOLE_HELP = 0.6, 0.9
"""Who helps this part of what is usual for its tokens, or less, has no reputation; and from this part on all of it.
Honest peers were found between 0.85 and 1.2, half the work at 0.65 (`elastic bench attack`)."""
SHUT_OUT = -1.0
"""The opinion of a peer that should not contribute; others lie in [0, 1]."""


class OpinionConfig(BaseModel):
    """How opinions move."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    earn: Fraction = 0.05
    """A contribution that helps closes this part of the distance to 1: half way after 14 rounds."""
    lose: Fraction = 0.5
    """A fault that only the contribution's author can have made costs this part of the reputation."""
    miss: Fraction = 0.1
    """An absence, or a fault that may be another's, costs this part."""
    decay: Fraction = 0.01
    """A round without evidence costs this part."""
    strikes: Annotated[float, Field(gt=0)] = 1.5
    """With so many faults of late, each fading by a fifth per round, a peer is shut out: two in a row do it."""
    shut_rounds: Annotated[int, Field(ge=1)] = 50
    """For so many rounds; if it was shut out before, for twice as many as the last time."""
    trial_rounds: Annotated[int, Field(ge=1)] = 20
    """A peer is a newcomer until there is evidence of so many rounds."""
    memory_rounds: Annotated[int, Field(ge=1)] = 1000
    """A peer not seen for so many rounds is forgotten; bounds the memory that strangers can fill."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of one peer."""

    reputation: float = 0.0
    """In [0, 1], as of `last`."""
    rounds: int = 0
    """Rounds with evidence so far."""
    last: int = -1
    """The last of them."""
    help: float = 1.0
    """Part of the reputation that its help is worth, in [0, 1]; all of it as long as that is unknown."""
    strikes: float = 0.0
    """Faults of late."""
    shut: int = 0
    """Rounds for which it was shut out the last time."""
    until: int = 0
    """The round in which it may contribute again."""


class Opinions:
    """Everybody, as seen by one peer."""

    def __init__(self, config: OpinionConfig, *, proven_only: bool = False) -> None:
        """`proven_only`: nothing is earned but by work that was found to help."""
        self._config, self._proven_only = config, proven_only
        self._records: dict[PeerId, Record] = {}

    def take_in(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> None:
        """Learn from a round; evidence of a round that was taken in already changes nothing."""
        most_arrived = 2 * sum(each.verdict.accepted for each in evidence) > len(evidence)
        for each in sorted(evidence, key=lambda each: (each.verdict.peer, each.verdict.accepted)):
            record = self[each.verdict.peer]
            if each.verdict.rejected not in NOT_CHARGED and record.last < round_:
                self._records[each.verdict.peer] = self._judged(round_, each, most_arrived)
        oldest = round_ - self._config.memory_rounds
        self._records = {peer: record for peer, record in self._records.items() if record.last > oldest}

    def __getitem__(self, peer: PeerId) -> Record:
        return self._records.get(peer, NOBODY)

    def of(self, round_: RoundIndex, peer: PeerId) -> float:
        """Reputation in a round, as far as the peer helps; or SHUT_OUT."""
        record = self[peer]
        return SHUT_OUT if round_ < record.until else record.help * self._faded(round_, record)

    def all(self, round_: RoundIndex) -> dict[PeerId, float]:
        """Peer → opinion in that round, of everyone remembered."""
        return {peer: self.of(round_, peer) for peer in sorted(self._records)}

    def knows(self, peer: PeerId) -> bool:
        """Whether there was ever evidence of it."""
        return peer in self._records

    def on_trial(self, peer: PeerId) -> bool:
        """Whether it is too new to be known."""
        return self[peer].rounds < self._config.trial_rounds

    def shut_out(self, round_: RoundIndex) -> set[PeerId]:
        """Who should not contribute in that round."""
        return {peer for peer, record in self._records.items() if round_ < record.until}

    def shut(self, round_: RoundIndex, peers: Collection[PeerId]) -> None:
        """Shut these out from the next round on, as others did."""
        for peer in peers:
            if round_ >= self[peer].until:
                self._records[peer] = self._outside(round_, replace(self[peer], reputation=0.0, last=round_))

    def charge(self, peer: PeerId, part: float) -> None:
        """For another's fault, which it answers for."""
        record = self[peer]
        if record != NOBODY:
            self._records[peer] = replace(record, reputation=record.reputation * (1 - part))

    def carry(self, carried: Mapping[PeerId, float]) -> None:
        """Begin with what an earlier run thought; who was shut out there begins so."""
        for peer, score in carried.items():
            until = self._config.shut_rounds if score < 0 else 0
            rounds = self._config.trial_rounds if score > 0 else 0
            self._records[peer] = Record(reputation=max(0.0, score), rounds=rounds, last=0, until=until)

    def state(self) -> JSON:
        return {peer: asdict(record) for peer, record in sorted(self._records.items())}

    def restore(self, state: JSON) -> None:
        """Take back what `state` returned; a reputation that is not a finite number counts as none.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: something else.
        """
        self._records = {PeerId(peer): _record(fields) for peer, fields in state.items()}

    def _faded(self, round_: RoundIndex, record: Record) -> float:
        """Reputation, less what the rounds without evidence since cost."""
        return float(record.reputation * (1 - self._config.decay) ** max(0, round_ - record.last - 1))

    def _judged(self, round_: RoundIndex, each: Evidence, most_arrived: bool) -> Record:
        """The record after this evidence."""
        rejected, config = each.verdict.rejected, self._config
        record = self[each.verdict.peer]
        reputation, strike = (0.0 if round_ < record.until else self._faded(round_, record)), 0.0
        if rejected in UNPROVEN:
            reputation, strike = reputation * (1 - config.miss), UNPROVEN_STRIKE
        elif rejected in ABSENT:
            reputation *= 1 - config.miss * most_arrived
        elif rejected is not None or each.helped is False:
            reputation, strike = reputation * (1 - config.lose), 1.0
        elif each.works is False:
            reputation, strike = reputation * (1 - config.miss), UNPROVEN_STRIKE
        elif each.helped or not self._proven_only:
            reputation += config.earn * (1 - reputation)
        strikes = STRIKES_KEPT * record.strikes + strike
        after = replace(
            record, reputation=reputation, rounds=record.rounds + 1, last=round_, strikes=strikes,
            help=record.help if each.part is None else _worth(each.part),
        )  # fmt: skip
        return after if strikes < config.strikes else self._outside(round_, after)

    def _outside(self, round_: RoundIndex, record: Record) -> Record:
        shut = max(self._config.shut_rounds, 2 * record.shut)
        return replace(record, strikes=0.0, shut=shut, until=round_ + 1 + shut)


NOBODY = Record()


def _worth(part: float) -> float:
    """Of this part of the usual help, in [0, 1]."""
    return min(max((part - NO_HELP) / (WHOLE_HELP - NO_HELP), 0.0), 1.0)


def _record(fields: JSON) -> Record:
    strikes = float(fields["strikes"])
    reputation, help_ = (_fraction(float(fields[name])) for name in ("reputation", "help"))
    whole = {name: int(fields[name]) for name in ("rounds", "last", "shut", "until")}
    known = max(strikes, 0.0) if isfinite(strikes) else 0.0
    return Record(reputation=reputation, help=help_, strikes=known, **whole)


def _fraction(saved: float) -> float:
    return min(max(saved, 0.0), 1.0) if isfinite(saved) else 0.0
