"""What validators say to each other in one round: votes, proposals, the ballot that carries them, and notes.

A ballot is what a validator posts, again whenever it has more to say, and what it writes to disk before it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from elastic.messages import (
    MAX_VALIDATORS,
    NO_DIGEST,
    ContributionHeader,
    HexDigest,
    Index,
    Manifest,
    Message,
    PeerId,
    PeerIdField,
    RunName,
    Signature,
    Signed,
    ViewField,
)


class VoteKind(StrEnum):
    """What a validator says in a view; see `agreement.simplex`."""

    NOTARIZE = "notarize"
    VOID = "void"
    FINALIZE = "finalize"


class Vote(Signed):
    """One validator's vote in one view of a round's agreement."""

    run: RunName
    round: Index
    view: ViewField
    kind: VoteKind
    manifest: HexDigest = NO_DIGEST
    """Digest of the manifest it is for; `NO_DIGEST` for void."""
    peer: PeerIdField

    @property
    def signer(self) -> PeerId:
        return self.peer


class Proposal(Signed):
    """What the proposer of a view proposes."""

    run: RunName
    round: Index
    view: ViewField
    manifest: HexDigest
    parent: ViewField | None = None
    """The view whose notarized manifest it repeats; None: a manifest of its own."""
    proposer: PeerIdField

    @property
    def signer(self) -> PeerId:
        return self.proposer


class Tally(Message):
    """Equal votes of several validators."""

    view: ViewField
    kind: VoteKind = Field(strict=False)
    manifest: HexDigest = NO_DIGEST
    signatures: Annotated[dict[PeerIdField, Signature], Field(max_length=MAX_VALIDATORS)]
    """Validator → signature of its vote."""


class Ballot(Message):
    """All that a validator has to say in a round: its own votes and proposals, and the votes that led it there."""

    run: RunName
    round: Index
    tallies: tuple[Tally, ...] = ()
    """By view."""
    proposals: tuple[Proposal, ...] = ()
    texts: tuple[Manifest, ...] = ()
    """The manifests that it proposed or voted for, on its disk only; the others find the one they need in a record of
    its own."""

    @classmethod
    def of(cls, run: str, round_: Index, votes: Iterable[Vote], proposals: Iterable[Proposal] = ()) -> Ballot:
        """Gather votes of that round."""
        signatures: dict[tuple[ViewField, VoteKind, HexDigest], dict[PeerId, Signature]] = {}
        for vote in votes:
            signatures.setdefault((vote.view, vote.kind, vote.manifest), {})[vote.peer] = vote.signature
        tallies = tuple(
            Tally(view=view, kind=kind, manifest=manifest, signatures=by)
            for (view, kind, manifest), by in sorted(signatures.items())
        )
        return cls(run=run, round=round_, tallies=tallies, proposals=tuple(proposals))

    def votes(self) -> Iterator[Vote]:
        """One by one; nothing says yet that they are genuine."""
        for tally in self.tallies:
            for peer, signature in tally.signatures.items():
                yield Vote(
                    run=self.run, round=self.round, view=tally.view, kind=tally.kind, manifest=tally.manifest,
                    peer=peer, signature=signature,
                )  # fmt: skip


class Notes(Message):
    """The commitments that a validator has seen and accepts: for those that others were shown differently, or not."""

    headers: Annotated[tuple[ContributionHeader, ...], Field(max_length=1024)]
