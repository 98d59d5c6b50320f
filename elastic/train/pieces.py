"""A worker's part of a batch in pieces: the gradient is that of the whole batch, however many workers share it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that go through the model at once."""

    tokens_BT: Tensor
    """(B, T + 1), int64."""
    weight: float = 1.0
    """Of their mean loss; summed over a worker's pieces and averaged over the workers, weights come to 1."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are predicted and count."""
        return self.tokens_BT.shape[0] * (self.tokens_BT.shape[1] - 1) if self.weight else 0


def pieces(batch_BT: Tensor, batch_size: int, world_size: int, most: int = 0) -> list[Piece]:
    """A worker's sequences, at most `most` at once (0: all), as many pieces as every other worker has.

    With sharded params the workers must go through the model equally often: one that has no sequences left does so with
    one that does not count.

    Args:
        batch_BT: of this worker; some have one sequence more than others.
        batch_size: sequences of all workers.
        world_size: how many workers there are, none without a sequence.
        most: sequences of a piece.
    """
    largest = -(-batch_size // world_size)
    count = -(-largest // (most or largest))
    parts = batch_BT.tensor_split(count)
    return [
        Piece(part, len(part) * world_size / batch_size) if len(part) else Piece(batch_BT[:1], 0.0) for part in parts
    ]
