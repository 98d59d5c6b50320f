"""What is to be seen of a run: peers × rounds, as frozen values. Nothing here reads a file or draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median

from elastic.messages import PeerId, RejectReason, RoundIndex
from elastic.names import ending
from elastic.reports import PeerStatus
from elastic.view import alive

PHASES = ("inner", "compress", "commit", "publish", "average", "gather", "agree", "outer")
"""The verbs of a round in the order of the story."""
OWN_WORK = PHASES[:5]
"""Those before a peer looks at what others did."""
ACCEPTED = "accepted"
COUNTED = "counted"
ABSENT = (RejectReason.MISSING.value, RejectReason.UNFETCHABLE.value)
"""Verdicts on what did not come."""
LATE = 1.25
"""Times the median of its round: whose contribution came later than that was late."""
LATE_SECONDS = 0.5
"""And by how much at least, or every hiccup were one."""


@dataclass(frozen=True, slots=True)
class Own:
    """A round as its peer told it itself."""

    phases: Mapping[str, float]
    """Seconds per phase."""
    total: float
    digest: str
    """Of the anchor after it."""
    contributed: bool = False
    loss: float | None = None
    tokens: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    skipped: str = ""

    @property
    def ready(self) -> float:
        """Seconds until its own work was published."""
        return sum(self.phases.get(phase, 0.0) for phase in OWN_WORK)


@dataclass(frozen=True, slots=True)
class Cell:
    """One peer in one round."""

    seconds: float | None = None
    """From the beginning of the round until its contribution was there; None: it never was, or nobody knows."""
    at_most: bool = False
    """Whether it was there already when anyone whose account we have first looked."""
    verdict: str = ""
    """"accepted", or why it was refused, as most saw it; empty: unknown, or it was not on the roster."""
    share: float | None = None
    """Its part of the outer step; None: it did not count."""
    own: Own | None = None
    """Its own account, if its folder is here."""

    @property
    def outcome(self) -> str:
        """ "counted", or else the verdict."""
        return COUNTED if self.share is not None else self.verdict

    @property
    def absent(self) -> bool:
        """Whether it was waited for in vain."""
        return self.share is None and self.verdict in ABSENT


@dataclass(frozen=True, slots=True)
class Round:
    """One round of the swarm."""

    index: RoundIndex
    cells: Mapping[PeerId, Cell] = field(default_factory=dict)
    scores: Mapping[PeerId, float] = field(default_factory=dict)
    """What the incentive thought after it, as the best informed peer here knows."""
    decided: bool = False
    """Whether its manifest is here."""
    proposer: PeerId | None = None
    half_seconds: float | None = None
    """Until half of the roster had contributed, as the validators agreed."""

    @property
    def seconds(self) -> float | None:
        """How long it took, by who took longest of those that told."""
        return max((cell.own.total for cell in self.cells.values() if cell.own), default=self.half_seconds)

    @property
    def loss(self) -> float | None:
        """Mean over those that told."""
        found = [cell.own.loss for cell in self.cells.values() if cell.own and cell.own.loss is not None]
        return sum(found) / len(found) if found else None

    @property
    def counted(self) -> int:
        """Contributions in the outer step."""
        return sum(cell.share is not None for cell in self.cells.values())

    @property
    def digests(self) -> set[str]:
        """Of the anchors after it: one, or something is wrong."""
        return {cell.own.digest for cell in self.cells.values() if cell.own}

    def behind(self) -> dict[PeerId, float]:
        """Peer → seconds after the median of this round's contributions at which its own came; absent ones are left
        out, and so is everyone if nobody can be compared with anybody."""
        known = {peer: cell.seconds for peer, cell in self.cells.items() if cell.seconds is not None}
        middle = self.middle()
        return {} if middle is None or len(known) < 2 else {peer: each - middle for peer, each in known.items()}

    def middle(self) -> float | None:
        """Median seconds until a contribution was there; None: nothing is known."""
        known = [cell.seconds for cell in self.cells.values() if cell.seconds is not None]
        return median(known) if known else self.half_seconds

    def late(self) -> list[PeerId]:
        """Whose contribution came clearly later than the others', or not at all; the latest first."""
        behind, middle = self.behind(), self.middle() or 0.0
        slow = [
            peer for peer, by in behind.items()
            if by > max(LATE_SECONDS, (LATE - 1) * middle) and not self.cells[peer].at_most
        ]  # fmt: skip
        absent = [peer for peer, cell in self.cells.items() if cell.absent and peer not in slow]
        return sorted(absent) + sorted(slow, key=lambda peer: -behind[peer])


@dataclass(frozen=True, slots=True)
class Member:
    """One peer of the run."""

    peer: PeerId
    name: str
    """For people: printable, short, and nobody else's."""
    here: bool = False
    """Whether its folder is."""
    validator: bool = False
    status: PeerStatus | None = None
    """The last that it wrote."""

    @property
    def runs(self) -> bool:
        """Whether it is alive, here and now."""
        return self.status is not None and alive(self.status)


@dataclass(frozen=True, slots=True)
class Picture:
    """A run as far as the folders that were read know it."""

    run: str
    members: tuple[Member, ...]
    """Those here first, then by name."""
    rounds: tuple[Round, ...] = ()
    """Oldest first; some may be missing."""
    incentive: str = ""
    planned: int | None = None
    """Rounds that the run shall have."""
    changes: tuple[str, ...] = ()
    """Of the terms, in words."""
    wishes: tuple[str, ...] = ()
    """What validators would change, as heard last."""
    notes: tuple[str, ...] = ()
    """What is left out, and why."""

    @property
    def last(self) -> Round | None:
        """The newest round."""
        return self.rounds[-1] if self.rounds else None

    @property
    def last_decided(self) -> Round | None:
        """The newest round that is over."""
        return next((each for each in reversed(self.rounds) if each.decided), self.last)

    @property
    def running(self) -> int:
        """Peers that are alive here and now."""
        return sum(each.runs for each in self.members)

    @property
    def anchor(self) -> str:
        """The newest anchor, or that not all have the same."""
        last = next((each for each in reversed(self.rounds) if each.decided and each.digests), None)
        if last is None:
            return "-"
        if len(last.digests) > 1:
            return f"DIFFERENT between peers after round {last.index}"
        return next(iter(last.digests))[:12]

    def name(self, peer: PeerId) -> str:
        """What people call it."""
        return next((each.name for each in self.members if each.peer == peer), ending(peer))

    def cells(self, peer: PeerId) -> Iterable[tuple[Round, Cell]]:
        """A peer's rounds."""
        return ((each, each.cells[peer]) for each in self.rounds if peer in each.cells)


@dataclass(frozen=True, slots=True)
class Totals:
    """A peer over all rounds of a picture."""

    rounds: int = 0
    """In which it was on the roster;"""
    counted: int = 0
    """of these, in which it counted,"""
    late: int = 0
    """and in which it was late or did not come."""
    seconds: float | None = None
    """Median until its contribution was there."""
    share: float | None = None
    """Its last;"""
    score: float | None = None
    """also this."""
    loss: float | None = None
    """And this."""
    bytes_out: int = 0
    bytes_in: int = 0
    phases: Mapping[str, float] = field(default_factory=dict)
    """Mean seconds per phase, of the rounds that it told of."""


def totals(picture: Picture) -> dict[PeerId, Totals]:
    """Each member over all rounds."""
    late: dict[PeerId, int] = {}
    for each in picture.rounds:
        for peer in each.late():
            late[peer] = late.get(peer, 0) + 1
    return {each.peer: _totals(picture, each.peer, late.get(each.peer, 0)) for each in picture.members}


def _totals(picture: Picture, peer: PeerId, late: int) -> Totals:
    cells = list(picture.cells(peer))
    seconds = [cell.seconds for _, cell in cells if cell.seconds is not None]
    told = [cell.own for _, cell in cells if cell.own is not None]
    scores = [each.scores[peer] for each in picture.rounds if peer in each.scores]
    decided = [cell for each, cell in cells if each.decided]
    names = [phase for phase in PHASES if any(phase in own.phases for own in told)]
    return Totals(
        rounds=sum(cell.outcome != "" for _, cell in cells),
        counted=sum(cell.share is not None for _, cell in cells),
        late=late,
        seconds=median(seconds) if seconds else None,
        share=decided[-1].share if decided else None,
        score=scores[-1] if scores else None,
        loss=next((own.loss for own in reversed(told) if own.loss is not None), None),
        bytes_out=sum(own.bytes_out for own in told),
        bytes_in=sum(own.bytes_in for own in told),
        phases={phase: sum(own.phases.get(phase, 0.0) for own in told) / len(told) for phase in names},
    )


def thinned(picture: Picture, peers: int, rounds: int) -> Picture:
    """At most so many peers and rounds, and a note of what is left out.

    Peers here stay first, then those that were late most often. Of the rounds every so manieth stays, the last among
    them.
    """
    notes, members, kept = list(picture.notes), picture.members, picture.rounds
    if len(members) > peers:
        late = totals(picture)
        ranked = sorted(members, key=lambda each: (not each.here, -late[each.peer].late, each.name))
        chosen = {each.peer for each in ranked[:peers]}
        members = tuple(each for each in members if each.peer in chosen)
        notes.append(f"{len(picture.members)} peers took part; {peers} are shown: those here, and the latest")
    if len(kept) > rounds:
        step = -(-len(kept) // rounds)
        kept = tuple(reversed(kept[::-1][::step]))
        notes.append(f"{len(picture.rounds)} rounds are known; one in {step} is shown")
    return replace(picture, members=members, rounds=kept, notes=tuple(notes))


def slow_peers(picture: Picture) -> list[tuple[Member, int, float]]:
    """Who was late in more than half of its rounds, how often, and by how many seconds in the middle; worst first."""
    found = []
    behind = [each.behind() for each in picture.rounds]
    for peer, total in totals(picture).items():
        if total.rounds and 2 * total.late > total.rounds:
            by = [each[peer] for each in behind if peer in each]
            member = next(each for each in picture.members if each.peer == peer)
            found.append((member, total.late, median(by) if by else 0.0))
    return sorted(found, key=lambda each: (-each[1], -each[2]))
