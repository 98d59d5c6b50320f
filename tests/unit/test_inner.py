"""Inner steps: the schedule of the learning rate, when to stop, and what divergence is."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from elastic.config import InnerConfig
from elastic.errors import DivergedError
from elastic.train.inner import Stop, learning_rate, make_optimizer, run_inner_steps
from elastic.train.pieces import Piece


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    # given
    config = InnerConfig(learning_rate=0.5, warmup_steps=4, final_fraction=0.2)
    # when
    rates = [learning_rate(step, 24, config) for step in range(30)]
    # then
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4] == pytest.approx(0.5)
    assert rates[14] == pytest.approx(0.1 + 0.4 * 0.5)
    assert rates[24:] == pytest.approx([0.1] * 6)
    assert all(earlier >= later for earlier, later in pairwise(rates[4:]))


@pytest.mark.parametrize("total", [0, 1, 3])
def test_a_run_shorter_than_its_warm_up_has_finite_rates(total: int) -> None:
    config = InnerConfig(warmup_steps=3)
    peak = config.learning_rate * (1 + 1e-9)
    assert all(0 < learning_rate(step, total, config) <= peak for step in range(10))


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(0, 10, InnerConfig(warmup_steps=0, learning_rate=0.1)) == pytest.approx(0.1)


def inner(loss: Any, stop: Stop, steps: int = 4) -> Any:
    model = nn.Linear(2, 1)
    batches = ([Piece(torch.ones(3, 9, dtype=torch.int64))] for _ in range(steps))
    optimizer = make_optimizer(model, InnerConfig())
    return run_inner_steps(
        lambda batch: loss(model(torch.ones(2)).sum()), optimizer, batches,
        learning_rates=lambda step: 0.1, clip_norm=1.0, stop=stop,
    )  # fmt: skip


def test_the_report_counts_steps_and_tokens() -> None:
    report = inner(lambda loss: loss, Stop(100.0))
    assert (report.steps, report.tokens) == (4, 4 * 3 * 8)
    assert report.last_loss < report.mean_loss < report.first_loss


def test_time_is_up_after_the_step_in_which_it_ends() -> None:
    assert inner(lambda loss: loss, Stop(0.0)).steps == 1


def test_who_is_told_that_it_is_enough_stops_behind_the_step() -> None:
    model = nn.Linear(2, 1)
    report = run_inner_steps(
        lambda batch: model(torch.ones(2)).sum(), make_optimizer(model, InnerConfig()),
        ([Piece(torch.ones(3, 9, dtype=torch.int64))] for _ in range(4)),
        learning_rates=lambda step: 0.1, clip_norm=1.0, stop=Stop(100.0), on_step=lambda step, loss: step == 1,
    )  # fmt: skip
    assert report.steps == 2


def test_all_workers_stop_when_one_must() -> None:
    # given another worker whose time is up after the second step
    asked: list[bool] = []

    def agree(mine: bool) -> bool:
        asked.append(mine)
        return len(asked) == 2

    # when
    report = inner(lambda loss: loss, Stop(100.0, agree))
    # then
    assert report.steps == 2 and not any(asked)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_divergence(factor: float) -> None:
    with pytest.raises(DivergedError, match="learning_rate"):
        inner(lambda loss: loss * factor, Stop(100.0))


def test_what_diverged_on_another_worker_diverged_here_too() -> None:
    # given a worker whose own steps went well
    answers = iter([False, True])
    # when / then no worker waits for one that gave up
    with pytest.raises(DivergedError):
        inner(lambda loss: loss, Stop(100.0, lambda mine: next(answers)), steps=1)
