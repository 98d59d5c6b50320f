"""Muon: the step that torch's own takes, and what is orthogonal about it."""

from typing import Any

import pytest
import torch
from torch import nn

from elastic.config import InnerConfig
from elastic.registry import build
from elastic.sections import PluginChoice
from elastic.train.inner import make_optimizer
from elastic.train.muon import newton_schulz


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24), (1, 5)])
def test_the_direction_has_the_singular_vectors_of_the_matrix_and_singular_values_near_one(shape: Any) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    found = newton_schulz(matrix)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.mT @ found @ right.mT
    assert torch.allclose(values, values.diagonal().diag(), atol=1e-3)
    assert all(0.6 < value < 1.3 for value in values.diagonal().tolist())


def test_nothing_has_no_direction() -> None:
    assert not newton_schulz(torch.zeros(3, 4)).any()


def test_steps_are_those_of_torch_but_for_its_rounding_to_bf16() -> None:
    # given the same matrix, and the same gradients
    torch.manual_seed(0)
    config = InnerConfig(optimizer="muon", learning_rate=0.02, momentum=0.9, weight_decay=0.1)
    ours, theirs = (_Model() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    mine = make_optimizer(ours, config)
    other = torch.optim.Muon(
        theirs.blocks.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for group in mine.param_groups:
        group["lr"] = 0.02
    # when
    for _ in range(4):
        grad = torch.randn(6, 4)
        ours.blocks[0].weight.grad, theirs.blocks[0].weight.grad = grad.clone(), grad.clone()
        mine.step()
        other.step()
    # then
    assert torch.allclose(ours.blocks[0].weight, theirs.blocks[0].weight, atol=2e-3)


class _Model(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 6, bias=False)])


def test_matrices_of_layers_are_muons_and_everything_else_is_adamws() -> None:
    model = build("model", PluginChoice.model_validate({"name": "llama", "preset": "nano", "layers": 1}))
    model.initialize(0)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = make_optimizer(model, InnerConfig(optimizer="muon"))
    names = {id(param): name for name, param in model.named_parameters()}
    groups = [[names[id(param)] for param in group["params"]] for group in optimizer.param_groups]
    assert groups[0] == [f"blocks.0.{name}" for name in ("qkv", "out", "gate_up", "down")]
    assert sorted(name for group in groups for name in group) == sorted(before)
    # and a learning rate that is set in the groups reaches both
    model.loss(torch.randint(0, 256, (2, 9))).backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    assert not any(torch.equal(param, before[name]) for name, param in model.named_parameters())
