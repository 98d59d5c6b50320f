"""Parts of the decoder with gradients by hand: the same numbers, from fewer passes over memory and less of it.

Autograd keeps every step of a formula and gives each part of a split tensor a gradient as large as the whole. Here what
is kept is the input, and gradients are written where they belong.
"""

# B batch, T time, P positions (B * T), V vocabulary, D model width, H query heads, K key-value heads,
# G all rotated heads (H + K), E width of one head, F width of the feed-forward layer

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

FEW = 16
"""Rows of a product that MKL does as fast."""


def linear(x: Tensor, weight_ND: Tensor) -> Tensor:
    """x · weightᵀ, (…, D) → (…, N), with gradients."""
    if not _by_onednn(x, weight_ND):
        return F.linear(x, weight_ND)
    found: Tensor = _Linear.apply(x, weight_ND)
    return found


class _Linear(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_ND: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_ND)
        return product(x, weight_ND)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        x, weight_ND = ctx.saved_tensors
        return product(slope, weight_ND.T), product(slope.flatten(0, -2).T, x.flatten(0, -2).T)


def product(x: Tensor, weight_ND: Tensor) -> Tensor:
    """x · weightᵀ without gradients; in fp32 on a CPU by oneDNN.

    PyTorch leaves these to MKL, which on AMD's processors takes twice as long. The operator is the one to which
    `torch.compile` brings linear layers.
    """
    if not _by_onednn(x, weight_ND):
        return F.linear(x, weight_ND)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_ND, None, "none", [], "")
    return found


def _by_onednn(x: Tensor, weight_ND: Tensor) -> bool:
    plain = x.is_cpu and x.dtype == weight_ND.dtype == torch.float32 and x.numel() >= FEW * x.shape[-1]
    return plain and not torch.compiler.is_compiling() and bool(torch.backends.mkldnn.is_available())


def cross_entropy(hidden_PD: Tensor, head_VD: Tensor, targets_P: Tensor, at_once: int) -> Tensor:
    """Sum of the cross-entropies of softmax(hidden · headᵀ), in nats, fp32.

    Logits exist for `at_once` positions at a time. Gradients are made with them, so that no product is made twice.
    """
    found: Tensor = _CrossEntropy.apply(hidden_PD, head_VD, targets_P, at_once, torch.is_grad_enabled())
    return found


class _CrossEntropy(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, head_VD: Tensor, targets_P: Tensor, at_once: int, graded: bool) -> Tensor:
        total = torch.zeros((), device=hidden_PD.device)
        slopes = (torch.empty_like(hidden_PD), torch.zeros_like(head_VD)) if graded else None
        for begin in range(0, len(targets_P), at_once):
            part = slice(begin, begin + at_once)
            hidden_pD, target_p1 = hidden_PD[part], targets_P[part, None]
            logs_pV = F.log_softmax(product(hidden_pD, head_VD), dim=-1, dtype=torch.float32)
            total -= logs_pV.gather(1, target_p1).sum()
            if slopes is not None:
                slope_pV = logs_pV.exp_().scatter_add_(1, target_p1, logs_pV.new_full(target_p1.shape, -1.0))
                slope_pV = slope_pV.to(hidden_pD.dtype)
                slopes[0][part] = product(slope_pV, head_VD.T)
                if slope_pV.is_cpu:
                    slopes[1].add_(product(slope_pV.T, hidden_pD.T))
                else:  # without room for another matrix as large as the head
                    slopes[1].addmm_(slope_pV.T, hidden_pD)
        ctx.slopes = slopes
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        slopes, ctx.slopes = ctx.slopes, None
        if slopes is None:
            raise RuntimeError("the gradients of this loss are gone: they are given once")
        return slopes[0].mul_(slope), slopes[1].mul_(slope), None, None, None


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up, (…, 2F) → (…, F). Source: arXiv 2002.05202."""
    found: Tensor = _SwiGLU.apply(gate_up)
    return found


class _SwiGLU(Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        slopes = torch.empty_like(gate_up)
        (gate, up), (to_gate, to_up) = gate_up.chunk(2, dim=-1), slopes.chunk(2, dim=-1)
        torch.mul(slope, up, out=to_gate)
        torch.ops.aten.silu_backward(to_gate, gate, grad_input=to_gate)
        torch.ops.aten.silu(gate, out=to_up).mul_(slope)
        return slopes


def rotated(
    qkv_BTGE: Tensor, rotation: tuple[Tensor, Tensor], heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, turned by their positions, and values: (B, T, H + 2K, E) → (B, T, H or K, E)."""
    query, key, value = _Rotated.apply(qkv_BTGE, *rotation, heads, kv_heads)
    return query, key, value


class _Rotated(Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, qkv_BTGE: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, heads: int, kv_heads: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos_T1E, sin_T1E)
        turned = turn(qkv_BTGE[:, :, : heads + kv_heads], cos_T1E, sin_T1E)
        value = qkv_BTGE[:, :, heads + kv_heads :].clone()  # a view of it would keep all of the input
        return turned[:, :, :heads], turned[:, :, heads:], value

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor | None, ...]:
        cos_T1E, sin_T1E = ctx.saved_tensors
        slopes = value.new_empty(*value.shape[:2], query.shape[2] + key.shape[2] + value.shape[2], value.shape[3])
        to_query, to_key, to_value = slopes.split((query.shape[2], key.shape[2], value.shape[2]), dim=2)
        turn(query, cos_T1E, -sin_T1E, to_query)
        turn(key, cos_T1E, -sin_T1E, to_key)
        to_value.copy_(value)
        return slopes, None, None, None, None


def turn(x_BTGE: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, out: Tensor | None = None) -> Tensor:
    """Coordinate i and i + E/2 turned together, in fp32. Source: RoFormer, arXiv 2104.09864."""
    first, second = x_BTGE.chunk(2, dim=-1)
    turned = torch.mul(x_BTGE, cos_T1E, out=out if x_BTGE.dtype == cos_T1E.dtype else None)
    to_first, to_second = turned.chunk(2, dim=-1)
    sin_first, sin_second = sin_T1E.chunk(2, dim=-1)
    to_first.addcmul_(second.to(turned.dtype), sin_first)
    to_second.addcmul_(first.to(turned.dtype), sin_second)
    return turned.to(x_BTGE.dtype) if out is None else out.copy_(turned)


def rms_norm(x: Tensor, scale_D: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x²) + ε) · scale over the last dimension. Source: arXiv 1910.07467."""
    if x.is_cuda or torch.compiler.is_compiling():  # both have a kernel for it
        return F.rms_norm(x, scale_D.shape, scale_D, epsilon)
    found: Tensor = _RMSNorm.apply(x, scale_D, epsilon)
    return found


class _RMSNorm(Function):  # type: ignore[misc]
    """In fp32, whatever it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale_D: Tensor, epsilon: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, scale_D, inverse)
        return (x * inverse).mul_(scale_D).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, scale_D, inverse = ctx.saved_tensors
        scale = scale_D.float()
        along = (slope.float() * x).mul_(inverse).flatten(0, -2)  # each element's part of the scale's gradient
        pull = torch.mv(along, scale).view(inverse.shape).mul_(inverse.square()).div_(-x.shape[-1])
        to_scale = along.sum(0).to(scale_D.dtype)
        to_x = torch.mul(slope, scale, out=along.view(x.shape)).mul_(inverse).addcmul_(x, pull)
        return to_x.to(x.dtype), to_scale, None
