"""What a trainer holds between rounds: anchor, residual and a contribution that is not settled. All of it is on disk.

Each worker holds the tensors that it owns, in the host's memory, and writes and reads them at their places in files
that are the same whatever the number of workers: a peer may come back with more of them, or fewer. What is on disk when
a process dies is enough: a restarted session holds the same anchor, the same residual, and the same contribution if one
is still to be settled. The folder is on one machine, or on a file system that all workers see.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from elastic.config import OuterConfig
from elastic.contracts import Reducer, StateStore
from elastic.errors import MalformedError, StateError, state_error
from elastic.messages import Digest, Manifest, RoundIndex
from elastic.reports import Pending, PendingMeta, StateMeta, TrainerState, file_name, fits
from elastic.train.outer import MOMENTUM, Turns, with_momentum
from elastic.train.workers import Worker, owners
from elastic.wire.dense import StateLayout
from elastic.wire.files import write_at
from elastic.wire.tree import Table, blob_digest, chunk_hashes, part_of

T = TypeVar("T")

DAMAGED = "the state on disk is damaged, or of another model ({}): {}"
REMEDY = "remove the state directory to fetch it from the swarm again"


class Held:
    """What one worker holds of it; every method that touches a disk is called by all workers together."""

    def __init__(self, worker: Worker, store: StateStore, reducer: Reducer, like: Mapping[str, Tensor]) -> None:
        """Of a model's names and shapes; hold nothing yet."""
        self.worker, self.store, self.reducer, self.like = worker, store, reducer, dict(like)
        self.owners = owners(like, worker.world_size)
        self.mine = {name: meta for name, meta in like.items() if self.owners[name] == worker.rank}
        self.turns = Turns(self.mine)
        self.pending: Pending | None = None
        self.anchor: dict[str, Tensor] = {}
        self.residual: dict[str, Tensor] = {}
        self._residual_file: str | None = None

    def state(self) -> TrainerState:
        """What this trainer holds, also right after a restart."""
        return TrainerState(
            round=self.meta.round, anchor=self.meta.anchor, size_bytes=self._anchors.size,
            state_path=self.store.path_of(self.meta.anchor_file), pending=self.pending,
        )  # fmt: skip

    # --- beginning -----------------------------------------------------------------------------------------------

    def begin(self, initial: Callable[[], Iterable[tuple[str, Tensor]]], outer: OuterConfig) -> None:
        """Hold what is on disk; if there is nothing, the anchor that a run begins with.

        Args:
            initial: all params by name, one at a time.
            outer: whose momentum is part of the anchor.

        Raises:
            StateError: what is there is damaged, or cannot be read.
        """
        self._residuals = StateLayout.of(self.like)
        self._anchors = StateLayout.of(with_momentum(self.like, outer))
        wrong: MalformedError | None = None
        for meta in self._candidates():
            try:
                self._take(meta)
            except MalformedError as error:
                wrong = wrong or error
            else:
                self._on_first(partial(self.store.restore, meta))
                return
        if wrong is not None:
            raise StateError(DAMAGED.format(wrong, REMEDY)) from wrong
        self._residual_file = None
        self._read_residual()
        anchor = {name: value.detach().cpu().float().clone() for name, value in initial() if name in self.mine}
        self.anchor = with_momentum(anchor, outer)
        self.commit_anchor(RoundIndex(0))

    def _candidates(self) -> list[StateMeta]:
        """What may be on disk, the newest first; after a power failure the first may be garbled."""
        found = self._on_first(self.store.candidates) or []
        told = self.worker.tell(b"\n".join(meta.canonical() for meta in found))
        return [StateMeta.from_bytes(line) for line in told.splitlines()]

    def _take(self, meta: StateMeta) -> None:
        self.meta, self._residual_file = meta, meta.residual_file
        self._read_anchor(Path(self.store.path_of(meta.anchor_file)), meta.anchor)
        self._read_residual()
        self.pending = self._read_pending(meta.pending) if meta.pending else None

    def _read_anchor(self, path: Path, expected: Digest | None = None) -> Digest:
        """Take the anchor of a file; returns its digest."""
        names = [name for name in self._anchors.places if self.owners[name.removeprefix(MOMENTUM)] == self.worker.rank]
        anchor = self._together(path, lambda: self._anchors.read(path, names))
        digest = self._digest(path, self._anchors.size)
        if expected is not None and digest != expected:
            raise MalformedError(f"anchor: expected digest {expected[:12]}…")
        self.anchor = anchor
        return digest

    def _read_residual(self) -> None:
        """That of the disk."""
        name = self._residual_file
        if name is None:
            self.residual = {name: torch.zeros(meta.shape) for name, meta in self.mine.items()}
            return
        path = Path(self.store.path_of(name))
        residual = self._together(path, lambda: self._residuals.read(path, self.mine))
        if not fits(name, self._digest(path, self._residuals.size)):
            raise MalformedError("residual: another digest than its name says")
        self.residual = residual

    def _read_pending(self, meta: PendingMeta) -> Pending:
        payload = self.worker.together(lambda: self.store.read_file(meta.payload_file))
        if not fits(meta.payload_file, blob_digest(payload)):
            raise MalformedError(f"payload of round {meta.round}: another digest than its name says")
        return Pending(meta.round, meta.inner, payload)

    # --- what becomes of a contribution --------------------------------------------------------------------------

    def owe(self, pending: Pending) -> None:
        """A contribution was made: it and the new residual are on disk when this returns."""
        payload_file = file_name("payload", pending.round, blob_digest(pending.payload))
        self._on_first(lambda: self.store.write_file(payload_file, pending.payload))
        self._write_residual(pending.round)
        self.pending = pending
        meta = PendingMeta(round=pending.round, inner=pending.inner, payload_file=payload_file)
        self._commit(self.meta.model_copy(update={"residual_file": self._residual_file, "pending": meta}))

    def settle(self, manifest: Manifest) -> None:
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
            made = self.reducer.decode(pending.payload, self.like)
            for some, room in self.turns:
                for name, value in self.reducer.aggregate([(made, 1.0)], some, out=room).items():
                    self.residual[name].add_(value)
            self._write_residual(pending.round)
        self.pending = None

    def forget_work(self) -> None:
        """Go back to the residual of the disk."""
        self._read_residual()

    # --- a new anchor --------------------------------------------------------------------------------------------

    def take_anchor(self, state: bytes | None) -> None:
        """Hold an anchor fetched from others, whose bytes rank 0 was given; it is not committed yet.

        Raises:
            MalformedError: it is of another model; what was held before still is.
        """
        path = self._new_file("fetched", self._anchors.size)
        try:
            self._together(path, lambda: None if state is None else _fill(path, state))
            self._read_anchor(path)
        finally:
            self._on_first(lambda: self.store.discard(str(path)))

    def commit_anchor(self, round_: RoundIndex) -> Digest:
        """Write the anchor, and make it the one that this trainer holds for that round; its digest."""
        name, digest = self._write("anchor", round_, self._anchors, self.anchor)
        self._commit(StateMeta(round=round_, anchor=digest, anchor_file=name, residual_file=self._residual_file))
        return digest

    def _write_residual(self, round_: RoundIndex) -> None:
        self._residual_file, _ = self._write("residual", round_, self._residuals, self.residual)

    def _write(
        self, kind: str, round_: RoundIndex, layout: StateLayout, tensors: Mapping[str, Tensor]
    ) -> tuple[str, Digest]:
        """Each worker writes its tensors and hashes its part of the file; name and digest of the file."""
        path = self._new_file(kind, layout.size)
        self._together(path, lambda: layout.write(path, tensors))
        digest = self._digest(path, layout.size)
        name = file_name(kind, round_, digest)
        self._on_first(lambda: self.store.adopt(str(path), name))
        return name, digest

    def _new_file(self, kind: str, size: int) -> Path:
        made = self._on_first(lambda: self.store.create(kind, size))
        return Path(self.worker.tell(made.encode() if made else b"").decode())

    def _digest(self, path: Path, size: int) -> Digest:
        rank, world_size = self.worker.rank, self.worker.world_size
        mine = self._together(path, lambda: chunk_hashes(path, *part_of(size, rank, world_size)))
        return Table.joined(size, self.worker.gather(mine)).digest

    def _commit(self, meta: StateMeta) -> None:
        self._on_first(lambda: self.store.commit(meta))
        self.meta = meta

    def _on_first(self, work: Callable[[], T]) -> T | None:
        """Rank 0 does it; if it fails, it has failed for all."""
        return self.worker.together(lambda: work() if self.worker.rank == 0 else None)

    def _together(self, path: Path, work: Callable[[], T]) -> T:
        """All workers do something with a file."""

        def explained() -> T:
            try:
                return work()
            except OSError as error:
                raise state_error(path, error) from error

        return self.worker.together(explained)


def _fill(path: Path, data: bytes) -> None:
    """Write into the space that is reserved; a file that is gone is not made again."""
    if len(data) != path.stat().st_size:
        raise MalformedError(f"state: {path.stat().st_size} bytes expected for this model, {len(data)} came")
    descriptor = os.open(path, os.O_WRONLY)
    try:
        write_at(descriptor, data, 0)
    finally:
        os.close(descriptor)
