"""A Llama-style decoder, from one million parameters to seventy-two billion.

RMSNorm before each sub-layer, rotary positions, grouped-query attention, SwiGLU, no biases, embeddings tied
or not. Sources: LLaMA, arXiv 2302.13971; Llama 3, arXiv 2407.21783.

Query, key and value are one matrix, and so are gate and up: fewer and larger products.
"""

# B batch, T time, P positions (B * T), V vocabulary, D model width, H query heads, K key-value heads,
# G all rotated heads (H + K), E width of one head, F width of the feed-forward layer

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from model_zoo.generation import BlockCache, Cache, stream
from model_zoo.gradients import cross_entropy, linear, rms_norm, rotated, swiglu
from model_zoo.shapes import Shape, shape_of

LOGITS_AT_ONCE = 2**25
"""Elements of the logits that exist at once in `loss`: 128 MiB in fp32. Larger batches go in pieces."""
DRAW_LEVELS = 2**23
"""Initial values are integers in [-2**23, 2**23), each exact in fp32, times a constant."""


class Llama(nn.Module):  # type: ignore[misc]
    """The decoder. Parameters are allocated, not set: call `initialize` or load a state before use.

    What a trainer may rely on, of this and of any other model named in a run file:
        `Model(config)` costs memory only, and none under `torch.device("meta")`;
        `initialize(seed)` gives the same bits on every machine; a model that has `initial_values(seed)` gives them
            as (name, tensor), one by one;
        `model(tokens_BT)` gives logits_BTV, `model.loss(tokens_BT1)` a scalar in nats per token;
        `generate(prompt_1T, num_tokens, temperature, generator)` gives tokens_1T; a model that has `stream`, with the
            same arguments, gives the new ones one by one;
        `blocks`, if it has them, are its layers: sharded, recomputed and compiled one by one, and, if they are
            matrices, taken for hidden ones by Muon;
        `config` is what it was made from; all state is in its parameters (no buffers).
    """

    class Config(BaseModel):
        """[shared.model] with `name = "llama"`: a preset, and what to change in it."""

        model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

        preset: str = "nano"
        """One of nano, micro, 150m, 1b, 8b, 72b."""
        vocab_size: int | None = Field(default=None, ge=2, le=2**20)
        """Tokens in the vocabulary; must be that of the tokenizer, or larger."""
        layers: int | None = Field(default=None, ge=1, le=1024)
        """Decoder blocks."""
        dim: int | None = Field(default=None, ge=2, le=2**17)
        """Width of the model, a multiple of `heads`."""
        heads: int | None = Field(default=None, ge=1, le=2**16)
        """Query heads, a multiple of `kv_heads`."""
        kv_heads: int | None = Field(default=None, ge=1, le=2**16)
        """Key and value heads."""
        ffn_dim: int | None = Field(default=None, ge=1, le=2**20)
        """Inner width of the feed-forward layer."""
        rope_theta: float | None = Field(default=None, gt=1)
        """Base of the rotary wavelengths."""
        max_sequence_length: int | None = Field(default=None, ge=1, le=2**24)
        """Longest sequence, in tokens."""
        tied: bool | None = None
        """One matrix for the embedding and the output."""
        norm_epsilon: float | None = Field(default=None, gt=0, lt=1)
        """Added to the mean square in RMSNorm."""

        @model_validator(mode="after")
        def _makes_a_shape(self) -> "Llama.Config":
            _ = self.shape
            return self

        @property
        def shape(self) -> Shape:
            """The preset with its changes."""
            return shape_of(self.preset, self.model_dump(exclude={"preset"}, exclude_none=True))

    def __init__(self, config: "Llama.Config") -> None:
        super().__init__()
        self.config = config
        self.shape = shape = config.shape
        self.embedding = nn.Parameter(torch.empty(shape.vocab_size, shape.dim))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.empty(shape.dim))
        self.head = None if shape.tied else nn.Parameter(torch.empty(shape.vocab_size, shape.dim))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits of the next token at each position, (B, T, V).

        Raises:
            ValueError: the sequences are longer than the model's `max_sequence_length`.
        """
        return self._logits(self._hidden(tokens_BT))

    def loss(self, tokens_BT1: Tensor) -> Tensor:
        """Mean cross-entropy in nats of tokens[:, 1:] given tokens[:, :-1], a scalar.

        A batch whose logits would not fit is done in pieces; the backward pass computes their logits again.

        Args:
            tokens_BT1: (B, T + 1), int64.

        Raises:
            ValueError: see `forward`.
        """
        hidden_PD = self._hidden(tokens_BT1[:, :-1]).flatten(0, 1)
        targets_P = tokens_BT1[:, 1:].flatten()
        at_once = max(1, LOGITS_AT_ONCE // self.shape.vocab_size)
        return cross_entropy(hidden_PD, self._head(), targets_P, at_once) / len(targets_P)

    def generate(
        self,
        prompt_1T: Tensor,
        num_tokens: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The prompt and `num_tokens` more, (1, T + num_tokens); the arguments of `stream`."""
        return torch.cat((prompt_1T, *self.stream(prompt_1T, num_tokens, temperature, generator)), dim=1)

    def stream(
        self,
        prompt_1T: Tensor,
        num_tokens: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Tokens that continue the prompt, (1, 1) each, as they are drawn; see `generation.stream`.

        Args:
            prompt_1T: (1, T) with T ≥ 1, int64.
            num_tokens: how many tokens to add.
            temperature: divides the logits; 0 takes the most likely token.
            generator: source of the draws; None: torch's own.
        """
        return stream(self, prompt_1T, num_tokens, temperature, generator)

    def next_logits(self, tokens_BT: Tensor, cache: Cache) -> Tensor:
        """Logits of the token after these, (B, V), given what the cache has read before; it has read these then too.

        All but the first tokens of a text come one at a time: T is 1 unless the cache is empty.
        """
        return self._logits(self._hidden(tokens_BT, cache)[:, -1])

    def initialize(self, seed: int) -> None:
        """Set every parameter, to the same bits on every machine; `seed` is in [0, 2**63).

        Strangers must begin from one anchor, bit for bit, and normal draws do not allow that: they go through
        logarithms and cosines, whose last bit depends on the math library and on vectorisation. So all values
        are uniform: integers from a CPU Mersenne twister, each exact in fp32, times one constant, which
        IEEE 754 rounds alike everywhere. Parameters are visited in the order of their names. Norms are one.
        """
        params = dict(self.named_parameters())
        with torch.no_grad():
            for name, value in self.initial_values(seed):
                params[name].copy_(value)

    def initial_values(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """What `initialize` sets, in its order: name and fp32 tensor, one in memory at a time.

        Also of a model on the meta device: whoever holds a part of the model needs no memory for all of it.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, param in sorted(self.named_parameters()):
            value = torch.ones(param.shape)
            if param.ndim > 1:
                fill_uniform(value, self.initial_std(name), generator)
            yield name, value

    def initial_std(self, name: str) -> float:
        """Standard deviation of a matrix: sqrt(2 / 5D), less for what adds to the residual stream.

        It follows the width: 0.056 for nano, 0.007 for 72b.
        Source: Transformers without Tears, arXiv 1910.05895.
        """
        std = math.sqrt(0.4 / self.shape.dim)
        return std / math.sqrt(2 * self.shape.layers) if name.endswith((".out", ".down")) else std

    def _hidden(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        begin = 0 if cache is None else cache.length
        length = begin + tokens_BT.shape[1]
        if length > self.shape.max_sequence_length:
            raise ValueError(
                f"{length} tokens in a sequence; this model takes {self.shape.max_sequence_length} at most"
            )
        longest = length if cache is None else cache.longest
        cos_L1E, sin_L1E = rope_tables(longest, self.shape.head_dim, self.shape.rope_theta, tokens_BT.device)
        rotation = cos_L1E[begin:length], sin_L1E[begin:length]
        x_BTD = F.embedding(tokens_BT, self.embedding)
        for number, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, rotation, None if cache is None else cache.blocks[number])
        return rms_norm(x_BTD, self.norm, self.shape.norm_epsilon)

    def _logits(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self._head())

    def _head(self) -> Tensor:
        return self.embedding if self.head is None else self.head


class Block(nn.Module):  # type: ignore[misc]
    """One decoder layer: x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.attention_norm = nn.Parameter(torch.empty(shape.dim))
        self.qkv = nn.Parameter(torch.empty((shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.dim))
        self.out = nn.Parameter(torch.empty(shape.dim, shape.dim))
        self.ffn_norm = nn.Parameter(torch.empty(shape.dim))
        self.gate_up = nn.Parameter(torch.empty(2 * shape.ffn_dim, shape.dim))
        self.down = nn.Parameter(torch.empty(shape.dim, shape.ffn_dim))

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], cache: BlockCache | None = None) -> Tensor:
        """(B, T, D) → (B, T, D), given what the cache has read before."""
        epsilon = self.shape.norm_epsilon
        x_BTD = x_BTD + self._attention(rms_norm(x_BTD, self.attention_norm, epsilon), rotation, cache)
        return x_BTD + self._feed_forward(rms_norm(x_BTD, self.ffn_norm, epsilon))

    def _attention(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], cache: BlockCache | None) -> Tensor:
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        qkv_BTGE = linear(x_BTD, self.qkv).unflatten(-1, (heads + 2 * kv_heads, self.shape.head_dim))
        query_BHTE, key_BKTE, value_BKTE = (
            each.transpose(1, 2) for each in rotated(qkv_BTGE, rotation, heads, kv_heads)
        )
        if cache is not None:
            key_BKTE, value_BKTE = cache.extended(key_BKTE, value_BKTE)
        mixed_BHTE = F.scaled_dot_product_attention(
            query_BHTE,
            key_BKTE,
            value_BKTE,
            is_causal=x_BTD.shape[1] > 1,  # a single token sees all there is
            enable_gqa=heads != kv_heads,
        )
        return linear(mixed_BHTE.transpose(1, 2).flatten(2), self.out)

    def _feed_forward(self, x_BTD: Tensor) -> Tensor:
        return linear(swiglu(linear(x_BTD, self.gate_up)), self.down)


@lru_cache(maxsize=8)
def rope_tables(length: int, head_dim: int, theta: float, device: Any) -> tuple[Tensor, Tensor]:
    """cos and signed sin of each position's angles, both (T, 1, E) fp32, for `rotate`.

    Kept here and not in buffers: they are no state, and DDP would broadcast buffers at every step.
    """
    with torch.inference_mode(False):  # what is cached in an evaluation must serve training too
        frequencies = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
        angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]


def fill_uniform(param: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill with uniform draws of that standard deviation, any dtype and device; see `Llama.initialize`."""
    step = math.sqrt(3.0) * std / DRAW_LEVELS
    for part in param.view(-1).split(2**24):  # a 72B embedding would otherwise need 8 GiB beside it
        draws = torch.empty(len(part), dtype=torch.float32).random_(-DRAW_LEVELS, DRAW_LEVELS, generator=generator)
        part.copy_(draws.mul_(step))
