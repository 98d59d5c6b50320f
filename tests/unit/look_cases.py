"""Folders as peers leave them behind, made up: any number of peers and rounds, one of them slow."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import base58

from elastic.messages import (
    GENESIS,
    NO_DIGEST,
    Amendment,
    Assessment,
    Counted,
    Digest,
    Evidence,
    Manifest,
    PeerId,
    RejectReason,
    RoundIndex,
    Verdict,
    digest_of,
)
from elastic.reports import (
    EVIDENCE_FILE,
    ROUNDS_FILE,
    STATUS_FILE,
    WISHES_FILE,
    PeerStatus,
    RoundEvidence,
    RoundReport,
    Wishes,
)
from elastic.state.chain import CHAIN_FILE

NOW = 1_800_000_000.0
HOSTILE = (
    "<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "</script><b>", "a\u202eb\x1b[31m", "&lt;", "]]>",
    "\u0000", "x" * 64, "{{7*7}}", "${1}", "javascript:alert(1)", "",
)  # fmt: skip
"""What peers may call themselves."""


def peer_id(number: int) -> PeerId:
    """Made up, and valid."""
    return PeerId("12D3KooW" + base58.b58encode(hashlib.sha256(f"peer {number}".encode()).digest()).decode()[:40])


def digest(*what: object) -> Digest:
    return digest_of(repr(what).encode())


@dataclass
class Story:
    """What happens in a made-up run."""

    peers: int = 4
    rounds: int = 12
    slow: int | None = 2
    """Which peer is slow; None: none."""
    times: float = 3.0
    """How much slower it is."""
    absent: Collection[tuple[int, int]] = ()
    """(round, peer) of contributions that did not come."""
    copies: Collection[tuple[int, int]] = ()
    """(round, peer) of those that were refused."""
    names: Sequence[str] = ()
    run: str = "demo"
    stage: str = "left"
    updated: float = NOW
    amended: int | None = 6
    """The round whose manifest changes the incentive; None: none does."""
    ids: list[PeerId] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = [peer_id(number) for number in range(self.peers)]

    def name(self, number: int) -> str:
        return self.names[number] if number < len(self.names) else f"peer-{number + 1}"

    def inner(self, round_: int, number: int) -> float:
        """Seconds of its inner steps: about 4."""
        hiccup = int(digest(round_, number)[:4], 16) / 0xFFFF - 0.5
        return (self.times if number == self.slow else 1.0) * (4.0 + 0.4 * hiccup)

    def there(self, round_: int, number: int) -> bool:
        return (round_, number) not in self.absent

    def counts(self, round_: int, number: int) -> bool:
        return self.there(round_, number) and (round_, number) not in self.copies

    def verdict(self, round_: int, number: int) -> str:
        if not self.there(round_, number):
            return RejectReason.MISSING.value
        return "accepted" if self.counts(round_, number) else RejectReason.COPY.value

    def loss(self, round_: int, number: int) -> float:
        return 2.0 + 2.5 / (1 + 0.25 * round_) + 0.02 * (number % 5)

    def report(self, round_: int, number: int) -> RoundReport:
        """What one peer writes down of one round."""
        mine = self.inner(round_, number) + 0.5
        seen = [other for other in range(self.peers) if self.there(round_, other)]
        at = {other: self.inner(round_, other) + 0.5 for other in seen}
        arrived = {other: max(mine, at[other]) + 0.1 for other in seen}
        last = max(arrived.values(), default=mine)
        seconds = {
            "inner": mine - 0.5, "compress": 0.3, "commit": 0.1, "publish": 0.1, "gather": last - mine, "agree": 0.4,
            "outer": 0.1, "total": last + 0.5,
        }  # fmt: skip
        return RoundReport(
            run=self.run, round=RoundIndex(round_), peer=self.ids[number], name=self.name(number), contributed=True,
            counted=self.counts(round_, number), loss=self.loss(round_, number), tokens=10_000, steps=10,
            bytes_out=50_000 + number, bytes_in=60_000 + number, payload_bytes=15_000,
            digest=digest("anchor", round_ + 1), manifest=digest("manifest", round_), seconds=seconds,
            verdicts={self.ids[other]: self.verdict(round_, other) for other in range(self.peers)},
            committed={self.ids[other]: max(at[other], mine if number % 2 else 0.0) for other in seen},
            arrived={self.ids[other]: each for other, each in arrived.items()},
        )  # fmt: skip

    def chain(self) -> list[Manifest]:
        """From the genesis on."""
        out, previous, pace = [], NO_DIGEST, ()  # type: list[Manifest], Digest, tuple[float, ...]
        for round_ in range(self.rounds + 1):
            counted = [number for number in range(self.peers) if round_ and self.counts(round_, number)]
            entries = sorted(
                (
                    Counted(peer=self.ids[n], payload=digest(round_, n), size_bytes=15_000, share=1 / len(counted))
                    for n in counted
                ),
                key=lambda each: each.peer,
            )
            pace = (*pace, 4.5 + 0.01 * round_)[-8:] if round_ else ()
            amended = round_ == self.amended
            out.append(
                Manifest(
                    run=self.run, round=RoundIndex(round_), previous=previous, anchor=digest("anchor", round_),
                    counted=tuple(entries), roster=tuple(sorted(self.ids)), pace=pace, amended=GENESIS,
                    amendment=Amendment(validators=None, incentive='{"name":"uniform"}') if amended else None,
                    proposer=self.ids[round_ % min(4, self.peers)],
                )
            )  # fmt: skip
            previous = out[-1].digest()
        return out

    def evidence(self, round_: int, number: int) -> RoundEvidence:
        """What one validator's incentive sees."""
        found = []
        for other in range(self.peers):
            verdict = self.verdict(round_, other)
            rejected = None if verdict == "accepted" else RejectReason(verdict)
            gain = 0.01 * (1 + (other == 0))
            assessed = Assessment(
                peer=self.ids[other], round=RoundIndex(round_), gain_assigned=gain, gain_heldout=gain / 2
            )
            found.append(
                Evidence(
                    verdict=Verdict(peer=self.ids[other], round=RoundIndex(round_), rejected=rejected),
                    tokens=10_000, assessment=assessed if rejected is None else None, score=0.5 + 0.1 * other,
                )
            )  # fmt: skip
        return RoundEvidence(run=self.run, round=RoundIndex(round_), peer=self.ids[number], evidence=tuple(found))

    def status(self, number: int) -> PeerStatus:
        return PeerStatus(
            peer=self.ids[number], name=self.name(number), run=self.run, stage=self.stage, phase="gather",
            round=RoundIndex(self.rounds), loss=self.loss(self.rounds, number), tokens_per_second=1234.5,
            bytes_out=600_000, bytes_in=700_000, peers=self.peers, digest=digest("anchor", self.rounds + 1),
            rounds_counted=self.rounds, rounds_contributed=self.rounds, rounds_finished=self.rounds, held_out=2.31,
            updated=self.updated, pid=1,
        )  # fmt: skip

    def write(self, where: Path, numbers: Collection[int] | None = None) -> Path:
        """A folder with a folder for each of these peers; None: all. Gives the first of them."""
        for number in range(self.peers) if numbers is None else numbers:
            folder = where / f"peer-{number + 1}"
            folder.mkdir(parents=True)
            (folder / "run.toml").write_text(self.run_file(number))
            (folder / STATUS_FILE).write_bytes(self.status(number).canonical())
            rounds = range(1, self.rounds + 1)
            _lines(folder / ROUNDS_FILE, [self.report(each, number).canonical() for each in rounds])
            _lines(folder / CHAIN_FILE, [each.canonical() for each in self.chain()])
            _lines(folder / EVIDENCE_FILE, [self.evidence(each, number).canonical() for each in rounds])
            names = {self.ids[other]: self.name(other) for other in range(min(4, self.peers))}
            wishes = Wishes(
                run=self.run, round=RoundIndex(self.rounds), amended=RoundIndex(self.amended or 0), names=names,
                wishes={self.ids[0]: Amendment(validators=None, incentive='{"name":"reputation"}')},
            )  # fmt: skip
            (folder / WISHES_FILE).write_bytes(wishes.canonical())
        return where / f"peer-{min(range(self.peers) if numbers is None else numbers) + 1}"

    def run_file(self, number: int) -> str:
        validators = ", ".join(f'"{peer}"' for peer in self.ids[:4])
        return f"""\
[shared]
run = "{self.run}"
rounds = {self.rounds}
[shared.agreement]
validators = [{validators}]
[shared.incentive]
name = "reputation"
[local]
name = "peer-{number + 1}"
state_dir = "."
"""


def _lines(path: Path, lines: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
