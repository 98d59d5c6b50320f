"""From the run's tokens and sequence numbers to batches for the model."""

# B sequences in a batch, T tokens in a sequence and one more, which is only predicted

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers = npt.NDArray[np.int64]


class Corpus(Protocol):
    """What training asks of the run's tokens; `elastic.data.corpus` has them."""

    def cut(self, sequences: Numbers, length: int) -> Numbers:
        """These training sequences, (N, T + 1); ValueError if one is none."""
        ...

    def held_out(self, length: int, at_most: int) -> Numbers:
        """Sequences that nobody trains on, (≤ at_most, T + 1), the same at every call; ValueError if there are none."""
        ...

    def expect(self, sequences: Numbers, length: int) -> None:
        """These will be asked for, in this order: what lies elsewhere may be fetched ahead."""
        ...


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of one contributor's round, and one worker's part of each.

    Step s is sequences [s · B, s · B + B); worker `rank` takes every `world_size`-th of them. The union over
    the workers is the same whatever their number: a round that goes on with fewer workers trains on the same
    tokens. If B is no multiple of `world_size`, some have one sequence more: weight losses by len(batch) / B.

    Raises:
        ValueError: no sequences, or less than one per worker and step.
    """

    corpus: Corpus
    sequences: Numbers
    """Numbers of the assigned sequences, (N,)."""
    sequence_length: int
    batch_size: int
    """B, sequences per step over all workers."""
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size <= self.batch_size:
            raise ValueError(f"rank {self.rank} of {self.world_size} has no sequence in {self.batch_size}")
        if not self.sequences.size:
            raise ValueError("no sequences are assigned: the text is too short for so many contributors")
        self.corpus.expect(self.sequences, self.sequence_length)

    def __len__(self) -> int:
        """Steps: as many as there are full batches, and at least one."""
        return max(1, len(self.sequences) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """This worker's part of every step."""
        return (self.batch(step) for step in range(len(self)))

    def batch(self, step: int) -> Tensor:
        """This worker's part of step `step`, (B / world_size, T + 1) int64, on the CPU.

        Beyond the last sequence it begins again with the first.
        """
        places = np.arange(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world_size)
        return cut(self.corpus, self.sequences[places % len(self.sequences)], self.sequence_length)


def held_out_batches(corpus: Corpus, sequence_length: int, batch_size: int, max_sequences: int) -> Iterator[Tensor]:
    """Batches (≤ batch_size, T + 1) of what no contributor trains on.

    At most `max_sequences`, spread evenly over it, the same at every call.

    Raises:
        ValueError: not one sequence was held out.
    """
    rows = corpus.held_out(sequence_length, max_sequences)
    for start in range(0, len(rows), batch_size):
        yield torch.from_numpy(rows[start : start + batch_size])


def cut(corpus: Corpus, sequences: Numbers, sequence_length: int) -> Tensor:
    """These sequences, (len(sequences), T + 1) int64; a copy."""
    return torch.from_numpy(corpus.cut(sequences, sequence_length))
