"""What a peer tells the people who run it: its status, its reports, and what its incentive must not forget."""

import logging
import os
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from elastic.actors.revival import FIRST_LIFE, Past
from elastic.config import RunConfig
from elastic.contracts import Incentive
from elastic.errors import ConfigError, ElasticError, MalformedError, StateError
from elastic.messages import PeerId, PeerStatus, RoundPlan, RoundReport

logger = logging.getLogger(__name__)

STATUS_FILE = "status.json"
"""Its name in a peer's state directory."""
WRITE_SECONDS = 0.5
"""The status file is rewritten at most this often."""
REMEMBERED = 1024
"""Reports kept in memory, the newest."""


class Journal:
    """Keeps `status.json`, appends reports, saves the incentive's memory. Never stops training: it only writes."""

    def __init__(self, config: RunConfig, peer: PeerId, past: Past = FIRST_LIFE) -> None:
        self._dir, self._report = config.local.state_dir, config.local.report
        self._written, self._written_stage = 0.0, ""
        self.reports: deque[RoundReport] = deque(maxlen=REMEMBERED)
        self.status = PeerStatus(
            peer=peer, name=config.local.name or peer[-6:], run=config.shared.run, stage="starting",
            updated=time.time(), pid=os.getpid(), restarts=past.restarts, restarted_after=past.because,
        )  # fmt: skip
        if past.restarts:
            logger.warning("the peer is started again after this: %s (restart %d)", past.because, past.restarts)
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
            "rounds_finished": self.status.rounds_finished + (report.manifest is not None),
            "rounds_counted": self.status.rounds_counted + report.counted,
            "rounds_contributed": self.status.rounds_contributed + report.contributed,
        }
        if report.loss is not None:
            fields |= {
                "loss": report.loss,
                "tokens_per_second": report.tokens / max(report.seconds.get("inner", 0), 1e-3),
            }
        self.note(**fields)
        self._save_incentive(incentive_state)
        if self._report is not None:
            self._append(self._report, report.canonical())
        logger.info("round %d: %s", report.round, describe(report))

    def restarted(self, because: str) -> None:
        """A process of the peer is started again, the peer itself lives on. On disk at once, before the next death."""
        self._written = 0.0
        self.note(restarts=self.status.restarts + 1, restarted_after=because)
        logger.warning("restarted after this: %s", because)

    def failed(self, error: ElasticError) -> None:
        """The peer ends with an error."""
        self.note(stage="failed", error=str(error)[:500])
        logger.error("%s", error)

    def restore_incentive(self, incentive: Incentive) -> Incentive:
        """Give a fresh incentive what the last life saved; it begins anew if that is damaged or another incentive's."""
        path = self._dir / "incentive.json"
        if path.exists():
            try:
                incentive.restore(orjson.loads(path.read_bytes()))
            except (OSError, ValueError, StateError) as error:
                logger.warning("%s: the incentive begins anew: %s", path, error)
        return incentive

    def _write(self) -> None:
        """At most every so often; a new stage at once, because after it nothing may be noted for long."""
        if self.status.stage != self._written_stage or time.monotonic() - self._written >= WRITE_SECONDS:
            self._written, self._written_stage = time.monotonic(), self.status.stage
            self._save(STATUS_FILE, self.status.canonical())

    def _save_incentive(self, state: dict[str, Any]) -> None:
        try:
            self._save("incentive.json", orjson.dumps(state))
        except orjson.JSONEncodeError as error:
            logger.warning("the incentive's state is not JSON and is not saved: %s", error)

    def _save(self, name: str, data: bytes) -> None:
        temporary = self._dir / f"{name}.new"
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
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


def newest_statuses(folder: Path) -> list[PeerStatus]:
    """Statuses of the peers whose run was last active in a folder: a peer's own, or one with peers' folders below it.

    Raises:
        ConfigError: there are none, or none that can be read.
    """
    own = folder / STATUS_FILE
    files = [own] if own.is_file() else sorted([*folder.glob(f"*/{STATUS_FILE}"), *folder.glob(f"*/*/{STATUS_FILE}")])
    if not files:
        raise ConfigError(f"{folder}: no peer has run here; `elastic quickstart` or `elastic join` starts one")
    runs: dict[tuple[Path, str], list[PeerStatus]] = {}
    for file in files:
        with suppress(OSError, MalformedError):
            status = PeerStatus.from_bytes(file.read_bytes())
            runs.setdefault((file.parent.parent, status.run), []).append(status)
    if not runs:
        raise ConfigError(f"{files[-1]}: damaged, or written by another version; the next `elastic join` replaces it")
    return max(runs.values(), key=lambda statuses: max(each.updated for each in statuses))


def describe(report: RoundReport) -> str:
    """One line for a person."""
    loss = f"loss {report.loss:.3f}" if report.loss is not None else "sat out"
    outcome = "counted" if report.counted else (report.skipped or "followed")
    accepted = sum(verdict == "accepted" for verdict in report.verdicts.values())
    return (
        f"{loss} | {outcome} | {accepted} of {len(report.verdicts)} peers | "
        f"{report.seconds.get('total', 0):.1f} s | anchor {report.digest[:12]}"
    )
