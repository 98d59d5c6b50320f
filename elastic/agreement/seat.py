"""A validator's seat in one round: the state machine, its memory on disk, its signatures.

What `Simplex` wants to be said is signed here and heard by ourselves at once; all of it is on disk before `ballot` may
be posted. After a restart the same ballot is heard again, so a validator never contradicts itself.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from elastic.agreement.simplex import Action, Cast, Enter, Final, Keep, Propose, Simplex
from elastic.agreement.votes import Ballot, Proposal, Vote, VoteKind
from elastic.errors import SignatureInvalidError
from elastic.messages import Digest, Finality, Manifest, PeerId, RoundIndex, View
from elastic.wire.signing import Identity, verify

logger = logging.getLogger(__name__)

T = TypeVar("T", Vote, Proposal)

GENUINE = 16_384
"""Genuine votes and proposals remembered; a liar can sign any number."""
TEXTS = 4
"""Manifests kept of those that we voted for and proposed last."""


class Seat:
    """One validator in one round."""

    def __init__(
        self,
        identity: Identity,
        run: str,
        round_: RoundIndex,
        validators: Sequence[PeerId],
        *,
        memory: Ballot | None,
        save: Callable[[Ballot], None],
    ) -> None:
        """Begin, or go on from what we said before we were restarted.

        Args:
            identity: ours.
            run: name of the run.
            round_: the round to agree on.
            validators: all of them.
            memory: our ballot in this round as it was saved.
            save: keeps our ballot durably, in place of the one before; it is on disk when this returns.
        """
        self.round, self.validators = round_, frozenset(validators)
        self.entered = 0
        """Views entered so far: each wants a timer of its own."""
        self.changes = 0
        """Grows whenever there is something new to say."""
        self._identity, self._run, self._save = identity, run, save
        self._named: set[PeerId] = set()
        """Proven liars that the log has named."""
        self._genuine: set[Vote | Proposal] = set()
        self._texts = {text.digest(): text for text in memory.texts} if memory else {}
        votes, proposals = self._remembered(memory) if memory else ([], [])
        self._votes = [vote for vote in votes if vote.peer == identity.peer]
        self._proposals = [each for each in proposals if each.proposer == identity.peer]
        said = [Cast(vote.view, vote.kind, vote.manifest) for vote in self._votes]
        proposed = [Propose(each.view, each.manifest, each.parent) for each in self._proposals]
        self._machine = Simplex(identity.peer, run, round_, validators, [*said, *proposed])
        self._do(self._machine.hear(votes, proposals))

    @property
    def view(self) -> View:
        """The view we are in."""
        return self._machine.view

    @property
    def final(self) -> Digest | None:
        """Which manifest is final, once we know."""
        return self._machine.final.manifest if self._machine.final else None

    @property
    def finality(self) -> Finality | None:
        """And why."""
        if self._machine.final is None:
            return None
        votes = self._machine.final.votes
        return Finality(view=votes[0].view, signatures={vote.peer: vote.signature for vote in votes})

    def wanted(self) -> set[Digest]:
        """The manifest that our vote waits for."""
        return self._machine.wanted()

    def may_propose(self) -> bool:
        """Whether a manifest of our own is wanted in this view."""
        return self._machine.may_propose()

    def have(self, manifest: Manifest) -> None:
        """A manifest of our own for this view; signed here."""
        signed = self._identity.sign(manifest)
        self._texts[signed.digest()] = signed
        self._do(self._machine.have(signed.digest()))

    def find_good(self, manifest: Manifest) -> None:
        """Another's manifest is one that we would sign."""
        self._texts[manifest.digest()] = manifest
        self._do(self._machine.find_good(manifest.digest()))

    def text_of(self, manifest: Digest) -> Manifest | None:
        """A manifest that we proposed or found good."""
        return self._texts.get(manifest)

    def needed(self) -> Manifest | None:
        """The text that others may need from us: of what is notarized, whoever proposed it; else of our proposal."""
        wanted = self.final or self._machine.notarized()
        if wanted is None:
            own = [each.manifest for each in self._proposals if each.view == self.view]
            wanted = own[0] if own else None
        return None if wanted is None else self._texts.get(wanted)

    def hear(self, ballot: Ballot) -> None:
        """What another validator posted. An honest one passes on what it has verified: a forgery spoils all of it.

        Raises:
            SignatureInvalidError: of something in it, behind which nothing was looked at.
        """
        if (ballot.run, ballot.round) != (self._run, self.round):
            return
        votes = [self._verified(vote) for vote in ballot.votes()]
        self._do(self._machine.hear(votes, [self._verified(each) for each in ballot.proposals]))
        self._name_liars()

    def time_out(self) -> None:
        """The timer of the view we are in ran out."""
        self._do(self._machine.time_out(self._machine.view))

    def ballot(self) -> Ballot:
        """All that the others need to hear of us: proposals of views that are over are of no use to them."""
        proposals = [each for each in self._proposals if each.view == self.view]
        return Ballot.of(self._run, self.round, self._said(), proposals)

    def _name_liars(self) -> None:
        for peer in sorted(self._machine.liars() - self._named):
            logger.warning("round %d: %s lies: in one view it voted for two things", self.round, peer)
            self._named.add(peer)

    def _said(self) -> list[Vote]:
        return list(dict.fromkeys([*self._votes, *self._machine.proof()]))

    def _do(self, actions: Iterable[Action]) -> None:
        """Carry out what the machine wants, and hear ourselves, until there is no more; then it is on disk."""
        queue = deque(actions)
        if not queue:
            return
        while queue:
            match queue.popleft():
                case Cast(view, kind, manifest):
                    vote = self._identity.sign(
                        Vote(run=self._run, round=self.round, view=view, kind=kind, manifest=manifest,
                             peer=self._identity.peer)
                    )  # fmt: skip
                    self._votes.append(vote)
                    queue += self._machine.hear([vote])
                case Propose(view, manifest, parent):
                    proposal = self._identity.sign(
                        Proposal(run=self._run, round=self.round, view=view, manifest=manifest, parent=parent,
                                 proposer=self._identity.peer)
                    )  # fmt: skip
                    self._proposals.append(proposal)
                    queue += self._machine.hear(proposals=[proposal])
                case Enter():
                    self.entered += 1
                case Keep() | Final():
                    pass  # the proof of where we are is saved with the rest
        self._forget_texts()
        self.changes += 1
        memory = Ballot.of(self._run, self.round, self._said(), self._proposals)
        self._save(memory.model_copy(update={"texts": tuple(self._texts.values())}))

    def _forget_texts(self) -> None:
        """Keep those that may still become final: of what is notarized, and of our last votes and proposals."""
        mine = [vote.manifest for vote in self._votes if vote.kind is VoteKind.NOTARIZE][-TEXTS:]
        mine += [each.manifest for each in self._proposals[-TEXTS:]]
        kept = {*mine, self.final, self._machine.notarized()} | self.wanted()
        self._texts = {digest: text for digest, text in self._texts.items() if digest in kept}

    def _remembered(self, memory: Ballot) -> tuple[list[Vote], list[Proposal]]:
        """What is genuine, and of this round."""
        if (memory.run, memory.round) != (self._run, self.round):
            return [], []
        votes = [vote for vote in memory.votes() if self._is_genuine(vote)]
        return votes, [each for each in memory.proposals if self._is_genuine(each)]

    def _verified(self, said: T) -> T:
        if not self._is_genuine(said):
            raise SignatureInvalidError(f"not said by {said.signer}, or not in this round")
        return said

    def _is_genuine(self, said: Vote | Proposal) -> bool:
        """Each signature is checked once."""
        if said not in self._genuine:
            if (said.run, said.round) != (self._run, self.round) or said.signer not in self.validators:
                return False
            try:
                verify(said)
            except SignatureInvalidError:
                return False
            if len(self._genuine) >= GENUINE:
                self._genuine.clear()
            self._genuine.add(said)
        return True
