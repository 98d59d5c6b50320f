"""Text ↔ tokens, without a download: plain bytes, or byte-pair encoding trained on the run's own text."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

TEXT_PIECE = 2**20
"""Characters the byte-pair encoder sees at a time. Another value gives another vocabulary, so another run."""


class Tokenizer(Protocol):
    """What the trainer needs of a tokenizer. `decode(encode(text)) == text` for any text."""

    @property
    def vocab_size(self) -> int:
        """Every token is below it."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 in hex; equal digests encode alike."""
        ...

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Tokens of a text."""
        ...

    def decode(self, tokens: npt.ArrayLike) -> str:
        """Text of the tokens; bytes that are not UTF-8 become "�"."""
        ...

    def to_json(self) -> str:
        """The whole definition as Hugging Face `tokenizers` writes it; `BPETokenizer` takes it."""
        ...


class ByteTokenizer:
    """One token a byte of the text's UTF-8."""

    vocab_size = 256

    @property
    def digest(self) -> str:
        """SHA-256 of the word "bytes"; there is nothing else to tell apart."""
        return hashlib.sha256(b"bytes").hexdigest()

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """The bytes, widened."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)

    def decode(self, tokens: npt.ArrayLike) -> str:
        """Text of the bytes.

        Raises:
            ValueError: a token is not a byte.
        """
        array = np.asarray(tokens, dtype=np.int64).ravel()
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            raise ValueError(f"tokens of bytes are 0 to 255; got {array.min()} to {array.max()}")
        return array.astype(np.uint8).tobytes().decode(errors="replace")

    def to_json(self) -> str:
        """Byte-pair encoding without a pair: the letters that stand for bytes there, each with its byte."""
        from tokenizers import Tokenizer as Engine
        from tokenizers import decoders, models, pre_tokenizers

        engine = Engine(models.BPE(vocab={letter: byte for byte, letter in enumerate(_letters())}, merges=[]))
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        engine.decoder = decoders.ByteLevel()
        return str(engine.to_str())


class BPETokenizer:
    """Byte-level byte-pair encoding (GPT-2's), trained in-process by Hugging Face `tokenizers`."""

    def __init__(self, definition: str) -> None:
        """Take what `to_json` gave; what a definition says of cutting or filling texts up is not done.

        Raises:
            ValueError: it is no such definition.
        """
        from tokenizers import Tokenizer as Engine

        with _refusing("not a tokenizer definition"):
            self._engine: Any = Engine.from_str(definition)
            self._engine.no_truncation()
            self._engine.no_padding()

    @classmethod
    def train(cls, text: str, vocab_size: int, special: tuple[str, ...] = ()) -> "BPETokenizer":
        """Learn a vocabulary of at most `vocab_size` tokens; a short text may give fewer.

        The same text gives the same vocabulary on any number of threads: `tests/unit/test_tokenizer.py`. `special` are
        the first tokens, which no text becomes.
        """
        from tokenizers import Tokenizer as Engine
        from tokenizers import decoders, models, pre_tokenizers, trainers

        if vocab_size < 256:
            raise ValueError(f"vocab_size = {vocab_size}, but the 256 bytes are always in the vocabulary")
        engine = Engine(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
            special_tokens=list(special),
        )  # fmt: skip
        engine.train_from_iterator(_pieces(text), trainer)
        return cls(engine.to_str())

    @property
    def vocab_size(self) -> int:
        """One more than the largest token; others' definitions may leave some out."""
        return int(max(self._engine.get_vocab().values(), default=-1)) + 1

    @property
    def digest(self) -> str:
        """SHA-256 of the definition."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Tokens of a text.

        Raises:
            ValueError: others' definition has no token for something in it.
        """
        with _refusing("the tokenizer cannot say this text"):
            encodings = self._engine.encode_batch(_pieces(text), add_special_tokens=False)
        return np.concatenate(
            [np.asarray(encoding.ids, np.uint32) for encoding in encodings] or [np.empty(0, np.uint32)]
        )

    def literal(self) -> "BPETokenizer":
        """One like it for which what looks like a special token in a text is text, too."""
        made = BPETokenizer(self.to_json())
        made._engine.encode_special_tokens = True
        return made

    def encode_pieces(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text by itself, from any thread.

        Raises:
            ValueError: see `encode`.
        """
        with _refusing("the tokenizer cannot say this text"):
            found = self._engine.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def token_of(self, text: str) -> int | None:
        """The token that is exactly this; None: there is none."""
        found: int | None = self._engine.token_to_id(text)
        return found

    def decode(self, tokens: npt.ArrayLike) -> str:
        """Text of the tokens.

        Raises:
            ValueError: others' definition has no text for them.
        """
        ids = np.asarray(tokens, dtype=np.int64).ravel().tolist()
        with _refusing("the tokenizer has no text for these tokens"):
            return str(self._engine.decode(ids, skip_special_tokens=False))

    def to_json(self) -> str:
        """The whole definition: vocabulary and merges, in their order."""
        return str(self._engine.to_str())


def load_tokenizer(kind: str, vocab_size: int, text: str, cache_dir: Path) -> Tokenizer:
    """The tokenizer of a run; a trained one is kept in `cache_dir`, by the digest of its text.

    Args:
        kind: "bytes" or "bpe".
        vocab_size: 256 for "bytes", at least 256 for "bpe".
        text: what "bpe" is trained on.
        cache_dir: made if it is not there.

    Raises:
        ValueError: another kind, or a size that does not go with it.
    """
    if kind == "bytes":
        if vocab_size != ByteTokenizer.vocab_size:
            raise ValueError(f'vocab_size = {vocab_size}, but the "bytes" tokenizer has 256 tokens')
        return ByteTokenizer()
    if kind != "bpe":
        raise ValueError(f'no tokenizer is called "{kind}"; known: bytes, bpe')
    cached = cache_dir / f"bpe-{vocab_size}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if cached.exists():
        return BPETokenizer(cached.read_text(encoding="utf-8"))
    tokenizer = BPETokenizer.train(text, vocab_size)
    write_whole(cached, tokenizer.to_json().encode())
    return tokenizer


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that is either there in full or not at all: beside it first, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}{secrets.token_hex(4)}.tmp")  # two may write at once
    try:
        with beside.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Whatever the library raises becomes a ValueError: a panic of its Rust code is no `Exception`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ValueError(f"{what}: {error}") from error


def _pieces(text: str) -> list[str]:
    return [text[start : start + TEXT_PIECE] for start in range(0, len(text), TEXT_PIECE)]


def _letters() -> list[str]:
    """Byte → the letter that GPT-2's byte-level encoding writes for it: itself if it shows, else one from U+0100 on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]
