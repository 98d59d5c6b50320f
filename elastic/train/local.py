"""The Trainer contract in this process, for tests, simulations and benchmarks; else `elastic.actors` runs it in Ray."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from elastic.messages import Assessment, ContributionHeader, Digest, InnerReport, Manifest, RoundIndex, RoundPlan
from elastic.reports import TrainerState
from elastic.train.session import Session

T = TypeVar("T")


class LocalTrainer:
    """A session whose verbs are awaited; they run at once, on the caller's thread, unless `run` says otherwise."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def run(self, work: Callable[[], T]) -> T:
        """Do a piece of work of the session."""
        return work()

    async def state(self) -> TrainerState:
        return self._session.state()

    async def inner_steps(self, plan: RoundPlan) -> InnerReport:
        return await self.run(lambda: self._session.inner_steps(plan))

    async def compress(self, plan: RoundPlan, inner: InnerReport) -> bytes:
        return await self.run(lambda: self._session.compress(plan, inner))

    async def outer_step(self, manifest: Manifest, payloads: Mapping[Digest, bytes]) -> Digest:
        return await self.run(lambda: self._session.outer_step(manifest, payloads))

    async def load(self, state: bytes, round_: RoundIndex, settled: Manifest | None = None) -> Digest:
        return await self.run(lambda: self._session.load(state, round_, settled))

    async def assess(
        self, plan: RoundPlan, header: ContributionHeader, payload: bytes, seed: int, beside: bytes | None = None
    ) -> Assessment:
        return await self.run(lambda: self._session.assess(plan, header, payload, seed, beside))

    async def evaluate(self, max_sequences: int) -> float:
        return await self.run(lambda: self._session.evaluate(max_sequences))

    async def generate(self, prompt: str, num_tokens: int) -> str:
        return await self.run(lambda: self._session.generate(prompt, num_tokens))

    async def close(self) -> None:
        await self.run(self._session.store.flush)
