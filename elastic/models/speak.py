"""Tokens as they are drawn → text as it can be shown: whole letters, and nothing that moves a terminal's cursor."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from elastic.errors import ConfigError
from elastic.models.opened import Opened

MARK = "\N{REPLACEMENT CHARACTER}"
MOST_WAITING = 8
"""Tokens that may wait for the rest of a letter; a letter has four bytes at most."""
BEFORE = 8
"""Tokens that are decoded again before new ones: what a token says may depend on where it stands."""
HARMLESS = "\n\t"
MOVING = ("Cc", "Cf", "Cs", "Co", "Cn")
"""Categories of what a terminal obeys, or what turns the order of letters around."""


def speak(opened: Opened, prompt: str, num_tokens: int, temperature: float, seed: int) -> Iterator[str]:
    """Pieces of text that continue the prompt, as they come; the same ones for the same seed.

    Raises:
        ConfigError: the prompt is empty, or the tokenizer cannot say it, or what the model answers.
    """
    import numpy as np
    import torch

    try:
        prompt_T = np.asarray(opened.tokenizer.encode(prompt), dtype=np.int64)
    except ValueError as error:
        raise ConfigError(f"the prompt: {error}") from error
    if not len(prompt_T):
        raise ConfigError("the prompt is empty: a model continues a text, if it is only a space")
    generator = torch.Generator().manual_seed(seed)
    drawn = _drawn(opened.model, torch.from_numpy(prompt_T)[None], num_tokens, temperature, generator)
    try:
        yield from shown(opened.tokenizer, prompt_T.tolist(), _until(drawn, opened.ends))
    except ValueError as error:
        raise ConfigError(f"what the model says: {error}") from error


def shown(tokenizer: Any, before: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """Text of the tokens, in pieces that end where a letter does."""
    said, waiting = list(before[-BEFORE:]), list[int]()
    known = len(tokenizer.decode(said))
    for token in tokens:
        waiting.append(token)
        text = tokenizer.decode([*said, *waiting])
        whole = not text.endswith((MARK, "\r"))  # a line may end with two
        if whole or len(waiting) == MOST_WAITING:
            yield harmless(text[known:])
            said, waiting = waiting if whole else [], []
            known = len(tokenizer.decode(said))
    if waiting:
        yield harmless(tokenizer.decode([*said, *waiting])[known:])


def harmless(text: str) -> str:
    """The text with a mark for what moves the cursor: others trained the model, and it may say anything."""
    return "".join(
        each if each in HARMLESS or unicodedata.category(each) not in MOVING else MARK
        for each in text.replace("\r\n", "\n")
    )


def _drawn(model: Any, prompt_1T: Any, num_tokens: int, temperature: float, generator: Any) -> Iterator[int]:
    """One by one if the model can; else all at the end."""
    if hasattr(model, "stream"):
        for token_11 in model.stream(prompt_1T, num_tokens, temperature, generator):
            yield int(token_11)
    else:
        yield from model.generate(prompt_1T, num_tokens, temperature, generator)[0, prompt_1T.shape[1] :].tolist()


def _until(tokens: Iterator[int], ends: frozenset[int]) -> Iterator[int]:
    for token in tokens:
        if token in ends:
            return
        yield token
