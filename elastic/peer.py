"""What one peer is made of: its collaborators, built once in `elastic.actors`, met in `elastic.round`."""

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from elastic.config import Shared
from elastic.contracts import Agreement, Clock, Exchange, Incentive, Reducer, Trainer
from elastic.errors import ConfigError
from elastic.hearsay import Hearsay
from elastic.messages import JSON, Evidence, Invitation, Manifest, PeerId, RoundIndex, RoundPlan, Scoreboard, digest_of
from elastic.registry import build
from elastic.reports import Order, RoundEvidence, TrainerState, Wishes
from elastic.schedule.absences import Absences
from elastic.schedule.plan import plan_round
from elastic.sections import PluginChoice
from elastic.state.chain import Chain
from elastic.verify.ratings import Ratings
from elastic.wire.signing import Identity

logger = logging.getLogger(__name__)


async def as_new(choice: PluginChoice) -> Incentive:
    """An incentive that has seen nothing yet."""
    made: Incentive = build("incentive", choice)
    return made


def memory_of(shared: Shared, incentive: str) -> str:
    """Under which name an incentive's memory is kept: that of the run file is not another's."""
    first = incentive == shared.incentive.canonical()
    return "incentive" if first else f"incentive-{digest_of(incentive.encode())[:8]}"


@dataclass(slots=True)
class Peer:
    """One peer's parts, and the little it remembers between rounds."""

    identity: Identity
    name: str
    shared: Shared
    clock: Clock
    trainer: Trainer
    reducer: Reducer
    like: Any
    """Parameter name → meta tensor: the shapes that every payload must have."""
    exchange: Exchange
    agreement: Agreement
    incentive: Incentive
    """As the run file names it, until the run agrees on another; see `follow_terms`."""
    chain: Chain
    state: TrainerState
    """What the trainer holds; renewed after every outer step."""
    watching: bool = False
    """It neither contributes nor decides, whatever it did in an earlier life."""
    on_phase: Callable[[str], None] = lambda phase: None
    on_evidence: Callable[[RoundEvidence], None] = lambda evidence: None
    on_anchor: Callable[[TrainerState], None] = lambda state: None
    """Is told of each anchor that we hold, when we have it."""
    on_wishes: Callable[[Wishes], None] | None = None
    """Is told now and then what the validators would change; None: nobody asks, and they are not listened to."""
    take_up: Callable[[PluginChoice], Awaitable[Incentive]] = as_new
    """Makes another incentive, when the run agrees on one."""
    ordered: Callable[[], Order | None] = lambda: None
    """What our operator wants changed about the run."""
    invitation: Invitation | None = None
    """Ours, to be shown to the others."""
    shown: Sequence[Invitation] = ()
    """Others', as the incentive heard them in this round."""
    absences: Absences = field(default_factory=Absences)
    """Who did not come."""
    ratings: Ratings = field(default_factory=Ratings)
    """Who helps, as far as we assessed it ourselves."""
    hearsay: Hearsay = field(default_factory=Hearsay)
    """What validators said of late."""
    board: Scoreboard | None = None
    """What the incentive thought after the last round."""
    patience: float = 1.0
    """So many times as long as its plan says a payload may be on its way or checked: earlier rounds came to nothing."""
    _measure: str = field(init=False)
    """Which incentive we have."""
    _lacking: str = ""
    """Which one we should have and have not."""
    draw_seed: Callable[[], int] = lambda: secrets.randbits(64)
    """Of the tokens on which contributions are assessed: nobody may guess them."""

    def __post_init__(self) -> None:
        self._measure = self.shared.incentive.canonical()

    @property
    def id(self) -> PeerId:
        return self.identity.peer

    @property
    def max_payload_bytes(self) -> int:
        """No honest payload of this run is larger."""
        return self.reducer.max_bytes(self.like)

    @property
    def max_tokens(self) -> int:
        """No honest contribution claims more tokens."""
        inner = self.shared.inner
        return inner.steps * inner.batch_size * inner.sequence_length

    def plan(self, head: Manifest) -> RoundPlan:
        """The round after `head`, for us.

        Raises:
            ConfigError: we watch, and the run has agreed on us as a validator.
        """
        validators = self.agreement.terms(RoundIndex(head.round + 1)).validators
        if self.watching and self.id in validators:
            raise ConfigError(
                "local.evaluator: an evaluator decides nothing, and the run has agreed on this machine's key as that "
                "of a validator: give the evaluator a state_dir of its own"
            )
        plan = plan_round(self.shared, head, self.state.anchor, self.id, validators)
        return plan.model_copy(update={"slot": None}) if self.watching else plan

    def decides(self, round_: RoundIndex) -> bool:
        """Whether we are a validator of that round."""
        return self.id in self.agreement.terms(round_).validators

    async def follow_terms(self, round_: RoundIndex, *, anew: bool = False) -> None:
        """Take up the incentive that is agreed for a round, if we have another, or `anew`.

        One that cannot be had leaves us with what we have: a run whose peers it ended could not agree on a better one.

        Raises:
            ConfigError: it is the run file's.
        """
        wanted, own = self.agreement.terms(round_).incentive, self.shared.incentive
        if not anew and wanted in (self._measure, self._lacking):
            return
        try:
            taken, measure = await self.take_up(PluginChoice.from_canonical(wanted)), wanted
        except ConfigError as error:
            if wanted == own.canonical():
                raise
            logger.error("%s; until the run agrees on another this peer goes on with the incentive that it had", error)
            self._lacking = wanted
            if not anew:
                return
            taken, measure = await self.take_up(own), own.canonical()
        self.incentive, self._measure, self.board = taken, measure, None  # what the last one thought is no score now
        self.incentive.hear(self.hearsay.proofs())

    def learn(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> Scoreboard:
        """A round's evidence moves ratings, and with them what the incentive thinks."""
        rated = self.ratings.take_in(round_, evidence)
        seen = RoundEvidence(
            run=self.shared.run, round=round_, peer=self.id, evidence=tuple(rated), invitations=tuple(self.shown)
        )
        self.on_evidence(seen)
        self.shown = ()
        self.board = self.incentive.score(round_, rated)
        return self.board

    def memories(self) -> dict[str, JSON]:
        """What must survive a restart, by name."""
        known = {
            memory_of(self.shared, self._measure): self.incentive.state(), "ratings": self.ratings.state(),
            "hearsay": self.hearsay.state(),
        }  # fmt: skip
        return {name: state for name, state in known.items() if state is not None}

    def holds(self) -> RoundIndex:
        """The round whose anchor we hold."""
        return self.state.round

    async def refresh(self) -> None:
        """Learn what the trainer holds now, and serve it: its anchor, and a contribution that is still to be settled.

        After a restart nobody else may have that payload, and a round that counts it cannot be applied without it.
        """
        self.state = await self.trainer.state()
        await self.exchange.provide_file(self.state.anchor, self.state.state_path)
        self.on_anchor(self.state)
        if self.state.pending is not None:
            await self.exchange.provide(self.state.pending.payload)
