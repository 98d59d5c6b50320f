"""Text of a model as it is drawn: whole letters, the same ones as at once, and no commands for a terminal."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.errors import ConfigError
from elastic.models.opened import Opened
from elastic.models.speak import MARK, harmless, shown, speak
from model_zoo.corpus import read_corpus
from model_zoo.llama import Llama
from model_zoo.tokenizer import BPETokenizer, ByteTokenizer

BPE = BPETokenizer.train(read_corpus("pride_and_prejudice").decode()[:20_000], 300)
BYTES = ByteTokenizer()
TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn"), exclude_characters=MARK))


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@settings(deadline=None)
@given(before=TEXTS, text=TEXTS)
def test_pieces_are_the_text_at_once(tokenizer: Any, before: str, text: str) -> None:
    tokens = tokenizer.encode(text).tolist()

    pieces = list(shown(tokenizer, tokenizer.encode(before).tolist(), tokens))

    assert "".join(pieces) == text
    assert not any(MARK in piece for piece in pieces)


def test_a_letter_is_shown_as_soon_as_it_is_whole() -> None:
    tokens = iter(BYTES.encode("ab☃c").tolist())

    pieces = shown(BYTES, [], tokens)

    assert [next(pieces) for _ in range(3)] == ["a", "b", "☃"]
    assert next(tokens) == ord("c"), "no token is waited for"


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=60))
def test_any_tokens_become_harmless_text(tokens: list[int]) -> None:
    text = "".join(shown(BYTES, [], tokens))

    assert not any(each < " " and each not in "\n\t" for each in text)
    assert "\x7f" not in text and "\x9b" not in text


def test_what_a_terminal_obeys_is_a_mark() -> None:
    assert harmless("a\x1b[2J\r\x07b\u202ec\n\td\r\n") == f"a{MARK}[2J{MARK}{MARK}b{MARK}c\n\td\n"


def opened(model: Any, tokenizer: Any = BYTES, ends: frozenset[int] = frozenset()) -> Opened:
    return Opened(model, tokenizer, ends, "a model of a test")


class Counts:
    """Each token is one more than the last; it can only be asked for all at once."""

    def generate(self, prompt_1T: torch.Tensor, num_tokens: int, temperature: float, generator: Any) -> torch.Tensor:
        last = int(prompt_1T[0, -1])
        return torch.cat((prompt_1T, torch.arange(last + 1, last + 1 + num_tokens)[None]), 1)


def test_a_model_that_gives_all_at_once_is_shown_too() -> None:
    assert "".join(speak(opened(Counts()), "a", 4, 1.0, 0)) == "bcde"


def test_a_text_ends_where_the_model_says_so() -> None:
    assert "".join(speak(opened(Counts(), ends=frozenset({ord("d")})), "a", 9, 1.0, 0)) == "bc"


def test_seeds_make_the_text() -> None:
    model = Llama(Llama.Config())
    model.initialize(0)

    first, again, other = ("".join(speak(opened(model), "a", 30, 1.0, seed)) for seed in (1, 1, 2))

    assert first == again != other


def test_what_the_tokenizer_cannot_say_is_an_error() -> None:
    wordless = BPETokenizer('{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}')

    with pytest.raises(ConfigError, match="the prompt: the tokenizer cannot say this text"):
        list(speak(opened(Counts(), wordless), "a", 1, 1.0, 0))
