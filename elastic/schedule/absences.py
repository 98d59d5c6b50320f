"""Who was expected and did not come: each time in a row it is left out for twice as long."""

from collections.abc import Collection

from elastic.messages import PeerId, RoundIndex

LONGEST = 64
"""Rounds that anyone is left out for at most."""
REMEMBERED = 1024
"""Peers; who missed longest ago is forgotten first."""


class Absences:
    """What manifests tell of who was on the roster and did not count.

    A peer that shows its card and never contributes would delay every second round by the whole deadline. Everyone who
    followed the same rounds remembers the same.
    """

    def __init__(self) -> None:
        self._missed: dict[PeerId, tuple[int, RoundIndex]] = {}
        """Peer → how often in a row, and the last round that it is left out of."""

    def note(self, round_: RoundIndex, roster: Collection[PeerId], counted: Collection[PeerId]) -> None:
        """A round is over. If nobody counted, nobody can be blamed."""
        for peer in counted:
            self._missed.pop(peer, None)
        for peer in sorted(set(roster) - set(counted)) if counted else ():
            times = self._missed.pop(peer, (0, round_))[0] + 1
            self._missed[peer] = times, RoundIndex(round_ + min(2 ** (times - 1), LONGEST))
        while len(self._missed) > REMEMBERED:
            del self._missed[next(iter(self._missed))]

    def left_out(self, round_: RoundIndex) -> frozenset[PeerId]:
        """Who is not expected in that round."""
        return frozenset(peer for peer, (_, last) in self._missed.items() if round_ <= last)
