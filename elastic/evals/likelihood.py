"""What a model makes of given tokens: log-likelihoods, many texts at a time."""

# B texts, T tokens of the longest of them, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

LOGITS_AT_ONCE = 2**26
"""Elements of the logits that exist at once: 256 MiB in fp32; one long text of a large vocabulary takes more."""

OnProgress = Callable[[int, int], None]
"""Is told how many of how many are done."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Tokens, and how likely is to be said of the last `scored` of them, each given all before it.

    There is at least one before those.
    """

    tokens: tuple[int, ...]
    scored: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Of what was asked."""

    log_likelihood: float
    """In nats, of all scored tokens together; 0 if there are none."""
    greedy: bool
    """Whether each of them was the most likely one."""


def log_likelihoods(
    model: Any, asked: Sequence[Asked], batch: int, on_progress: OnProgress = lambda done, total: None
) -> list[Answer]:
    """One answer for each, in order.

    Texts of like length go together, `batch` of them at most. Shorter ones are filled up behind their end, where
    nothing that is scored can see it.

    Args:
        model: gives logits (B, T, V) of tokens (B, T), see `model_zoo.llama.Llama`.
        asked: none longer than the model's longest sequence plus one.
        batch: at least 1.
        on_progress: see there.
    """
    answers: dict[int, Answer] = {}
    for numbers in _batches(asked, batch, _vocab_size(model)):
        found = _answers(model, [asked[number] for number in numbers])
        answers.update(zip(numbers, found, strict=True))
        on_progress(len(answers), len(asked))
    return [answers[number] for number in range(len(asked))]


def _batches(asked: Sequence[Asked], batch: int, vocab_size: int) -> Iterator[list[int]]:
    """The longest first: what does not fit into memory is found out at once."""
    ordered = sorted(range(len(asked)), key=lambda number: -len(asked[number].tokens))
    while ordered:
        length = len(asked[ordered[0]].tokens)
        count = max(1, min(batch, LOGITS_AT_ONCE // (length * vocab_size)))
        yield ordered[:count]
        del ordered[:count]


def _answers(model: Any, asked: Sequence[Asked]) -> list[Answer]:
    device = next(model.parameters()).device
    longest = len(asked[0].tokens) - 1
    tokens_BT = torch.zeros(len(asked), max(longest, 1), dtype=torch.int64)
    for row_T, each in zip(tokens_BT, asked, strict=True):
        row_T[: len(each.tokens) - 1] = torch.tensor(each.tokens[:-1])
    with torch.no_grad():
        logits_BTV = model(tokens_BT.to(device))
        return [_answer(logits_TV, each) for logits_TV, each in zip(logits_BTV, asked, strict=True)]


def _answer(logits_TV: Any, asked: Asked) -> Answer:
    if not asked.scored:
        return Answer(0.0, True)
    end = len(asked.tokens) - 1
    logits_SV = logits_TV[end - asked.scored : end].float()
    targets_S = torch.tensor(asked.tokens[-asked.scored :], device=logits_SV.device)
    nats = F.cross_entropy(logits_SV, targets_S, reduction="none").double().sum()
    return Answer(-float(nats), bool((logits_SV.argmax(-1) == targets_S).all()))


def _vocab_size(model: Any) -> int:
    """As wide as the widest matrix at most; only memory depends on it."""
    return max(int(param.shape[0]) for param in model.parameters() if param.ndim > 1)
