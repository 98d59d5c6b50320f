"""What the span of a round says at its end: what came of it, and what others took of us meanwhile."""

from elastic import trace
from elastic.errors import NetworkError
from elastic.messages import Manifest
from elastic.peer import Peer

MOST_RECEIVERS = 8
"""Named in one span: those that took most."""


async def tell_round(peer: Peer, manifest: Manifest | None, skipped: str | None) -> None:
    """Called at the end of every round, in its span; says nothing if nobody will see it."""
    try:
        served = await peer.exchange.served()  # of this round: also if nobody wants to know, or the next would tell it
    except NetworkError:
        served = None
    if not trace.active():
        return
    if manifest is not None:
        trace.annotate(manifest=manifest.digest()[:12], proposer=manifest.proposer, counted=manifest.counts(peer.id))
    if skipped is not None:
        trace.event("skipped", because=skipped)
        trace.failed(skipped)
    if served is None:  # the next round tells
        return
    links = tuple(each.span for each in served[:MOST_RECEIVERS] if each.span)
    total = sum(each.num_bytes for each in served)
    with trace.span(trace.SERVE, links=links, bytes=total, receivers=len(served)):
        for each in served[:MOST_RECEIVERS]:
            trace.event("to", peer=each.peer, bytes=each.num_bytes, seconds=round(each.seconds, 4))
