import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_zoo.corpus import (
    CorpusMismatchError,
    CorpusNotFoundError,
    load_tokens,
    read_corpus,
    unigram_entropy,
)
from model_zoo.shards import HEADER, ShardError, open_shard, write_shard


def test_the_shipped_text_is_the_one_it_says_it_is() -> None:
    text = read_corpus("pride_and_prejudice")

    digest = hashlib.sha256(text).hexdigest()

    assert digest == "2e44edaa4946d64ad541c68e0224f5d672f43bf3ce2a8a0b0637ad5e02fc6eb3"
    assert text.startswith(b"PRIDE AND PREJUDICE")


def test_a_text_of_ones_own_may_have_any_name(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_bytes(b"call me Ishmael")

    assert read_corpus("whale", mine) == b"call me Ishmael"


def test_a_missing_text_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(CorpusNotFoundError, match="known: pride_and_prejudice"):
        read_corpus("../../etc/passwd")
    with pytest.raises(CorpusNotFoundError, match=r"nowhere\.txt"):
        read_corpus("mine", tmp_path / "nowhere.txt")
    with pytest.raises(CorpusNotFoundError):
        read_corpus("mine", tmp_path)


def test_a_text_that_is_not_the_runs_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_bytes(b"")
    with pytest.raises(CorpusMismatchError, match="empty"):
        load_tokens("mine", mine, None, "bytes", 256, tmp_path)
    mine.write_bytes(b"caf\xe9")
    with pytest.raises(CorpusMismatchError, match="byte 3"):
        load_tokens("mine", mine, None, "bytes", 256, tmp_path)
    with pytest.raises(CorpusMismatchError, match="this run trains on 000"):
        load_tokens("mine", mine, "0" * 64, "bytes", 256, tmp_path)


@pytest.mark.parametrize(("tokenizer", "vocab_size"), [("bytes", 256), ("bpe", 280)])
def test_loaded_tokens_decode_to_the_text(tokenizer: str, vocab_size: int, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_bytes(read_corpus("pride_and_prejudice")[:5000])

    corpus = load_tokens("mine", mine, None, tokenizer, vocab_size, tmp_path / "cache")
    again = load_tokens("mine", mine, corpus.sha256, tokenizer, vocab_size, tmp_path / "cache")

    assert corpus.tokenizer.decode(corpus.tokens) == mine.read_text(encoding="utf-8")
    assert isinstance(corpus.tokens, np.memmap)
    assert np.array_equal(corpus.tokens, again.tokens)
    assert int(corpus.tokens.max()) < corpus.vocab_size == vocab_size
    assert corpus.sha256 == hashlib.sha256(mine.read_bytes()).hexdigest()


def test_a_damaged_cache_is_made_again(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_bytes(b"It is a truth universally acknowledged")
    load_tokens("mine", mine, None, "bytes", 256, tmp_path / "cache")
    (shard,) = (tmp_path / "cache").iterdir()
    shard.write_bytes(shard.read_bytes()[:-1])

    corpus = load_tokens("mine", mine, None, "bytes", 256, tmp_path / "cache")

    assert corpus.tokenizer.decode(corpus.tokens) == "It is a truth universally acknowledged"


@pytest.mark.parametrize(("largest", "width"), [(65_535, 2), (65_536, 4), (2**32 - 1, 4)])
def test_a_shard_gives_back_its_tokens(largest: int, width: int, tmp_path: Path) -> None:
    tokens = np.array([0, 7, largest], dtype=np.int64)

    write_shard(tmp_path / "a.tokens", tokens)
    opened = open_shard(tmp_path / "a.tokens")

    assert opened.tolist() == tokens.tolist()
    assert opened.dtype.itemsize == width
    assert not opened.flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["a.tokens"]


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_shard_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.tokens"
    path.write_bytes(data)

    with pytest.raises(ShardError):
        open_shard(path)


@settings(deadline=None)
@given(st.integers(0, HEADER.size + 7), st.integers(1, 255))
def test_one_changed_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: int, change: int) -> None:
    path = tmp_path_factory.getbasetemp() / "flip.tokens"
    write_shard(path, np.array([1, 2, 3, 4], dtype=np.uint16))
    data = bytearray(path.read_bytes())
    data[place] ^= change
    path.write_bytes(data)

    with pytest.raises(ShardError):
        open_shard(path)


@pytest.mark.parametrize("tokens", [[], [-1], [2**32], [0.5], [[1, 2]]])
def test_what_is_no_row_of_tokens_is_not_written(tokens: list[object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokens|shard"):
        write_shard(tmp_path / "a.tokens", tokens)
    assert not list(tmp_path.iterdir())


@settings(deadline=None)
@given(st.integers(1, 300))
def test_entropy_of_equally_frequent_tokens_is_the_log_of_their_number(num_tokens: int) -> None:
    assert unigram_entropy(np.arange(num_tokens)) == pytest.approx(math.log(num_tokens))


def test_entropy_of_the_shipped_text_is_three_nats_a_byte() -> None:
    text = np.frombuffer(read_corpus("pride_and_prejudice"), dtype=np.uint8)

    assert unigram_entropy(text) == pytest.approx(3.092, abs=0.001)
