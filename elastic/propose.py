"""As a validator: the manifest that we would propose, and whether we would sign another's.

Two honest validators never see quite the same: packets are lost, a copy is seen before its original. So the proposer
has some freedom, within which the others follow: who of two equal payloads counts, who was too late, a few peers in
the next roster. What they insist on is that everything that counts is really there and right, that nobody's share is
inflated, that most of what they hold counts, and that most of the next roster is of peers they know.
"""

from collections.abc import Collection, Iterable

from elastic.messages import (
    Amendment,
    Counted,
    Digest,
    Manifest,
    PeerCard,
    PeerId,
    PeerStage,
    RejectReason,
    RoundIndex,
    RoundPlan,
)
from elastic.peer import Peer
from elastic.schedule.plan import candidates, next_pace
from elastic.seen import Seen

LEAST_COUNTED = 2 / 3
"""Another's manifest counts at least this part of what we would count."""
LEAST_KNOWN = 0.5
"""At least this part of its next roster is known to us, and of ours is in it."""
SHARE_FACTOR = 1.5
"""No share is more than so many times larger or smaller than with us: scores are each validator's own view."""

EACH_ITS_OWN = frozenset({RejectReason.COPY, RejectReason.LOUD})
"""What validators may see differently: which of two payloads was first, the network told them; how like or how loud
they are, the part of them that each looked at. The outer step clips who is loud."""


def own_manifest(
    peer: Peer, plan: RoundPlan, seen: Seen, cards: Iterable[PeerCard], amendment: Amendment | None = None
) -> Manifest:
    """What we would have the round be: everything that we accept, and whoever is there for the next one."""
    accepted = seen.accepted()
    shares = peer.incentive.shares(accepted) if accepted else {}
    counted = [
        Counted(peer=each.peer, payload=each.payload, size_bytes=each.size_bytes, share=shares[each.peer])
        for each in accepted
        if shares.get(each.peer, 0.0) > 0  # an incentive may say 0 where it should have left somebody out
    ]
    return Manifest(
        run=plan.run, round=plan.round, previous=plan.previous, anchor=plan.anchor, counted=tuple(counted),
        roster=tuple(_next_roster(peer, plan, seen, cards)), pace=next_pace(plan, _arrived(seen)), amended=plan.amended,
        amendment=amendment, proposer=peer.id,
    )  # fmt: skip


def objection(  # noqa: PLR0913 - what it weighs is no one thing
    peer: Peer, plan: RoundPlan, seen: Seen, cards: Iterable[PeerCard], manifest: Manifest,
    wish: Amendment | None = None, patience: float = 1.0,
) -> str | None:  # fmt: skip
    """Why we would not sign another validator's manifest, sound by itself; None: we would.

    `patience`: times as far as usual its shares may lie from ours.
    """
    if (manifest.previous, manifest.anchor) != (plan.previous, plan.anchor):
        return "it applies to another anchor than ours"
    if not manifest.keeps_pace(plan.pace):
        return "it forgets how long rounds took"
    if manifest.amended != plan.amended:
        return "it is under other terms than ours"
    if manifest.amendment not in (None, wish):
        return "it changes the terms as we do not wish it"
    return (
        _against_counted(peer, seen, manifest)
        or _against_shares(peer, seen, manifest, SHARE_FACTOR * patience)
        or _against_roster(peer, plan, seen, list(cards), manifest)
    )


def _against_counted(peer: Peer, seen: Seen, manifest: Manifest) -> str | None:
    for entry in manifest.counted:
        arrival, verdict = seen.arrivals.get(entry.peer), seen.verdicts.get(entry.peer)
        if arrival is None or verdict is None:
            return f"it counts {entry.peer}, whose contribution is not to be had"
        if (arrival.header.payload, arrival.header.size_bytes) != (entry.payload, entry.size_bytes):
            return f"it counts another payload of {entry.peer} than was committed to"
        if not verdict.accepted and verdict.rejected not in EACH_ITS_OWN:
            return f"it counts {entry.peer}: {verdict.rejected}"
    payloads = [entry.payload for entry in manifest.counted]
    if len(set(payloads)) < len(payloads) and not peer.reducer.averages:
        return "it counts one payload twice"
    ours = sum(share > 0 for share in peer.incentive.shares(seen.accepted()).values())
    if len(payloads) < LEAST_COUNTED * ours:
        return f"it counts {len(payloads)}, we would {ours}"
    return None


def _against_shares(peer: Peer, seen: Seen, manifest: Manifest, factor: float) -> str | None:
    if manifest.void:
        return None
    ours = peer.incentive.shares([seen.arrivals[entry.peer].header for entry in manifest.counted])
    for entry in manifest.counted:
        usual = ours.get(entry.peer, 0.0)
        if not usual / factor <= entry.share <= usual * factor:
            return f"it gives {entry.peer} a share of {entry.share:.3f}, we {usual:.3f}"
    return None


def _against_roster(peer: Peer, plan: RoundPlan, seen: Seen, cards: list[PeerCard], manifest: Manifest) -> str | None:
    if len(manifest.roster) > peer.shared.round.max_peers:
        return f"its next roster has {len(manifest.roster)} peers, at most {peer.shared.round.max_peers} may be"
    return against_roster(
        manifest.roster, _next_roster(peer, plan, seen, cards), live_peers(cards, peer.shared.digest())
    )


def live_peers(cards: Iterable[PeerCard], shared: Digest) -> set[PeerId]:
    """Who is ready to take part in this run."""
    return {card.peer for card in cards if card.stage is PeerStage.READY and card.shared == shared}


def against_roster(roster: Collection[PeerId], ours: Collection[PeerId], live: Collection[PeerId]) -> str | None:
    """Why we would not have these peers in the next round.

    Whose card was seen by whom is a matter of luck, and of what a liar shows to whom: half of it may be unknown to us.

    Args:
        roster: proposed.
        ours: what we would propose.
        live: whose cards we see.
    """
    strangers = set(roster) - set(live) - set(ours)
    if len(strangers) > LEAST_KNOWN * len(roster):
        return f"its next roster names {len(strangers)} of {len(roster)} whom we do not see"
    if len(set(ours) & set(roster)) < LEAST_KNOWN * len(ours):
        return "its next roster leaves out most of those whom we see"
    return None


def _arrived(seen: Seen) -> dict[PeerId, float]:
    """When what may count was here."""
    return {each.peer: seen.arrivals[each.peer].seconds for each in seen.accepted()}


def _next_roster(peer: Peer, plan: RoundPlan, seen: Seen, cards: Iterable[PeerCard]) -> list[PeerId]:
    arrived = {header.peer for header in seen.accepted()}
    left_out = peer.absences.left_out(RoundIndex(plan.round + 1)) - arrived
    ready = [each for each in candidates(list(cards), plan, peer.shared.digest(), arrived) if each not in left_out]
    return sorted(peer.incentive.select(RoundIndex(plan.round + 1), ready, peer.shared.round.max_peers))
