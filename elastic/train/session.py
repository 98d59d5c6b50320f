"""The trainer of one worker, with the verbs of the story: what it `held`, and the model, `fitted` to its machine.

The model's params start from θ in every round. All workers of a peer call every verb together; each contributes the
tensors that it owns, and what comes out is the same, to rounding, however many they are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elastic.config import Shared
from elastic.contracts import Reducer, StateStore
from elastic.errors import DivergedError
from elastic.messages import Assessment, ContributionHeader, Digest, InnerReport, Manifest, RoundIndex, RoundPlan
from elastic.reports import Pending
from elastic.train.assess import assess
from elastic.train.fitted import Fitted
from elastic.train.held import Held
from elastic.train.inner import Stop, learning_rate, make_optimizer, run_inner_steps, warm_up
from elastic.train.outer import outer_steps
from elastic.train.pieces import Piece, pieces
from elastic.train.tokens import Batches, held_out_batches
from elastic.train.workers import Worker
from elastic.wire.threads import in_threads

Assign = Callable[[RoundPlan], np.ndarray[Any, np.dtype[np.int64]]]
"""Plan → ids of the token sequences assigned to this peer."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a session works with, chosen in the run file and built by `elastic.actors`."""

    model: Any
    """Its shapes count, not its values: it may be on the meta device."""
    corpus: Any
    assign: Assign
    reducer: Reducer
    store: StateStore


class Session(Held):
    """One worker's trainer."""

    def __init__(
        self,
        shared: Shared,
        parts: Parts,
        *,
        worker: Worker,
        on_step: Callable[[int, Tensor], bool] = lambda step, loss: False,
    ) -> None:
        like = {name: torch.empty(param.shape, device="meta") for name, param in parts.model.named_parameters()}
        super().__init__(worker, parts.store, parts.reducer, like)
        self.shared, self.on_step = shared, on_step
        self.corpus, self.assign, self.model = parts.corpus, parts.assign, parts.model
        self.begin(partial(_initial_values, parts.model, shared.seed), shared.outer)
        self.fitted = Fitted(parts.model, worker)
        self.loss = self.fitted.loss
        self._reset_optimizer()

    # --- the verbs of the story ----------------------------------------------------------------------------------

    def inner_steps(self, plan: RoundPlan) -> InnerReport:
        """Train from the anchor on the tokens assigned by the plan."""
        inner = self.shared.inner
        self.anchor_into_params()
        offset, total = (plan.round - 1) * inner.steps, self.shared.rounds * inner.steps
        try:
            report = run_inner_steps(
                self.loss, self.optimizer, self._batches(plan),
                learning_rates=lambda step: min(
                    learning_rate(offset + step, total, inner), warm_up(self._optimizer_steps + step, inner)
                ),
                clip_norm=inner.clip_norm, stop=Stop(plan.train_seconds, self.worker.any), on_step=self.on_step,
            )  # fmt: skip
        except DivergedError:
            self._reset_optimizer()  # its moments are poisoned
            raise
        self._optimizer_steps += report.steps
        return self._all_workers(report)

    def compress(self, plan: RoundPlan, inner: InnerReport) -> bytes:
        """Pseudo-gradient plus residual → payload bytes; both are on disk when this returns.

        From here on the residual is what is left once the payload counts; if it does not, the payload goes back in.
        """
        assert self.pending is None, "a contribution is settled before the next is made"
        delta = self.pseudo_gradient()
        try:
            mine, self.residual = self.worker.together(
                lambda: self.reducer.compress(delta, self.residual, inplace=True)
            )
        except DivergedError:
            self.forget_work()
            raise
        payload = self._whole_payload(self.reducer.encode(mine))
        self.owe(Pending(plan.round, inner, payload))
        return payload if self.worker.rank == 0 else b""  # nobody asks the others

    def outer_step(self, manifest: Manifest, payloads: Mapping[Digest, bytes]) -> Digest:
        """θ ← θ − α · Σ share · D̂ over what the manifest counts; settle our own contribution; write both to disk."""
        if not manifest.void:
            found = in_threads(lambda data: self.reducer.decode(data, self.like), payloads.values())
            decoded = dict(zip(payloads, found, strict=True))
            parts = [(decoded[entry.payload], entry.share) for entry in manifest.counted]
            outer_steps(self.anchor, parts, self.reducer, self.turns, self.shared.outer)
        self.settle(manifest)
        return self.commit_anchor(RoundIndex(manifest.round + 1))

    def load(self, state: bytes | None, round_: RoundIndex, settled: Manifest | None = None) -> Digest:
        """Take an anchor fetched from others. Work that was never counted stays in the residual.

        Args:
            state: the anchor's bytes; rank 0 needs them, others may have None.
            round_: whose anchor it is.
            settled: the manifest of our pending contribution's round, if it is known. If it is not, the contribution
                may have been counted and is dropped: applying it twice would be worse than losing it.
        """
        self.take_anchor(state)
        if settled is not None:
            self.settle(settled)
        self.pending = None
        return self.commit_anchor(round_)

    def assess(
        self, plan: RoundPlan, header: ContributionHeader, payload: bytes, seed: int, beside: bytes | None = None
    ) -> Assessment:
        """What one contribution alone would do to the loss of the anchor; see `train.assess`."""
        found: Assessment = assess(self, plan, header, payload, seed, beside)
        return found

    def evaluate(self, max_sequences: int) -> float:
        """Mean held-out loss of the anchor, in nats per token."""
        inner = self.shared.inner
        with self._anchor_in_model():
            return self.mean_loss(held_out_batches(self.corpus, inner.sequence_length, inner.batch_size, max_sequences))

    def generate(self, prompt: str, num_tokens: int) -> str:
        """Text continued by the anchor's model."""
        tokens = torch.as_tensor(np.asarray(self.corpus.tokenizer.encode(prompt), dtype=np.int64))[None]
        generator = torch.Generator().manual_seed(self.shared.seed)
        with self._anchor_in_model():
            prompt_1T = tokens.to(self.worker.device)
            out = self.fitted.look("generate", prompt_1T, num_tokens, temperature=0.7, generator=generator)
        text: str = self.corpus.tokenizer.decode(out[0].tolist())
        return text

    # --- what they and `assess` are made of ----------------------------------------------------------------------

    def anchor_into_params(self) -> None:
        """Set the model's params to θ."""
        self.fitted.fill(self.anchor.__getitem__, self.owners)

    def mean_loss(self, batches: Iterable[Tensor]) -> float:
        """Of the model as it is, in nats per token, over batches (B, T + 1) that the workers share."""
        worker, losses, count = self.worker, 0.0, 0
        for batch in self._here(batches):
            for piece in self._pieces(batch[worker.rank :: worker.world_size], batch[:1], len(batch)):
                losses += self.fitted.look("loss", piece.tokens_BT).item() * piece.weight * len(batch)
            count += len(batch)
        return worker.sums([losses])[0] / worker.world_size / count

    def pseudo_gradient(self) -> dict[str, Tensor]:
        """Δ = where the params started − where they are, fp32 on the CPU; if they are that already, in their place.

        They started from θ as their type can say it: what bf16 cannot say of θ was not learned, and must stay. Of the
        tensors that this worker owns.
        """
        found = {}
        for name, param in self.fitted.owned(self.owners):
            found[name] = value = param.cpu().float()
            torch.sub(self.anchor[name].to(param.dtype).float(), value, out=value)
        return found

    # --- details -------------------------------------------------------------------------------------------------

    def _reset_optimizer(self) -> None:
        self.optimizer, self._optimizer_steps = make_optimizer(self.model, self.shared.inner), 0

    def _whole_payload(self, mine: bytes) -> bytes:
        """Bytes of all workers' parts as those of one payload, on all workers."""
        if self.worker.world_size == 1:
            return mine
        told = self.worker.gather(mine)
        owned = [{n: meta for n, meta in self.like.items() if self.owners[n] == rank} for rank in range(len(told))]
        parts = [self.reducer.decode(data, like) for data, like in zip(told, owned, strict=True)]
        return self.reducer.encode(self.reducer.join(parts))

    def _batches(self, plan: RoundPlan) -> Iterator[list[Piece]]:
        inner, worker = self.shared.inner, self.worker
        batches = self._here(Batches(self.corpus, self.assign(plan), inner.sequence_length, inner.batch_size,
                                     rank=worker.rank, world_size=worker.world_size))  # fmt: skip
        return (self._pieces(batch, batch[:1], inner.batch_size) for batch in batches)

    def _here(self, batches: Iterable[Tensor]) -> Iterable[Tensor]:
        """With several workers tokens come before the first of them is looked at: who does not get its own would leave
        the others waiting for it in the middle of a step.
        """
        return batches if self.worker.world_size == 1 else self.worker.together(lambda: list(batches))

    def _pieces(self, mine: Tensor, any_one: Tensor, batch_size: int) -> list[Piece]:
        """This worker's part of a batch, on its device."""
        worker = self.worker
        found = pieces(mine, any_one, batch_size, worker.world_size, worker.how.micro_batch)
        return [Piece(piece.tokens_BT.to(worker.device), piece.weight) for piece in found]

    @contextmanager
    def _anchor_in_model(self) -> Iterator[None]:
        """For a look at the anchor, at any time: params trained and not yet compressed come back afterwards."""
        trained = self.fitted.kept()
        self.anchor_into_params()
        try:
            yield
        finally:
            self.fitted.put_back(trained)

    def _all_workers(self, report: InnerReport) -> InnerReport:
        """Losses are means over workers, tokens their sum."""
        n = self.worker.world_size
        sums = self.worker.sums([report.first_loss, report.last_loss, report.mean_loss, float(report.tokens)])
        losses = dict(zip(("first_loss", "last_loss", "mean_loss"), (each / n for each in sums[:3]), strict=True))
        return report.model_copy(update={**losses, "tokens": int(sums[3])})


def _initial_values(model: Any, seed: int) -> Iterable[tuple[str, Tensor]]:
    """A model's first params: one at a time if it knows how, else of a whole one like it."""
    if hasattr(model, "initial_values"):
        yield from model.initial_values(seed)
        return
    whole = type(model)(model.config)
    whole.initialize(seed)
    yield from whole.named_parameters()
