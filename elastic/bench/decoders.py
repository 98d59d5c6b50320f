"""The two decoders that `elastic bench train` compares, each in a process of its own, which trains when it is told to.

A process each, so that the memory of one is not the other's, and neither leaves the other's allocator in a bad shape.
Both go through the trainer's own loop: the same clipping, the same AdamW, the same tokens, and the same first weights.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic.config import InnerConfig
from elastic.config_local import TrainConfig
from elastic.errors import ElasticError
from elastic.plan.shape import sizes_of
from elastic.registry import HUGGING_FACE_CONFIG, HUGGING_FACE_ROWS, build, load
from elastic.sections import PluginChoice

if TYPE_CHECKING:
    from torch import Tensor, nn

OURS, THEIRS = "ours", "transformers"
SEED = 0
INNER = InnerConfig(learning_rate=1e-4)
END_SECONDS = 10.0
"""For a process that was told to end."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is trained, and how."""

    model: PluginChoice
    batch: int
    sequence: int
    how: TrainConfig = field(default_factory=TrainConfig)
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Block:
    """Some steps."""

    tokens: int
    seconds: float
    cpu_seconds: float
    """Of all threads of the process."""
    first_loss: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


class Trainee:
    """One of them, here."""

    def __init__(self, who: str, work: Work) -> None:
        import torch
        import torch._dynamo  # the optimizer wants it sooner or later

        torch.set_num_threads(work.threads)
        self._work, self._step = work, 0
        make = _ours if who == OURS else _theirs()
        self._alone = _resident()  # with all libraries, and no model
        if work.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._model, self._loss = make(work)
        from elastic.train.inner import make_optimizer

        self._optimizer = make_optimizer(self._model, INNER)

    def train(self, steps: int) -> Block:
        """So many steps, on tokens that nobody has seen before."""
        from elastic.train.inner import Stop, run_inner_steps

        batches = list(self._batches(steps))
        cpu = time.process_time()
        report = run_inner_steps(
            self._loss, self._optimizer, batches, learning_rates=lambda step: INNER.learning_rate,
            clip_norm=INNER.clip_norm, stop=Stop(math.inf),
        )  # fmt: skip
        return Block(report.tokens, report.seconds, time.process_time() - cpu, report.first_loss)

    def peak_bytes(self) -> int:
        """The most memory that model, gradients, moments and activations took: the GPU's, or this process's."""
        if self._work.device == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated())
        return _resident("VmHWM") - self._alone

    def _batches(self, steps: int) -> Iterator[Sequence[Any]]:
        import torch

        from elastic.train.pieces import pieces

        work, vocabulary = self._work, sizes_of(self._work.model).vocab_size
        for _ in range(steps):
            generator = torch.Generator().manual_seed(self._step)
            tokens = torch.randint(0, vocabulary, (work.batch, work.sequence + 1), generator=generator)
            self._step += 1
            yield pieces(tokens.to(work.device), tokens[:1], work.batch, 1, work.how.micro_batch)


def _ours(work: Work) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    import torch

    from elastic.train.fitted import Fitted
    from elastic.train.workers import Worker, owners

    with torch.device("meta"):
        model = build("model", work.model)
    fitted = Fitted(model, Worker(device=work.device, how=work.how))
    fitted.fill(dict(model.initial_values(SEED)).__getitem__, owners(fitted.params, 1))
    return model, fitted.loss


def _theirs() -> Callable[[Work], tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()

    def make(work: Work) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        with torch.device("meta"):
            like = build("model", work.model)
        settings = load(HUGGING_FACE_CONFIG)(like.shape, "float32")
        config = LlamaConfig(**settings, attn_implementation="sdpa", use_cache=False)
        with torch.device(work.device):
            model = LlamaForCausalLM(config).train()
        _fill(model, load(HUGGING_FACE_ROWS)(like.shape), like.initial_values(SEED))
        if work.how.recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        whole = torch.compile(model) if work.how.compile else model
        half = work.how.precision == "bf16"

        def loss(tokens_BT: Tensor) -> Tensor:
            targets_BT = tokens_BT[:, 1:].contiguous()
            with torch.autocast(work.device, torch.bfloat16, enabled=half):
                found: Tensor = whole(tokens_BT[:, :-1], labels=targets_BT, shift_labels=targets_BT).loss
            return found

        return model, loss

    return make


def _fill(model: nn.Module, rows: dict[str, Any], values: Iterator[tuple[str, Tensor]]) -> None:
    """Our first weights, under the other's names."""
    import torch

    with torch.no_grad():
        for name, value in values:
            parts = value.split([shape[0] for _, shape in rows[name]])
            for (there, _), part in zip(rows[name], parts, strict=True):
                model.get_parameter(there).copy_(part)


def _resident(which: str = "VmRSS") -> int:
    """Bytes of this process that are in memory, or ("VmHWM") ever were."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


# --- the process -------------------------------------------------------------------------------------------------


class Remote:
    """A trainee in a process of its own."""

    def __init__(self, who: str, work: Work) -> None:
        self._who = who
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, who, work), daemon=True)
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for who asks, and ends the pipe
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, heard)
        there.close()

    def train(self, steps: int) -> Block:
        """See `Trainee.train`."""
        found: Block = self._ask("train", steps)
        return found

    def peak_bytes(self) -> int:
        """See `Trainee.peak_bytes`."""
        return int(self._ask("peak_bytes"))

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, verb: str, *args: Any) -> Any:
        try:
            self._pipe.send((verb, args))
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(END_SECONDS)
            raise ElasticError(
                f"the process of {self._who} ended (exit code {self._process.exitcode}): too little memory? "
                "A smaller --batch or --sequence needs less"
            ) from error
        if isinstance(answer, str):
            raise ElasticError(f"{self._who}: {answer}")
        return answer


@contextmanager
def in_processes(work: Work, sides: Sequence[str]) -> Iterator[dict[str, Remote]]:
    """A trainee of each, started together."""
    remotes: dict[str, Remote] = {}
    try:
        for who in sides:
            remotes[who] = Remote(who, work)
        yield remotes
    finally:
        for remote in remotes.values():
            remote.close()


def _serve(pipe: Connection, who: str, work: Work) -> None:
    """Answer until nobody asks; what goes wrong is answered too, as text."""
    trainee: Trainee | None = None
    while True:
        try:
            verb, args = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            trainee = trainee or Trainee(who, work)
            answer = getattr(trainee, verb)(*args)
        except Exception as error:  # noqa: BLE001 - it is raised again by who asked
            answer = f"{type(error).__name__}: {str(error).strip()[:1000]}"
        with suppress(OSError):  # nobody asks any more
            pipe.send(answer)
