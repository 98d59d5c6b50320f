"""What a peer tells the people who run it: its status, its reports, its evidence; and what it must not forget."""

import logging
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import orjson

from elastic.actors.revival import FIRST_LIFE, Past
from elastic.config import RunConfig
from elastic.errors import ConfigError, ElasticError, MalformedError, StateError
from elastic.messages import JSON, PeerId, RoundIndex, RoundPlan
from elastic.metrics import Meters
from elastic.reports import (
    EVALUATIONS_FILE,
    EVIDENCE_FILE,
    OLD_EVIDENCE_FILE,
    OLD_ROUNDS_FILE,
    ROUNDS_FILE,
    STATUS_FILE,
    WISHES_FILE,
    Evaluation,
    PeerStatus,
    RoundEvidence,
    RoundReport,
    Wishes,
)

logger = logging.getLogger(__name__)

EVIDENCE_BYTES = 64 * 2**20
"""A file of evidence that grew larger than this is put aside; one such is kept."""
ROUNDS_BYTES = 32 * 2**20
"""So is one of reports: with 16 peers it holds some 10,000 rounds."""
WRITE_SECONDS = 0.5
"""The status file is rewritten at most this often."""
REMEMBERED = 1024
"""Reports kept in memory, the newest."""


class Keeper(Protocol):
    """What has a state to give back."""

    def restore(self, state: JSON) -> None: ...


class Journal:
    """Keeps `status.json`, appends reports and evidence, saves memories. Never stops training: it only writes."""

    def __init__(self, config: RunConfig, peer: PeerId, past: Past = FIRST_LIFE, meters: Meters | None = None) -> None:
        self._dir, self._report = config.local.state_dir, config.local.report
        self._written, self._written_stage = 0.0, ""
        self._meters = meters or Meters()
        self._aside = "watching" if config.local.evaluator.wanted else "sitting out"
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
        self._meters.noted(self.status)
        self._write()

    def begin(self, plan: RoundPlan) -> None:
        """A round starts."""
        self._began = time.monotonic()
        self._meters.began(plan)
        self.note(round=plan.round, step=0, phase=self._aside if plan.slot is None else "inner")

    def progress(self, step: int, loss: float) -> None:
        """Inner steps advance."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        self.note(step=step, loss=loss, tokens_per_second=step * self._tokens / seconds)

    def learn(self, evidence: RoundEvidence) -> None:
        """What a round showed of each peer: everything that `elastic score` explains scores with."""
        self._append_bounded(EVIDENCE_FILE, OLD_EVIDENCE_FILE, EVIDENCE_BYTES, evidence.canonical())

    def wished(self, wishes: Wishes) -> None:
        """What the validators would change, for `elastic amend`."""
        self._save(WISHES_FILE, wishes.canonical())

    def record(self, report: RoundReport, memories: Mapping[str, JSON]) -> None:
        """A round is over."""
        self.reports.append(report)
        self._meters.recorded(report)
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
        for name, state in memories.items():
            self._remember(name, state)
        self._append_bounded(ROUNDS_FILE, OLD_ROUNDS_FILE, ROUNDS_BYTES, report.canonical())
        if self._report is not None:
            self._append(self._report, report.canonical())
        logger.info("round %d: %s", report.round, describe(report))

    def evaluated(self, evaluation: Evaluation) -> None:
        """The model of a round was measured."""
        self._meters.evaluated(evaluation)
        self._append(self._dir / EVALUATIONS_FILE, evaluation.canonical())
        self.note(evaluated=str(evaluation))
        logger.info("evaluated %s", evaluation)

    def not_evaluated(self, round_: RoundIndex, because: str) -> None:
        """It could not be."""
        self._meters.evaluation_failed()
        logger.warning("the model before round %d is not evaluated: %s", round_, because)

    def restarted(self, because: str) -> None:
        """A process of the peer is started again, the peer itself lives on. On disk at once, before the next death."""
        self._written = 0.0
        self.note(restarts=self.status.restarts + 1, restarted_after=because)
        logger.warning("restarted after this: %s", because)

    def failed(self, error: ElasticError) -> None:
        """The peer ends with an error."""
        self.note(stage="failed", error=str(error)[:500])
        logger.error("%s", error)

    def restore(self, name: str, keeper: Keeper) -> bool:
        """Give back what the last life saved under that name; False: nothing, or it is damaged or another's."""
        path = self._dir / f"{name}.json"
        if path.exists():
            try:
                keeper.restore(orjson.loads(path.read_bytes()))
                return True
            except (OSError, ValueError, StateError) as error:
                logger.warning("%s: begins anew: %s", path, error)
        return False

    def _write(self) -> None:
        """At most every so often; a new stage at once, because after it nothing may be noted for long."""
        if self.status.stage != self._written_stage or time.monotonic() - self._written >= WRITE_SECONDS:
            self._written, self._written_stage = time.monotonic(), self.status.stage
            self._save(STATUS_FILE, self.status.canonical())

    def _remember(self, name: str, state: JSON) -> None:
        try:
            self._save(f"{name}.json", orjson.dumps(state))
        except orjson.JSONEncodeError as error:
            logger.warning("the state of %s is not JSON and is not saved: %s", name, error)

    def _save(self, name: str, data: bytes) -> None:
        temporary = self._dir / f"{name}.new"
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(self._dir / name)
        except OSError as error:
            logger.warning("%s: %s", self._dir / name, error)

    def _append_bounded(self, name: str, old: str, most_bytes: int, line: bytes) -> None:
        """Append to a file of the state directory, which is put aside when it has grown too large."""
        path = self._dir / name
        with suppress(OSError):  # there is none yet
            if path.stat().st_size > most_bytes:
                path.replace(path.with_name(old))
        self._append(path, line)

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
