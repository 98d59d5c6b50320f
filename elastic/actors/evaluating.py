"""An evaluator's measurements, in an actor of their own: whatever they take, no round waits for them."""

import asyncio
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from elastic.actors.anchors import read_anchor, subject_of
from elastic.actors.journal import Journal
from elastic.actors.logs import log_to_file
from elastic.config import RunConfig
from elastic.errors import MalformedError
from elastic.evals.due import is_due
from elastic.messages import Digest, RoundIndex
from elastic.metrics import Meters
from elastic.reports import EVALUATIONS_FILE, Evaluation, TrainerState

logger = logging.getLogger(__name__)

KEPT_FILE = "evaluated.bin"
"""In the state directory: the anchor that is measured. The trainer removes old ones, and this is another name of it."""
BATCH = 8
"""Texts at a time."""
PATIENT = 10
"""How nice its process is: training and following come first."""


class EvaluatorActor:
    """Measures one model after another. It holds nothing that matters: another one begins anew."""

    def __init__(self, config: RunConfig) -> None:
        log_to_file(config)
        os.nice(PATIENT)
        self._config = config

    def evaluate(self, round_: RoundIndex, anchor: Digest, path: Path) -> Evaluation:
        """Measure the model in a file.

        Raises:
            ElasticError: the file is damaged or gone, or a task cannot be had.
        """
        import torch

        from elastic.evals.harness import measure

        torch.set_num_threads(1)
        began, wanted = time.monotonic(), self._config.local.evaluator
        subject = subject_of(read_anchor(self._config, round_, anchor, path))
        results = measure(subject, wanted.tasks, wanted.limit, BATCH, lambda done, total: None)
        return Evaluation(
            run=self._config.shared.run, round=round_, anchor=anchor, seconds=time.monotonic() - began,
            results=tuple(results),
        )  # fmt: skip


class RemoteEvaluator:
    """That actor, as the peer sees it."""

    def __init__(self, config: RunConfig) -> None:
        self._actor: Any = ray.remote(EvaluatorActor).options(num_cpus=0, max_restarts=-1).remote(config)

    async def evaluate(self, state: TrainerState, path: Path) -> Evaluation:
        """See there; what Ray raises if its process dies, too."""
        evaluation: Evaluation = await self._actor.evaluate.remote(state.round, state.anchor, path)
        return evaluation

    def close(self) -> None:
        """End it, in the middle of something, too."""
        ray.kill(self._actor)


class Evaluating:
    """Which models are measured, and where the results go. Off, it does nothing."""

    def __init__(self, config: RunConfig, journal: Journal, meters: Meters) -> None:
        self._config, self._journal = config, journal
        self._wanted = config.local.evaluator
        self._evaluator: RemoteEvaluator | None = None
        self._running: asyncio.Task[None] | None = None
        self._last = last_evaluated(config) if self._wanted.wanted else None
        self._newest: TrainerState | None = None
        if self._wanted.wanted:
            meters.evaluates()

    def offer(self, state: TrainerState) -> None:
        """Measure this anchor if it is its turn and none is being measured. Waits for nothing, and raises nothing."""
        if not self._wanted.wanted:
            return
        self._newest = state
        if not is_due(state.round, self._wanted.every, self._last):
            return
        if self._running is not None and not self._running.done():
            logger.warning(
                "the model before round %d is not evaluated: another one still is; raise local.evaluator.every",
                state.round,
            )
            return
        self._begin(state)

    async def finish(self) -> None:
        """Wait for what is being measured, and measure the newest anchor, whatever its turn: no other will come."""
        if self._running is not None:
            await self._running
        if self._newest is not None and (self._last is None or self._newest.round > self._last):
            self._begin(self._newest)
            if self._running is not None:
                await self._running

    async def close(self) -> None:
        """End it, in the middle of something, too."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})
        if self._evaluator is not None:
            self._evaluator.close()

    def _begin(self, state: TrainerState) -> None:
        self._last = state.round
        kept = self._config.local.state_dir / KEPT_FILE
        try:
            _remove(kept)
            os.link(state.state_path, kept)
        except OSError as error:
            self._journal.not_evaluated(state.round, f"{kept}: {error.strerror}")
            return
        self._running = asyncio.create_task(self._evaluate(state, kept))

    async def _evaluate(self, state: TrainerState, kept: Path) -> None:
        try:
            if self._evaluator is None:
                self._evaluator = RemoteEvaluator(self._config)
            self._journal.evaluated(await self._evaluator.evaluate(state, kept))
        except Exception as error:  # noqa: BLE001  a measurement never takes down a peer
            cause = getattr(error, "cause", None) or error
            self._journal.not_evaluated(state.round, _first_line(cause))
        finally:
            _remove(kept)


def _remove(kept: Path) -> None:
    with suppress(OSError):
        kept.unlink()


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def last_evaluated(config: RunConfig) -> RoundIndex | None:
    """The round whose model an earlier life measured last."""
    try:
        lines = (config.local.state_dir / EVALUATIONS_FILE).read_bytes().splitlines()
    except OSError:  # none yet
        return None
    for line in reversed(lines):
        with suppress(MalformedError):  # a crash in the middle of a line
            return Evaluation.from_bytes(line).round
    return None
