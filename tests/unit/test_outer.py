"""The outer step against torch, and bit for bit against a slow reference."""

import numpy as np
import pytest
import torch
from torch import nn

from elastic.config import OuterConfig
from elastic.train.outer import MOMENTUM, outer_step, with_momentum


@pytest.mark.parametrize("nesterov", [0.0, 0.9])
def test_the_outer_step_is_that_of_torch(nesterov: float) -> None:
    # given torch's SGD, fed the updates as gradients
    config = OuterConfig(learning_rate=0.7, nesterov=nesterov)
    params = {"a": torch.randn(5, 3), "b": torch.randn(4)}
    anchor = with_momentum(params, config)
    reference = {name: nn.Parameter(value.clone()) for name, value in params.items()}
    sgd = torch.optim.SGD(reference.values(), lr=0.7, momentum=nesterov, nesterov=nesterov > 0)
    for _ in range(4):
        update = {name: torch.randn_like(value) for name, value in params.items()}
        # when
        outer_step(anchor, update, config)
        for name, param in reference.items():
            param.grad = update[name].clone()
        sgd.step()
        # then
        for name, param in reference.items():
            assert torch.allclose(anchor[name], param.detach(), rtol=1e-5, atol=1e-6)
    assert all((MOMENTUM + name in anchor) == (nesterov > 0) for name in params)


@pytest.mark.parametrize("nesterov", [0.0, 0.9])
def test_the_outer_step_rounds_as_separate_operations_do(nesterov: float) -> None:
    # given a slow reference in numpy, one operation at a time
    config = OuterConfig(learning_rate=0.7, nesterov=nesterov)
    params = {"a": torch.randn(1000)}
    anchor = with_momentum(params, config)
    theta, momentum = params["a"].numpy().copy(), np.zeros(1000, np.float32)
    mu, alpha = np.float32(nesterov), np.float32(0.7)
    for _ in range(3):
        update = torch.randn(1000)
        # when
        outer_step(anchor, {"a": update}, config)
        # then bit for bit
        step = update.numpy()
        if nesterov:
            decayed = (momentum * mu).astype(np.float32)
            momentum = (decayed + step).astype(np.float32)
            step = ((momentum * mu).astype(np.float32) + step).astype(np.float32)
        theta = (theta - (step * alpha).astype(np.float32)).astype(np.float32)
        assert np.array_equal(anchor["a"].numpy(), theta)
