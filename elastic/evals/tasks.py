"""The tasks that ship with the project, as plain data: what is asked, and what counts as right."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import orjson

BITS = "bits_per_byte"
"""How well a model predicts text that it was not trained on."""
FACTS = "facts"
"""Plain facts, four ways to end each sentence; 25 % is chance."""
SHIPPED = (BITS, FACTS)
QUESTIONS = "facts.json"
PIECE = 2000
"""Characters of text that are scored as one, at most."""


@dataclass(frozen=True, slots=True)
class Question:
    """A sentence that lacks its end."""

    text: str
    choices: tuple[str, ...]
    answer: int
    """Which of them is right."""


def questions() -> list[Question]:
    """Those of `facts`, CC0."""
    found = orjson.loads((resources.files("elastic.evals") / QUESTIONS).read_bytes())
    return [Question(each["text"], tuple(each["choices"]), each["answer"]) for each in found]


def pieces(text: str, size: int = PIECE) -> list[str]:
    """The text, cut where a paragraph ends, else a line, else anywhere; together they are all of it.

    Args:
        text: any.
        size: characters, at most, of each.
    """
    found, begin = [], 0
    while len(text) - begin > size:
        most = text[begin : begin + size]
        end = next((cut + len(mark) for mark in ("\n\n", "\n") if (cut := most.rfind(mark)) >= 0), size)
        found.append(most[:end])
        begin += end
    return [*found, text[begin:]] if begin < len(text) else found
