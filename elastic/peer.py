"""What one peer is made of: its collaborators, built once in `elastic.actors`, met in `elastic.round`."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from elastic.config import Shared
from elastic.contracts import Agreement, Clock, Exchange, Incentive, Reducer, Trainer, TrainerState
from elastic.messages import JSON, Evidence, Manifest, PeerId, RoundIndex, RoundPlan, Scoreboard
from elastic.reports import RoundEvidence
from elastic.schedule.absences import Absences
from elastic.schedule.plan import plan_round
from elastic.state.chain import Chain
from elastic.verify.ratings import Ratings
from elastic.wire.signing import Identity


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
    chain: Chain
    state: TrainerState
    """What the trainer holds; renewed after every outer step."""
    on_phase: Callable[[str], None] = lambda phase: None
    on_evidence: Callable[[RoundEvidence], None] = lambda evidence: None
    absences: Absences = field(default_factory=Absences)
    """Who did not come."""
    ratings: Ratings = field(default_factory=Ratings)
    """Who helps, as far as we assessed it ourselves."""
    board: Scoreboard | None = None
    """What the incentive thought after the last round."""
    draw_seed: Callable[[], int] = lambda: secrets.randbits(64)
    """Of the tokens on which contributions are assessed: nobody may guess them."""

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
        """The round after `head`, for us."""
        return plan_round(self.shared, head, self.state.anchor, self.id)

    def learn(self, round_: RoundIndex, evidence: Sequence[Evidence]) -> Scoreboard:
        """A round's evidence moves ratings, and with them what the incentive thinks."""
        rated = self.ratings.take_in(round_, evidence)
        self.on_evidence(RoundEvidence(run=self.shared.run, round=round_, peer=self.id, evidence=tuple(rated)))
        self.board = self.incentive.score(round_, rated)
        return self.board

    def memories(self) -> dict[str, JSON]:
        """What must survive a restart, by name."""
        return {"incentive": self.incentive.state(), "ratings": self.ratings.state()}

    def holds(self) -> RoundIndex:
        """The round whose anchor we hold."""
        return self.state.round

    async def refresh(self) -> None:
        """Learn what the trainer holds now, and serve it: its anchor, and a contribution that is still to be settled.

        After a restart nobody else may have that payload, and a round that counts it cannot be applied without it.
        """
        self.state = await self.trainer.state()
        await self.exchange.provide_file(self.state.anchor, self.state.state_path)
        if self.state.pending is not None:
            await self.exchange.provide(self.state.pending.payload)
