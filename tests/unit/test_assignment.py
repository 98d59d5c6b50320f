import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.schedule.assignment import (
    Shuffle,
    assigned_sequences,
    max_sequences_per_slot,
    num_train_sequences,
)

SIZES = st.integers(1, 5000)
SEEDS = st.integers(0, 2**63 - 1)
ROUNDS = st.integers(1, 2**40)


@settings(deadline=None)
@given(SIZES, SEEDS, ROUNDS)
def test_a_shuffle_is_a_bijection(num_sequences: int, seed: int, index: int) -> None:
    order = Shuffle(num_sequences, seed, "austen", index).at(np.arange(num_sequences))

    assert np.array_equal(np.sort(order), np.arange(num_sequences))


@settings(deadline=None)
@given(SIZES, SEEDS, ROUNDS, st.integers(1, 20), st.data())
def test_slots_of_a_round_never_share_a_sequence(
    num_sequences: int, seed: int, index: int, roster_size: int, data: st.DataObject
) -> None:
    roster_size = min(roster_size, num_sequences)
    counts = data.draw(st.lists(st.integers(0, 400), min_size=roster_size, max_size=roster_size))

    parts = [
        assigned_sequences(num_sequences, seed, "austen", index, slot, count, roster_size)
        for slot, count in enumerate(counts)
    ]

    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    assert all(0 <= sequence < num_sequences for sequence in together)
    limit = max_sequences_per_slot(num_sequences, roster_size)
    assert [len(part) for part in parts] == [min(count, limit) for count in counts]


@settings(deadline=None)
@given(SIZES, SEEDS, st.integers(1, 100))
def test_a_position_does_not_depend_on_what_else_is_asked_for(num_sequences: int, seed: int, index: int) -> None:
    shuffle = Shuffle(num_sequences, seed, "austen", index)
    positions = np.arange(min(num_sequences, 20))

    together = shuffle.at(positions)

    assert [int(shuffle.at(position)) for position in positions] == together.tolist()


def test_a_faster_slot_only_adds_sequences() -> None:
    few = assigned_sequences(5000, 7, "austen", 3, slot=1, count=10, roster_size=4)
    many = assigned_sequences(5000, 7, "austen", 3, slot=1, count=50, roster_size=4)

    assert np.array_equal(many[:10], few)


def test_seed_run_and_round_each_give_another_shuffle() -> None:
    variants = [(0, "austen", 1), (1, "austen", 1), (0, "brontë", 1), (0, "austen", 2)]

    orders = [Shuffle(1000, seed, run, index).at(np.arange(1000)) for seed, run, index in variants]

    for first, second in itertools.combinations(orders, 2):
        assert (first == second).mean() < 0.02


def test_first_sequences_of_a_slot_are_spread_evenly_over_the_text() -> None:
    seen = [assigned_sequences(1000, 0, "austen", index, slot=0, count=20, roster_size=5) for index in range(1, 501)]

    per_tenth = np.bincount(np.concatenate(seen) // 100, minlength=10)

    assert per_tenth.min() > 0.9 * per_tenth.mean()
    assert per_tenth.max() < 1.1 * per_tenth.mean()


def test_every_peer_of_every_version_computes_this_shuffle() -> None:
    order = Shuffle(5000, 42, "austen", 17).at(np.arange(5000))

    digest = hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()

    assert digest == "d525b8a1b65f6cad200a8726c9bc49b148672efd662aefc89998c24d3a2acbae"


def test_a_huge_text_needs_no_memory() -> None:
    sequences = assigned_sequences(2**40, 0, "austen", 1, slot=63, count=100, roster_size=64)

    assert len(np.unique(sequences)) == 100
    assert sequences.max() > 2**38


@settings(deadline=None)
@given(st.integers(2, 100_000), st.floats(0.001, 0.499), st.integers(1, 512))
def test_training_never_reads_a_held_out_token(num_tokens: int, held_out: float, length: int) -> None:
    training_tokens = num_tokens - int(np.ceil(num_tokens * held_out))
    if training_tokens <= length:
        with pytest.raises(ValueError, match="too few"):
            num_train_sequences(num_tokens, held_out, length)
        return

    num_sequences = num_train_sequences(num_tokens, held_out, length)

    last_target = (num_sequences - 1) * length + length
    assert last_target < training_tokens
    assert last_target + length >= training_tokens


@pytest.mark.parametrize(("slot", "roster_size", "message"), [(3, 3, "slot 3"), (-1, 3, "slot -1"), (0, 11, "few")])
def test_impossible_assignments_are_refused(slot: int, roster_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assigned_sequences(10, 0, "austen", 1, slot, 1, roster_size)


def test_positions_outside_the_shuffle_are_refused() -> None:
    with pytest.raises(ValueError, match="positions"):
        Shuffle(10, 0, "austen", 1).at([10])
