"""The Trainer contract over Ray Train: one `fit()` per run, in a thread of the peer actor.

Verified with Ray 2.60 only: `LeanTorchTrainer` overrides private methods, and a test holds it to that version.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.config import LoggingConfig

from elastic.actors.job import Job
from elastic.actors.mailbox import Mailbox
from elastic.actors.worker import train_loop
from elastic.config import RayConfig
from elastic.contracts import TrainerState
from elastic.errors import ElasticError, TrainerFailedError
from elastic.messages import Digest, InnerReport, Manifest, RoundIndex, RoundPlan

logger = logging.getLogger(__name__)

MAX_FAILURES = 20
"""Restarts of the worker group before the peer gives up: many crashes are survived, an endless loop is not."""
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also how fast the controller notices a dead worker
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
}
"""Ray Train is tuned by environment variables only; it passes them on to its controller and workers."""


class OwnCluster(FixedScalingPolicy):  # type: ignore[misc]
    """As many workers as configured, without asking the AutoscalingCoordinator: a detached actor that outlives us."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Nothing to register."""

    def _maybe_send_resource_request(self) -> None:
        """Nothing to request."""


class LeanTorchTrainer(TorchTrainer):  # type: ignore[misc]
    """Without the parts that start detached actors or need the dashboard: seconds at start, noise in the log."""

    _DROP = frozenset({"PlacementGroupCleanerCallback", "DatasetsCallback"})

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ not in self._DROP]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        return super()._initialize_and_run_controller(
            **{**parts, "scaling_policy": OwnCluster(scaling_config=self.scaling_config)}
        )


class RayTrainer:
    """Trainer of one peer. The verbs travel through the mailbox; tensors never leave the workers."""

    def __init__(self, mailbox: Mailbox, job: Job, ray_config: RayConfig, storage: Path) -> None:
        self._mailbox = mailbox
        self._thread = threading.Thread(
            target=self._fit, args=(job, ray_config, storage), name="ray-train-fit", daemon=True
        )
        self._on_end: Callable[[ElasticError], None] = lambda error: None

    def start(self, on_end: Callable[[ElasticError], None]) -> None:
        """Start `fit()`; `on_end` is called from its thread if it ends while the peer still lives."""
        self._on_end = on_end
        os.environ.update(TRAIN_ENVIRONMENT)
        self._thread.start()

    async def state(self) -> TrainerState:
        state: TrainerState = await self._mailbox.call("state")
        return state

    async def inner_steps(self, plan: RoundPlan) -> InnerReport:
        report: InnerReport = await self._mailbox.call("inner_steps", plan, everyone=True)
        return report

    async def compress(self, plan: RoundPlan, inner: InnerReport) -> bytes:
        payload: bytes = await self._mailbox.call("compress", plan, inner)
        return payload

    async def outer_step(self, manifest: Manifest, payloads: Mapping[Digest, bytes]) -> Digest:
        digest: Digest = await self._mailbox.call("outer_step", manifest, dict(payloads))
        return digest

    async def load(self, state: bytes, round_: RoundIndex, settled: Manifest | None = None) -> Digest:
        digest: Digest = await self._mailbox.call("load", state, round_, settled)
        return digest

    async def evaluate(self, max_sequences: int) -> float:
        loss: float = await self._mailbox.call("evaluate", max_sequences)
        return loss

    async def generate(self, prompt: str, num_tokens: int) -> str:
        text: str = await self._mailbox.call("generate", prompt, num_tokens)
        return text

    async def close(self) -> None:
        """Let the workers return; `fit()` then ends by itself."""
        self._mailbox.close()

    def join(self, seconds: float) -> bool:
        """Wait for `fit()` to end; True if it did."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _fit(self, job: Job, ray_config: RayConfig, storage: Path) -> None:
        resources = {"GPU": 1.0} if ray_config.gpu else {"CPU": ray_config.cpus_per_worker}
        failures = FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES)
        trainer = LeanTorchTrainer(
            train_loop,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=ray_config.workers, use_gpu=ray_config.gpu, resources_per_worker=resources
            ),
            torch_config=TorchConfig(backend="nccl" if ray_config.gpu else "gloo", timeout_s=300),
            run_config=RunConfig(
                name="inner", storage_path=str(storage), failure_config=failures,
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )  # fmt: skip
        try:
            trainer.fit()
        except Exception as error:
            logger.exception("Ray Train ended")
            self._on_end(TrainerFailedError(f"Ray Train gave up: {_first_line(error)}"))
        else:
            self._on_end(TrainerFailedError("the trainer's workers have returned"))


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
