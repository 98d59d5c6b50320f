"""Who is let in: anyone, a list, the invited, or who has worked for it. What sybils cost is decided here."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from elastic.messages import Invitation, PeerId, PeerIdField
from incentives.opinion import SHUT_OUT, Fraction, OpinionConfig

PROBATION_PART = 0.05
"""Of a newcomer's share: what counts as long as nobody knows whether its author's work helps."""
MAX_INVITED = 4096
"""Invitations remembered; inviters are few, and each has few."""

Thoughts = Callable[[Collection[PeerId]], Mapping[PeerId, float]]


class EntryConfig(OpinionConfig):
    """How a new name gets in."""

    entry: Literal["open", "listed", "invited", "work"] = "open"
    """"open": anyone, into the newcomers' places. "listed": `members` only. "invited": those too whom a member or an
    established peer invited. "work": anyone, but almost nothing of it counts until it helped for `probation` rounds."""
    members: Annotated[tuple[PeerIdField, ...], Field(max_length=1024)] = ()
    """Peer ids that need no invitation."""
    invitations: Annotated[int, Field(ge=0, le=64)] = 3
    """So many each member or established peer may give out; `elastic incentives invite` makes them."""
    established: Annotated[float, Field(gt=0, le=1)] = 0.5
    """With so much reputation a peer may invite others."""
    vouched: Fraction = 0.25
    """Whoever invited a peer that is shut out loses this part of its reputation."""
    probation: Annotated[int, Field(ge=1, le=1000)] = 5
    """With "work": rounds in which it was found to help until a newcomer counts as other newcomers do; by degrees."""

    @model_validator(mode="after")
    def _somebody_is_in(self) -> Self:
        if self.entry in ("listed", "invited") and not self.members:
            raise ValueError(
                f'entry = "{self.entry}" needs members = ["12D3KooW…", …], peer ids that are in from the beginning, as '
                " `elastic id` prints them: without any, nobody would ever be let in"
            )
        return self


class Entry:
    """Who was invited by whom, and who may come in."""

    def __init__(self, config: EntryConfig) -> None:
        self._config = config
        self._members = frozenset(config.members)
        self._invited: dict[tuple[PeerId, int], PeerId] = {}
        """(inviter, number of its invitation) → whom."""
        self._void: set[tuple[PeerId, int]] = set()
        """Invitations that were given twice."""

    def hear(self, invitations: Sequence[Invitation], known: Callable[[PeerId], bool]) -> None:
        """Genuine invitations, of inviters that are `known`. One number given to two peers is void for both."""
        for each in sorted(invitations, key=lambda each: (each.inviter, each.number, each.invited)):
            key = each.inviter, each.number
            if self._config.entry != "invited" or each.number >= self._config.invitations:
                continue
            if not (each.inviter in self._members or known(each.inviter)):
                continue  # anyone can sign any number of them
            if key not in self._invited and len(self._invited) >= MAX_INVITED:
                continue
            if self._invited.setdefault(key, each.invited) != each.invited:
                self._void.add(key)

    def allowed(self, peers: Collection[PeerId], standing: Thoughts) -> set[PeerId]:
        """Those of these peers that may contribute at all.

        Args:
            peers: who would.
            standing: what the validators think of peers.
        """
        entry = self._config.entry
        if entry in ("open", "work"):
            return set(peers)
        listed = set(peers) & self._members
        return listed if entry == "listed" else listed | self._invited_by_the_good(peers, standing)

    def inviters(self, peer: PeerId) -> set[PeerId]:
        """Who answers for a peer."""
        return {inviter for (inviter, number), invited in self._invited.items() if invited == peer}

    def part(self, standing: float) -> float:
        """Of a share: almost nothing for who has not shown that it helps, then in each round so many times more.

        A slope and not a step: validators that see a reputation a little differently come to nearly the same.
        """
        if self._config.entry != "work":
            return 1.0
        enough = 1 - (1 - self._config.earn) ** self._config.probation
        return float(PROBATION_PART ** max(0.0, 1 - standing / enough)) if enough else 1.0

    def state(self) -> list[list[str | int]]:
        """What must survive a restart."""
        void = {each: PeerId("") for each in self._void}
        rows = [*sorted(self._invited.items()), *sorted(void.items())]
        return [[inviter, number, invited] for (inviter, number), invited in rows]

    def restore(self, state: Sequence[Sequence[str | int]]) -> None:
        """Take back what `state` returned.

        Raises:
            ValueError, TypeError: something else.
        """
        rows = [(PeerId(str(inviter)), int(number), str(invited)) for inviter, number, invited in state]
        self._invited = {(inviter, number): PeerId(invited) for inviter, number, invited in rows if invited}
        self._void = {(inviter, number) for inviter, number, invited in rows if not invited}

    def _invited_by_the_good(self, peers: Collection[PeerId], standing: Thoughts) -> set[PeerId]:
        asked = {key: invited for key, invited in self._invited.items() if invited in peers}
        thought = standing({inviter for inviter, _ in asked} | set(asked.values()))

        def may_invite(inviter: PeerId) -> bool:
            known = thought[inviter]
            return known != SHUT_OUT and (inviter in self._members or known >= self._config.established)

        # Who is in and has earned something stays, whatever becomes of its inviter.
        return {
            invited for (inviter, number), invited in asked.items()
            if thought[invited] > 0
            or (thought[invited] != SHUT_OUT and (inviter, number) not in self._void and may_invite(inviter))
        }  # fmt: skip
