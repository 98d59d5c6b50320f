"""Bugs planted into `Simplex`, each of which the simulation must find."""

from collections.abc import Callable
from typing import Any

from elastic.agreement import simplex
from elastic.agreement.simplex import Action, Cast, Enter, Final, Keep, Propose, Simplex
from elastic.agreement.votes import Proposal, VoteKind
from elastic.messages import Digest, PeerId, View

MUTANTS: dict[str, Callable[..., Simplex]] = {}


def mutant(name: str) -> Callable[[type[Simplex]], type[Simplex]]:
    def keep(bug: type[Simplex]) -> type[Simplex]:
        MUTANTS[name] = bug
        return bug

    return keep


def with_quorum(of: Callable[[int], int]) -> Callable[..., Simplex]:
    def build(*args: Any) -> Simplex:
        machine = Simplex(*args)
        machine.q = of(len(machine.validators))
        return machine

    return build


MUTANTS["a quorum of half"] = with_quorum(lambda n: max(1, n // 2))
MUTANTS["a quorum of n - f - 1"] = with_quorum(lambda n: max(1, n - simplex.max_liars(n) - 1))
MUTANTS["a quorum of f + 1"] = with_quorum(lambda n: simplex.max_liars(n) + 1)
MUTANTS["a quorum of 2 f + 1"] = with_quorum(lambda n: 2 * simplex.max_liars(n) + 1)
MUTANTS["a quorum of all"] = with_quorum(lambda n: n)


@mutant("votes as often as it sees a proposal")
class _VotesTwice(Simplex):
    def hear(self, votes: Any = (), proposals: Any = ()) -> list[Action]:
        for each in proposals:
            self._proposals[each.view] = each
            self._cast.get(each.view, {}).pop(VoteKind.NOTARIZE, None)
        return super().hear(votes, proposals)


@mutant("skips what it made final")
class _SkipsFinal(Simplex):
    def time_out(self, view: View) -> list[Action]:
        if self.final is None and VoteKind.FINALIZE in self._cast.get(View(self.view - 1), {}):
            return [self._vote(View(self.view - 1), VoteKind.VOID), *super().time_out(view)]
        return super().time_out(view)


@mutant("makes final what it skipped")
class _FinalizesSkipped(Simplex):
    def _move_on(self) -> list[Action]:
        before = self.view
        actions = super()._move_on()
        last = View(self.view - 1)
        if self.view > before and (manifest := self._notarized(last)) and not any(isinstance(a, Cast) for a in actions):
            return [self._vote(last, VoteKind.FINALIZE, manifest), *actions]
        return actions


@mutant("takes proposals that repeat nothing though something is notarized")
class _NoSkipProof(Simplex):
    def _justified(self, proposal: Proposal) -> bool:
        return proposal.parent is None or super()._justified(proposal)


@mutant("takes proposals that repeat something else")
class _OtherRepeat(Simplex):
    def _justified(self, proposal: Proposal) -> bool:
        parent = proposal.parent
        return super()._justified(proposal) or (parent is not None and parent < proposal.view)


@mutant("takes proposals that repeat something old")
class _OldRepeat(Simplex):
    def _justified(self, proposal: Proposal) -> bool:
        parent = proposal.parent
        return super()._justified(proposal) or (
            parent is not None and parent < proposal.view and self._notarized(parent) == proposal.manifest
        )

    def _propose(self) -> list[Action]:
        old = next((View(v) for v in range(self.view) if self._notarized(View(v))), None)
        mine = self._me == simplex.proposer_of(self._run, self._round, self.view, self.validators)
        if old is None or not mine or self.view in self._proposed:
            return super()._propose()
        self._proposed[self.view] = old
        manifest = self._notarized(old)
        assert manifest is not None
        return [Propose(self.view, manifest, old)]


@mutant("proposes its own whatever is notarized")
class _OwnAlways(Simplex):
    def _newest_notarized(self, before: View) -> View | None:
        return None

    def _skipped(self, first: int, behind: int) -> bool:
        return True


@mutant("votes for what is not good")
class _VotesForBad(Simplex):
    def _notarize(self) -> list[Action]:
        if proposal := self._proposals.get(self.view):
            self._good.add(proposal.manifest)
        return super()._notarize()


@mutant("takes proposals of anyone")
class _AnyProposer(Simplex):
    def hear(self, votes: Any = (), proposals: Any = ()) -> list[Action]:
        for each in proposals:
            self._proposals.setdefault(each.view, each)
        return super().hear(votes, proposals)

    def _justified(self, proposal: Proposal) -> bool:
        return True


@mutant("takes what was notarized for final")
class _NotarizedIsFinal(Simplex):
    def _end(self) -> list[Action]:
        for view in range(self.view):
            if (manifest := self._notarized(View(view))) is not None:
                votes = self._tally.of(View(view), VoteKind.NOTARIZE, manifest)
                self.final = Final(manifest, tuple(votes.values()))
                return [self.final]
        return []


@mutant("counts final votes of all views together")
class _AllViewsFinal(Simplex):
    def _end(self) -> list[Action]:
        by_manifest: dict[Digest, dict[PeerId, Any]] = {}
        for _, kind, manifest, votes in self._tally.each():
            if kind is VoteKind.FINALIZE:
                by_manifest.setdefault(manifest, {}).update(votes)
        for manifest, votes in by_manifest.items():
            if len(votes) >= self.q:
                self.final = Final(manifest, tuple(votes.values()))
                return [self.final]
        return []


@mutant("counts final votes for anything together")
class _AnyFinal(Simplex):
    def _end(self) -> list[Action]:
        by_view: dict[View, dict[PeerId, Any]] = {}
        for view, kind, _, votes in self._tally.each():
            if kind is VoteKind.FINALIZE:
                by_view.setdefault(view, {}).update(votes)
        for votes in by_view.values():
            if len(votes) >= self.q:
                self.final = Final(next(iter(votes.values())).manifest, tuple(votes.values()))
                return [self.final]
        return []


@mutant("counts notarize votes for anything together")
class _AnyNotarized(Simplex):
    def _notarized(self, view: View) -> Digest | None:
        voters: set[PeerId] = set()
        for at, kind, manifest, votes in self._tally.each():
            if at == view and kind is VoteKind.NOTARIZE:
                voters |= set(votes)
                if len(voters) >= self.q:
                    return manifest
        return None


@mutant("counts votes to skip for notarize votes")
class _VoidNotarizes(Simplex):
    def _skipped(self, first: int, behind: int) -> bool:
        def voters(view: int) -> set[PeerId]:
            found = [each for each in self._tally.each() if each[0] == view and each[1] is not VoteKind.FINALIZE]
            return {peer for *_, votes in found for peer in votes}

        return all(len(voters(view)) >= self.q for view in range(first, behind))


@mutant("counts strangers and repetitions")
class _CountsTwice(Simplex):
    def _end(self) -> list[Action]:
        for _, kind, manifest, votes in self._tally.each():
            if kind is VoteKind.FINALIZE and 2 * len(votes) >= self.q:
                self.final = Final(manifest, tuple(votes.values()) * 2)
                return [self.final]
        return []


@mutant("forgets its votes when it is restarted")
class _ForgetsVotes(Simplex):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args[:-1], [each for each in args[-1] if isinstance(each, Propose)])


@mutant("forgets its proposals when it is restarted")
class _ForgetsProposals(Simplex):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args[:-1], [each for each in args[-1] if isinstance(each, Cast)])


@mutant("does not pass on what brought it here")
class _NoProof(Simplex):
    def proof(self) -> list[Any]:
        return []


@mutant("does not move on when a view is skipped")
class _StaysWhenSkipped(Simplex):
    def _is_over(self, view: View) -> bool:
        return self._notarized(view) is not None


@mutant("never starts the timer of a later view")
class _NoTimer(Simplex):
    def _move_on(self) -> list[Action]:
        return [each for each in super()._move_on() if not isinstance(each, Enter)]


@mutant("never skips a view it voted in")
class _NoVoidAfterVote(Simplex):
    def time_out(self, view: View) -> list[Action]:
        return [] if VoteKind.NOTARIZE in self._cast.get(view, {}) else super().time_out(view)


@mutant("never asks for what others propose")
class _WantsNothing(Simplex):
    def wanted(self) -> set[Digest]:
        return set()


@mutant("keeps nothing of what it was told")
class _KeepsNothing(Simplex):
    def _move_on(self) -> list[Action]:
        return [each for each in super()._move_on() if not isinstance(each, Keep)]
