"""The Trainer contract in this process, for tests, simulations and benchmarks; else `elastic.actors` runs it in Ray."""

import asyncio
from collections.abc import Mapping

from elastic.contracts import TrainerState
from elastic.messages import Digest, InnerReport, Manifest, RoundIndex, RoundPlan
from elastic.train.session import Session


class LocalTrainer:
    """A session whose verbs are awaited; the work is done by a thread, so that the caller's loop goes on."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def state(self) -> TrainerState:
        return self._session.state()

    async def inner_steps(self, plan: RoundPlan) -> InnerReport:
        return await asyncio.to_thread(self._session.inner_steps, plan)

    async def compress(self, plan: RoundPlan, inner: InnerReport) -> bytes:
        return await asyncio.to_thread(self._session.compress, plan, inner)

    async def outer_step(self, manifest: Manifest, payloads: Mapping[Digest, bytes]) -> Digest:
        return await asyncio.to_thread(self._session.outer_step, manifest, payloads)

    async def load(self, state: bytes, round_: RoundIndex, settled: Manifest | None = None) -> Digest:
        return await asyncio.to_thread(self._session.load, state, round_, settled)

    async def evaluate(self, max_sequences: int) -> float:
        return await asyncio.to_thread(self._session.evaluate, max_sequences)

    async def generate(self, prompt: str, num_tokens: int) -> str:
        return await asyncio.to_thread(self._session.generate, prompt, num_tokens)

    async def close(self) -> None:
        return None
