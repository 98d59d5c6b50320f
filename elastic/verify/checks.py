"""The cheap checks: pure functions from what arrived to a Verdict, never an exception.

Order in a round: `check_header` before any byte is downloaded, `check_proof` and `check_payload` after, then over all
arrivals together `mark_copies`, or `mark_diverged` where the reducer averages.

Source: Gauntlet, arXiv 2505.21684, "fast evaluation"; we differ in what proves a copy (see `mark_copies`).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from statistics import median_high

import numpy as np
import numpy.typing as npt

from elastic.errors import MalformedError, SignatureInvalidError
from elastic.messages import (
    ContributionHeader,
    Digest,
    PeerId,
    RejectReason,
    RoundIndex,
    RoundPlan,
    Verdict,
    digest_of,
)
from elastic.wire.signing import verify
from elastic.wire.tree import blob_digest

NEAR = 0.75
"""Two contributions that share more than this part of their places are one work. Honest ones shared 0.12 on average
and 0.41 at most; copies with one place in twenty moved shared 0.9 (`elastic bench attack`)."""
LEAST_PLACES = 256
"""Fewer places show nothing."""
LOUD = 10.0
"""Times the median norm of a round; honest norms lay within 0.4 to 2 of it (`elastic bench attack`)."""
FEWEST_LOUD = 3
"""Of two, nobody can tell which is too loud."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one contribution says of some tensors, which are the same for all contributions of a round."""

    places: npt.NDArray[np.int64]
    """Which elements it speaks of, each once; empty: all."""
    energy: float
    """Squared norm of what it says."""


def check_header(
    header: ContributionHeader, *, sender: PeerId, plan: RoundPlan, max_bytes: int, max_tokens: int
) -> Verdict:
    """Whether a payload is worth downloading. The verdict is about the sender, whomever the header names.

    Args:
        header: what the sender's record held.
        sender: who published the record, as proven by the exchange.
        plan: our plan of this round: run, round, roster and anchor are compared with it.
        max_bytes: no honest payload is larger (`Reducer.max_bytes`).
        max_tokens: no honest peer trains on more tokens in a round; shares grow with them.
    """
    found = (
        _check_author(header, sender)
        or _check_round(header, plan)
        or _check_claims(header, max_bytes=max_bytes, max_tokens=max_tokens)
    )
    return _verdict(sender, plan.round, found)


def check_fresh(header: ContributionHeader, counted: Mapping[Digest, RoundIndex]) -> Verdict:
    """Whether a payload is of this round: one that an earlier round counted is refused as COPY, before its download.

    Who was away lacks some manifests and may not know it; so this is no reason to refuse another's manifest.

    Args:
        header: accepted by `check_header`.
        counted: payloads of earlier rounds → the round.
    """
    before = counted.get(header.payload)
    finding = None if before is None else (RejectReason.COPY, f"counted in round {before} already")
    return _verdict(header.peer, header.round, finding)


def check_proof(header: ContributionHeader, expected: Digest) -> Verdict:
    """Whether its author holds the anchor: `expected` is what `proof.prove` gives for it."""
    finding = None if header.proof == expected else (RejectReason.NO_PROOF, "another proof than the anchor gives")
    return _verdict(header.peer, header.round, finding)


def check_payload(header: ContributionHeader, payload: bytes, decode: Callable[[bytes], object]) -> Verdict:
    """Whether the bytes are those committed to, and decode.

    Args:
        header: accepted by `check_header`.
        payload: what was fetched.
        decode: the reducer's strict decoder; it raises MalformedError.
    """
    return _verdict(header.peer, header.round, _check_bytes(header, payload, decode))


def mark_copies(
    verdicts: Mapping[PeerId, Verdict],
    headers: Mapping[PeerId, ContributionHeader],
    seen: Mapping[PeerId, float] | None = None,
) -> dict[PeerId, Verdict]:
    """Of accepted contributions with the same payload digest one counts; the others are refused as COPY.

    Payload digests are committed before any payload of the round can be fetched, so the earliest commitment
    is the original, whatever its author does later (Gauntlet blamed the victim once the thief deleted its own
    object).

    Where the order is not known (all were there when we first looked), nothing proves who copied. Then one is
    drawn by a hash over (anchor, round, peer). Refusing all would let anyone who repeats a digest throw out
    its author; the first in PeerId order would favour whoever makes up a small PeerId. The roster is agreed
    before the round, so a name cannot be chosen to win this draw, and the work counts exactly once either
    way. As the loser may be the victim, an incentive must not take COPY as proof of a lie.

    Args:
        verdicts: sender → verdict; refused ones stay as they are.
        headers: sender → header, of at least the accepted ones.
        seen: sender → when its commitment was first seen, on any one clock; equal means unknown, and those
            left out come after all others.
    """
    when = seen or {}
    first: dict[Digest, PeerId] = {}
    accepted = [sender for sender in verdicts if verdicts[sender].accepted]
    for sender in sorted(accepted, key=lambda sender: (when.get(sender, inf), _draw(headers[sender]))):
        first.setdefault(headers[sender].payload, sender)
    marked = dict(verdicts)
    for sender in accepted:
        original = first[headers[sender].payload]
        if original != sender:
            finding = RejectReason.COPY, f"same payload as {original}"
            marked[sender] = _verdict(sender, verdicts[sender].round, finding)
    return marked


def mark_near_copies(
    verdicts: Mapping[PeerId, Verdict],
    headers: Mapping[PeerId, ContributionHeader],
    samples: Mapping[PeerId, Sample],
    seen: Mapping[PeerId, float],
) -> dict[PeerId, Verdict]:
    """Of accepted contributions that speak of nearly the same places one counts; the others are refused as COPY.

    Which entries of a tensor are largest differs from peer to peer, who train on different tokens; who disturbs a
    payload, or sends one work under many names, keeps them. The first commitment is the original, and drawn as in
    `mark_copies` where the order is not known. What a validator samples only it knows, so others may judge otherwise.

    Args:
        verdicts: sender → verdict; refused ones stay as they are.
        headers: sender → header, of at least the accepted ones.
        samples: accepted sender → what it says of some tensors, the same for all.
        seen: as in `mark_copies`.
    """
    originals: list[PeerId] = []
    marked = dict(verdicts)
    accepted = [sender for sender in samples if verdicts[sender].accepted]
    for sender in sorted(accepted, key=lambda sender: (seen.get(sender, inf), _draw(headers[sender]))):
        mine = samples[sender].places
        like = [each for each in originals if _overlap(samples[each].places, mine) > NEAR]
        if like:
            finding = RejectReason.COPY, f"the same entries as {like[0]}, nearly"
            marked[sender] = _verdict(sender, verdicts[sender].round, finding)
        else:
            originals.append(sender)
    return marked


def mark_loud(verdicts: Mapping[PeerId, Verdict], samples: Mapping[PeerId, Sample]) -> dict[PeerId, Verdict]:
    """Accepted contributions that are far louder than the round's median are refused as LOUD.

    The outer step would clip them to the median, so none of them does harm; but nobody trains like that. Of an even
    number the upper of the middle two is the median: none is too loud unless more than half are softer.
    """
    energies = [each.energy for each in samples.values() if each.energy > 0]
    most = LOUD**2 * median_high(energies) if len(energies) >= FEWEST_LOUD else inf
    return dict(verdicts) | {
        sender: _verdict(
            sender,
            verdicts[sender].round,
            (RejectReason.LOUD, f"its norm is {math.sqrt(sample.energy):.3g}, at most {math.sqrt(most):.3g} is usual"),
        )
        for sender, sample in samples.items()
        if verdicts[sender].accepted and sample.energy > most
    }


def mark_diverged(
    verdicts: Mapping[PeerId, Verdict], headers: Mapping[PeerId, ContributionHeader]
) -> dict[PeerId, Verdict]:
    """For reducers that average: all must have committed to the same bytes; others are refused as DIVERGED.

    The result held by a strict majority of the accepted contributions stands. Without one nobody can tell
    which result is right, and all are refused.
    """
    accepted = [sender for sender in verdicts if verdicts[sender].accepted]
    held = Counter(headers[sender].payload for sender in accepted)
    digest, count = max(held.items(), key=lambda item: item[1], default=(None, 0))
    agreed = digest if 2 * count > len(accepted) else None
    finding = RejectReason.DIVERGED, f"{count} of {len(accepted)} hold the same average"
    return dict(verdicts) | {
        sender: _verdict(sender, verdicts[sender].round, finding)
        for sender in accepted
        if headers[sender].payload != agreed
    }


def _overlap(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> float:
    """Part of the places of either that are the other's too."""
    most = max(len(one), len(other))
    return len(np.intersect1d(one, other, assume_unique=True)) / most if most >= LEAST_PLACES else 0.0


Finding = tuple[RejectReason, str] | None
"""What is wrong, and how it shows."""


def _verdict(peer: PeerId, round_: RoundIndex, found: Finding) -> Verdict:
    if found is None:
        return Verdict(peer=peer, round=round_)
    return Verdict(peer=peer, round=round_, rejected=found[0], detail=found[1][:300])


def _check_author(header: ContributionHeader, sender: PeerId) -> Finding:
    if header.peer != sender:
        return RejectReason.BAD_SIGNATURE, f"published a header in the name of {header.peer}"
    try:
        verify(header)
    except SignatureInvalidError as error:
        return RejectReason.BAD_SIGNATURE, str(error)
    return None


def _check_round(header: ContributionHeader, plan: RoundPlan) -> Finding:
    if header.run != plan.run:
        return RejectReason.MALFORMED, f"for run {header.run!r}, expected {plan.run!r}"
    if header.peer not in plan.roster:
        return RejectReason.NOT_IN_ROSTER, f"not among the {len(plan.roster)} of round {plan.round}"
    if header.round != plan.round:
        return RejectReason.STALE, f"for round {header.round}, expected {plan.round}"
    if header.anchor != plan.anchor:
        return RejectReason.WRONG_ANCHOR, f"from anchor {header.anchor[:12]}, expected {plan.anchor[:12]}"
    return None


def _check_claims(header: ContributionHeader, *, max_bytes: int, max_tokens: int) -> Finding:
    if header.size_bytes > max_bytes:
        return RejectReason.OVERSIZED, f"{header.size_bytes} bytes, at most {max_bytes} allowed"
    if not 0 < header.tokens <= max_tokens:
        return RejectReason.MALFORMED, f"{header.tokens} tokens, expected 1 to {max_tokens}"
    return None


def _check_bytes(header: ContributionHeader, payload: bytes, decode: Callable[[bytes], object]) -> Finding:
    if len(payload) > header.size_bytes:
        return RejectReason.OVERSIZED, f"{len(payload)} bytes, {header.size_bytes} announced"
    seen = blob_digest(payload)
    if seen != header.payload:
        return RejectReason.WRONG_DIGEST, f"digest {seen[:12]}, {header.payload[:12]} committed"
    if len(payload) != header.size_bytes:
        return RejectReason.MALFORMED, f"{len(payload)} bytes, {header.size_bytes} announced"
    try:
        decode(payload)
    except MalformedError as error:
        return RejectReason.MALFORMED, str(error)
    return None


def _draw(header: ContributionHeader) -> Digest:
    return digest_of(f"{header.anchor}:{header.round}:{header.peer}".encode())
