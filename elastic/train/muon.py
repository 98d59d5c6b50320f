"""Muon: a step along the nearest orthogonal matrix to the momentum of each matrix's gradient; AdamW for the rest.

Sources: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024; scale and decay as in
Moonlight, arXiv 2502.16982, so that AdamW's learning rate and decay fit. `torch.optim.Muon` takes the same steps on one
worker; on sharded matrices it would communicate for every product, and here each matrix is gathered once.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration; they are its author's, and bring singular values near one in five iterations."""
LIKE_ADAMW = 0.2
"""Root mean square of AdamW's steps, in learning rates."""


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """For some groups of params Muon, for the others AdamW; learning rates of both are set in `param_groups`."""

    param_groups: list[dict[str, Any]]

    def __init__(
        self, matrices: list[nn.Parameter], adamw: torch.optim.AdamW, *, momentum: float, decay: float
    ) -> None:
        """Of fresh parts.

        Args:
            matrices: of two dimensions each; sharded or not.
            adamw: of all other params.
            momentum: decay of the mean of the gradients, μ.
            decay: part of a parameter that decays per step, times the learning rate.
        """
        mine: dict[str, Any] = {"params": matrices, "weight_decay": decay, "momentum": momentum, "lr": 0.0}
        super().__init__([mine], {})
        self._mine, self._adamw = self.param_groups[0], adamw
        self.param_groups = [self._mine, *adamw.param_groups]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: None = None) -> None:
        """One step of both."""
        rate, momentum = self._mine["lr"], self._mine["momentum"]
        for param in self._mine["params"]:
            if param.grad is None:
                continue
            if not self.state[param]:
                self.state[param]["mean"] = torch.zeros_like(param.grad)
            mean = self.state[param]["mean"]
            mean.lerp_(param.grad, 1 - momentum)
            direction = _orthogonal(param.grad.lerp(mean, momentum))
            param.mul_(1 - rate * self._mine["weight_decay"])
            param.add_(direction, alpha=-rate * LIKE_ADAMW * math.sqrt(max(param.shape)))
        self._adamw.step()


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, about; sharded like what is given."""
    if not isinstance(matrix, DTensor):
        return newton_schulz(matrix)
    whole = newton_schulz(matrix.full_tensor())  # alike on all workers: none has to tell the others
    return distribute_tensor(whole, matrix.device_mesh, matrix.placements, src_data_rank=None)


def newton_schulz(matrix: Tensor) -> Tensor:
    """X with singular values near one and the singular vectors of the matrix, (rows, columns) of any size.

    In bf16 on a GPU, which its author found to be enough; in fp32 on a CPU, where bf16 gains nothing.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrix.dtype)
