"""Kinds of the zoo that live on others: thieves, sybils, and validators in league."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from elastic.bench.attack.conduct import Body, Conduct, Lazy
from elastic.bench.attack.work import SignFlip
from elastic.errors import FetchError, MalformedError
from elastic.exchange.gather import CONTRIBUTION
from elastic.messages import ContributionHeader, InnerReport, PeerId, RoundPlan, Seconds, SignedScoreboard

LOOK = Seconds(0.05)
"""Between a thief's looks at what others commit to."""
MOVED = 0.05
"""Part of its entries that a disturbed payload puts elsewhere."""


class Copy(Lazy):
    """Waits for another's commitment, fetches its payload, and commits that as its own."""

    enough = 1
    """Others' commitments that it waits for."""
    lag = 0.3

    async def contribute(self, body: Body, plan: RoundPlan, inner: InnerReport) -> bytes:
        give_up = body.clock.now() + 0.9 * plan.gather_seconds
        wanted = min(self.enough, len(set(plan.roster) - body.gang))
        while len(seen := await self._commitments(body, plan)) < wanted and body.clock.now() < give_up:
            await body.clock.sleep(LOOK)
        if not seen:
            return body.silence()
        victim = sorted(seen)[int(body.rng.integers(len(seen)))]
        return self.forge(body, plan, await self._fetched(body, seen[victim]))

    async def _commitments(self, body: Body, plan: RoundPlan) -> dict[PeerId, ContributionHeader]:
        found = {}
        for sender, record in (await body.exchange.records(CONTRIBUTION, plan.round)).items():
            try:
                header = ContributionHeader.from_bytes(record)
            except MalformedError:
                continue
            if sender not in body.gang and sender in plan.roster:
                found[sender] = header
        return found

    async def _fetched(self, body: Body, header: ContributionHeader) -> bytes:
        while True:
            try:
                return await body.exchange.fetch(header.payload, header.size_bytes, [header.peer])
            except FetchError:
                await body.clock.sleep(LOOK)


class LateCopy(Copy):
    """The same, when everyone else has committed."""

    enough = 1024


class NearCopy(Copy):
    """Disturbs what it copies: other values, some other places, and therefore another digest."""

    def forge(self, body: Body, plan: RoundPlan, payload: bytes) -> bytes:
        return disturbed(body, payload)


class Sybils(Lazy):
    """One trainer with many names: whichever is first trains, and each sends that work slightly disturbed."""

    together = True

    def __init__(self) -> None:
        self._made: dict[int, bytes] = {}

    async def train(self, body: Body, plan: RoundPlan) -> InnerReport:
        await body.work()
        if plan.round in self._made:
            return await super().train(body, plan)
        inner = body.session.inner_steps(plan)
        self._made[plan.round] = body.session.compress(plan, inner)
        body.session.pending = None  # what comes back from one name has counted under another
        return inner

    async def contribute(self, body: Body, plan: RoundPlan, inner: InnerReport) -> bytes:
        return disturbed(body, self._made[plan.round])


class Colluders(Conduct):
    """Validators who give their friends full marks and shut out everyone else; the friends send the opposite of work.

    The validators among them work honestly: they have a vote to lose.
    """

    validators, lies = 1, True

    def forge(self, body: Body, plan: RoundPlan, payload: bytes) -> bytes:
        return payload if body.validates else SignFlip().forge(body, plan, payload)

    def testimony(self, body: Body, said: SignedScoreboard) -> SignedScoreboard:
        scores = {peer: 1.0 if peer in body.gang else -1.0 for peer in {*said.scores, *body.gang}}
        return self._silent(body, said).model_copy(update={"scores": dict(sorted(scores.items()))})

    @staticmethod
    def _silent(body: Body, said: SignedScoreboard) -> SignedScoreboard:
        """The word without what it is itself said to have said."""
        heard = {peer: digest for peer, digest in said.heard.items() if peer != body.id}
        return said.model_copy(update={"heard": heard})


class TwoFaced(Colluders):
    """As colluders, and their validators say so to every second peer only; the others hear what they really think."""

    def testimony(self, body: Body, said: SignedScoreboard) -> SignedScoreboard:
        return self._silent(body, said)

    def whispered(self, body: Body, said: SignedScoreboard) -> tuple[SignedScoreboard, Sequence[PeerId]]:
        return super().testimony(body, said), sorted(body.network.peers)[::2]


def disturbed(body: Body, payload: bytes) -> bytes:
    """The same work in slightly other words: values up to a tenth off, one place in twenty moved by one."""

    def one(value: torch.Tensor) -> torch.Tensor:
        factors = torch.from_numpy(body.rng.uniform(0.9, 1.1, tuple(value.shape)).astype("float32"))
        moved = torch.from_numpy(body.rng.random(tuple(value.shape)) < MOVED)
        shifted = torch.where(moved, value, 0).flatten().roll(1).view(value.shape)
        return torch.where(moved, 0, value) * factors + shifted

    return body.packed({name: one(value) for name, value in body.dense(payload).items()})
