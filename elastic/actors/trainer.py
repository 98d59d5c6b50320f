"""The Trainer contract over Ray Train: one `fit()` per run, in a thread of the peer actor, and another if that dies."""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import LoggingConfig

from elastic.actors.job import Job
from elastic.actors.mailbox import Mailbox
from elastic.actors.ray_train import LeanTorchTrainer, sweep
from elastic.actors.revival import GiveUp, after_death
from elastic.actors.worker import train_loop
from elastic.config_local import RayConfig
from elastic.errors import ElasticError, TrainerFailedError
from elastic.messages import Assessment, ContributionHeader, Digest, InnerReport, Manifest, RoundIndex, RoundPlan
from elastic.reports import TrainerState

logger = logging.getLogger(__name__)

COLLECTIVE_SECONDS = 6 * 3600
"""That a worker waits for another in the middle of a verb, a disk that takes hundreds of gigabytes included. A worker
that is dead is found by Ray Train, whose health checks end the others."""
MAX_FAILURES = 5
"""Restarts of the worker group by one controller, which neither pauses nor asks whether anything got done."""
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also how fast the controller notices a dead worker
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
}
"""Ray Train is tuned by environment variables only; it passes them on to its controller and workers."""


class RayTrainer:
    """Trainer of one peer. The verbs travel through the mailbox; tensors never leave the workers."""

    def __init__(self, mailbox: Mailbox, job: Job, ray_config: RayConfig, storage: Path) -> None:
        self._mailbox = mailbox
        self._thread = threading.Thread(
            target=self._work, args=(job, ray_config, storage), name="ray-train-fit", daemon=True
        )
        self._closed = threading.Event()
        self._on_restart: Callable[[str], None] = lambda because: None
        self._on_end: Callable[[ElasticError], None] = lambda error: None

    def start(self, on_restart: Callable[[str], None], on_end: Callable[[ElasticError], None]) -> None:
        """Start `fit()`.

        Args:
            on_restart: called from its thread when it died and is started again.
            on_end: called from its thread if it ends for good while the peer still lives.
        """
        self._on_restart, self._on_end = on_restart, on_end
        os.environ.update(TRAIN_ENVIRONMENT)
        self._thread.start()

    async def state(self) -> TrainerState:
        state: TrainerState = await self._mailbox.call("state")
        return state

    async def inner_steps(self, plan: RoundPlan) -> InnerReport:
        report: InnerReport = await self._mailbox.call("inner_steps", plan, everyone=True)
        return report

    async def compress(self, plan: RoundPlan, inner: InnerReport) -> bytes:
        payload: bytes = await self._mailbox.call("compress", plan, inner, everyone=True)
        return payload

    async def outer_step(self, manifest: Manifest, payloads: Mapping[Digest, bytes]) -> Digest:
        digest: Digest = await self._mailbox.call("outer_step", manifest, dict(payloads), everyone=True)
        return digest

    async def load(self, state: bytes, round_: RoundIndex, settled: Manifest | None = None) -> Digest:
        digest: Digest = await self._mailbox.call("load", state, round_, settled, others=(None, round_, settled))
        return digest

    async def assess(
        self, plan: RoundPlan, header: ContributionHeader, payload: bytes, seed: int, beside: bytes | None = None
    ) -> Assessment:
        assessment: Assessment = await self._mailbox.call("assess", plan, header, payload, seed, beside, everyone=True)
        return assessment

    async def evaluate(self, max_sequences: int) -> float:
        loss: float = await self._mailbox.call("evaluate", max_sequences, everyone=True)
        return loss

    async def generate(self, prompt: str, num_tokens: int) -> str:
        text: str = await self._mailbox.call("generate", prompt, num_tokens, everyone=True)
        return text

    async def close(self) -> None:
        """Let the workers return; `fit()` then ends by itself."""
        self._closed.set()
        self._mailbox.close()

    def join(self, seconds: float) -> bool:
        """Wait for `fit()` to end; True if it did."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self, job: Job, ray_config: RayConfig, storage: Path) -> None:
        """Until the workers return, or die again and again without having done anything."""
        deaths = answers = 0
        while True:
            try:
                sweep(job.namespace)
                _trainer(job, ray_config, storage).fit()
            except Exception as error:
                if self._closed.is_set():
                    return
                logger.exception("Ray Train ended")
                deaths = 1 if self._mailbox.answers > answers else deaths + 1
                answers = self._mailbox.answers
                because = "its controller died" if isinstance(error, RayActorError) else _first_line(error)
                next_ = after_death(deaths)
                if isinstance(next_, GiveUp):
                    self._on_end(TrainerFailedError(f"Ray Train {next_.because}; the last time: {because}"))
                    return
                self._on_restart(f"Ray Train: {because}")
                self._closed.wait(next_.pause)
            else:
                self._on_end(TrainerFailedError("the trainer's workers have returned"))
                return


def _trainer(job: Job, ray_config: RayConfig, storage: Path) -> LeanTorchTrainer:
    resources = {"GPU": 1.0} if ray_config.gpu else {"CPU": ray_config.cpus_per_worker}
    return LeanTorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=ray_config.workers, use_gpu=ray_config.gpu, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if ray_config.gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
        run_config=RunConfig(
            name="inner", storage_path=str(storage),
            failure_config=FailureConfig(max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
        owner=job.namespace,
    )  # fmt: skip


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
