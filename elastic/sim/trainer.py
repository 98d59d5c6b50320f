"""A trainer whose model is the list of what was ever applied to it: nothing can be lost or counted twice unseen.

Each round's work is one unit with a name of its own. A payload is the units that it stands for, the residual is the
units that did not count yet, the anchor is all units that were applied. On disk as `train.session` is: written before
it counts, replaced as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic.errors import MalformedError
from elastic.messages import (
    Assessment,
    ContributionHeader,
    Digest,
    InnerReport,
    Manifest,
    RoundIndex,
    RoundPlan,
    Seconds,
)
from elastic.reports import Pending, TrainerState
from elastic.state.files import read_if_there, write_durably
from elastic.wire.tree import blob_digest

if TYPE_CHECKING:
    from elastic.sim.node import SimNode

ANCHOR_BYTES = 16 * 1024
"""Anchors have one size, as real ones do."""
UNIT_TOKENS = 64


class ViolationError(AssertionError):
    """Something happened that must never happen."""


class LedgerTrainer:
    """Implements `contracts.Trainer`."""

    def __init__(self, node: SimNode) -> None:
        """Go on from what is on the disk of this peer."""
        directory = node.directory / "state"
        self._directory, self._file = directory, directory / "ledger.json"
        self._peer, self._clock, self._pace = node.id, node.world.clock, node.pace
        self._reach, self._knows, self._least = node.reach, node.knows, node.world.payload_bytes
        directory.mkdir(parents=True, exist_ok=True)
        saved = read_if_there(self._file)
        found: dict[str, Any] = json.loads(saved) if saved else {}
        self.round = RoundIndex(found.get("round", 0))
        self.applied: list[str] = found.get("applied", [])
        self.residual: list[str] = found.get("residual", [])
        self.dropped: list[str] = found.get("dropped", [])
        """Units given up because nobody could say whether they had counted."""
        self.made: set[str] = set(found.get("made", []))
        """Every unit that was ever on this disk."""
        self.pending: list[str] | None = found.get("pending")
        self._pending_round = RoundIndex(found.get("pending_round", 0))
        self._save()

    async def state(self) -> TrainerState:
        pending = None
        if self.pending is not None:
            pending = Pending(self._pending_round, _report(), encode(self.pending, self._least))
        return TrainerState(
            round=self.round, anchor=blob_digest(self._anchor()), size_bytes=ANCHOR_BYTES,
            state_path=str(self._anchor_file(self.round)), pending=pending,
        )  # fmt: skip

    async def inner_steps(self, plan: RoundPlan) -> InnerReport:
        await self._clock.sleep(Seconds(min(self._pace, plan.train_seconds)))
        return _report()

    async def compress(self, plan: RoundPlan, inner: InnerReport) -> bytes:
        if self.pending is not None:
            raise ViolationError(f"{self._peer[-6:]} makes a contribution before the last one is settled")
        unit = f"{self._peer[-6:]}/{plan.round}/{self._clock.now():.3f}"
        self.pending = [*self.residual, unit]
        self.made.add(unit)
        self.residual, self._pending_round = [], plan.round
        self._save()
        self._reach("compressed")
        return encode(self.pending, self._least)

    async def outer_step(self, manifest: Manifest, payloads: Mapping[Digest, bytes]) -> Digest:
        self._reach("before the outer step")
        if manifest.round != self.round:
            raise ViolationError(
                f"{self._peer[-6:]} applies manifest {manifest.round} to the anchor of round {self.round}"
            )
        for entry in manifest.counted:
            units = json.loads(payloads[entry.payload])
            twice = set(units) & set(self.applied)
            if twice:
                raise ViolationError(f"round {manifest.round} applies {sorted(twice)} a second time")
            self.applied += units
        self._settle(manifest)
        return self._take(RoundIndex(manifest.round + 1))

    async def load(self, state: bytes, round_: RoundIndex, settled: Manifest | None = None) -> Digest:
        self.applied = json.loads(state)
        if settled is not None:
            self._settle(settled)
        if self.pending is not None and self._knows(self._pending_round):
            raise ViolationError(f"{self._peer[-6:]} gives up work of which it knows whether it counted")
        self.dropped += self.pending or []
        self.pending = None
        return self._take(round_)

    async def assess(
        self, plan: RoundPlan, header: ContributionHeader, payload: bytes, seed: int, beside: bytes | None = None
    ) -> Assessment:
        units = len(json.loads(payload))
        return Assessment(peer=header.peer, round=plan.round, gain_assigned=2.0 * units, gain_heldout=float(units))

    async def evaluate(self, max_sequences: int) -> float:
        return 0.0

    async def generate(self, prompt: str, num_tokens: int) -> str:
        return prompt

    async def close(self) -> None:
        return None

    def _settle(self, manifest: Manifest) -> None:
        if self.pending is None or self._pending_round > manifest.round:
            return
        mine = blob_digest(encode(self.pending, self._least))
        if self._pending_round < manifest.round or not manifest.applies(mine):
            self.residual += self.pending
        self.pending = None

    def _take(self, round_: RoundIndex) -> Digest:
        self.round = round_
        self._save()
        self._reach("after the outer step")
        return blob_digest(self._anchor())

    def _anchor(self) -> bytes:
        return json.dumps(self.applied).encode().ljust(ANCHOR_BYTES)

    def _anchor_file(self, round_: RoundIndex) -> Path:
        return self._directory / f"anchor-{round_}"

    def _save(self) -> None:
        write_durably(self._anchor_file(self.round), self._anchor())
        self._anchor_file(RoundIndex(self.round - 2)).unlink(missing_ok=True)  # the last two are served
        fields = {
            "round": self.round, "applied": self.applied, "residual": self.residual, "dropped": self.dropped,
            "made": sorted(self.made), "pending": self.pending, "pending_round": self._pending_round,
        }  # fmt: skip
        write_durably(self._file, json.dumps(fields).encode())


def encode(units: list[str], least: int = 0) -> bytes:
    """A payload, of so many bytes at least."""
    return json.dumps(units).encode().ljust(least)


class LedgerReducer:
    """As much of `contracts.Reducer` as a round asks for."""

    averages = False

    def max_bytes(self, like: Any) -> int:
        """No honest payload is larger."""
        return ANCHOR_BYTES

    def decode(self, data: bytes, like: Any) -> list[str]:
        """The units of a payload.

        Raises:
            MalformedError: it is none.
        """
        try:
            units = json.loads(data)
        except ValueError as error:
            raise MalformedError(str(error)) from error
        if not isinstance(units, list) or not all(isinstance(unit, str) for unit in units):
            raise MalformedError("not a list of units")
        return units


def _report() -> InnerReport:
    return InnerReport(steps=1, tokens=UNIT_TOKENS, first_loss=1.0, last_loss=1.0, mean_loss=1.0, seconds=1.0)
