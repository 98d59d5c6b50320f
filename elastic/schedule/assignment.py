"""Which sequences of the text each contributor trains on in a round: everyone computes everyone's alike.

The training part of the text is cut into `num_sequences` sequences. Each round shuffles them anew and deals
every slot an equal stretch, so two slots never meet. The shuffle is a permutation computed where
it is needed: a Feistel network over the next power of four, walked until it falls inside the range (Black and
Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). Memory does not grow with the text.

The keys are public, so this spreads the data evenly and hides nothing.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FEISTEL_ROUNDS = 6
"""Four make a good pseudo-random permutation; two more cost little. Changing it changes everyone's tokens."""


@dataclass(frozen=True, slots=True)
class Shuffle:
    """One round's order of the training sequences: a bijection of range(num_sequences)."""

    num_sequences: int
    """At least 1, at most 2**62."""
    seed: int
    """Of the run, from the shared configuration."""
    run: str
    """The run's name."""
    index: int
    """The round."""

    def at(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The sequences at these positions of the shuffle, any shape.

        Raises:
            ValueError: a position outside range(num_sequences).
        """
        places = np.asarray(positions, dtype=np.int64)
        if places.size and (places.min() < 0 or places.max() >= self.num_sequences):
            raise ValueError(f"positions are in [0, {self.num_sequences}); got {places.min()} to {places.max()}")
        half_bits = np.uint64(max(1, math.ceil((self.num_sequences - 1).bit_length() / 2)))
        keys, end = self._keys(), np.uint64(self.num_sequences)
        values = np.atleast_1d(places.astype(np.uint64))
        values = _feistel(values, half_bits, keys)
        while (outside := values >= end).any():
            values[outside] = _feistel(values[outside], half_bits, keys)
        return values.astype(np.int64).reshape(places.shape)

    def _keys(self) -> list[np.uint64]:
        name = f"shuffle/{self.seed}/{self.run}/{self.index}"
        digests = (hashlib.sha256(f"{name}/{turn}".encode()).digest() for turn in range(FEISTEL_ROUNDS))
        return [np.uint64(int.from_bytes(digest[:8], "little")) for digest in digests]


def num_train_sequences(num_tokens: int, held_out: float, sequence_length: int) -> int:
    """Sequences that may be assigned. Sequence s is tokens [s·T, s·T + T], its last one only as a target.

    Args:
        num_tokens: length of the whole text.
        held_out: fraction at its end that is never assigned, not even as a target.
        sequence_length: T, tokens.

    Raises:
        ValueError: not one sequence fits.
    """
    training_tokens = num_tokens - math.ceil(num_tokens * held_out)
    num_sequences = (training_tokens - 1) // sequence_length
    if num_sequences < 1:
        raise ValueError(f"{training_tokens} training tokens are too few for a sequence of {sequence_length} + 1")
    return num_sequences


def max_sequences_per_slot(num_sequences: int, roster_size: int, block: int = 1) -> int:
    """How many sequences each of `roster_size` slots can get in one round without sharing."""
    return num_sequences // block // roster_size * block


def assigned_sequences(  # noqa: PLR0913 (all of it, and nothing else, decides who trains on what)
    num_sequences: int, seed: int, run: str, index: int, slot: int, count: int, roster_size: int, block: int = 1
) -> npt.NDArray[np.int64]:
    """The sequences of one slot in one round: the j-th is at slot · (num_sequences // roster_size) + j.

    Positions do not depend on `count`, so slots may differ in how much they do and still never meet. With a `block`
    all that holds for blocks of so many neighbouring sequences; what fills no block is left out.

    Args:
        num_sequences: from `num_train_sequences`.
        seed: of the run.
        run: its name.
        index: the round.
        slot: place in the roster, in range(roster_size).
        count: sequences wanted; a text too short for so many gives `max_sequences_per_slot` instead.
        roster_size: number of slots.
        block: sequences that are dealt together.

    Raises:
        ValueError: no such slot, or fewer sequences than slots.
    """
    if slot not in range(roster_size):
        raise ValueError(f"slot {slot} is not in a roster of {roster_size}")
    stride = max_sequences_per_slot(num_sequences, roster_size, block)
    if stride < 1:
        some = "sequences of text" if block == 1 else f"sequences, in blocks of {block},"
        raise ValueError(f"{num_sequences} {some} are too few for {roster_size} contributors")
    positions = slot * stride + np.arange(min(count, stride))
    return Shuffle(num_sequences // block, seed, run, index).at(positions // block) * block + positions % block


def _feistel(values: npt.NDArray[np.uint64], half_bits: np.uint64, keys: list[np.uint64]) -> npt.NDArray[np.uint64]:
    """A permutation of range(4**half_bits), whatever the mixing function is."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half_bits) | right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser: every bit of the input reaches every bit of the output, modulo 2**64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
