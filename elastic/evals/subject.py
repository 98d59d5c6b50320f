"""What is evaluated: a model, what it reads and writes with, and text that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from elastic.errors import ConfigError
from elastic.registry import READ_CORPUS, load

TEXT = "pride_and_prejudice"
"""Whose end a model reads that comes without held-out text of its own,"""
TEXT_PART = 0.05
"""and which part of it that is: what a quickstart holds out."""
LONGEST = 2048
"""Tokens that are read at a time, at most, however many more a model could."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be evaluated."""

    model: Any
    """See `model_zoo.llama.Llama` for what it does."""
    tokenizer: Any
    """See `model_zoo.tokenizer.Tokenizer`."""
    ends: frozenset[int]
    """Tokens with which a text ends."""
    longest: int
    """Tokens that it reads at a time: no more than it was trained on, in which it would be lost."""
    text: str
    """For bits per byte."""


def held_out_text(rows: Iterable[npt.NDArray[np.int64]], tokenizer: Any, ends: frozenset[int]) -> str:
    """What no contributor of a run trains on; a letter cut in two at the beginning of a row is left out.

    Args:
        rows: its tokens, of each source.
        tokenizer: that made them.
        ends: tokens that end a document, which are no text.

    Raises:
        ConfigError: there is nothing in it, or the tokenizer has no text for it.
    """
    try:
        texts = [tokenizer.decode(row[~np.isin(row, list(ends))]) for row in rows]
    except ValueError as error:
        raise ConfigError(f"the held-out text: {error}") from error
    return _not_empty("\n".join(text.strip("\N{REPLACEMENT CHARACTER}") for text in texts))


def shipped_text() -> str:
    """The end of a novel that ships with the project."""
    data: bytes = load(READ_CORPUS)(TEXT)
    return data[len(data) - math.ceil(len(data) * TEXT_PART) :].decode(errors="ignore")


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ConfigError("the held-out text is empty: shared.data.held_out is too small for bits per byte")
    return text
