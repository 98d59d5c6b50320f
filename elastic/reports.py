"""Messages that never leave a peer: what it writes down for itself, and for the people who run it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import Field, model_validator

from elastic.errors import MalformedError
from elastic.messages import (
    MAX_VALIDATORS,
    Amendment,
    Digest,
    Evidence,
    HexDigest,
    Index,
    InnerReport,
    Invitation,
    Message,
    NonNegative,
    PeerId,
    PeerIdField,
    RoundIndex,
    RunName,
)

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

STATUS_FILE = "status.json"
"""A peer's `PeerStatus`, in its state directory;"""
EVIDENCE_FILE = "evidence.jsonl"
"""there too: a `RoundEvidence` per line, the oldest first;"""
OLD_EVIDENCE_FILE = "evidence.old.jsonl"
"""and what came before it, when that had grown too large;"""
ROUNDS_FILE = "rounds.jsonl"
"""a `RoundReport` per line,"""
OLD_ROUNDS_FILE = "rounds.old.jsonl"
"""and what came before it;"""
ORDER_FILE = "amendment.json"
"""an `Order`, if there is one;"""
WISHES_FILE = "wishes.json"
"""of a validator that is not alone, `Wishes`;"""
EVALUATIONS_FILE = "evaluations.jsonl"
"""and of an evaluator an `Evaluation` per line."""

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$", max_length=200)]


def read_kept(path: Path, kind: type[M]) -> M | None:
    """What lies in a small file that may appear, change and go at any time; None: nothing, or it cannot be read."""
    try:
        return kind.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, MalformedError) as error:
        logger.warning("%s: %s", path, error)
        return None


def file_name(kind: str, round_: RoundIndex, digest: Digest) -> str:
    """Of a file whose bytes have that digest, e.g. `anchor-00000012-3f5a80c1d2e9.bin`."""
    return f"{kind}-{round_:08d}-{digest[:12]}.bin"


def fits(name: str, digest: Digest) -> bool:
    """Whether bytes of that digest are what a `file_name` says."""
    return name.endswith(f"-{digest[:12]}.bin")


@dataclass(frozen=True, slots=True)
class Carried:
    """What went between us and one peer."""

    peer: PeerId
    num_bytes: int
    seconds: float
    """While streams with it were open."""
    span: bytes = b""
    """What it did this for, if it said so; see `elastic.trace_ids.pack_context`. Anyone may say anything."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A contribution of ours between `compress` and the manifest of its round; survives a crash."""

    round: RoundIndex
    inner: InnerReport
    payload: bytes


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What the trainer holds, also right after a restart."""

    round: RoundIndex
    """The round whose anchor it holds."""
    anchor: Digest
    size_bytes: int
    """Size of the anchor's canonical bytes, the same on every peer of a run."""
    state_path: str
    """File with exactly those bytes, to be served to joiners."""
    pending: Pending | None = None
    """A contribution made and not yet settled by a manifest."""


class RoundEvidence(Message):
    """One round as one peer's incentive sees it: a line of `evidence.jsonl`."""

    run: RunName
    round: Index
    peer: PeerIdField
    """Whose account it is."""
    evidence: Annotated[tuple[Evidence, ...], Field(max_length=1024)]
    invitations: Annotated[tuple[Invitation, ...], Field(max_length=1024)] = ()
    """Those that its incentive heard during the round, before this evidence."""


class RoundReport(Message):
    """What one round was for one peer: one line of `--report`, one line of the log."""

    run: RunName
    round: Index
    peer: PeerIdField
    name: str
    contributed: bool
    counted: bool
    skipped: str | None = None
    """Why our contribution did not count or no outer step was taken; None if all went well."""
    loss: float | None = None
    tokens: NonNegative = 0
    steps: NonNegative = 0
    bytes_out: NonNegative = 0
    bytes_in: NonNegative = 0
    payload_bytes: NonNegative = 0
    digest: HexDigest
    """Digest of the anchor after the round; equal on all peers."""
    manifest: HexDigest | None = None
    verdicts: dict[PeerIdField, str] = {}  # noqa: RUF012 (pydantic copies it)
    """Peer → "accepted" or the reason it was refused."""
    last: str | None = None
    """Whose contribution arrived last, if anyone was waited for."""
    committed: dict[PeerIdField, float] = {}  # noqa: RUF012
    """Peer → seconds from the beginning of our round until its commitment was first seen, and"""
    arrived: dict[PeerIdField, float] = {}  # noqa: RUF012
    """until its contribution was here and checked. We begin to gather when our own inner steps are done."""
    seconds: dict[str, float]
    """Seconds per phase of the round, and their `total`."""


class PeerStatus(Message):
    """A running peer as others on this machine see it: `elastic status`, the live view."""

    peer: PeerIdField
    name: str
    run: RunName
    stage: str
    phase: str = ""
    round: Index = RoundIndex(0)
    step: NonNegative = 0
    loss: float | None = None
    tokens_per_second: float = 0.0
    bytes_out: NonNegative = 0
    bytes_in: NonNegative = 0
    peers: NonNegative = 0
    ready: NonNegative = 0
    """Of these, who can take part in a round."""
    digest: HexDigest | None = None
    rounds_counted: NonNegative = 0
    rounds_contributed: NonNegative = 0
    rounds_finished: NonNegative = 0
    """Like those counted and contributed: since the peer actor started."""
    restarts: NonNegative = 0
    """How often one of the peer's processes was started again, since its driver started."""
    restarted_after: str = ""
    """What made the last of them necessary."""
    error: str | None = None
    metrics: str = ""
    """Address of its Prometheus endpoint, if it has one."""
    held_out: float | None = None
    """Loss on held-out text after the last round, in nats per token."""
    evaluated: str = ""
    """Of an evaluator: what it measured last."""
    updated: float
    """Unix time at which it was written."""
    pid: NonNegative


class Measured(Message):
    """What one task said of a model."""

    task: str
    metric: str
    value: float
    stderr: float | None = None
    """None: it has none."""
    samples: NonNegative
    """Examples that it was measured on."""


class Evaluation(Message):
    """What an evaluator measured of one anchor: a line of `evaluations.jsonl`."""

    run: RunName
    round: Index
    """The round that starts from the anchor."""
    anchor: HexDigest
    seconds: float
    """That it took."""
    results: tuple[Measured, ...]

    def __str__(self) -> str:
        """In one line, for people."""
        said = (
            f"{each.task} {each.value:.4f}" + (f" ± {each.stderr:.4f}" if each.stderr is not None else "")
            for each in self.results
        )
        return f"before round {self.round}: {', '.join(said)}"


class PendingMeta(Message):
    """A contribution that no manifest has settled yet: which round, what it took, and the file with its payload."""

    round: Index
    inner: InnerReport
    payload_file: FileName


class Order(Message):
    """What an operator wants changed, in `amendment.json`; it holds until the terms are others than it was made for."""

    run: RunName
    amended: Index
    """The round whose manifest brought the terms that it is to change."""
    amendment: Amendment


class Wishes(Message):
    """What the validators would change about the run, as one of them heard it last; nothing depends on it."""

    run: RunName
    round: Index
    """The round that was under way."""
    amended: Index
    """The round whose manifest brought the terms that they would change."""
    wishes: Annotated[dict[PeerIdField, Amendment], Field(max_length=MAX_VALIDATORS)]
    """Validator → what it wishes for; who wishes for nothing is not there."""
    names: Annotated[dict[PeerIdField, Annotated[str, Field(max_length=64)]], Field(max_length=MAX_VALIDATORS)]
    """Validator → what it calls itself."""


class StateMeta(Message):
    """`state.json`: which files are the trainer's state. Replacing this one small file is the commit."""

    round: Index
    """The round whose anchor it is."""
    anchor: HexDigest
    anchor_file: FileName
    residual_file: FileName | None = None
    """None: the residual is zero."""
    pending: PendingMeta | None = None
    sizes: dict[FileName, Annotated[int, Field(ge=0)]] = {}  # noqa: RUF012 (pydantic copies it)
    """Bytes of each file; the store writes them down, and looks whether they are still so."""

    @model_validator(mode="after")
    def _sizes_are_of_its_files(self) -> Self:
        if self.sizes and self.sizes.keys() != self.files():
            raise ValueError("sizes: of other files")
        return self

    def files(self) -> frozenset[str]:
        """Names of all files it refers to."""
        names = {self.anchor_file, self.residual_file, self.pending.payload_file if self.pending else None}
        return frozenset(name for name in names if name is not None)
