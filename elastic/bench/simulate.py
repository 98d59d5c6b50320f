"""A swarm without a network: peers in one process, with the real model, inner steps, reducers, bytes and outer step.

What is left out is what changes no number: Ray, Hivemind, agreement and time. Everyone arrives in every round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elastic.config import InnerConfig, OuterConfig
from elastic.data.corpus import Tokens, of_text
from elastic.reduce.dense import Average
from elastic.reduce.sparseloco import SparseLoCo
from elastic.registry import READ_CORPUS, build, load
from elastic.schedule.assignment import Shuffle
from elastic.sections import PluginChoice
from elastic.train.inner import Stop, learning_rate, make_optimizer, run_inner_steps
from elastic.train.outer import outer_step, with_momentum
from elastic.train.pieces import Piece
from elastic.train.tokens import Batches, held_out_batches

HELD_OUT = 0.05
"""Part of the text at its end that is never trained on."""
HELD_OUT_SEQUENCES = 512
POINTS = 8
"""Points of a curve."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way of training. All recipes with equal `tokens` see the same sequences in the same order."""

    name: str
    method: str
    """"adamw": data-parallel, one step on everyone's batch. "diloco": dense, Nesterov. "sparseloco"."""
    inner: InnerConfig
    peers: int = 4
    tokens: int = 250_000
    """Of all peers together."""
    seed: int = 0
    reducer: SparseLoCo.Config = field(default_factory=SparseLoCo.Config)
    outer: OuterConfig = field(default_factory=OuterConfig)

    @property
    def steps(self) -> int:
        """Inner steps of each peer, whole rounds."""
        each = self.peers * self.inner.batch_size * self.inner.sequence_length
        return max(1, round(self.tokens / each / self.inner.steps)) * self.inner.steps


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    held_out: float
    """Nats per token, after the last round."""
    curve: list[tuple[int, float]]
    """(tokens of all peers, held-out loss), some points."""
    bytes_per_peer: int
    """Sent by each peer in all rounds; for data-parallel training fp32 gradients in every step."""
    tokens: int
    seconds: float


class Swarm:
    """The peers of one recipe."""

    def __init__(self, recipe: Recipe, model_choice: PluginChoice, tokens: Tokens) -> None:
        self.recipe, self.corpus = recipe, of_text(tokens, HELD_OUT)
        self.model: Any = build("model", model_choice)
        self.model.initialize(recipe.seed)
        self.params = dict(self.model.named_parameters())
        self.residuals: list[dict[str, Tensor]] = []
        self.last_error: dict[str, Tensor] = {}
        """β·residual + Δ of the peer that contributed last, as its `compress` met it."""
        (self.total,) = self.corpus.sizes(recipe.inner.sequence_length)

    def train(self, on_point: Callable[[int, float], None] = lambda tokens, loss: None) -> Outcome:
        """Run the recipe to its end; `on_point` is told each point of the curve as it comes."""
        start, recipe, inner = time.perf_counter(), self.recipe, self.recipe.inner
        rounds, each = (
            recipe.steps // inner.steps,
            inner.steps * recipe.peers * inner.batch_size * inner.sequence_length,
        )
        step = self._data_parallel() if recipe.method == "adamw" else self._rounds()
        curve, sent = [], 0
        for round_ in range(rounds):
            sent += next(step)
            if (round_ + 1) % max(1, rounds // POINTS) == 0 and round_ + 1 < rounds:
                curve.append(((round_ + 1) * each, self._held_out_loss()))
                on_point(*curve[-1])
        loss = self._held_out_loss()
        curve.append((rounds * each, loss))
        return Outcome(loss, curve, sent, rounds * each, time.perf_counter() - start)

    def _data_parallel(self) -> Iterator[int]:
        """AdamW on everyone's batch in every step; yields the bytes that a peer sends in a round."""
        recipe, inner = self.recipe, self.recipe.inner
        optimizer = make_optimizer(self.model, inner)
        fp32 = 4 * sum(param.numel() for param in self.params.values())
        for round_ in count():
            batches = [self._batches(round_, peer) for peer in range(recipe.peers)]
            self._inner_steps(optimizer, (torch.cat(parts) for parts in zip(*batches, strict=True)), round_)
            yield fp32 * inner.steps

    def _rounds(self) -> Iterator[int]:
        """Inner steps, payloads and one outer step; yields the bytes that a peer sends in a round."""
        recipe = self.recipe
        reducer: Any = SparseLoCo(recipe.reducer) if recipe.method == "sparseloco" else Average(Average.Config())
        start = {name: param.detach().clone() for name, param in self.params.items()}
        anchor = with_momentum(start, recipe.outer)
        optimizers = [make_optimizer(self.model, recipe.inner) for _ in range(recipe.peers)]
        self.residuals = [{name: torch.zeros(param.shape) for name, param in self.params.items()} for _ in optimizers]
        for round_ in count():
            parts, sent = [], 0
            for peer, optimizer in enumerate(optimizers):
                self._load(anchor)
                self._inner_steps(optimizer, self._batches(round_, peer), round_)
                data = self._contribute(reducer, anchor, peer)
                parts.append((reducer.decode(data, self.params), 1 / recipe.peers))
                sent += len(data)
            outer_step(anchor, reducer.aggregate(parts, self.params), recipe.outer)
            self._load(anchor)
            yield sent // recipe.peers

    def _contribute(self, reducer: Any, anchor: dict[str, Tensor], peer: int) -> bytes:
        delta = {name: anchor[name] - param.detach() for name, param in self.params.items()}
        self.last_error = {name: self.recipe.reducer.beta * self.residuals[peer][name] + delta[name] for name in delta}
        payload, self.residuals[peer] = reducer.compress(delta, self.residuals[peer])
        return bytes(reducer.encode(payload))

    def _inner_steps(self, optimizer: torch.optim.Optimizer, batches: Iterator[Tensor], round_: int) -> None:
        inner, offset = self.recipe.inner, round_ * self.recipe.inner.steps
        run_inner_steps(
            self.model.loss, optimizer, ([Piece(batch)] for batch in batches),
            learning_rates=lambda step: learning_rate(offset + step, self.recipe.steps, inner),
            clip_norm=inner.clip_norm, stop=Stop(1e9),
        )  # fmt: skip

    def _batches(self, round_: int, peer: int) -> Iterator[Tensor]:
        """Step s of all peers together is the same tokens for every number of inner steps: one long shuffle."""
        inner, peers = self.recipe.inner, self.recipe.peers
        steps = np.arange(round_ * inner.steps, (round_ + 1) * inner.steps)
        places = (steps[:, None] * peers + peer) * inner.batch_size + np.arange(inner.batch_size)
        laps, places = np.divmod(places.reshape(-1), self.total)
        sequences = np.empty_like(places)
        for lap in np.unique(laps):
            here = laps == lap
            shuffle = Shuffle(self.total, self.recipe.seed, "bench", int(lap))
            sequences[here] = shuffle.at(places[here])
        return iter(Batches(self.corpus, sequences, inner.sequence_length, inner.batch_size))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _load(self, anchor: dict[str, Tensor]) -> None:
        for name, param in self.params.items():
            param.copy_(anchor[name])

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _held_out_loss(self) -> float:
        inner, losses = self.recipe.inner, []
        for batch in held_out_batches(self.corpus, inner.sequence_length, 32, HELD_OUT_SEQUENCES):
            losses.append((self.model.loss(batch).item(), len(batch)))
        return float(sum(loss * count for loss, count in losses) / sum(count for _, count in losses))


def num_params(model_choice: PluginChoice) -> int:
    """Trained numbers of a model."""
    with torch.device("meta"):
        model: nn.Module = build("model", model_choice)
    return sum(param.numel() for param in model.parameters())


def recorded_residuals(seed: int, rounds: int = 8) -> dict[str, Tensor]:
    """e of a peer in mid-run, β·residual + Δ, as `compress` meets it: one peer on the shipped text, some seconds."""
    inner = InnerConfig(steps=10, batch_size=8, sequence_length=64)
    recipe = Recipe("residuals", "sparseloco", inner, peers=1, tokens=rounds * 10 * 8 * 64, seed=seed)
    tokens = np.frombuffer(load(READ_CORPUS)("pride_and_prejudice"), np.uint8).astype(np.uint16)
    swarm = Swarm(recipe, PluginChoice(name="llama", preset="nano"), tokens)  # type: ignore[call-arg]
    swarm.train()
    return swarm.last_error
