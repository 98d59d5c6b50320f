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


def pieces(mine_BT: Tensor, any_BT: Tensor, batch_size: int, world_size: int, most: int = 0) -> list[Piece]:
    """A worker's sequences, at most `most` at once (0: all), as many pieces as every other worker has.

    With sharded params the workers must go through the model equally often: one that has no sequences left does so with
    one that does not count.

    Args:
        mine_BT: sequences of this worker; some have one more than others, and some perhaps none.
        any_BT: what to go through the model with, without counting it.
        batch_size: sequences of all workers.
        world_size: how many workers there are.
        most: sequences of a piece.
    """
    largest = -(-batch_size // world_size)
    count = -(-largest // (most or largest))
    parts = mine_BT.tensor_split(count)
    return [Piece(part, len(part) * world_size / batch_size) if len(part) else Piece(any_BT, 0.0) for part in parts]
