"""Prepared tokens as they lie in a folder: `index.json` says what there is, beside it the tokenizer and the shards.

The digest of `index.json` stands for all of it: it names the digest of the tokenizer and of every shard.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model_zoo.documents import DataError
from model_zoo.shards import Tokens, header_of, open_shard, shard_bytes
from model_zoo.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer

INDEX, TOKENIZER = "index.json", "tokenizer.json"
MAX_INDEX_BYTES = 2**27
OPEN_SHARDS = 256
"""Shards that stay mapped; the system allows a process some ten thousand."""

Hex = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**50)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Shard(_Record):
    """One file of tokens."""

    name: Annotated[str, Field(pattern=r"^[0-9]{5,9}\.tokens$")]
    tokens: Annotated[int, Field(ge=1, le=2**40)]
    sha256: Hex
    """Of the tokens."""
    text_bytes: Count
    """UTF-8 that they were made from, and"""
    text_sha256: Hex
    """its digest, with marks where documents end."""


class Index(_Record):
    """All that is known of prepared tokens."""

    version: Literal[1] = 1
    tokenizer: Literal["bytes", "bpe"]
    """"bpe": whatever `tokenizer.json` describes."""
    tokenizer_sha256: Hex
    """Of that file."""
    vocab_size: Annotated[int, Field(ge=1, le=2**32)]
    """Every token is below it."""
    end: Annotated[int, Field(ge=0)] | None
    """The token behind each document; None: there is none."""
    width: Literal[2, 4]
    """Bytes per token."""
    held_out: Annotated[float, Field(gt=0, lt=0.5)]
    """Fraction of the tokens, at the end, that no contributor is ever assigned."""
    documents: Count
    """Without the empty ones."""
    empty: Count
    """Documents without text, which were left out."""
    text_bytes: Count
    """UTF-8 that all was made from."""
    shards: Annotated[tuple[Shard, ...], Field(strict=False, min_length=1)]
    """In the order of the text."""

    @model_validator(mode="after")
    def _goes_together(self) -> Index:
        if self.end is not None and self.end >= self.vocab_size:
            raise ValueError("end is no token of the vocabulary")
        if len({shard.name for shard in self.shards}) < len(self.shards):
            raise ValueError("two shards have one name")
        return self

    @property
    def tokens(self) -> int:
        """How many, in all shards."""
        return sum(shard.tokens for shard in self.shards)

    def canonical(self) -> bytes:
        """As it lies on disk."""
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)

    @property
    def sha256(self) -> str:
        """Its digest, by which a run file names it."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def size_of(self, shard: Shard) -> int:
        """Bytes of its file."""
        return shard_bytes(self.width, shard.tokens)

    def open(self, path: Path, shard: Shard) -> Tokens:
        """Map a shard that lies at `path`, after checking all of it.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is another one, or has tokens that are not in the vocabulary.
        """
        tokens = open_shard(path, header_of(self.width, shard.tokens, bytes.fromhex(shard.sha256)))
        if (highest := int(tokens.max())) >= self.vocab_size:
            raise DataError(f"{path}: it has the token {highest}, and the vocabulary is {self.vocab_size}")
        return tokens

    def tokenizer_of(self, definition: bytes) -> Tokenizer:
        """The tokenizer that the tokens were made with.

        Args:
            definition: the bytes of `tokenizer.json`.

        Raises:
            DataError: that is another one.
        """
        if (found := hashlib.sha256(definition).hexdigest()) != self.tokenizer_sha256:
            raise DataError(f"{TOKENIZER} has SHA-256 {found}, and the tokens were made with {self.tokenizer_sha256}")
        if self.tokenizer == "bytes":
            return ByteTokenizer()
        try:
            tokenizer = BPETokenizer(definition.decode())
        except ValueError as error:
            raise DataError(f"{TOKENIZER}: {error}") from error
        if tokenizer.vocab_size != self.vocab_size:
            raise DataError(f"{TOKENIZER} has {tokenizer.vocab_size} tokens, and the index says {self.vocab_size}")
        return tokenizer


def read_index(data: bytes) -> Index:
    """What an `index.json` says.

    Raises:
        DataError: it is none.
    """
    try:
        index = Index.model_validate(orjson.loads(data))
    except (ValidationError, orjson.JSONDecodeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{INDEX} is none: {place}{': ' if place else ''}{first['msg']:.200}") from error
    if index.canonical() != data:
        raise DataError(f"{INDEX} is not in its canonical form")
    return index


def open_folder(folder: Path) -> Index:
    """The index of a folder that `prepare` has finished.

    Raises:
        DataError: it is none.
    """
    try:
        with (folder / INDEX).open("rb") as file:
            data = file.read(MAX_INDEX_BYTES + 1)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no {INDEX} there; `elastic data prepare` writes one when it is through") from error
    if len(data) > MAX_INDEX_BYTES:
        raise DataError(f"{folder / INDEX}: more than {MAX_INDEX_BYTES} bytes")
    try:
        return read_index(data)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error


def verify(folder: Path) -> Iterator[tuple[Shard, str | None]]:
    """Look at every shard of a folder; gives it and what is wrong with it, if anything is.

    Raises:
        DataError: the index or the tokenizer is wrong.
    """
    index = open_folder(folder)
    index.tokenizer_of((folder / TOKENIZER).read_bytes())
    for shard in index.shards:
        try:
            index.open(folder / shard.name, shard)
        except (OSError, ValueError) as error:
            yield shard, f"{folder / shard.name}: {error.strerror}" if isinstance(error, OSError) else str(error)
        else:
            yield shard, None


class Row:
    """The tokens of all shards as one row, of which any may be asked for; shards are opened when they are needed."""

    def __init__(self, index: Index, opener: Callable[[Shard], Tokens], want: Callable[[list[Shard]], None]) -> None:
        """Nothing is opened yet.

        Args:
            index: of the tokens.
            opener: maps a shard that was checked; may take its time, and raise.
            want: is told which shards will be asked for soon, in that order.
        """
        self.index, self._opener, self._want = index, opener, want
        self._ends = np.cumsum([shard.tokens for shard in index.shards])
        self._open: OrderedDict[int, Tokens] = OrderedDict()

    def __len__(self) -> int:
        """Tokens."""
        return int(self._ends[-1])

    def __getitem__(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The tokens at these places, in any shape; whatever the opener raises."""
        found = np.empty(places.shape, np.int64)
        shards = self.shards_of(places)
        for number in np.unique(shards):
            here = shards == number
            tokens, start = self._shard(int(number)), self._ends[number] - self.index.shards[number].tokens
            found[here] = tokens[places[here] - start]
        return found

    def shards_of(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Numbers of the shards in which these places lie."""
        if places.size and (places.min() < 0 or places.max() >= len(self)):
            raise ValueError(f"places are in [0, {len(self)}); got {places.min()} to {places.max()}")
        return np.searchsorted(self._ends, places, side="right")

    def expect(self, starts: npt.NDArray[np.int64], width: int) -> None:
        """Say which places will be asked for soon: from each of `starts` so many, in that order."""
        shards = self.shards_of(np.stack([starts, starts + width - 1], axis=-1)).ravel()
        self._want([self.index.shards[number] for number in dict.fromkeys(shards.tolist()) if number not in self._open])

    def spans(self, start: int, width: int) -> Iterator[tuple[str, int, int]]:
        """(shard, first token in it, one behind the last) of so many tokens from `start` on."""
        first, last = self.shards_of(np.array([start, start + width - 1])).tolist()
        for number in range(first, last + 1):
            shard, end = self.index.shards[number], int(self._ends[number])
            begin = end - shard.tokens
            yield shard.name, max(start, begin) - begin, min(start + width, end) - begin

    def _shard(self, number: int) -> Any:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        tokens = self._open[number] = self._opener(self.index.shards[number])
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return tokens
