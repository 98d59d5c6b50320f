"""Inner steps: the optimizer on local tokens, the schedule counted over the whole run."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from elastic.config import InnerConfig
from elastic.errors import DivergedError
from elastic.messages import InnerReport
from elastic.train.muon import Muon
from elastic.train.pieces import Piece


@dataclass(frozen=True, slots=True)
class Stop:
    """When to stop before all steps are done, decided alike by all workers of a peer."""

    after_seconds: float
    agree: Callable[[bool], bool] = lambda flag: flag
    """Turns one worker's wish into everyone's decision (an all-reduce with several workers)."""


def make_optimizer(model: nn.Module, config: InnerConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon for the matrices of the layers and AdamW for the rest; gains do not decay.

    Layers are the model's `blocks`, if it has them; embedding and output are not among them.
    """
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    muon = [
        name for name, p in params.items() if config.optimizer == "muon" and name.startswith("blocks.") and p.ndim == 2
    ]
    rest = [param for name, param in params.items() if name not in muon]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
    if not muon:
        return adamw
    return Muon([params[name] for name in muon], adamw, momentum=config.momentum, decay=config.weight_decay)


def learning_rate(step: int, total_steps: int, config: InnerConfig) -> float:
    """Linear warm-up, then cosine down to `final_fraction` of the peak; `step` counts inner steps over the run."""
    if step < config.warmup_steps:
        return warm_up(step, config)
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


def warm_up(step: int, config: InnerConfig) -> float:
    """The largest learning rate that moments which are `step` steps old can be trusted with."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def run_inner_steps(  # noqa: PLR0913 - the loop and everything it is given, nothing more
    loss_of: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Sequence[Piece]],
    *,
    learning_rates: Callable[[int], float],
    clip_norm: float,
    stop: Stop,
    on_step: Callable[[int, Tensor], bool] = lambda step, loss: False,
) -> InnerReport:
    """Train over the batches in place.

    Args:
        loss_of: tokens (B, T+1) → scalar mean loss in nats, ready for `backward`.
        batches: this worker's part of each inner step, in pieces; equally many on all workers.
        learning_rates: index of the step in this round → learning rate.
        on_step: told of each step and its loss; whether to stop behind it.

    Raises:
        DivergedError: a loss or a parameter is NaN or infinite, here or on another worker of this peer.

    Returns:
        The report of this worker alone: tokens of its own batches, and its part of the mean losses.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    start, losses, tokens = time.perf_counter(), [], 0
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rates(step)
        losses.append(_accumulate(loss_of, batch))
        weight = sum(piece.weight for piece in batch)
        nn.utils.clip_grad_norm_(params, clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += sum(piece.num_tokens for piece in batch)
        enough = on_step(step, losses[-1] / weight)
        if stop.agree(enough or time.perf_counter() - start > stop.after_seconds):
            break
    values = torch.stack(losses).tolist()  # one wait for the device, at the end
    finite = all(map(math.isfinite, values)) and all(bool(torch.isfinite(local(param)).all()) for param in params)
    if stop.agree(not finite):
        raise DivergedError("the inner steps diverged (not finite any more): lower shared.inner.learning_rate")
    return InnerReport(
        steps=len(values), tokens=tokens, first_loss=values[0], last_loss=values[-1],
        mean_loss=sum(values) / len(values), seconds=time.perf_counter() - start,
    )  # fmt: skip


def _accumulate(loss_of: Callable[[Tensor], Tensor], batch: Sequence[Piece]) -> Tensor:
    """Gradients of a worker's part of a step, added up; returns its part of the mean loss."""
    total = torch.zeros(())
    for piece in batch:
        loss = loss_of(piece.tokens_BT) * piece.weight
        loss.backward()
        total = total.to(loss.device) + loss.detach()
    return total


def local(param: Tensor) -> Tensor:
    """This worker's part of a param, which is all of it unless it is sharded."""
    return param.to_local() if isinstance(param, DTensor) else param
