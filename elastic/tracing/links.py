"""Which end of a link is slow: every payload's way to every peer, compared. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from elastic.tracing.rounds import Round

MUCH = 0.35
"""Part of what a transfer took too long that others must share before one end is to blame."""

FULL = 0.7
"""Whose fastest payloads go out at least so many times as slowly as others' come in has an uplink to blame for both."""

BAD, BAD_PAIR = 2.0, 4.0
"""A line, or the way between two, that is so many times as slow as others carries commitments and votes slowly too."""
BACK, WELL = 1 / 3, 1.4
"""A bad way between two is so bad in the other direction at least, and they are no slower than this with others."""


class Phase(StrEnum):
    """What a peer was slow with."""

    COMPUTE = "compute"
    UPLINK = "upload link"
    DOWNLINK = "download link"
    PAIR = "link to one peer"
    AVERAGING = "averaging"
    VALIDATION = "validation"
    RAY = "Ray scheduling"
    DISK = "disk"
    DHT = "DHT"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Bad:
    """A line, or a way between two, that stands out."""

    peer: str
    phase: Phase
    excess: float
    """Seconds by which payloads are slower over it."""
    other: str = ""
    """Of a way between two."""


@dataclass(frozen=True)
class Links:
    """Seconds that each payload took to each peer."""

    seconds: dict[tuple[str, str], float]
    """(maker, receiver) → seconds."""

    @classmethod
    def of(cls, round_: Round) -> Links:
        """As the receivers measured it, tries that were broken off included."""
        found: dict[tuple[str, str], float] = defaultdict(float)
        for peer, each in round_.peers.items():
            for span in each.all("round.fetch"):
                maker = span.text("peer_from")
                if maker and maker != peer:
                    found[maker, peer] += span.number("transfer_s", max(0.0, span.seconds - span.number("verify_s")))
        return cls(dict(found))

    def usual(self, but: Collection[str] = ()) -> float:
        """The median of all transfers that none of these had to do with; of a few peers, as near as can be had."""
        others = [value for pair, value in self.seconds.items() if not set(pair) & set(but)]
        if others or not self.seconds:
            return median(others or [0.0])
        apart = [[value for pair, value in self.seconds.items() if peer not in pair] for peer in but]
        return min([median(values) for values in apart if values] or self.seconds.values())

    def up(self, peer: str, but: str = "") -> float | None:
        """Median seconds of what that peer made, to everyone `but` one; None: to nobody else."""
        return _median([value for (maker, to), value in self.seconds.items() if maker == peer and to != but])

    def down(self, peer: str, but: str = "") -> float | None:
        """The same of what it received, from everyone `but` one."""
        return _median([value for (maker, to), value in self.seconds.items() if to == peer and maker != but])

    def blame(self, maker: str, receiver: str, seconds: float) -> tuple[str, Phase, float]:
        """(peer, phase, what is usual) of one transfer that took so long."""
        usual = min(self.usual((maker, receiver)), seconds)
        limit = usual + MUCH * (seconds - usual)
        maker_up, receiver_down = self.up(maker, receiver), self.down(receiver, maker)
        if maker_up is None and receiver_down is None:
            return maker, Phase.PAIR, usual
        slow_up, slow_down = (maker_up or 0.0) > limit, (receiver_down or 0.0) > limit
        if slow_up and (not slow_down or (maker_up or 0.0) >= (receiver_down or 0.0)):
            return maker, self._way(maker), usual
        if slow_down:
            return receiver, self._way(receiver), usual
        # Neither way of either line is slow with others, but a full one has no room for the answers of the other way.
        if (self.down(maker, receiver) or 0.0) > limit:
            return maker, Phase.DOWNLINK, usual
        if (self.up(receiver, maker) or 0.0) > limit:
            return receiver, Phase.UPLINK, usual
        return maker, Phase.PAIR, usual

    def worst(self, among: Collection[str]) -> Bad | None:
        """The one line that is much slower than all others, or a way from one of these, both ways; None: there is none.

        Args:
            among: who waited for each other. Of thousands of ways between others some are always slow.
        """
        pairs = {pair: value for pair, value in self.seconds.items() if set(pair) & set(among)}
        maker, receiver = max(pairs, key=lambda pair: pairs[pair], default=("", ""))
        slowest, back = pairs.get((maker, receiver), 0.0), pairs.get((receiver, maker), 0.0)
        usual = self.usual((maker, receiver))
        with_others = max(self._line(maker, receiver), self._line(receiver, maker))
        if slowest > BAD_PAIR * usual and back > BACK * slowest and with_others < WELL * usual:
            return Bad(maker, Phase.PAIR, slowest - usual, receiver)
        lines = {peer: self._line(peer) for peer in sorted({peer for pair in self.seconds for peer in pair})}
        worst = max(lines, key=lambda each: lines[each], default="")
        usual = self.usual((worst,))
        return Bad(worst, self._way(worst), lines[worst] - usual) if worst and lines[worst] > BAD * usual else None

    def _line(self, peer: str, but: str = "") -> float:
        """Seconds over a peer's line, both ways, without what goes to and from one."""
        return ((self.up(peer, but) or 0.0) + (self.down(peer, but) or 0.0)) / 2

    def _way(self, peer: str) -> Phase:
        """Which way of a line is narrow: over a full uplink everything comes in slowly too, for want of answers, and
        beside a full downlink some things go out as ever.
        """
        out = _fast([seconds for (maker, _), seconds in self.seconds.items() if maker == peer])
        into = _fast([seconds for (_, receiver), seconds in self.seconds.items() if receiver == peer])
        return Phase.UPLINK if out >= FULL * into else Phase.DOWNLINK


def _fast(values: list[float]) -> float:
    """What the fastest quarter of transfers takes at most."""
    return sorted(values)[(len(values) - 1) // 4] if values else 0.0


def _median(values: list[float]) -> float | None:
    return median(values) if values else None
