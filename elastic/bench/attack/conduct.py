"""How a peer behaves in a round: honestly, honestly but out of luck, or as one of the zoo's kinds.

A `Conduct` is asked at the places where a peer can misbehave: what it trains, what it makes of that, what it commits
to, whom it shows that, and what it says of others. `Conduct` itself is an honest peer; a kind overrides the one place
that makes it what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from elastic.messages import ContributionHeader, InnerReport, PeerId, RoundPlan, Seconds, SignedScoreboard

if TYPE_CHECKING:
    from elastic.bench.attack.member import ZooExchange
    from elastic.config import Shared
    from elastic.contracts import Clock, Reducer
    from elastic.exchange.memory import MemoryNetwork
    from elastic.train.session import Session

PACE = 5.0
"""Simulated seconds that an honest peer trains in a round: well above the slack of a deadline, as in a real run."""


@dataclass
class Body:
    """What a conduct acts through: one peer's own parts."""

    id: PeerId
    shared: Shared
    clock: Clock
    network: MemoryNetwork
    exchange: ZooExchange
    session: Session
    gang: frozenset[PeerId]
    """All peers of the same bad kind, ourselves included; empty for who is honest."""
    rng: np.random.Generator
    past: dict[str, Any] = field(default_factory=dict)
    """What a conduct remembers for this peer."""

    @property
    def reducer(self) -> Reducer:
        return self.session.reducer

    @property
    def max_tokens(self) -> int:
        """Of a whole round."""
        inner = self.shared.inner
        return inner.steps * inner.batch_size * inner.sequence_length

    @property
    def validates(self) -> bool:
        return self.id in self.shared.agreement.validators

    async def work(self, part: float = 1.0) -> None:
        """Let the time pass in which an honest peer does this part of a round's inner steps; no two take the same."""
        number = int.from_bytes(self.id.encode()[-4:], "little") % 97
        await self.clock.sleep(Seconds(PACE * part * (1 + number / 2000)))

    def dense(self, payload: bytes) -> dict[str, torch.Tensor]:
        """What a payload says, name → fp32 tensor."""
        return self.reducer.decompress(self.reducer.decode(payload, self.session.like), self.session.like)

    def packed(self, tensors: Mapping[str, torch.Tensor]) -> bytes:
        """Tensors as the payload that says them best."""
        return self.reducer.encode(self.reducer.compress(tensors, {})[0])

    def silence(self) -> bytes:
        """A payload that says nothing."""
        return self.packed({name: torch.zeros(meta.shape) for name, meta in self.session.like.items()})


class Conduct:
    """An honest peer."""

    validators = 0
    """How many of the run's validators are of this kind."""
    together = False
    """Whether one object leads all peers of the kind, which then know of each other's work."""
    serves = True
    """Whether others get anything from it."""
    lies = False
    """Whether what it says of others is not what it thinks; then it shows nobody its own word, which would tell."""
    lag = 0.0
    """Simulated seconds that each of its downloads takes."""

    async def train(self, body: Body, plan: RoundPlan) -> InnerReport:
        """The inner steps, and what is said of them."""
        await body.work()
        return body.session.inner_steps(plan)

    async def contribute(self, body: Body, plan: RoundPlan, inner: InnerReport) -> bytes:
        """The payload."""
        return self.forge(body, plan, body.session.compress(plan, inner))

    def forge(self, body: Body, plan: RoundPlan, payload: bytes) -> bytes:
        """What becomes of a payload made honestly."""
        return payload

    def commitment(self, body: Body, header: ContributionHeader) -> ContributionHeader:
        """What is signed and posted."""
        return header

    def posted(self, body: Body, header: ContributionHeader) -> None:
        """Right after that."""

    def testimony(self, body: Body, said: SignedScoreboard) -> SignedScoreboard:
        """As a validator: what it says of others."""
        return said

    def whispered(self, body: Body, said: SignedScoreboard) -> tuple[SignedScoreboard, Sequence[PeerId]]:
        """And what it says to these peers instead."""
        return said, ()


class Lazy(Conduct):
    """Trains on nothing and claims all tokens; what it contributes comes from elsewhere."""

    async def train(self, body: Body, plan: RoundPlan) -> InnerReport:
        return InnerReport(
            steps=plan.inner_steps, tokens=body.max_tokens, first_loss=3.0, last_loss=3.0, mean_loss=3.0, seconds=PACE
        )


# --- honest, and out of luck -----------------------------------------------------------------------------------------


class Slow(Conduct):
    """Honest, on a machine four times as slow: it contributes what it has when it must, and says how little."""

    async def train(self, body: Body, plan: RoundPlan) -> InnerReport:
        part = min(1.0, plan.train_seconds / (4.2 * PACE))
        steps = max(1, int(part * plan.inner_steps))
        await body.work(4 * steps / plan.inner_steps)
        return body.session.inner_steps(plan.model_copy(update={"inner_steps": steps}))


class Absent(Conduct):
    """Honest, and cut off from everyone for the whole of every seventh round."""

    async def train(self, body: Body, plan: RoundPlan) -> InnerReport:
        if plan.round % 7 == 5:
            body.network.cut(body.id)
            await body.clock.sleep(Seconds(4 * PACE))
            body.network.heal(body.id)
        return await super().train(body, plan)


class SlowLine(Conduct):
    """Honest, behind a line on which its payload and everyone else's take seconds."""

    lag = 0.6

    async def contribute(self, body: Body, plan: RoundPlan, inner: InnerReport) -> bytes:
        payload = await super().contribute(body, plan, inner)
        await body.clock.sleep(Seconds(0.5 * PACE))
        return payload


UNLUCKY: tuple[type[Conduct], ...] = (Slow, Absent, SlowLine)
