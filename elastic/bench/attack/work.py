"""Kinds of the zoo that spoil their own work: loudly, quietly, or by not doing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from elastic.bench.attack.conduct import Body, Conduct, Lazy
from elastic.messages import ContributionHeader, InnerReport, RoundPlan, digest_of
from elastic.train.session import Session

OLD = 5
"""Rounds that an old anchor lies back."""


class SignFlip(Conduct):
    """Trains honestly and sends the opposite."""

    def forge(self, body: Body, plan: RoundPlan, payload: bytes) -> bytes:
        return body.packed({name: -value for name, value in body.dense(payload).items()})


class Scale(Conduct):
    """Trains honestly and says it a hundred times as loud."""

    def forge(self, body: Body, plan: RoundPlan, payload: bytes) -> bytes:
        return body.packed({name: 100 * value for name, value in body.dense(payload).items()})


class Noise(Conduct):
    """Sends noise, tensor by tensor as loud as its own honest work."""

    def forge(self, body: Body, plan: RoundPlan, payload: bytes) -> bytes:
        honest = body.dense(payload)
        drawn = {
            name: torch.from_numpy(body.rng.standard_normal(tuple(value.shape), dtype="float32"))
            for name, value in honest.items()
        }
        sent = body.dense(body.packed(drawn))
        return body.packed(
            {name: value * (honest[name].norm() / sent[name].norm().clamp(min=1e-9)) for name, value in sent.items()}
        )


class Idle(Lazy):
    """Does nothing, sends zeros, claims all tokens."""

    async def contribute(self, body: Body, plan: RoundPlan, inner: InnerReport) -> bytes:
        await body.work()
        return body.silence()


class Stale(Conduct):
    """Works in every fourth round, and sends what it made then again in the three that follow."""

    async def contribute(self, body: Body, plan: RoundPlan, inner: InnerReport) -> bytes:
        if "payload" not in body.past or plan.round % 4 == 1:
            body.past["payload"] = await super().contribute(body, plan, inner)
        return bytes(body.past["payload"])

    async def train(self, body: Body, plan: RoundPlan) -> InnerReport:
        if "payload" not in body.past or plan.round % 4 == 1:
            return await super().train(body, plan)
        await body.work()
        return await Lazy().train(body, plan)


class OldAnchor(Conduct):
    """Trains from the anchor of five rounds ago, and names the right one, which it holds too."""

    async def train(self, body: Body, plan: RoundPlan) -> InnerReport:
        kept = body.past.setdefault("anchors", [])
        kept.append({name: value.clone() for name, value in body.session.anchor.items()})
        del kept[: -1 - OLD]
        with self._back(body.session, body):
            return await super().train(body, plan)

    async def contribute(self, body: Body, plan: RoundPlan, inner: InnerReport) -> bytes:
        with self._back(body.session, body):
            return await super().contribute(body, plan, inner)

    @contextmanager
    def _back(self, session: Session, body: Body) -> Iterator[None]:
        """While this lasts, its anchor is the old one."""
        right, session.anchor = session.anchor, body.past["anchors"][0]
        try:
            yield
        finally:
            session.anchor = right


class NoProof(OldAnchor):
    """The same, without the right anchor: its proof is made up."""

    def commitment(self, body: Body, header: ContributionHeader) -> ContributionHeader:
        return header.model_copy(update={"proof": digest_of(f"{header.anchor}{header.peer}".encode())})


class WrongData(Conduct):
    """Trains in every round on the same tokens of its own choice."""

    async def train(self, body: Body, plan: RoundPlan) -> InnerReport:
        session, first = body.session, body.past.setdefault("plan", plan)
        right, session.assign = session.assign, lambda _: right(first)
        try:
            return await super().train(body, plan)
        finally:
            session.assign = right


class Sandbag(Conduct):
    """Does a part of the steps and claims all tokens."""

    part = 0.5

    async def train(self, body: Body, plan: RoundPlan) -> InnerReport:
        await body.work()
        steps = max(1, round(self.part * plan.inner_steps))
        report = body.session.inner_steps(plan.model_copy(update={"inner_steps": steps}))
        return report.model_copy(update={"steps": plan.inner_steps, "tokens": body.max_tokens})


class Sandbag10(Sandbag):
    """Does a tenth of the steps (at least one) and claims all tokens."""

    part = 0.1


class Sandbag25(Sandbag):
    """Does a quarter of the steps and claims all tokens."""

    part = 0.25


class Sandbag75(Sandbag):
    """Does three quarters of the steps and claims all tokens."""

    part = 0.75


class Sandbag90(Sandbag):
    """Does nine tenths of the steps (at most all but one) and claims all tokens."""

    part = 0.9


class SlowPoison(Conduct):
    """Turns the sign of a part of what it sends, so little that it still helps."""

    part = 0.25

    def forge(self, body: Body, plan: RoundPlan, payload: bytes) -> bytes:
        def spoilt(value: torch.Tensor) -> torch.Tensor:
            turned = torch.from_numpy(body.rng.random(tuple(value.shape)) < self.part)
            return torch.where(turned, -value, value)

        return body.packed({name: spoilt(value) for name, value in body.dense(payload).items()})


class SlowPoison10(SlowPoison):
    """Turns the sign of a tenth."""

    part = 0.1


class SlowPoison40(SlowPoison):
    """Turns the sign of two fifths: on the whole it says next to nothing."""

    part = 0.4


class PoisonSome(SignFlip):
    """Honest in three of four rounds, and sends the opposite in the fourth."""

    def forge(self, body: Body, plan: RoundPlan, payload: bytes) -> bytes:
        return super().forge(body, plan, payload) if plan.round % 4 == 0 else payload


class Traitor(SignFlip):
    """Honest for two thirds of the run, and sends the opposite from then on, when there is little left to gain."""

    def forge(self, body: Body, plan: RoundPlan, payload: bytes) -> bytes:
        return super().forge(body, plan, payload) if 3 * plan.round > 2 * body.shared.rounds else payload
