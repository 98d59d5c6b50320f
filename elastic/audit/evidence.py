"""Evidence as peers wrote it down: a line per round, of the peer whose folder it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elastic.contracts import Incentive
from elastic.errors import ConfigError, MalformedError
from elastic.messages import GENESIS, PeerId, RoundIndex
from elastic.reports import EVIDENCE_FILE, OLD_EVIDENCE_FILE, STATUS_FILE, PeerStatus, RoundEvidence

RUN_FILE = "run.toml"


@dataclass(frozen=True, slots=True)
class Witness:
    """One peer's account of a run."""

    peer: PeerId
    rounds: list[RoundEvidence]
    """In order, each round once, as it was learned: the first time."""
    folder: Path | None = None
    """Its state directory."""

    @property
    def run(self) -> str:
        """The run's name, as of its last round."""
        return self.rounds[-1].run

    def tell(self, incentive: Incentive, after: RoundIndex = GENESIS) -> Mapping[PeerId, float]:
        """The rounds after that one to an incentive; peer → what that thinks in the end."""
        scores: Mapping[PeerId, float] = {}
        for seen in self.rounds:
            if seen.round > after:
                incentive.hear(seen.invitations)
                scores = incentive.score(seen.round, seen.evidence).scores
        return scores

    @property
    def assessments(self) -> int:
        """How many it made; only validators make any."""
        return sum(each.assessment is not None for seen in self.rounds for each in seen.evidence)

    @property
    def peers(self) -> list[PeerId]:
        """Everyone there is evidence of."""
        return sorted({each.verdict.peer for seen in self.rounds for each in seen.evidence})


def best_witness(where: Path) -> Witness:
    """The peer that knows most, of a peer's state directory or a folder of them, as of a quickstart.

    Raises:
        ConfigError: nobody there wrote anything down, or it cannot be read.
    """
    folders = sorted({file.parent for file in [*where.glob(EVIDENCE_FILE), *where.glob(f"*/{EVIDENCE_FILE}")]})
    if not folders:
        raise ConfigError(f"{where}: no {EVIDENCE_FILE} there; a peer's state directory has one after its first round")
    found = [each for each in map(account_of, folders) if each is not None]
    if not found:
        raise ConfigError(f"{where}: the evidence there is empty: wait for the first round to end")
    return max(found, key=lambda each: (each.assessments, len(each.rounds)))


def run_file_beside(where: Path) -> Path | None:
    """The run file that lies beside what peers wrote, if one does."""
    paths = (where / RUN_FILE, *sorted(where.glob(f"*/{RUN_FILE}")), where.parent / RUN_FILE)
    return next((path for path in paths if path.is_file()), None)


def names_in(where: Path) -> dict[PeerId, str]:
    """What the peers that ran there are called."""
    found = {}
    for file in [*where.glob(STATUS_FILE), *where.glob(f"*/{STATUS_FILE}"), *where.parent.glob(f"*/{STATUS_FILE}")]:
        try:
            status = PeerStatus.from_bytes(file.read_bytes())
        except (OSError, MalformedError):
            continue  # names are a courtesy
        found[status.peer] = status.name
    return found


def find_peer(wanted: str, peers: list[PeerId], names: dict[PeerId, str]) -> PeerId:
    """Who is meant by a name, or by the beginning or end of a peer id.

    Raises:
        ConfigError: nobody, or several.
    """
    called = [peer for peer in peers if names.get(peer) == wanted]
    found = called or [peer for peer in peers if peer.startswith(wanted) or peer.endswith(wanted)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(names.get(peer, peer[-6:]) for peer in peers)
    raise ConfigError(f'"{wanted}" is {"nobody" if not found else "more than one"} in this run; there are: {known}')


def account_of(folder: Path) -> Witness | None:
    """What the peer of this state directory wrote down; None: nothing yet.

    Raises:
        ConfigError: it cannot be read.
    """
    rounds: dict[int, RoundEvidence] = {}
    for name in (OLD_EVIDENCE_FILE, EVIDENCE_FILE):
        path = folder / name
        lines = path.read_bytes().splitlines() if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                seen = RoundEvidence.from_bytes(line)
            except MalformedError as error:
                if number == len(lines):
                    continue  # torn by a crash
                raise ConfigError(f"{path}, line {number}: {error}") from error
            rounds.setdefault(seen.round, seen)  # a round that was begun again is learned once
    ordered = [rounds[index] for index in sorted(rounds)]
    return Witness(ordered[-1].peer, ordered, folder) if ordered else None
