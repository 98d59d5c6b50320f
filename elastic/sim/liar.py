"""A validator that lies where it hurts: it sees everything, and tells each honest validator something else.

It completes quorums for one victim alone, votes for everything, proposes one manifest to one and another to the next,
shows commitments that nobody made, repeats what others said, refers to blobs that it never sends, and posts garbage.
What is final with one it helps nobody else to. Its card it may show to some only, and it may leave for good when others
have come to need it.
"""

from __future__ import annotations

import random
from math import inf
from typing import TYPE_CHECKING

from elastic.agreement.charter import AMENDMENTS
from elastic.agreement.seat import Seat
from elastic.agreement.simplex import proposer_of
from elastic.agreement.talk import BALLOT, DRAFT, MANIFEST
from elastic.agreement.votes import Ballot, Proposal, Vote, VoteKind
from elastic.amend import WISH
from elastic.deliberate import NOTES
from elastic.errors import ElasticError
from elastic.messages import (
    NO_DIGEST,
    Amendment,
    BlobRef,
    Digest,
    Finality,
    Manifest,
    PeerCard,
    PeerId,
    PeerStage,
    RoundIndex,
    Seconds,
    View,
    digest_of,
)
from elastic.sim.network import SimNetwork
from elastic.sim.node import SimNode, WatchedQuorum
from elastic.wire.signing import Identity

if TYPE_CHECKING:
    from elastic.sim.world import World


class Liar:
    """One lying validator."""

    def __init__(self, world: World, identity: Identity, rng: random.Random) -> None:
        self.world, self.identity, self.rng = world, identity, rng
        self._silence = random.Random(f"{world.seed}/{identity.peer}/silence")
        """Of its own, so that everything else stays as it was."""
        if self._silence.random() < 0.3:
            self.network.silent.add(self.id)
        self._proposed: dict[RoundIndex, Manifest] = {}
        self._said: dict[tuple[PeerId, RoundIndex], tuple[dict[Vote, None], dict[Proposal, None]]] = {}

    @property
    def id(self) -> PeerId:
        return self.identity.peer

    async def live(self) -> None:
        """Lie until the world ends, more rarely once the network is good; or leave before."""
        end = self.rng.choice([inf, inf, self.network.faults.heal, self.rng.uniform(5, self.network.faults.heal)])
        shown = self.rng.choice(
            [None, self._turn_comes, self.rng.sample(self._others(), len(self._others()) // 2).__contains__]
        )
        if shown is not None:
            self.network.shy[self.id] = shown
        while self.world.clock.now() < end:
            await self.world.clock.sleep(Seconds(self.rng.uniform(0.1, 1.0 if self.network.bad else 2.0)))
            self._appear()
            victims = [node for node in self.world.nodes if node.alive and node.peer is not None]
            if victims:  # one of them, or all the same
                for victim in [self.rng.choice(victims)] if self.rng.random() < 0.7 else victims:
                    await self._lie_to(victim)

    @property
    def network(self) -> SimNetwork:
        return self.world.network

    def _others(self) -> list[PeerId]:
        return [node.id for node in self.world.nodes]

    def _turn_comes(self, reader: PeerId) -> bool:
        """Whether this peer proposes in the view that it is in, or in the next: its roster will name whom it sees."""
        node = next(node for node in self.world.nodes if node.id == reader)
        seat = _seat_of(node)
        if seat is None:
            return self.rng.random() < 0.5
        order = sorted(seat.validators)
        return reader in {
            proposer_of(self.world.shared.run, seat.round, View(seat.view + ahead), order) for ahead in (0, 1)
        }

    def _appear(self) -> None:
        card = PeerCard(
            peer=self.id, run=self.world.shared.run, shared=self.world.shared.digest(), stage=PeerStage.READY,
            round=RoundIndex(self.rng.randrange(6)),
        )  # fmt: skip
        self.network.cards[self.world.shared.run, self.id] = card.canonical(), self.world.clock.now() + 5

    async def _lie_to(self, victim: SimNode) -> None:
        seat = _seat_of(victim)
        if seat is None or victim.peer is None:
            return
        agreement = victim.peer.agreement
        assert isinstance(agreement, WatchedQuorum)
        if seat.round not in self._proposed or self.rng.random() < 0.05:
            await self._invent(agreement, seat.round)
        if self.rng.random() < 0.1:
            self._post_garbage(seat.round, victim.id)
            return
        votes, proposals = self._said.setdefault((victim.id, seat.round), ({}, {}))
        view, kind, manifest = self._where_it_hurts(seat)
        votes[self._vote(seat.round, view, kind, manifest)] = None
        in_all_names: dict[Vote, None] = {}
        if self.rng.random() < 0.1:  # for its own; not again the next time: it spoils the rest of a ballot
            own = self._proposed.get(seat.round)
            forged = self._vote(seat.round, seat.view, VoteKind.FINALIZE, own.digest() if own else manifest)
            in_all_names = dict.fromkeys(forged.model_copy(update={"peer": peer}) for peer in sorted(seat.validators))
        if proposer_of(self.world.shared.run, seat.round, seat.view, sorted(seat.validators)) == self.id:
            self._propose(seat, victim.id, proposals)
        ballot = Ballot.of(self.world.shared.run, seat.round, votes | in_all_names, proposals)
        if self.id in self.network.silent and self._silence.random() < 0.7:
            self._lead_nowhere(seat.round, victim.id)
        else:
            self.network.whisper(self.id, BALLOT, seat.round, ballot.canonical(), victim.id)

    def _lead_nowhere(self, round_: RoundIndex, victim: PeerId) -> None:
        """To a blob that whoever asks waits for in vain."""
        kind, digest = self._silence.choice((BALLOT, NOTES)), digest_of(self._silence.randbytes(8))
        self.network.whisper(self.id, kind, round_, BlobRef(digest=digest, size_bytes=2**16).canonical(), victim)

    def _where_it_hurts(self, seat: Seat) -> tuple[View, VoteKind, Digest]:
        """Mostly a vote that is nearly complete with this victim."""
        machine = seat._machine
        final = self.world.final.get(seat.round)
        open_ = [
            each for each in machine._tally.each()
            if len(each[3]) < machine.q and (each[1], each[2]) != (VoteKind.FINALIZE, final)
        ]  # fmt: skip
        near = [each[:3] for each in open_ if len(each[3]) + len(self.world.liars) >= machine.q]
        anything = [each[:3] for each in open_] or [(machine.view, VoteKind.VOID, NO_DIGEST)]
        if self.rng.random() < 0.2:
            kind = self.rng.choice((VoteKind.NOTARIZE, VoteKind.FINALIZE))
            return View(max(0, machine.view - self.rng.randrange(2))), kind, self._some_manifest(seat)
        return self.rng.choice(near or anything)

    def _propose(self, seat: Seat, victim: PeerId, proposals: dict[Proposal, None]) -> None:
        """What others were shown, or something else."""
        draft = self._proposed.get(seat.round)
        if draft is None:
            return
        self.network.whisper(self.id, DRAFT, seat.round, draft.canonical(), victim)
        parent = self.rng.choice([None, None, *range(seat.view)])
        proposal = Proposal(
            run=draft.run, round=seat.round, view=seat.view, manifest=draft.digest(), proposer=self.id,
            parent=None if parent is None else View(parent),
        )  # fmt: skip
        proposals.clear()
        proposals[self.identity.sign(proposal)] = None

    async def _invent(self, agreement: WatchedQuorum, round_: RoundIndex) -> None:
        """What an honest validator would propose; or it leaves somebody out, or counts what nobody made."""
        try:
            honest = await agreement.drafts(View(0)) if agreement.drafts is not None else None
        except ElasticError:
            return
        if honest is None or honest.round != round_:
            return
        chosen = honest.model_copy(update={"proposer": self.id})
        if self.rng.random() < 0.4:
            wrong: dict[str, object] = {"previous": NO_DIGEST, "anchor": NO_DIGEST, "roster": (self.id,), "counted": ()}
            fields = ["previous", "anchor", "anchor", "roster", "counted"]
            if self.world.changes is not None:
                wrong["amendment"] = Amendment(validators=(self.id,), incentive=None)
                fields += ["amendment"] * 3
            field = self.rng.choice(fields)
            chosen = chosen.model_copy(update={field: wrong[field]})
        elif chosen.counted and self.rng.random() < 0.7:
            kept = list(chosen.counted)
            if self.rng.random() < 0.5:
                kept[0] = kept[0].model_copy(update={"payload": NO_DIGEST})
            elif len(kept) > 1:
                kept.pop(self.rng.randrange(len(kept)))
            total = sum(entry.share for entry in kept)
            kept = [entry.model_copy(update={"share": entry.share / total}) for entry in kept]
            chosen = chosen.model_copy(update={"counted": tuple(kept)})
        self._proposed[round_] = self.identity.sign(chosen)

    def _post_garbage(self, round_: RoundIndex, victim: PeerId) -> None:
        changes = (WISH, WISH, AMENDMENTS) if self.world.changes is not None else ()
        kind = self.rng.choice((BALLOT, DRAFT, MANIFEST, MANIFEST, NOTES, *changes))
        round_ = RoundIndex(0) if kind == AMENDMENTS else round_
        others = list(self.network.shown(victim, kind, round_).values())
        body = self.rng.choice([b"", b"{}", self.rng.randbytes(50), *others, *[self._forged_manifest(round_)] * 3])
        self.network.whisper(self.id, kind, round_, body, victim)

    def _forged_manifest(self, round_: RoundIndex) -> bytes:
        """Our own, final by nobody's vote but ours, under all names."""
        manifest = self._proposed.get(round_)
        if manifest is None:
            return b"nothing yet"
        mine = self._vote(round_, View(0), VoteKind.FINALIZE, manifest.digest()).signature
        votes = Finality(view=View(0), signatures=dict.fromkeys(self.world.shared.agreement.validators, mine))
        return manifest.model_copy(update={"finality": votes}).canonical()

    def _some_manifest(self, seat: Seat) -> Digest:
        known = [*seat._texts, *(draft.digest() for draft in self._proposed.values())]
        return self.rng.choice([NO_DIGEST, *known])

    def _vote(self, round_: RoundIndex, view: View, kind: VoteKind, manifest: Digest) -> Vote:
        return self.identity.sign(
            Vote(run=self.world.shared.run, round=round_, view=view, kind=kind, manifest=manifest, peer=self.id)
        )


def _seat_of(node: SimNode) -> Seat | None:
    """Where a validator sits, once it has begun to decide."""
    agreement = node.peer.agreement if node.peer is not None and node.alive else None
    if not isinstance(agreement, WatchedQuorum) or agreement._talk is None:
        return None
    return agreement._talk.seat
