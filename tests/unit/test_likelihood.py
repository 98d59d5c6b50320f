"""Log-likelihoods of given tokens: what the model's own loss says, however texts are put together."""

import math

import pytest
import torch

from elastic.evals import likelihood
from elastic.evals.likelihood import Asked, log_likelihoods
from tests.unit.folder_cases import tiny

MODEL = tiny()


def texts(*lengths: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(300, (length,), generator=generator).tolist()) for length in lengths]


def loss(tokens: tuple[int, ...]) -> float:
    """The model's own, in nats of all tokens after the first."""
    with torch.no_grad():
        return float(MODEL.loss(torch.tensor([tokens]))) * (len(tokens) - 1)


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_they_are_the_models_own_loss_whatever_goes_together(batch: int) -> None:
    asked = [Asked(tokens, len(tokens) - 1) for tokens in texts(7, 41, 2, 12, 41, 3)]

    answers = log_likelihoods(MODEL, asked, batch)

    assert [answer.log_likelihood for answer in answers] == pytest.approx(
        [-loss(each.tokens) for each in asked], abs=1e-4
    )


def test_only_the_last_tokens_are_scored_and_all_before_them_are_seen() -> None:
    (tokens,) = texts(20)

    whole, context, end = log_likelihoods(
        MODEL, [Asked(tokens, 19), Asked(tokens[:15], 14), Asked(tokens, 5)], batch=16
    )

    assert end.log_likelihood == pytest.approx(whole.log_likelihood - context.log_likelihood, abs=1e-4)


def test_greedy_is_what_the_model_would_say_itself() -> None:
    (prompt,) = texts(5)
    said = tuple(MODEL.generate(torch.tensor([prompt]), 4, temperature=0.0)[0].tolist())
    other = (*said[:-1], (said[-1] + 1) % 300)

    its_own, another, nothing = log_likelihoods(MODEL, [Asked(said, 4), Asked(other, 4), Asked(prompt, 0)], batch=2)

    assert (its_own.greedy, another.greedy) == (True, False)
    assert (nothing.log_likelihood, nothing.greedy) == (0.0, True)


def test_no_more_logits_exist_at_once_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    widths, forward = [], MODEL.forward

    def watched(tokens_BT: torch.Tensor) -> torch.Tensor:
        widths.append(tuple(tokens_BT.shape))
        logits: torch.Tensor = forward(tokens_BT)
        return logits

    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 300 * 50)
    monkeypatch.setattr(MODEL, "forward", watched)
    told: list[tuple[int, int]] = []

    log_likelihoods(MODEL, [Asked(each, 1) for each in texts(40, 20, 21, 3, 4)], 16, lambda *done: told.append(done))

    assert widths == [(1, 39), (2, 20), (2, 3)]
    assert told == [(1, 5), (3, 5), (5, 5)]


def test_a_model_that_knows_nothing_gives_each_token_its_part() -> None:
    even = tiny()
    with torch.no_grad():
        even.embedding.zero_()

    (answer,) = log_likelihoods(even, [Asked((1, 2, 3), 2)], batch=1)

    assert answer.log_likelihood == pytest.approx(-2 * math.log(300))
