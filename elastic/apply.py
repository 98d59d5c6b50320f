"""Taking manifests: fetch what they count, take the outer step, and catch up when others are ahead."""

from collections.abc import Mapping
from logging import getLogger

from elastic import trace
from elastic.errors import FetchError
from elastic.messages import Counted, Digest, Manifest, PeerId
from elastic.peer import Peer

logger = getLogger(__name__)


async def missing_payloads(
    peer: Peer, manifest: Manifest, held: Mapping[Digest, bytes]
) -> tuple[dict[Digest, bytes], list[Digest]]:
    """Counted payloads by digest: those held, and the others fetched from any holder.

    Returns:
        The payloads that could be had, and the digests of those that could not.
    """
    payloads, missing = dict(held), []
    for entry in manifest.counted:
        if entry.payload in payloads:
            continue
        try:
            payload = await _fetched(peer, entry)
            await peer.exchange.provide(payload)  # who comes next may find nobody else
            payloads[entry.payload] = payload
        except FetchError as error:
            logger.warning("round %d: payload of %s: %s", manifest.round, entry.peer, error)
            missing.append(entry.payload)
    return payloads, missing


async def _fetched(peer: Peer, entry: Counted) -> bytes:
    """A payload that counts and that we have not got in time."""
    with trace.span(trace.FETCH, remote=trace.service_name(entry.peer), peer_from=entry.peer, bytes=entry.size_bytes):
        return await peer.exchange.fetch(entry.payload, entry.size_bytes, await everyone(peer, entry.peer))


async def apply_manifest(peer: Peer, manifest: Manifest, payloads: Mapping[Digest, bytes]) -> None:
    """Write the manifest to the chain, take the outer step, serve the new anchor.

    The chain comes first: if we die in between, the manifest on disk says what is still to be applied.
    """
    peer.chain.append(manifest)
    counted = {entry.payload: payloads[entry.payload] for entry in manifest.counted}
    await peer.trainer.outer_step(manifest, counted)
    await peer.refresh()


async def catch_up(peer: Peer, head: Manifest) -> None:
    """Bring the trainer to the anchor after `head`.

    A few rounds that were missed are applied one by one. Where that is the larger download, or payloads are gone,
    the anchor that the head applies to is fetched by the digest the head names, from any holder, and then the head
    is applied to it.

    Raises:
        FetchError: nobody could give what is needed; try again when more peers are there.
    """
    with trace.span(trace.CATCH_UP, round=head.round, holds=peer.holds()):
        if peer.decides(head.round):
            await peer.agreement.repeat(head)  # final by our vote, and perhaps unheard: nobody goes ahead of the others
        while peer.holds() <= head.round:
            manifest = await _next_manifest(peer, head)
            payloads, missing = await missing_payloads(peer, manifest, {}) if manifest else ({}, [])
            if manifest is None or (missing and manifest.round < head.round):
                await _load_anchor(peer, head)
            elif missing:
                raise FetchError(f"round {manifest.round}: {len(missing)} counted payloads are not to be had")
            else:
                await apply_manifest(peer, manifest, payloads)


async def _next_manifest(peer: Peer, head: Manifest) -> Manifest | None:
    """The manifest of the round we hold the anchor of, if it is known, applies to our anchor, and is worth it."""
    round_ = peer.holds()
    round_bytes = sum({entry.payload: entry.size_bytes for entry in head.counted}.values())
    if (head.round - round_) * round_bytes > peer.state.size_bytes:
        return None
    manifest = head if head.round == round_ else peer.chain.get(round_) or await peer.agreement.decided(round_)
    return manifest if manifest is not None and manifest.anchor == peer.state.anchor else None


async def _load_anchor(peer: Peer, head: Manifest) -> None:
    """Fetch the anchor that `head` applies to; its digest is signed, so any holder will do."""
    logger.info("fetching the anchor of round %d", head.round)
    state = await peer.exchange.fetch(head.anchor, peer.state.size_bytes, await everyone(peer, head.proposer))
    pending = (await peer.trainer.state()).pending  # of this round too, which ends here without an outer step
    settled = None
    if pending is not None:
        settled = peer.chain.get(pending.round) or await peer.agreement.decided(pending.round)
    await peer.trainer.load(state, head.round, settled)
    await peer.refresh()


async def everyone(peer: Peer, first: PeerId) -> list[PeerId]:
    """All live peers but us, `first` at the front."""
    others = [card.peer for card in await peer.exchange.cards()]
    return list(dict.fromkeys(other for other in (first, *others) if other != peer.id))
