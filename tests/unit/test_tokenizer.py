import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_zoo.corpus import read_corpus
from model_zoo.tokenizer import BPETokenizer, ByteTokenizer, load_tokenizer

TEXT = read_corpus("pride_and_prejudice").decode()[:40_000]
BPE = BPETokenizer.train(TEXT, 300)


@settings(deadline=None)
@given(st.text())
def test_bytes_come_back_as_the_text(text: str) -> None:
    tokens = ByteTokenizer().encode(text)

    assert tokens.tolist() == list(text.encode())
    assert ByteTokenizer().decode(tokens) == text


@settings(deadline=None)
@given(st.text())
def test_byte_pairs_come_back_as_the_text(text: str) -> None:
    tokens = BPE.encode(text)

    assert BPE.decode(tokens) == text
    assert all(token < BPE.vocab_size for token in tokens)


def test_half_a_character_decodes_to_a_replacement_mark() -> None:
    assert ByteTokenizer().decode([0x41, 0xC3]) == "A�"


@pytest.mark.parametrize("token", [-1, 256])
def test_what_is_no_byte_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match="0 to 255"):
        ByteTokenizer().decode([token])


def test_byte_pairs_are_fewer_than_bytes() -> None:
    assert BPE.vocab_size == 300
    assert len(BPE.encode(TEXT)) < 0.8 * len(TEXT)


def test_training_does_not_depend_on_threads_or_on_the_process() -> None:
    program = (
        "from model_zoo.corpus import read_corpus\n"
        "from model_zoo.tokenizer import BPETokenizer\n"
        "import sys\n"
        "text = read_corpus('pride_and_prejudice').decode()[:40000]\n"
        "sys.stdout.write(BPETokenizer.train(text, 300).digest)\n"
    )
    environments = [
        {"RAYON_NUM_THREADS": "1"},
        {"RAYON_NUM_THREADS": "5"},
        {"TOKENIZERS_PARALLELISM": "false"},
    ]

    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | extra,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for extra in environments
    }

    assert digests == {BPE.digest}


def test_a_saved_tokenizer_encodes_alike() -> None:
    again = BPETokenizer(BPE.to_json())

    assert again.digest == BPE.digest
    assert np.array_equal(again.encode(TEXT), BPE.encode(TEXT))


def test_a_trained_tokenizer_is_read_from_the_cache(tmp_path: Path) -> None:
    first = load_tokenizer("bpe", 300, TEXT, tmp_path)
    (cached,) = tmp_path.iterdir()
    cached.write_text(BPETokenizer.train(TEXT, 280).to_json(), encoding="utf-8")

    second = load_tokenizer("bpe", 300, TEXT, tmp_path)

    assert (first.vocab_size, second.vocab_size) == (300, 280)


def test_another_text_has_another_tokenizer(tmp_path: Path) -> None:
    load_tokenizer("bpe", 280, TEXT[:5000], tmp_path)
    load_tokenizer("bpe", 280, TEXT[5000:10000], tmp_path)

    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("kind", "vocab_size", "message"),
    [("words", 256, "known: bytes, bpe"), ("bytes", 300, "256"), ("bpe", 255, "256")],
)
def test_impossible_tokenizers_are_refused(kind: str, vocab_size: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_tokenizer(kind, vocab_size, TEXT, tmp_path)


def test_a_definition_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="not a tokenizer"):
        BPETokenizer("{}")


def hostile(**parts: object) -> str:
    """A stranger's definition, on which the library's Rust code panics: no `Exception`."""
    return json.dumps({**json.loads(ByteTokenizer().to_json()), **parts})


def test_a_definition_that_makes_the_library_panic_is_refused() -> None:
    with pytest.raises(ValueError, match="not a tokenizer definition"):
        BPETokenizer(hostile(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}))


def test_text_and_tokens_on_which_the_library_panics_are_refused() -> None:
    endless = {"type": "Replace", "pattern": {"String": ""}, "content": "x"}
    with pytest.raises(ValueError, match="cannot say this text"):
        BPETokenizer(hostile(normalizer=endless)).encode("hello wörld")
    with pytest.raises(ValueError, match="cannot say this text"):
        BPETokenizer(hostile(normalizer=endless)).encode_pieces(["hello wörld"])
    with pytest.raises(ValueError, match="no text for these tokens"):
        BPETokenizer(hostile(decoder={"type": "Strip", "content": "h", "start": 100, "stop": 100})).decode([104])


@pytest.mark.parametrize("asked", [KeyboardInterrupt, SystemExit])
def test_whoever_ends_the_process_is_heard(asked: type[BaseException]) -> None:
    class Engine:
        def decode(self, *_: object, **__: object) -> str:
            raise asked

    tokenizer = BPETokenizer(ByteTokenizer().to_json())
    tokenizer._engine = Engine()
    with pytest.raises(asked):
        tokenizer.decode([1])
