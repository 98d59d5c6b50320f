"""From a row of tokens and sequence numbers to batches for the model."""

# B sequences in a batch, T tokens in a sequence; sequence s is tokens s * T to s * T + T inclusive

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TokenArray = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of one contributor's round, and one worker's part of each.

    Step s is sequences [s · B, s · B + B); worker `rank` takes every `world_size`-th of them. The union over
    the workers is the same whatever their number: a round that goes on with fewer workers trains on the same
    tokens. If B is no multiple of `world_size`, some have one sequence more: weight losses by len(batch) / B.

    Raises:
        ValueError: no sequences, less than one per worker and step, or one outside the text.
    """

    tokens: TokenArray
    """The whole text, any integer type; may be mapped from disk."""
    sequences: npt.NDArray[np.int64]
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
        last = len(self.tokens) - self.sequence_length - 1
        if self.sequences.min() < 0 or self.sequences.max() * self.sequence_length > last:
            raise ValueError(f"sequence {self.sequences.max()} ends outside a text of {len(self.tokens)} tokens")

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
        return cut(self.tokens, self.sequences[places % len(self.sequences)], self.sequence_length)


def held_out_batches(
    tokens: TokenArray, held_out: float, sequence_length: int, batch_size: int, max_sequences: int
) -> Iterator[Tensor]:
    """Batches (≤ batch_size, T + 1) from the fraction at the end of the text that no contributor trains on.

    At most `max_sequences`, spread evenly over the held-out part, the same at every call.

    Raises:
        ValueError: not one sequence fits into the held-out part.
    """
    held_out_tokens = tokens[len(tokens) - math.ceil(len(tokens) * held_out) :]
    num_sequences = (len(held_out_tokens) - 1) // sequence_length
    if num_sequences < 1:
        raise ValueError(f"{len(held_out_tokens)} held-out tokens make no sequence of {sequence_length} + 1")
    num_chosen = min(num_sequences, max_sequences)
    chosen = np.arange(num_chosen) * num_sequences // num_chosen
    for start in range(0, num_chosen, batch_size):
        yield cut(held_out_tokens, chosen[start : start + batch_size], sequence_length)


def cut(tokens: TokenArray, sequences: npt.NDArray[np.int64], sequence_length: int) -> Tensor:
    """These sequences, (len(sequences), T + 1) int64; a copy, so that `tokens` may be read-only."""
    places = sequences[:, None] * sequence_length + np.arange(sequence_length + 1)
    return torch.from_numpy(np.asarray(tokens[places], dtype=np.int64))
