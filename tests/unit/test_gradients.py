"""Gradients by hand are autograd's, and so are the numbers they belong to."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model_zoo.gradients import cross_entropy, linear, rms_norm, rotated, swiglu
from model_zoo.llama import rope_tables

Formula = Callable[..., tuple[Tensor, ...] | Tensor]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def alike(ours: Formula, formula: Formula, *inputs: Tensor, close: float = 1e-5) -> None:
    """Same values and, for the same slopes, same gradients."""
    found, wanted = ([each] if isinstance(each, Tensor) else [*each] for each in (ours(*inputs), formula(*inputs)))
    slopes = [drawn(*each.shape, seed=7).detach().to(each.dtype) for each in found]
    pairs = [(found, wanted), tuple(torch.autograd.grad(each, inputs, slopes) for each in (found, wanted))]
    for mine, others in pairs:
        for a, b in zip(mine, others, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, atol=close, rtol=close)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-1)])
@pytest.mark.parametrize("rows", [(2, 30), (1, 1), (40,)])
def test_a_product(rows: tuple[int, ...], dtype: torch.dtype, close: float) -> None:
    alike(linear, F.linear, drawn(*rows, 16, dtype=dtype), drawn(24, 16, seed=1, dtype=dtype), close=close)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_the_norm(dtype: torch.dtype, close: float) -> None:
    x, scale = drawn(2, 5, 16, dtype=dtype), drawn(16, seed=1, dtype=dtype)

    alike(
        lambda x, scale: rms_norm(x, scale, 1e-5), lambda x, scale: F.rms_norm(x, (16,), scale, 1e-5),
        x, scale, close=close,
    )  # fmt: skip


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_gate_and_up(dtype: torch.dtype, close: float) -> None:
    def formula(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    alike(swiglu, formula, drawn(2, 5, 12, dtype=dtype), close=close)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_turned_queries_and_keys(dtype: torch.dtype, close: float) -> None:
    cos, sin = rope_tables(5, 8, 10_000.0, torch.device("cpu"))

    def formula(qkv: Tensor) -> tuple[Tensor, ...]:
        query, key, value = qkv.split((4, 2, 2), dim=2)

        def turned(x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return (x * cos + torch.cat((second, first), dim=-1) * sin).to(x.dtype)

        return turned(query), turned(key), value

    alike(lambda qkv: rotated(qkv, (cos, sin), 4, 2), formula, drawn(2, 5, 8, 8, dtype=dtype), close=close)


@pytest.mark.parametrize("at_once", [3, 7, 100])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-1)])
def test_cross_entropy_in_pieces_of_any_size(at_once: int, dtype: torch.dtype, close: float) -> None:
    hidden, head = drawn(10, 8, dtype=dtype), drawn(11, 8, seed=1, dtype=dtype)
    targets = torch.randint(0, 11, (10,), generator=torch.Generator().manual_seed(2))

    alike(
        lambda hidden, head: cross_entropy(hidden, head, targets, at_once) * 0.3,
        lambda hidden, head: F.cross_entropy((hidden @ head.T).float(), targets, reduction="sum") * 0.3,
        hidden, head, close=close,
    )  # fmt: skip


def test_gradients_of_a_loss_are_given_once() -> None:
    hidden, head, targets = drawn(4, 8), drawn(11, 8), torch.zeros(4, dtype=torch.int64)
    loss = cross_entropy(hidden, head, targets, 2)
    loss.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="given once"):
        loss.backward()


def test_an_evaluation_makes_no_gradients() -> None:
    hidden, head, targets = drawn(4, 8), drawn(11, 8), torch.zeros(4, dtype=torch.int64)

    with torch.no_grad():
        looked = cross_entropy(hidden, head, targets, 2)

    assert looked.grad_fn is None
    torch.testing.assert_close(looked, cross_entropy(hidden, head, targets, 2).detach())
