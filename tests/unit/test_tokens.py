import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.data.corpus import of_text
from elastic.schedule.assignment import num_train_sequences
from elastic.train.tokens import Batches, held_out_batches

TOKENS = np.arange(1000, dtype=np.uint16)
"""Each token is its own place, so that a batch shows where it comes from."""
TEXT = of_text(TOKENS, held_out=0.05)


def test_a_batch_is_the_assigned_sequences_and_one_more_token_each() -> None:
    batches = Batches(TEXT, np.array([3, 0, 7, 1]), sequence_length=10, batch_size=2)

    first, second = batches

    assert first.dtype == torch.int64
    assert torch.equal(first, torch.stack([torch.arange(30, 41), torch.arange(0, 11)]))
    assert torch.equal(second, torch.stack([torch.arange(70, 81), torch.arange(10, 21)]))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 5), st.data())
def test_workers_share_a_step_whatever_their_number(batch_size: int, step: int, data: st.DataObject) -> None:
    world_size = data.draw(st.integers(1, batch_size))
    sequences = np.random.default_rng(0).permutation(90)
    alone = Batches(TEXT, sequences, 10, batch_size).batch(step)

    parts = [Batches(TEXT, sequences, 10, batch_size, rank, world_size).batch(step) for rank in range(world_size)]

    assert sorted(torch.cat(parts).tolist()) == sorted(alone.tolist())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_round_has_as_many_steps_as_full_batches() -> None:
    batches = Batches(TEXT, np.arange(11), sequence_length=10, batch_size=4)

    assert len(batches) == len(list(batches)) == 2


def test_too_few_sequences_for_one_batch_repeat() -> None:
    (batch,) = Batches(TEXT, np.array([5, 6]), sequence_length=10, batch_size=3)

    assert batch[:, 0].tolist() == [50, 60, 50]


def test_a_read_only_text_is_not_written_to() -> None:
    text = TOKENS.copy()
    text.flags.writeable = False

    batch = Batches(of_text(text, 0.05), np.array([0]), sequence_length=4, batch_size=1).batch(0)
    batch.zero_()

    assert text[:5].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("sequences", "rank", "world_size", "message"),
    [
        ([], 0, 1, "too short"),
        ([94], 0, 1, "outside"),
        ([-1], 0, 1, "outside"),
        ([0], 0, 3, "rank"),
        ([0], 1, 1, "rank"),
    ],
)
def test_impossible_batches_are_refused(sequences: list[int], rank: int, world_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(TEXT, np.array(sequences, dtype=np.int64), 10, 2, rank, world_size)


@settings(deadline=None)
@given(st.integers(100, 5000), st.floats(0.1, 0.49), st.integers(1, 40), st.integers(1, 8), st.integers(1, 30))
def test_held_out_batches_lie_beyond_every_training_sequence(
    num_tokens: int, held_out: float, length: int, batch_size: int, max_sequences: int
) -> None:
    text = np.arange(num_tokens, dtype=np.uint32)
    if num_tokens * held_out < length + 1:
        return
    last_trained = num_train_sequences(num_tokens, held_out, length) * length

    batches = list(held_out_batches(of_text(text, held_out), length, batch_size, max_sequences))

    rows = torch.cat(batches)
    assert rows.min() > last_trained
    assert rows.max() < num_tokens
    assert 1 <= len(rows) <= max_sequences
    assert len(torch.unique(rows[:, 0])) == len(rows)
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_held_out_batches_are_the_same_at_every_call() -> None:
    first, second = (list(held_out_batches(of_text(TOKENS, 0.3), 10, 4, 9)) for _ in range(2))

    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_held_out_part_without_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="held-out"):
        next(held_out_batches(of_text(TOKENS, 0.01), 10, 4, 9))
