"""The run's tokens as training sees them: one or more sources, cut into sequences."""

# N sequences of T tokens; sequence s of a source is its tokens s * T to s * T + T inclusive, the last only predicted

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from elastic.schedule.assignment import num_train_sequences
from elastic.schedule.mixture import turns

Numbers = npt.NDArray[np.int64]


class Tokens(Protocol):
    """A row of tokens: an array, perhaps mapped from disk, or shards that are still to be fetched."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: Numbers) -> Any:
        """The tokens at these places, in the same shape."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """One row of tokens; the fraction `held_out` at its end is never assigned, not even as a target."""

    tokens: Tokens
    held_out: float
    name: str = ""
    """"" if it is a text."""
    sha256: str = ""
    """Of the text, or of the index."""

    def num_sequences(self, length: int) -> int:
        """How many may be assigned."""
        return num_train_sequences(len(self.tokens), self.held_out, length)

    def cut(self, starts: Numbers, length: int) -> Numbers:
        """From each of these places `length` + 1 tokens."""
        return np.asarray(self.tokens[starts[:, None] + np.arange(length + 1)], dtype=np.int64)

    def held_out_sequences(self, length: int, at_most: int) -> Numbers:
        """Some of what is held out, spread evenly over it, (≤ at_most, length + 1).

        Raises:
            ValueError: not one sequence was held out.
        """
        held_out = math.ceil(len(self.tokens) * self.held_out)
        num_sequences = (held_out - 1) // length
        if num_sequences < 1:
            raise ValueError(f"{held_out} held-out tokens make no sequence of {length} + 1")
        num_chosen = min(num_sequences, at_most)
        chosen = np.arange(num_chosen) * num_sequences // max(1, num_chosen)
        return self.cut(len(self.tokens) - held_out + chosen * length, length)


@dataclass(frozen=True, slots=True)
class Corpus:
    """All sources; a training sequence's number is its number in its source, counted on from the sources before it."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    """Of each source in the run's first round."""
    tokenizer: Any
    vocab_size: int
    """Every token is below it."""
    ends: frozenset[int] = frozenset()
    """Tokens that end a document."""

    def sizes(self, length: int) -> list[int]:
        """Of each source, how many sequences may be assigned.

        Raises:
            ValueError: not one of a source; it is named.
        """
        found = []
        for source in self.sources:
            try:
                found.append(source.num_sequences(length))
            except ValueError as error:
                raise ValueError(f"source {source.name}: {error}" if source.name else str(error)) from error
        return found

    def placed(self, sequences: Numbers, length: int) -> tuple[Numbers, Numbers]:
        """Of each sequence the source, and the first of its tokens there; both (N,).

        Raises:
            ValueError: one that is none.
        """
        ends = np.cumsum(self.sizes(length))
        if sequences.size and (sequences.min() < 0 or sequences.max() >= ends[-1]):
            raise ValueError(f"sequence {sequences.max()} is outside a text of {ends[-1]} that may be assigned")
        which = np.searchsorted(ends, sequences, side="right")
        return which, (sequences - np.concatenate([[0], ends])[which]) * length

    def cut(self, sequences: Numbers, length: int) -> Numbers:
        """These sequences, (N, length + 1); a copy.

        Raises:
            ValueError: one that is none.
            FetchError: it lies elsewhere, and did not come.
            MissingCorpusError: what lies here is not what the run trains on.
        """
        which, starts = self.placed(sequences, length)
        found = np.empty((len(sequences), length + 1), np.int64)
        for number in np.unique(which):
            here = which == number
            found[here] = self.sources[number].cut(starts[here], length)
        return found

    def expect(self, sequences: Numbers, length: int) -> None:
        """Say what will be asked for, in that order."""
        which, starts = self.placed(sequences, length)
        for number in np.unique(which):
            if hasattr(tokens := self.sources[number].tokens, "expect"):
                tokens.expect(starts[which == number], length + 1)

    def held_out(self, length: int, at_most: int, source: str | None = None) -> Numbers:
        """Sequences that nobody trains on, of each source as many as its weight says, (≤ at_most, length + 1).

        Args:
            length: tokens.
            at_most: sequences.
            source: of this one only.

        Raises:
            ValueError: a source has not one, or there is no such source.
        """
        weights = [float(source == each.name) for each in self.sources] if source is not None else self.weights
        if not any(weights):
            raise ValueError(f'no source is called "{source}"')
        which, _ = turns(weights, at_most)
        counts = np.bincount(which, minlength=len(self.sources))
        return np.concatenate(
            [each.held_out_sequences(length, count) for each, count in zip(self.sources, counts, strict=True) if count]
        )

    def held_out_rows(self, at_most: int) -> list[Numbers]:
        """What nobody trains on as it was written, a row of each source: tokens, all or `at_most` in all by weight."""
        rows = []
        for source, weight in zip(self.sources, self.weights, strict=True):
            held_out = math.ceil(len(source.tokens) * source.held_out)
            count = min(held_out, round(at_most * weight / sum(self.weights)))
            begin = len(source.tokens) - held_out
            rows.append(np.asarray(source.tokens[np.arange(begin, begin + count)], dtype=np.int64))
        return [row for row in rows if row.size]


def of_text(tokens: Tokens, held_out: float, tokenizer: Any = None, vocab_size: int = 256, sha256: str = "") -> Corpus:
    """A text as a corpus."""
    return Corpus((Source(tokens, held_out, sha256=sha256),), (1.0,), tokenizer, vocab_size)
