"""From folders to a picture: reads what was added since the last look, and puts it together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from elastic.amend import read_wishes
from elastic.audit.evidence import names_in, run_file_beside
from elastic.config import RunConfig, load_config
from elastic.errors import ConfigError, ElasticError, MalformedError
from elastic.look.files import Found, Growing, find, read_status
from elastic.look.gathering import Gathering, bounded
from elastic.look.model import Member, Picture
from elastic.look.scores import Informed, Scores
from elastic.messages import Manifest, PeerId, Terms
from elastic.names import ending, labels, printable, short_name
from elastic.reports import OLD_ROUNDS_FILE, ROUNDS_FILE, PeerStatus, RoundReport, Wishes
from elastic.sections import PluginChoice
from elastic.state.chain import CHAIN_FILE
from elastic.terms import changes

R = TypeVar("R", RoundReport, Manifest)


@dataclass(slots=True)
class _Peer:
    """One peer's folder, read again and again."""

    folder: Path
    reports: Growing
    chain: Growing
    informed: Informed
    told: int = 0
    """Reports that it wrote."""


class Collector:
    """Looks at the peers of one run as often as it is asked; a damaged line is left out, and counted."""

    def __init__(self, where: Path, found: Found | None = None) -> None:
        """Find them, unless they were found already.

        Raises:
            ConfigError: nobody has run there.
        """
        self.found = found or find(where)
        self._peers = [_peer(folder) for folder in self.found.folders]
        self._config = _run_file(where, self.found)
        self._gathering = Gathering()
        self._scores: Scores | None = None
        self._damaged = 0
        self._run = self.found.run

    def look(self) -> Picture:
        """The run as it is now."""
        statuses = self._statuses()
        for peer in self._peers:
            for report in self._read(peer.reports, RoundReport):
                if report.run == self._run:
                    peer.told += 1
                    self._gathering.report(report)
            for manifest in self._read(peer.chain, Manifest):
                if manifest.run == self._run:
                    self._gathering.manifest(manifest)
        self._look_at_scores()
        return self._picture(statuses)

    def _read(self, file: Growing, kind: type[R]) -> Iterator[R]:
        for line in file.lines():
            try:
                yield kind.from_bytes(line)
            except MalformedError:
                self._damaged += 1

    def _statuses(self) -> dict[Path, PeerStatus]:
        found = {peer.folder: read_status(peer.folder) for peer in self._peers}
        return {folder: _drawable(each) for folder, each in found.items() if each is not None and each.run == self._run}

    def _look_at_scores(self) -> None:
        """From whose evidence scores follow may change: then it is read from the beginning."""
        known = {peer.folder: peer.informed.look() for peer in self._peers}
        best = max(self._peers, key=lambda peer: known[peer.folder]).folder
        canonical = self._terms()[-1].incentive
        scores = self._scores
        if scores is None or known[best] > known[scores.folder] or scores.canonical != canonical:
            self._scores = scores = Scores(best, canonical, self._config)
        for seen, board in scores.new(self._run):
            self._gathering.scores(seen.round, board)
            if not any(peer.told for peer in self._peers):
                self._gathering.evidence(seen)

    def _picture(self, statuses: dict[Path, PeerStatus]) -> Picture:
        rounds, wishes = self._gathering.rounds(), self._wishes()
        here = {status.peer: status for status in statuses.values()}
        peers = {*here, *(peer for each in rounds for peer in (*each.cells, *each.scores))}
        called = self._called(peers, here, wishes)
        terms = self._terms()[-1]
        told = {peer for each in rounds for peer, cell in each.cells.items() if cell.own is not None}
        members = [
            Member(peer, called[peer], peer in here or peer in told, peer in terms.validators, here.get(peer))
            for peer in peers
        ]
        return Picture(
            run=self._run,
            members=tuple(sorted(members, key=lambda each: (not each.here, _natural(each.name), each.peer))),
            rounds=tuple(rounds),
            incentive=_name_of(terms.incentive),
            planned=self._config.shared.rounds if self._config is not None else None,
            changes=tuple(self._changed(called)),
            wishes=tuple(_wished(wishes, terms, called)),
            notes=tuple(self._notes()),
        )

    def _called(self, peers: set[PeerId], here: dict[PeerId, PeerStatus], wishes: Wishes | None) -> dict[PeerId, str]:
        names = names_in(self.found.folders[0].parent if len(self._peers) > 1 else self.found.folders[0])
        names |= wishes.names if wishes is not None else {}
        names |= self._gathering.names | {peer: status.name for peer, status in here.items()}
        validators = self._config.shared.agreement.validators if self._config is not None else ()
        amended = (each.validators or () for each in self._gathering.amendments.values())
        return labels({*peers, *validators, *(peer for each in amended for peer in each)}, names)

    def _terms(self) -> list[Terms]:
        """Those that the run began with, and those after each change."""
        terms = [self._config.shared.terms() if self._config is not None else Terms((), "")]
        for _, amendment in sorted(self._gathering.amendments.items()):
            terms.append(amendment.applied(terms[-1]))
        return terms

    def _changed(self, called: dict[PeerId, str]) -> Iterator[str]:
        for (index, _), (before, after) in zip(
            sorted(self._gathering.amendments.items()), pairwise(self._terms()), strict=True
        ):
            yield from (
                f"{each}, from round {index + 1} on" for each in changes(before, after, lambda peer: called[peer])
            )

    def _wishes(self) -> Wishes | None:
        heard = [read_wishes(peer.folder) for peer in self._peers]
        return max(
            (each for each in heard if each and each.run == self._run), key=lambda each: each.round, default=None
        )

    def _notes(self) -> Iterator[str]:
        if self._damaged:
            yield f"{self._damaged} damaged line{'s' * (self._damaged > 1)} left out"
        if self._gathering.dropped:
            yield f"{self._gathering.dropped} older rounds left out"
        if skipped := sum(each.reports.skipped + each.chain.skipped for each in self._peers):
            yield f"{skipped:,} bytes of older records left out"
        if self._scores is not None and self._scores.problem:
            yield f"scores are what assessments amount to, not the incentive's: {printable(self._scores.problem, 300)}"


def _peer(folder: Path) -> _Peer:
    return _Peer(
        folder, Growing(folder / ROUNDS_FILE, folder / OLD_ROUNDS_FILE), Growing(folder / CHAIN_FILE), Informed(folder)
    )


def _drawable(status: PeerStatus) -> PeerStatus:
    numbers = {"loss": status.loss, "tokens_per_second": status.tokens_per_second, "held_out": status.held_out}
    return status.model_copy(update={name: bounded(value) for name, value in numbers.items()})


def _run_file(where: Path, found: Found) -> RunConfig | None:
    """The run file that was given, or that lies there; a run can be looked at without one."""
    if found.run_file is not None:
        return load_config(found.run_file)
    path = run_file_beside(found.folders[0])
    try:
        return load_config(path) if path is not None else None
    except ElasticError:
        return None


def _wished(wishes: Wishes | None, terms: Terms, called: dict[PeerId, str]) -> Iterator[str]:
    """What validators would change about the newest terms."""
    if wishes is None:
        return
    for peer, amendment in sorted(wishes.wishes.items()):
        after = amendment.applied(terms)
        for line in changes(terms, after, lambda each: called.get(each, ending(each))):
            yield f"{called.get(peer, ending(peer))} wishes: {line}"


def _name_of(canonical: str) -> str:
    """An incentive's name."""
    try:
        return short_name(PluginChoice.from_canonical(canonical).name)
    except ConfigError:
        return short_name(canonical)


def _natural(name: str) -> tuple[str, int]:
    """peer-2 before peer-10."""
    head = name.rstrip("0123456789")
    digits = name[len(head) :]
    return head, int(digits) if digits.isdecimal() and len(digits) < 10 else 0


class Watch:
    """The run that was last active somewhere: another one, when that has ended and another begins."""

    def __init__(self, where: Path) -> None:
        """Find it.

        Raises:
            ConfigError: nobody has run there.
        """
        self._where, self._collector = where, Collector(where)

    def look(self) -> Picture:
        """As it is now."""
        picture, known = self._collector.look(), self._collector.found
        with suppress(ElasticError):  # what was there goes on being shown
            found = find(self._where, known if picture.running else None)
            if found != known:  # also if a peer of the same run has come
                self._collector = Collector(self._where, found)
                return self._collector.look()
        return picture
