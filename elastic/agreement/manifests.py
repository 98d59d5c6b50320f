"""What a manifest is: how it begins a run, how it goes on, and when it is final."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from elastic.agreement.simplex import quorum
from elastic.agreement.votes import Vote, VoteKind
from elastic.errors import MalformedError
from elastic.messages import GENESIS, NO_DIGEST, Counted, Digest, Manifest, PeerId, RoundIndex
from elastic.wire.signing import verify

SHARE_TOLERANCE = 1e-6
"""Shares sum to 1 within this; float64 sums of 1024 shares stay far below it."""


def genesis(run: str, anchor: Digest, roster: Iterable[PeerId], proposer: PeerId) -> Manifest:
    """Manifest 0, unsigned: names the first anchor and the first roster, and counts nobody."""
    return Manifest(
        run=run,
        round=GENESIS,
        previous=NO_DIGEST,
        anchor=anchor,
        roster=tuple(sorted(roster)),
        proposer=proposer,
    )


def draft(
    previous: Manifest, anchor: Digest, counted: Iterable[Counted], roster: Iterable[PeerId], proposer: PeerId
) -> Manifest:
    """The manifest of the round after `previous`, unsigned; nobody counted makes it void.

    Args:
        previous: the last final manifest.
        anchor: digest of the anchor that the new one applies to.
        counted: whose shares sum to 1, in any order.
        roster: who may contribute in the next round, in any order.
        proposer: the validator who will sign it.
    """
    return Manifest(
        run=previous.run,
        round=RoundIndex(previous.round + 1),
        previous=previous.digest(),
        anchor=anchor,
        amended=previous.amends,
        counted=tuple(sorted(counted, key=lambda entry: entry.peer)),
        roster=tuple(sorted(roster)),
        proposer=proposer,
    )


def check_manifest(
    manifest: Manifest, *, run: str, validators: Iterable[PeerId], previous: Manifest | None = None
) -> None:
    """Whether a manifest may be applied, and, if the one before is known, whether it continues it.

    Raises:
        MalformedError: it is not a manifest of this run by one of its validators, or breaks a rule.
        SignatureInvalidError: its proposer did not sign it.
    """
    _require(manifest.run == run, manifest, f"is of run {manifest.run!r}, expected {run!r}")
    _require(manifest.proposer in set(validators), manifest, f"is by {manifest.proposer}, who is no validator")
    _require(_increasing(manifest.roster), manifest, "has a roster that is not in PeerId order")
    _require(_increasing([entry.peer for entry in manifest.counted]), manifest, "counts peers out of PeerId order")
    _require(manifest.amended < max(manifest.round, 1), manifest, "was amended by a later round")
    new = manifest.amendment.validators if manifest.amendment is not None else None
    _require(new is None or _increasing(new), manifest, "names its next validators out of PeerId order")
    total = math.fsum(entry.share for entry in manifest.counted)
    _require(manifest.void or abs(total - 1) <= SHARE_TOLERANCE, manifest, f"has shares that sum to {total}")
    if manifest.round == GENESIS:
        begins = manifest.void and manifest.previous == NO_DIGEST and not manifest.pace and manifest.amendment is None
        _require(begins, manifest, "is no genesis")
    if previous is not None:
        _check_continues(manifest, previous)
    verify(manifest)


def check_final(manifest: Manifest, validators: Iterable[PeerId]) -> None:
    """Whether a quorum of the validators made this manifest final.

    Raises:
        MalformedError: it carries no quorum of votes.
        SignatureInvalidError: a vote is not of the validator it names.
    """
    known, finality = frozenset(validators), manifest.finality
    _require(finality is not None, manifest, "is not final: it carries no votes")
    assert finality is not None
    voters = finality.signatures.keys()
    _require(voters <= known, manifest, "carries votes of who is no validator")
    needed = quorum(len(known))
    _require(len(voters) >= needed, manifest, f"carries {len(voters)} votes, {needed} make it final")
    digest = manifest.digest()
    for peer, signature in finality.signatures.items():
        verify(
            Vote(
                run=manifest.run, round=manifest.round, view=finality.view, kind=VoteKind.FINALIZE, manifest=digest,
                peer=peer, signature=signature,
            )
        )  # fmt: skip


def _check_continues(manifest: Manifest, previous: Manifest) -> None:
    _require(manifest.round == previous.round + 1, manifest, f"does not follow round {previous.round}")
    _require(manifest.previous == previous.digest(), manifest, "names another predecessor than ours")
    _require(manifest.keeps_pace(previous.pace), manifest, "forgets how long rounds took")
    _require(manifest.amended == previous.amends, manifest, "is not under the terms that the round before left")
    strangers = [entry.peer for entry in manifest.counted if entry.peer not in previous.roster]
    _require(not strangers, manifest, f"counts {', '.join(strangers)}, not in its roster")
    # A void round leaves the anchor as it is; the genesis is void and names the first one.
    _require(
        not previous.void or manifest.anchor == previous.anchor,
        manifest,
        "changes the anchor after a void round",
    )


def _require(holds: bool, manifest: Manifest, otherwise: str) -> None:
    if not holds:
        raise MalformedError(f"manifest of round {manifest.round} {otherwise}")


def _increasing(peers: Sequence[PeerId]) -> bool:
    return all(earlier < later for earlier, later in pairwise(peers))
