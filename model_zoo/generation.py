"""Text token by token: what a decoder has read is kept, so that each new token costs one position."""

# T time, P positions there is room for, V vocabulary, K key-value heads, E width of one head

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from model_zoo.llama import Llama
    from model_zoo.shapes import Shape


class BlockCache:
    """Keys and values of one block, of what was read so far."""

    def __init__(self, room_2BKPE: Tensor) -> None:
        self._room_2BKPE = room_2BKPE
        self.length = 0

    def extended(self, key_BKTE: Tensor, value_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Keep these too; gives all there are."""
        end = self.length + key_BKTE.shape[2]
        self._room_2BKPE[0, :, :, self.length : end] = key_BKTE
        self._room_2BKPE[1, :, :, self.length : end] = value_BKTE
        self.length = end
        return self._room_2BKPE[0, :, :, :end], self._room_2BKPE[1, :, :, :end]


class Cache:
    """What a model has read of one text."""

    def __init__(self, shape: Shape, longest: int, like: Tensor) -> None:
        """Room for a text of so many tokens, in the type and on the device of `like`."""
        self.longest = longest
        room = like.new_empty(shape.layers, 2, 1, shape.kv_heads, longest, shape.head_dim)
        self.blocks = [BlockCache(each) for each in room]

    @property
    def length(self) -> int:
        """Tokens read."""
        return self.blocks[0].length


def stream(
    model: Llama,
    prompt_1T: Tensor,
    num_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """Tokens that continue the prompt, (1, 1) each, as they are drawn.

    Of a prompt longer than the model's longest sequence its end is read. When the text has outgrown that, its older
    half is forgotten and the rest is read again, at positions from 0: so a token costs the same however long the text.
    """
    longest = model.shape.max_sequence_length
    context_1T, cache = prompt_1T[:, -longest:], None
    unread_1T = context_1T
    for left in range(num_tokens, 0, -1):
        if cache is None:
            room = min(longest, context_1T.shape[1] + left - 1)
            cache, unread_1T = Cache(model.shape, room, model.embedding), context_1T
        with torch.no_grad():
            unread_1T = draw(model.next_logits(unread_1T, cache), temperature, generator)
        yield unread_1T
        context_1T = torch.cat((context_1T, unread_1T), dim=1)
        if context_1T.shape[1] > longest:
            context_1T, cache = context_1T[:, -max(1, longest // 2) :], None


COLD = 1e-4
"""Temperature below which the most likely token is taken: logits divided by less may not be finite."""


def draw(logits_1V: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token per row, (1, 1), from softmax(logits / temperature); of a cold one the largest."""
    if temperature < COLD:
        return logits_1V.argmax(dim=-1, keepdim=True)
    # Drawn where the generator lives: one seed on the CPU gives the same text on any device.
    where = generator.device if generator is not None else logits_1V.device
    shares_1V = torch.softmax(logits_1V.float() / temperature, dim=-1).to(where)
    return torch.multinomial(shares_1V, 1, generator=generator).to(logits_1V.device)
