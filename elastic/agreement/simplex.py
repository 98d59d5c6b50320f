"""Agreement on one round's manifest by n validators of which f may lie: a pure state machine.

Source: Simplex Consensus (Chan and Pass, TCC 2023). There, a height whose proposer is silent stays empty. Here each
round is an agreement of its own with numbered *views*, and a silent proposer costs a view, which is a timeout, and not
the round: the next view's proposer proposes for the same round. A round ends when one manifest is final; a manifest
that counts nobody is still a manifest.

    proposal(view, digest, parent)   by the view's proposer; `parent` is the view whose notarized digest it repeats
    notarize(view, digest)           "the first good proposal that I saw in this view"
    void(view)                       "my timer for this view ran out"
    finalize(view, digest)           "I saw this notarized, and never voted void in this view"

q notarize votes notarize a digest, q void votes skip the view; either moves everyone to the next view. A proposal must
repeat a notarized digest, and show with void votes that every view since was skipped; if it repeats none, all were
skipped. q finalize votes make a digest final.

Why two digests are never final: q finalize votes for (v, d) and q void votes of v would share an honest validator, who
does not cast both. So v is never skipped, and each later proposal must repeat d. Within v, two notarized digests would
share an honest validator, who votes once.

Events go in as method calls, actions come out; no clock, no network, no signatures. Votes must have been verified; our
own count once they are heard. Every `Cast` and `Propose` must be on disk before it is sent: a validator that forgets
what it said becomes a liar. So must what `Keep` names, before anything behind it is done: who says "final" and forgets
why can no longer skip the view, nor show anyone else the way. View 0 needs no `Enter`.
"""

# n validators, f liars, q quorum

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from elastic.agreement.votes import Proposal, Vote, VoteKind
from elastic.messages import NO_DIGEST, Digest, PeerId, RoundIndex, View

AHEAD = 64
"""Single votes and proposals of views further ahead are not kept; a quorum of votes that is heard at once always is."""


def max_liars(num_validators: int) -> int:
    """f = ⌊(n − 1) / 3⌋: so many may do anything at all."""
    return (num_validators - 1) // 3


def quorum(num_validators: int) -> int:
    """q = ⌊(n + f) / 2⌋ + 1: two quorums share more than f validators, and n − f are a quorum."""
    return (num_validators + max_liars(num_validators)) // 2 + 1


def proposer_of(run: str, round_: RoundIndex, view: View, validators: Sequence[PeerId]) -> PeerId:
    """Whose turn it is: drawn for the round, then one after the other."""
    ordered = sorted(validators)
    drawn = int.from_bytes(sha256(f"{run}/{round_}".encode()).digest()[:8], "big")
    return ordered[(drawn + view) % len(ordered)]


@dataclass(frozen=True, slots=True)
class Propose:
    """As the view's proposer: sign and send this."""

    view: View
    manifest: Digest
    parent: View | None


@dataclass(frozen=True, slots=True)
class Cast:
    """Write this vote to disk, sign it, send it."""

    view: View
    kind: VoteKind
    manifest: Digest


@dataclass(frozen=True, slots=True)
class Keep:
    """Write these votes to disk, in place of those kept before: after a restart, hear them first."""

    votes: tuple[Vote, ...]


@dataclass(frozen=True, slots=True)
class Enter:
    """A new view: start its timer, and pass on `proof`."""

    view: View


@dataclass(frozen=True, slots=True)
class Final:
    """The round is over; `votes` prove it to anyone."""

    manifest: Digest
    votes: tuple[Vote, ...]


Action = Propose | Cast | Keep | Enter | Final


@dataclass(slots=True)
class _Tally:
    """Who voted for what."""

    views: dict[View, dict[tuple[VoteKind, Digest], dict[PeerId, Vote]]] = field(default_factory=dict)

    def add(self, vote: Vote) -> None:
        mine = self.views.setdefault(vote.view, {})
        mine.setdefault((vote.kind, vote.manifest), {}).setdefault(vote.peer, vote)

    def has_two(self, vote: Vote) -> bool:
        """Whether its voter has voted for two manifests in that view already: a liar, whose third says nothing new."""
        mine = self.views.get(vote.view, {})
        return sum(vote.peer in votes for (kind, _), votes in mine.items() if kind is vote.kind) >= 2

    def of(self, view: int, kind: VoteKind, manifest: Digest = NO_DIGEST) -> Mapping[PeerId, Vote]:
        return self.views.get(View(view), {}).get((kind, manifest), {})

    def each(self) -> Iterator[tuple[View, VoteKind, Digest, Mapping[PeerId, Vote]]]:
        for view, found in self.views.items():
            for (kind, manifest), votes in found.items():
                yield view, kind, manifest, votes


class Simplex:
    """One validator's part in the agreement on one round."""

    def __init__(
        self,
        me: PeerId,
        run: str,
        round_: RoundIndex,
        validators: Iterable[PeerId],
        said: Iterable[Cast | Propose] = (),
    ) -> None:
        """Begin, or go on after a restart.

        Args:
            me: a validator.
            run: name of the run.
            round_: the round to agree on.
            validators: all of them; the same set on everyone.
            said: what we said before we were restarted.
        """
        self.validators = tuple(sorted(set(validators)))
        self.q = quorum(len(self.validators))
        self.view = View(0)
        self.final: Final | None = None
        self._me, self._run, self._round = me, run, round_
        self._tally = _Tally()
        self._proposals: dict[View, Proposal] = {}
        self._good: set[Digest] = set()
        self._ours: tuple[View, Digest] | None = None
        """What we would propose, and in which view."""
        self._proposed: dict[View, View | None] = {}
        self._cast: dict[View, dict[VoteKind, Digest]] = {}
        for each in said:
            if isinstance(each, Cast):
                self._cast.setdefault(each.view, {})[each.kind] = each.manifest
            else:
                self._proposed[each.view] = each.parent

    # --- events ----------------------------------------------------------------------------------------------------

    def have(self, manifest: Digest) -> list[Action]:
        """We have a manifest of our own to propose in this view; it is good, of course. In a later one it is stale."""
        self._ours = self.view, manifest
        return self.find_good(manifest)

    def find_good(self, manifest: Digest) -> list[Action]:
        """This manifest follows the rules, and we hold and accept everything that it counts."""
        self._good.add(manifest)
        return self._act()

    def hear(self, votes: Iterable[Vote] = (), proposals: Iterable[Proposal] = ()) -> list[Action]:
        """Verified votes and proposals of this round, in any order, any number of times."""
        votes = [vote for vote in {(v.peer, v.view, v.kind, v.manifest): v for v in votes}.values()
                 if vote.peer in self.validators]  # fmt: skip
        together = Counter((vote.view, vote.kind, vote.manifest) for vote in votes)
        for vote in votes:
            quorate = together[vote.view, vote.kind, vote.manifest] >= self.q
            if quorate or (vote.view <= self.view + AHEAD and not self._tally.has_two(vote)):
                self._tally.add(vote)
        for proposal in proposals:
            rightful = proposal.proposer == proposer_of(self._run, self._round, proposal.view, self.validators)
            if rightful and proposal.view <= self.view + AHEAD:
                self._proposals.setdefault(proposal.view, proposal)
        return self._act()

    def time_out(self, view: View) -> list[Action]:
        """The timer of that view ran out."""
        mine = self._cast.get(view, {})
        if self.final is not None or view != self.view or VoteKind.VOID in mine or VoteKind.FINALIZE in mine:
            return []
        return [self._vote(view, VoteKind.VOID), *self._act()]

    # --- what is known ---------------------------------------------------------------------------------------------

    def wanted(self) -> set[Digest]:
        """The manifest that was proposed in this view, if our vote waits for it to be found good."""
        proposal = self._proposals.get(self.view)
        if self.final is not None or proposal is None or proposal.parent is not None:
            return set()
        return {proposal.manifest} - self._good

    def may_propose(self) -> bool:
        """Whether a manifest of our own is wanted: it is our turn, and nothing else must be repeated."""
        mine = self._me == proposer_of(self._run, self._round, self.view, self.validators)
        fresh = mine and self.final is None and self.view not in self._proposed
        return fresh and self._newest_notarized(self.view) is None

    def notarized(self) -> Digest | None:
        """The newest notarized manifest, which every proposal from now on repeats unless its view is skipped."""
        view = self._newest_notarized(self.view)
        return None if view is None else self._notarized(view)

    def proof(self) -> list[Vote]:
        """The votes that brought us into this view, and those that justify what we proposed in it."""
        if self.final is not None:
            return list(self.final.votes)
        newest = self._newest_notarized(self.view)
        found = self._way_from(newest)
        parent = self._proposed.get(self.view, newest)
        return found if parent == newest else found + [v for v in self._way_from(parent) if v not in found]

    def _way_from(self, parent: View | None) -> list[Vote]:
        """Votes that notarize that view's digest, and those that skip all views since."""
        found: list[Vote] = []
        if parent is not None and (manifest := self._notarized(parent)) is not None:
            found += list(self._tally.of(parent, VoteKind.NOTARIZE, manifest).values())[: self.q]
        for view in range(0 if parent is None else parent + 1, self.view):
            found += list(self._tally.of(view, VoteKind.VOID).values())[: self.q]
        return found

    def liars(self) -> set[PeerId]:
        """Who voted for two manifests in one view, or both to skip it and to make it final."""
        seen: dict[tuple[PeerId, View, VoteKind], Digest] = {}
        found = set()
        for view, kind, manifest, votes in self._tally.each():
            for peer in votes:
                if seen.setdefault((peer, view, kind), manifest) != manifest:
                    found.add(peer)
        for peer, view, kind in seen:
            if kind is VoteKind.VOID and (peer, view, VoteKind.FINALIZE) in seen:
                found.add(peer)
        return found

    # --- rules -----------------------------------------------------------------------------------------------------

    def _act(self) -> list[Action]:
        """Everything that follows from what is known."""
        actions: list[Action] = []
        while self.final is None:
            more = self._end() or self._move_on() or self._propose() or self._notarize()
            if not more:
                break
            actions += more
        return actions

    def _end(self) -> list[Action]:
        for _, kind, manifest, votes in self._tally.each():
            if kind is VoteKind.FINALIZE and len(votes) >= self.q:
                self.final = Final(manifest, tuple(votes[peer] for peer in sorted(votes))[: self.q])
                return [Keep(self.final.votes), self.final]
        return []

    def _move_on(self) -> list[Action]:
        """Into the view behind the highest one that is notarized or skipped."""
        over = {view for view in self._tally.views if view >= self.view and self._is_over(view)}
        if not over:
            return []
        last = max(over)
        self.view = View(last + 1)
        notarized, mine = self._notarized(last), self._cast.get(last, {})
        actions: list[Action] = [Keep(tuple(self.proof()))]
        if notarized is not None and VoteKind.VOID not in mine and VoteKind.FINALIZE not in mine:
            actions.append(self._vote(last, VoteKind.FINALIZE, notarized))
        return [*actions, Enter(self.view)]

    def _propose(self) -> list[Action]:
        if self.view in self._proposed or self._me != proposer_of(self._run, self._round, self.view, self.validators):
            return []
        parent = self._newest_notarized(self.view)
        if not self._skipped(0 if parent is None else parent + 1, self.view):
            return []
        ours = self._ours[1] if self._ours is not None and self._ours[0] == self.view else None
        manifest = ours if parent is None else self._notarized(parent)
        if manifest is None:
            return []
        self._proposed[self.view] = parent
        return [Propose(self.view, manifest, parent)]

    def _notarize(self) -> list[Action]:
        proposal = self._proposals.get(self.view)
        if proposal is None or VoteKind.NOTARIZE in self._cast.get(self.view, {}) or not self._justified(proposal):
            return []
        if proposal.parent is None and proposal.manifest not in self._good:
            return []
        return [self._vote(self.view, VoteKind.NOTARIZE, proposal.manifest)]

    def _justified(self, proposal: Proposal) -> bool:
        parent = proposal.parent
        if parent is None:
            return self._skipped(0, proposal.view)
        repeats = parent < proposal.view and self._notarized(parent) == proposal.manifest
        return repeats and self._skipped(parent + 1, proposal.view)

    def _newest_notarized(self, before: View) -> View | None:
        return next((View(v) for v in range(before - 1, -1, -1) if self._notarized(View(v)) is not None), None)

    def _notarized(self, view: View) -> Digest | None:
        for (kind, manifest), votes in self._tally.views.get(view, {}).items():
            if kind is VoteKind.NOTARIZE and len(votes) >= self.q:
                return manifest
        return None

    def _skipped(self, first: int, behind: int) -> bool:
        return all(len(self._tally.of(view, VoteKind.VOID)) >= self.q for view in range(first, behind))

    def _is_over(self, view: View) -> bool:
        return self._notarized(view) is not None or self._skipped(view, view + 1)

    def _vote(self, view: View, kind: VoteKind, manifest: Digest = NO_DIGEST) -> Cast:
        self._cast.setdefault(view, {})[kind] = manifest
        return Cast(view, kind, manifest)
