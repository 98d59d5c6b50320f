"""Validators that agree on a round, over a network that loses, delays, repeats and splits; some crash, some lie.

Liars know when it hurts: whom only they complete a quorum for they may have killed, and be gone; what is final with one
they help nobody else to. And the first that says "final" may be one that nobody hears any more.

Everything follows from a seed. Time is a number; what happens next is the earliest entry of a heap. Each validator is a
real `Simplex`; what it says is kept on its disk before it is sent, and said again every second, as records of a DHT are
there to be read again. From `HEAL` on the network is good.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from elastic.agreement.simplex import Cast, Enter, Final, Keep, Propose, Simplex, max_liars, proposer_of, quorum
from elastic.agreement.votes import Proposal, Vote, VoteKind
from elastic.messages import NO_DIGEST, Digest, PeerId, RoundIndex, View, digest_of

RUN, ROUND = "sim", RoundIndex(7)
HEAL, END = 60.0, 900.0
REPEAT = 1.0
NAMES = [PeerId("12D3KooW" + letter * 44) for letter in "ABCDEFGHJKLM"]


def manifest_of(peer: PeerId, number: int = 0) -> Digest:
    """What that validator would propose."""
    return digest_of(f"{peer} {number}".encode())


BAD = digest_of(b"counts what nobody holds")


def vote(peer: PeerId, view: int, kind: VoteKind, manifest: Digest = NO_DIGEST) -> Vote:
    return Vote(run=RUN, round=ROUND, view=View(view), kind=kind, manifest=manifest, peer=peer)


def proposal(peer: PeerId, view: int, manifest: Digest, parent: int | None = None) -> Proposal:
    return Proposal(
        run=RUN, round=ROUND, view=View(view), manifest=manifest, proposer=peer,
        parent=None if parent is None else View(parent),
    )  # fmt: skip


GOOD = {manifest_of(peer, number) for peer in NAMES for number in range(40)}
"""What an honest validator finds good: what honest ones propose, in any of their lives; and some of what liars do."""


@dataclass
class Honest:
    """An honest validator: its machine, and what is on its disk."""

    peer: PeerId
    machine: Simplex | None
    said: list[Cast | Propose] = field(default_factory=list)
    proposals: list[Proposal] = field(default_factory=list)
    kept: tuple[Vote, ...] = ()
    ready: bool = False
    life: int = 0


class ViolationError(AssertionError):
    """Something happened that must never happen."""


class Sim:
    """One schedule."""

    def __init__(self, seed: int, make: Callable[..., Simplex] = Simplex) -> None:
        """Draw everything from the seed.

        Args:
            seed: of the schedule.
            make: builds a validator's machine; another one is a bug to be found.
        """
        self.rng = rng = random.Random(seed)
        self.make, self.now, self.events = make, 0.0, 0
        n = rng.choice([1, 2, 3, 4, 4, 4, 4, 5, 6, 7, 7, 10])
        self.all = NAMES[:n]
        self.liars = set(rng.sample(self.all, rng.choice([0, max_liars(n), max_liars(n)])))
        self.loss, self.delay = rng.choice([0.0, 0.1, 0.4]), rng.choice([0.05, 1.0, 5.0, 15.0])
        self.crashes = rng.choice([0.0, 0.0, 0.3])
        self.sides = {peer: rng.randrange(2) for peer in self.all}
        self.split = (rng.uniform(0, 30), rng.uniform(0, HEAL)) if rng.random() < 0.4 else (1.0, 0.0)
        self.muting, self.mute = rng.random() < 0.4, set[PeerId]()
        """Whether the first that says "final" is heard by nobody from then on, for a while; and whom that befell."""
        self.honest = {peer: Honest(peer, None) for peer in self.all if peer not in self.liars}
        self.final: dict[PeerId, Final] = {}
        self.cast: dict[tuple[PeerId, View, VoteKind], Digest] = {}
        self.proposed: dict[tuple[PeerId, View], Propose] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        for node in self.honest.values():
            self.start(node)
            self.at(rng.uniform(0, 5), lambda node=node: self.become_ready(node))  # type: ignore[misc]
            self.at(REPEAT, lambda node=node: self.repeat(node))  # type: ignore[misc]
        self.lies: dict[View, Proposal] = {}
        self.quiet = rng.random() < 0.6
        """Whether liars fall silent when the network heals: only then are they of no use to anyone."""
        self.haste = rng.choice([0.3, 1.0])
        """Seconds between two lies at most, while the network is bad."""
        self.hit_and_run, self.gone = rng.choice([0.0, 0.0, 0.3]), False
        """How often liars pull the plug of whom they made commit itself to what nobody else saw, and are gone."""
        if self.liars:
            self.at(rng.uniform(0, 3), self.lie)

    def run(self) -> None:
        """To the end; raises ViolationError, also if honest validators never agree."""
        while self._heap and len(self.final) < len(self.honest):
            self.now, _, event = heapq.heappop(self._heap)
            if self.now > END:
                break
            event()
        if len(self.final) < len(self.honest):
            views = [node.machine.view for node in self.honest.values() if node.machine]
            raise ViolationError(f"{len(self.final)} of {len(self.honest)} agreed by {END} s; views {views}")

    def at(self, seconds: float, event: Callable[[], None]) -> None:
        """Let it happen so many seconds from now."""
        self.events += 1
        heapq.heappush(self._heap, (self.now + seconds, self.events, event))

    # --- honest validators -----------------------------------------------------------------------------------------

    def start(self, node: Honest) -> None:
        """A life: from what is on disk."""
        node.life += 1
        node.machine = self.make(node.peer, RUN, ROUND, self.all, node.said)
        self.arm(node, View(0))
        self.do(node, node.machine.hear(node.kept))
        if node.ready and node.machine is not None:
            self.do(node, node.machine.have(manifest_of(node.peer, node.life)))

    def become_ready(self, node: Honest) -> None:
        node.ready = True
        if node.machine is not None:
            self.do(node, node.machine.have(manifest_of(node.peer, node.life)))

    def arm(self, node: Honest, view: View) -> None:
        life = node.life
        self.at(min(8.0 * 2**view, 40.0), lambda: self.ring(node, view, life))

    def ring(self, node: Honest, view: View, life: int) -> None:
        if node.machine is not None and node.life == life:
            self.do(node, node.machine.time_out(view))

    def do(self, node: Honest, actions: list[Any]) -> None:
        """Carry the actions out; a crash may come between any two of them."""
        for action in actions:
            if isinstance(action, Cast) and action.kind is VoteKind.FINALIZE and self.muting and not self.mute:
                self.mute.add(node.peer)
                self.at(self.rng.uniform(5, HEAL), self.mute.clear)
                self.muting = False
            if self.now < HEAL and self.rng.random() < self.crashes * 0.1:
                self.crash(node)
                return
            match action:
                case Keep(votes):
                    node.kept = votes
                case Cast(view, kind, manifest):
                    self.check_vote(node.peer, action)
                    node.said.append(action)
                    self.send(node.peer, [vote(node.peer, view, kind, manifest)], [])
                case Propose(view, manifest, parent):
                    self.check_proposal(node.peer, action)
                    node.said.append(action)
                    node.proposals.append(proposal(node.peer, view, manifest, parent))
                    self.send(node.peer, [], node.proposals[-1:])
                case Enter(view):
                    self.arm(node, view)
                    if node.ready and node.machine is not None:
                        self.do(node, node.machine.have(manifest_of(node.peer, node.life)))
                case Final():
                    self.check_final(node.peer, action)

    def crash(self, node: Honest) -> None:
        """All is forgotten that is not on disk."""
        node.machine = None
        self.at(self.rng.uniform(0, 20), lambda: self.start(node))

    def repeat(self, node: Honest) -> None:
        if node.machine is not None:
            mine = [vote(node.peer, s.view, s.kind, s.manifest) for s in node.said if isinstance(s, Cast)]
            self.send(node.peer, [*mine, *node.machine.proof()], node.proposals)
        self.at(REPEAT, lambda: self.repeat(node))

    # --- liars -----------------------------------------------------------------------------------------------------

    def lie(self) -> None:
        """Where it hurts: complete a quorum that only one honest validator sees, or only one half of them, or propose
        what only they get. Liars act together, see everything, and are never lost or delayed."""
        if self.gone:
            return
        alive = [node for node in self.honest.values() if node.machine is not None]
        if alive:
            node = self.rng.choice(alive)
            machine = node.machine
            assert machine is not None
            # What is final with one they help nobody else to.
            known = {(VoteKind.FINALIZE, final.manifest) for final in self.final.values()}
            open_ = [
                each for each in machine._tally.each() if len(each[3]) < machine.q and (each[1], each[2]) not in known
            ]
            tally = [each[:3] for each in open_]
            near = [each[:3] for each in open_ if len(each[3]) + len(self.liars) >= machine.q]
            chosen = self.rng.choice(near or tally or [(machine.view, VoteKind.VOID, NO_DIGEST)])
            if self.rng.random() < 0.2:
                kind = self.rng.choice((VoteKind.NOTARIZE, VoteKind.FINALIZE))
                chosen = (View(max(0, machine.view - self.rng.randrange(2))), kind, self.some_manifest())
            votes = [vote(liar, chosen[0], chosen[1], chosen[2]) for liar in sorted(self.liars)]
            told = self.rng.choice([[node], [node], alive, [each for each in alive if self.beside(each, node)]])
            self.at(0.01, lambda: self.deceive(told, votes))
        if self.now < HEAL or not self.quiet:
            self.at(self.rng.uniform(0.02, self.haste if self.now < HEAL else 10.0), self.lie)

    def beside(self, one: Honest, other: Honest) -> bool:
        """Whether both are in the same half."""
        return self.sides[one.peer] == self.sides[other.peer]

    def deceive(self, told: list[Honest], votes: list[Vote]) -> None:
        for node in told:
            if not self.gone:
                self.tell(node, votes)

    def tell(self, node: Honest, votes: list[Vote]) -> None:
        """Tell it, and perhaps pull the plug as soon as it has acted on it."""
        before = self.committed(node)
        self.hear(node, votes, self.false_proposals(node))
        if self.now >= HEAL or node.machine is None:
            return
        self.gone = self.committed(node) > before and self.rng.random() < self.hit_and_run
        if self.gone or self.rng.random() < self.crashes * 0.2:
            self.crash(node)

    def committed(self, node: Honest) -> int:
        """In how many views it can no longer vote to skip."""
        return sum(isinstance(said, Cast) and said.kind is VoteKind.FINALIZE for said in node.said)

    def false_proposals(self, node: Honest) -> list[Proposal]:
        """Anything, with any parent; mostly when a liar's turn has come."""
        if node.machine is None:
            return []
        view = node.machine.view
        turn = proposer_of(RUN, ROUND, view, self.all)
        liar = turn if turn in self.liars else min(self.liars)
        if self.rng.random() < (0.2 if liar == turn else 0.8):
            return []
        if self.rng.random() < 0.6 and view in self.lies:
            return [self.lies[view]]  # what others were told too
        parent = self.rng.choice([None, None, *range(view)])
        repeated = None if parent is None else node.machine._notarized(View(parent))
        honestly = repeated is not None and self.rng.random() < 0.5
        manifest = repeated if honestly and repeated else self.some_manifest()
        self.lies[view] = proposal(liar, view, manifest, parent)
        return [self.lies[view]]

    def some_manifest(self) -> Digest:
        machines = [node.machine for node in self.honest.values() if node.machine is not None]
        known = sorted({proposal.manifest for machine in machines for proposal in machine._proposals.values()})
        liar = min(self.liars)
        return self.rng.choice([*known, manifest_of(liar, 1), manifest_of(liar, 2), BAD])

    # --- the network -----------------------------------------------------------------------------------------------

    def send(
        self, sender: PeerId, votes: list[Vote], proposals: list[Proposal], to: list[PeerId] | None = None
    ) -> None:
        for receiver in self.all if to is None else to:
            for _ in range(1 if self.rng.random() < 0.9 else 2):
                self.deliver(sender, receiver, votes, proposals)

    def deliver(self, sender: PeerId, receiver: PeerId, votes: list[Vote], proposals: list[Proposal]) -> None:
        node = self.honest.get(receiver)
        if node is None:
            return
        if sender != receiver and self.now < HEAL:
            apart = self.split[0] <= self.now <= self.split[1] and self.sides[sender] != self.sides[receiver]
            if apart or sender in self.mute or self.rng.random() < self.loss:
                return
        delay = self.rng.uniform(0, self.delay if self.now < HEAL else 0.2) if sender != receiver else 0.0
        self.at(delay, lambda: self.hear(node, votes, proposals))

    def hear(self, node: Honest, votes: list[Vote], proposals: list[Proposal]) -> None:
        if node.machine is None:
            return
        self.do(node, node.machine.hear(votes, proposals))
        for manifest in sorted((node.machine.wanted() if node.machine else set()) & GOOD):
            if node.machine is not None:
                self.do(node, node.machine.find_good(manifest))

    # --- what must hold --------------------------------------------------------------------------------------------

    def check_vote(self, peer: PeerId, each: Cast) -> None:
        """Honest validators vote once, and do not finalize what they skipped."""
        first = self.cast.setdefault((peer, each.view, each.kind), each.manifest)
        if first != each.manifest:
            raise ViolationError(f"{peer} voted for two manifests in view {each.view}")
        both = {(peer, each.view, kind) for kind in (VoteKind.VOID, VoteKind.FINALIZE)}
        if both <= self.cast.keys():
            raise ViolationError(f"{peer} voted void and final in view {each.view}")

    def check_proposal(self, peer: PeerId, each: Propose) -> None:
        """Honest proposers propose one thing in a view, also if they are restarted."""
        if self.proposed.setdefault((peer, each.view), each) != each:
            raise ViolationError(f"{peer} proposed two things in view {each.view}")

    def check_final(self, peer: PeerId, final: Final) -> None:
        """One manifest, with proof, of which an honest validator thought well."""
        self.final[peer] = final
        if len({each.manifest for each in self.final.values()}) > 1:
            raise ViolationError(f"two final manifests: {[each.manifest[:8] for each in self.final.values()]}")
        if final.manifest not in GOOD:
            raise ViolationError("a manifest is final that nobody honest found good")
        voters = {each.peer for each in final.votes}
        same = {(each.kind, each.view, each.manifest) for each in final.votes}
        kind, _, manifest = next(iter(same))
        right = len(same) == 1 and kind is VoteKind.FINALIZE and manifest == final.manifest
        if len(voters) < quorum(len(self.all)) or not right:
            raise ViolationError("the proof of finality proves nothing")
