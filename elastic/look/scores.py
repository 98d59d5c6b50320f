"""What a run's incentive thought of its peers, round by round, from the evidence of who knows most."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from elastic.config import RunConfig
from elastic.errors import ConfigError, ElasticError, MalformedError
from elastic.guard import Guarded
from elastic.look.files import Growing
from elastic.messages import PeerId, RoundIndex
from elastic.registry import build
from elastic.reports import EVIDENCE_FILE, OLD_EVIDENCE_FILE, RoundEvidence
from elastic.sections import PluginChoice

ASSESSED = b'"gain_heldout"'
"""Once in each assessment: enough to count them."""


class Scores:
    """One peer's evidence as it grows, told to the incentive of its run."""

    def __init__(self, folder: Path, canonical: str, config: RunConfig | None) -> None:
        """From the beginning on.

        Args:
            folder: whose evidence it is.
            canonical: name and settings of the incentive.
            config: the run file, if there is one.
        """
        self.folder, self.canonical, self._config = folder, canonical, config
        self._file = Growing(folder / EVIDENCE_FILE, folder / OLD_EVIDENCE_FILE)
        self._incentive: Guarded | None = None
        self._told = RoundIndex(0)
        self.problem = ""
        """Why there are no scores of the incentive, if there are none: then it is what assessments amount to."""

    def new(self, run: str) -> Iterator[tuple[RoundEvidence, dict[PeerId, float]]]:
        """Rounds that were not given before, in order, and the scores after each."""
        found: dict[RoundIndex, RoundEvidence] = {}
        for line in self._file.lines():
            try:
                seen = RoundEvidence.from_bytes(line)
            except MalformedError:
                continue  # damaged, or another version's
            if seen.run == run and seen.round > self._told:
                found[seen.round] = seen  # what it saw last counts
        for index in sorted(found):
            self._told = index
            yield found[index], self._score(found[index])

    def _score(self, seen: RoundEvidence) -> dict[PeerId, float]:
        if self._incentive is None and not self.problem:
            self._incentive = self._build()
        if self._incentive is None:
            return {each.verdict.peer: each.score for each in seen.evidence if each.score is not None}
        self._incentive.hear(seen.invitations)
        return dict(self._incentive.score(seen.round, seen.evidence).scores)

    def _build(self) -> Guarded | None:
        if self._config is None:
            self.problem = "no run file is here"
            return None
        try:
            choice = PluginChoice.from_canonical(self.canonical)
            taken_up = (self._config.shared.incentive.name, *self._config.local.incentives)
            if ":" in choice.name and choice.name not in taken_up:
                raise ConfigError(f"{choice.name} is none that this machine takes up")
            incentive = build("incentive", choice)
        except (ElasticError, ModuleNotFoundError) as error:
            self.problem = str(error)
            return None
        return Guarded(choice.name, incentive, incentive)


class Informed:
    """Counts assessments, to find out who knows most."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = Growing(folder / EVIDENCE_FILE, folder / OLD_EVIDENCE_FILE)
        self.assessments = self.rounds = 0

    def look(self) -> tuple[int, int]:
        """(assessments, rounds) so far."""
        for line in self._file.lines():
            self.assessments += line.count(ASSESSED)
            self.rounds += 1
        return self.assessments, self.rounds
