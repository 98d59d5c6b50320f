"""What a peer tells the people who run it: its status, its reports, and what its incentive must not forget."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import orjson

from elastic.config import RunConfig
from elastic.contracts import Incentive
from elastic.errors import ElasticError
from elastic.messages import PeerId, PeerStatus, RoundPlan, RoundReport

logger = logging.getLogger(__name__)

WRITE_SECONDS = 0.5
"""The status file is rewritten at most this often."""


class Journal:
    """Keeps `status.json`, appends reports, saves the incentive's memory. Never stops training: it only writes."""

    def __init__(self, config: RunConfig, peer: PeerId) -> None:
        self._dir, self._report = config.local.state_dir, config.local.report
        self._dir.mkdir(parents=True, exist_ok=True)
        self._written = 0.0
        self.reports: list[RoundReport] = []
        self.status = PeerStatus(
            peer=peer, name=config.local.name or peer[-6:], run=config.shared.run, stage="starting",
            updated=time.time(), pid=os.getpid(),
        )  # fmt: skip
        self._began, self._tokens = (
            time.monotonic(),
            config.shared.inner.batch_size * config.shared.inner.sequence_length,
        )

    def note(self, **fields: Any) -> None:
        """Change fields of the status."""
        self.status = self.status.model_copy(update={**fields, "updated": time.time()})
        self._write()

    def begin(self, plan: RoundPlan) -> None:
        """A round starts."""
        self._began = time.monotonic()
        self.note(round=plan.round, step=0, phase="sitting out" if plan.slot is None else "inner")

    def progress(self, step: int, loss: float) -> None:
        """Inner steps advance."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        self.note(step=step, loss=loss, tokens_per_second=step * self._tokens / seconds)

    def record(self, report: RoundReport, incentive_state: dict[str, Any]) -> None:
        """A round is over."""
        self.reports.append(report)
        fields: dict[str, Any] = {
            "digest": report.digest,
            "rounds_counted": self.status.rounds_counted + report.counted,
            "rounds_contributed": self.status.rounds_contributed + report.contributed,
        }
        if report.loss is not None:
            fields |= {
                "loss": report.loss,
                "tokens_per_second": report.tokens / max(report.seconds.get("inner", 0), 1e-3),
            }
        self.note(**fields)
        self._save("incentive.json", orjson.dumps(incentive_state))
        if self._report is not None:
            self._append(self._report, report.canonical())
        logger.info("round %d: %s", report.round, describe(report))

    def failed(self, error: ElasticError) -> None:
        """The peer ends with an error."""
        self.note(stage="failed", error=str(error)[:500])
        self._write(now=True)
        logger.error("%s", error)

    def restore_incentive(self, incentive: Incentive) -> Incentive:
        """Give a fresh incentive what the last life saved."""
        path = self._dir / "incentive.json"
        if path.exists():
            incentive.restore(orjson.loads(path.read_bytes()))
        return incentive

    def _write(self, *, now: bool = False) -> None:
        if now or time.monotonic() - self._written >= WRITE_SECONDS or self.status.stage == "left":
            self._written = time.monotonic()
            self._save("status.json", self.status.canonical())

    def _save(self, name: str, data: bytes) -> None:
        temporary = self._dir / f"{name}.new"
        try:
            temporary.write_bytes(data)
            temporary.replace(self._dir / name)
        except OSError as error:
            logger.warning("%s: %s", self._dir / name, error)

    def _append(self, path: Path, line: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(line + b"\n")
        except OSError as error:
            logger.warning("%s: %s", path, error)


def describe(report: RoundReport) -> str:
    """One line for a person."""
    loss = f"loss {report.loss:.3f}" if report.loss is not None else "sat out"
    outcome = "counted" if report.counted else (report.skipped or "followed")
    accepted = sum(verdict == "accepted" for verdict in report.verdicts.values())
    return (
        f"{loss} | {outcome} | {accepted} of {len(report.verdicts)} peers | "
        f"{report.seconds['total']:.1f} s | anchor {report.digest[:12]}"
    )
