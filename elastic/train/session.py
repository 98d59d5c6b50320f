"""The trainer of one worker: it owns every dense tensor, and has the verbs of the story.

θ (the anchor) and the residual live on disk and, on rank 0, in memory; the model's params start from θ in every round.
With several workers rank 0 does everything but the inner steps, and hands θ to the others when those begin. What is on
disk when a process dies is enough: a restarted session holds the same anchor, the same residual, and the same
contribution if one is still to be settled.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from elastic.config import Shared
from elastic.contracts import Pending, Reducer, StateStore, TrainerState
from elastic.errors import DivergedError, MalformedError, StateError
from elastic.messages import (
    Assessment,
    ContributionHeader,
    Digest,
    InnerReport,
    Manifest,
    RoundIndex,
    RoundPlan,
)
from elastic.reports import PendingMeta, StateMeta, file_name, fits
from elastic.train.assess import assess
from elastic.train.inner import Stop, learning_rate, make_optimizer, run_inner_steps, warm_up
from elastic.train.outer import Turns, initial_anchor, outer_steps
from elastic.train.tokens import Batches, held_out_batches
from elastic.wire.dense import decode_state, encode_state
from elastic.wire.threads import in_threads
from elastic.wire.tree import blob_digest

Assign = Callable[[RoundPlan], np.ndarray[Any, np.dtype[np.int64]]]
"""Plan → ids of the token sequences assigned to this peer."""


@dataclass(frozen=True, slots=True)
class Worker:
    """This worker among the workers of its peer, and where it computes."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a session works with, chosen in the run file and built by `elastic.actors`."""

    model: Any
    corpus: Any
    assign: Assign
    reducer: Reducer
    store: StateStore


class _Loss(nn.Module):  # type: ignore[misc]
    """The model's loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor) -> Tensor:
        loss: Tensor = self.model.loss(tokens_BT)
        return loss


class Session:
    """One worker's trainer. `store` and `reducer` are used on rank 0 only."""

    def __init__(
        self,
        shared: Shared,
        parts: Parts,
        *,
        worker: Worker,
        on_step: Callable[[int, Tensor], bool] = lambda step, loss: False,
    ) -> None:
        self.shared, self.worker, self.on_step = shared, worker, on_step
        self.model, self.corpus, self.assign = parts.model, parts.corpus, parts.assign
        self.reducer, self.store = parts.reducer, parts.store
        model = self.model
        model.initialize(shared.seed)
        self.model.to(worker.device)
        self.params = dict(model.named_parameters())
        self._reset_optimizer()
        loss: nn.Module = _Loss(model)
        self.loss = nn.parallel.DistributedDataParallel(loss) if worker.world_size > 1 else loss
        self.like = {name: torch.empty(param.shape, device="meta") for name, param in self.params.items()}
        self.turns = Turns(self.like)
        self.anchor = initial_anchor(self.params, shared.outer)
        self.pending: Pending | None = None
        self._residual_file: str | None = None
        self.residual: dict[str, Tensor] = {}
        self._read_residual()
        if worker.rank == 0:
            self._resume()

    # --- what it holds -------------------------------------------------------------------------------------------

    def state(self) -> TrainerState:
        """What this trainer holds, also right after a restart."""
        return TrainerState(
            round=self.meta.round, anchor=self.meta.anchor, size_bytes=self.size_bytes,
            state_path=self.store.path_of(self.meta.anchor_file), pending=self.pending,
        )  # fmt: skip

    def _resume(self) -> None:
        meta = self.store.load()
        if meta is None:
            self._commit_anchor(RoundIndex(0))
            return
        self.meta, self._residual_file = meta, meta.residual_file
        try:
            self._take_anchor(self.store.read_file(meta.anchor_file), meta.anchor)
            self._read_residual()
            self.pending = self._read_pending(meta.pending) if meta.pending else None
        except MalformedError as error:
            raise StateError(f"the state on disk is damaged, or of another model ({error}): remove the state "
                             "directory to fetch it from the swarm again") from error  # fmt: skip

    def _take_anchor(self, data: bytes, expected: Digest) -> None:
        if blob_digest(data) != expected:
            raise MalformedError(f"anchor: expected digest {expected[:12]}…")
        self.size_bytes = len(data)
        self.anchor = decode_state(data, self.anchor)

    def _read_pending(self, meta: PendingMeta) -> Pending:
        pending = Pending(meta.round, meta.inner, self.store.read_file(meta.payload_file))
        if meta.payload_file != _payload_file(pending):
            raise MalformedError(f"payload of round {meta.round}: another digest than its name says")
        return pending

    # --- the verbs of the story ----------------------------------------------------------------------------------

    def inner_steps(self, plan: RoundPlan) -> InnerReport:
        """Train from the anchor on the tokens assigned by the plan; every worker calls it."""
        inner = self.shared.inner
        self._start_from_anchor()
        offset, total = (plan.round - 1) * inner.steps, self.shared.rounds * inner.steps
        try:
            report = run_inner_steps(
                self.loss, self.optimizer, self._batches(plan),
                learning_rates=lambda step: min(
                    learning_rate(offset + step, total, inner), warm_up(self._optimizer_steps + step, inner)
                ),
                clip_norm=inner.clip_norm, stop=Stop(plan.train_seconds, self._any_worker), on_step=self.on_step,
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
        try:
            payload, self.residual = self.reducer.compress(self._pseudo_gradient(), self.residual, inplace=True)
        except DivergedError:
            self._read_residual()
            raise
        self.pending = Pending(plan.round, inner, self.reducer.encode(payload))
        self._commit_residual(self.pending)
        return self.pending.payload

    def outer_step(self, manifest: Manifest, payloads: Mapping[Digest, bytes]) -> Digest:
        """θ ← θ − α · Σ share · D̂ over what the manifest counts; settle our own contribution; write both to disk."""
        if not manifest.void:
            found = in_threads(lambda data: self.reducer.decode(data, self.like), payloads.values())
            decoded = dict(zip(payloads, found, strict=True))
            parts = [(decoded[entry.payload], entry.share) for entry in manifest.counted]
            outer_steps(self.anchor, parts, self.reducer, self.turns, self.shared.outer)
        self._settle(manifest)
        return self._commit_anchor(RoundIndex(manifest.round + 1))

    def load(self, state: bytes, round_: RoundIndex, settled: Manifest | None = None) -> Digest:
        """Take an anchor fetched from others. Work that was never counted stays in the residual.

        Args:
            settled: the manifest of our pending contribution's round, if it is known. If it is not, the contribution
                may have been counted and is dropped: applying it twice would be worse than losing it.
        """
        self.anchor = decode_state(state, self.anchor)
        if settled is not None:
            self._settle(settled)
        self.pending = None
        return self._commit_anchor(round_)

    def assess(
        self, plan: RoundPlan, header: ContributionHeader, payload: bytes, seed: int, beside: bytes | None = None
    ) -> Assessment:
        """What one contribution alone would do to the loss of the anchor; see `train.assess`."""
        found: Assessment = assess(self, plan, header, payload, seed, beside)
        return found

    def evaluate(self, max_sequences: int) -> float:
        """Mean held-out loss of the anchor, in nats per token."""
        inner, losses = self.shared.inner, []
        with self._anchor_in_model(), torch.no_grad():
            for batch in held_out_batches(self.corpus, inner.sequence_length, inner.batch_size, max_sequences):
                losses.append((self.model.loss(batch.to(self.worker.device)).item(), len(batch)))
        return float(sum(loss * count for loss, count in losses) / sum(count for _, count in losses))

    def generate(self, prompt: str, num_tokens: int) -> str:
        """Text continued by the anchor's model."""
        tokens = torch.as_tensor(np.asarray(self.corpus.tokenizer.encode(prompt), dtype=np.int64))[None]
        generator = torch.Generator().manual_seed(self.shared.seed)
        with self._anchor_in_model():
            out = self.model.generate(tokens.to(self.worker.device), num_tokens, temperature=0.7, generator=generator)
        text: str = self.corpus.tokenizer.decode(out[0].tolist())
        return text

    # --- details -------------------------------------------------------------------------------------------------

    def _reset_optimizer(self) -> None:
        self.optimizer, self._optimizer_steps = make_optimizer(self.model, self.shared.inner), 0

    def _pseudo_gradient(self) -> dict[str, Tensor]:
        """Δ = where the params started − where they are, fp32 on the CPU; if they are that already, in their place.

        They started from θ as their type can say it: what bf16 cannot say of θ was not learned, and must stay.
        """
        found = {}
        for name, param in self.params.items():
            found[name] = value = param.detach().cpu().float()
            torch.sub(self.anchor[name].to(param.dtype).float(), value, out=value)
        return found

    def _batches(self, plan: RoundPlan) -> Any:
        inner, worker = self.shared.inner, self.worker
        batches = Batches(self.corpus, self.assign(plan), inner.sequence_length, inner.batch_size,
                          rank=worker.rank, world_size=worker.world_size)  # fmt: skip
        return (batch.to(worker.device) for batch in batches)

    def _start_from_anchor(self) -> None:
        if self.worker.rank == 0:
            self.anchor_into_params()
        if self.worker.world_size > 1:
            for param in self.params.values():
                dist.broadcast(param.data, src=0)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def anchor_into_params(self) -> None:
        for name, param in self.params.items():
            param.copy_(self.anchor[name])

    @contextmanager
    def _anchor_in_model(self) -> Iterator[None]:
        """For a look at the anchor, at any time: params trained and not yet compressed come back afterwards."""
        trained = {name: param.detach().clone() for name, param in self.params.items()}
        self.anchor_into_params()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, param in self.params.items():
                    param.copy_(trained[name])

    def _any_worker(self, flag: bool) -> bool:
        """True on all workers as soon as it is true on one, so that they leave the loop after the same step."""
        if self.worker.world_size == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self.worker.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def _all_workers(self, report: InnerReport) -> InnerReport:
        """Losses are means over workers, tokens their sum."""
        n = self.worker.world_size
        if n == 1:
            return report
        fields = [report.first_loss, report.last_loss, report.mean_loss, float(report.tokens)]
        sums = torch.tensor(fields, dtype=torch.float64, device=self.worker.device)
        dist.all_reduce(sums)
        first, last, mean, tokens = sums.tolist()
        return report.model_copy(
            update={
                "first_loss": first / n,
                "last_loss": last / n,
                "mean_loss": mean / n,
                "tokens": int(tokens),
            }
        )

    def _settle(self, manifest: Manifest) -> None:
        """Our pending contribution left the residual; put it back unless this manifest counts it."""
        pending = self.pending
        if pending is None or pending.round > manifest.round:
            return
        # Who lost its disk has two contributions in a round: one may count, and the other is the one we hold.
        # A thief's copy may count instead of its original.
        counted = manifest.applies(blob_digest(pending.payload))
        # An average holds everyone's work, so there any manifest that is not void has ours.
        counted = counted or (self.reducer.averages and not manifest.void)
        if pending.round < manifest.round or not counted:
            mine = self.reducer.decode(pending.payload, self.like)
            for some, room in self.turns:
                for name, value in self.reducer.aggregate([(mine, 1.0)], some, out=room).items():
                    self.residual[name].add_(value)
            self._write_residual(pending.round)
        self.pending = None

    def _commit_residual(self, pending: Pending) -> None:
        payload_file = _payload_file(pending)
        self.store.write_file(payload_file, pending.payload)
        self._write_residual(pending.round)
        meta = PendingMeta(round=pending.round, inner=pending.inner, payload_file=payload_file)
        self._commit(self.meta.model_copy(update={"residual_file": self._residual_file, "pending": meta}))

    def _read_residual(self) -> None:
        if self._residual_file:
            data = self.store.read_file(self._residual_file)
            if not fits(self._residual_file, blob_digest(data)):
                raise MalformedError("residual: another digest than its name says")
            self.residual = decode_state(data, self.residual)
        else:
            self.residual = {name: torch.zeros(meta.shape) for name, meta in self.like.items()}

    def _write_residual(self, round_: RoundIndex) -> None:
        data = encode_state(self.residual)
        self._residual_file = file_name("residual", round_, blob_digest(data))
        self.store.write_file(self._residual_file, data)

    def _commit_anchor(self, round_: RoundIndex) -> Digest:
        data = encode_state(self.anchor)
        digest = blob_digest(data)
        name = file_name("anchor", round_, digest)
        self.size_bytes = len(data)
        self.store.write_file(name, data)
        self._commit(StateMeta(round=round_, anchor=digest, anchor_file=name, residual_file=self._residual_file))
        return digest

    def _commit(self, meta: StateMeta) -> None:
        self.store.commit(meta)
        self.meta = meta


def _payload_file(pending: Pending) -> str:
    return file_name("payload", pending.round, blob_digest(pending.payload))
