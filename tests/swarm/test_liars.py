"""What a peer can do wrong in a round: it gets a verdict, and the round goes on for everyone else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builder import Lie, Node, Swarm, identity

from elastic.exchange.gather import CONTRIBUTION
from elastic.messages import ContributionHeader, RejectReason, digest_of
from elastic.wire.codec import HEADER, MAGIC, VERSION, SparsePayload, encode
from elastic.wire.tree import blob_digest


def resigned(**changes: Any) -> Lie:
    """The honest header with some fields changed, and signed again."""

    async def lie(header: ContributionHeader, node: Node) -> bytes:
        return identity(node.name).sign(header.model_copy(update=changes)).canonical()

    return lie


async def garbage_payload(header: ContributionHeader, node: Node) -> bytes:
    garbage = bytes(header.size_bytes)
    await node.peer.exchange.provide(garbage)
    return await resigned(payload=blob_digest(garbage))(header, node)


def forged(forge: Callable[[bytes], bytes]) -> Lie:
    """An honest payload, changed: committed, signed and served like any other."""

    async def lie(header: ContributionHeader, node: Node) -> bytes:
        assert node.session.pending is not None
        payload = forge(node.session.pending.payload)
        assert len(payload) <= node.peer.max_payload_bytes
        changes = {"payload": await node.peer.exchange.provide(payload), "size_bytes": len(payload)}
        return await resigned(**changes)(header, node)

    return lie


def with_exponent(exponent: int) -> Lie:
    """Of the first tensor: it scales everything that the tensor says."""
    return forged(lambda data: data[: HEADER.size] + bytes([exponent]) + data[HEADER.size + 1 :])


def with_header(bits: int, chunk: int, k: int) -> Lie:
    return forged(lambda data: HEADER.pack(MAGIC, VERSION, bits, chunk, k) + data[HEADER.size :])


async def without_a_tensor(header: ContributionHeader, node: Node) -> bytes:
    payload = node.peer.reducer.decode(node.session.pending.payload, node.peer.like)
    parts = dict(list(payload.parts.items())[1:])
    return await forged(lambda _: encode(SparsePayload(payload.sparsity, parts)))(header, node)


async def wrong_bytes(header: ContributionHeader, node: Node) -> bytes:
    node.swarm.network.corrupt(header.payload, node.id)
    return header.canonical()


async def huge_claim(header: ContributionHeader, node: Node) -> bytes:
    return await resigned(size_bytes=node.peer.max_payload_bytes + 1)(header, node)


async def short_claim(header: ContributionHeader, node: Node) -> bytes:
    return await resigned(size_bytes=header.size_bytes - 1)(header, node)


async def never_provided(header: ContributionHeader, node: Node) -> bytes:
    return await resigned(payload=digest_of(b"never seen"))(header, node)


async def stale_round(header: ContributionHeader, node: Node) -> bytes:
    return await resigned(round=header.round - 1)(header, node)


async def wrong_signature(header: ContributionHeader, node: Node) -> bytes:
    return header.model_copy(update={"signature": "00" * 64}).canonical()


async def of_another(header: ContributionHeader, node: Node) -> bytes:
    records = await node.peer.exchange.records(CONTRIBUTION, header.round)
    return bytes(records[node.swarm["bob"].id])


async def stranger(header: ContributionHeader, node: Node) -> bytes:
    someone = identity("stranger")
    return someone.sign(header.model_copy(update={"peer": someone.peer})).canonical()


async def copied(header: ContributionHeader, node: Node) -> bytes:
    bobs = ContributionHeader.from_bytes(await of_another(header, node))
    return await resigned(payload=bobs.payload, size_bytes=bobs.size_bytes)(header, node)


async def garbage_record(header: ContributionHeader, node: Node) -> bytes:
    return b"\xff\x00 not a header"


async def endless_tokens(header: ContributionHeader, node: Node) -> bytes:
    return await resigned(tokens=2**50)(header, node)


LIES: dict[str, tuple[Lie, RejectReason]] = {
    "garbage payload": (garbage_payload, RejectReason.MALFORMED),
    "levels beyond all numbers": (with_exponent(255), RejectReason.MALFORMED),
    "levels without an exponent": (with_exponent(0), RejectReason.MALFORMED),
    "values of another width": (with_header(1, 256, 16), RejectReason.MALFORMED),
    "chunks of another size": (with_header(2, 4096, 256), RejectReason.MALFORMED),
    "chunks of no size": (with_header(2, 0, 0), RejectReason.MALFORMED),
    "cut short": (forged(lambda data: data[:-1]), RejectReason.MALFORMED),
    "only a header": (forged(lambda data: data[: HEADER.size]), RejectReason.MALFORMED),
    "nothing": (forged(lambda data: b""), RejectReason.MALFORMED),
    "places outside the tensor": (forged(lambda data: data[:-40] + bytes(39) + b"\1"), RejectReason.MALFORMED),
    "without a tensor": (without_a_tensor, RejectReason.MALFORMED),
    "wrong bytes served": (wrong_bytes, RejectReason.UNFETCHABLE),
    "huge size claimed": (huge_claim, RejectReason.OVERSIZED),
    "other size claimed": (short_claim, RejectReason.UNFETCHABLE),
    "committed, never provided": (never_provided, RejectReason.UNFETCHABLE),
    "stale round": (stale_round, RejectReason.STALE),
    "wrong anchor": (resigned(anchor=digest_of(b"another")), RejectReason.WRONG_ANCHOR),
    "another run": (resigned(run="another"), RejectReason.MALFORMED),
    "bad signature": (wrong_signature, RejectReason.BAD_SIGNATURE),
    "somebody's header": (of_another, RejectReason.BAD_SIGNATURE),
    "a stranger's header": (stranger, RejectReason.BAD_SIGNATURE),
    "copied payload": (copied, RejectReason.COPY),
    "as loud as can be": (with_exponent(254), RejectReason.LOUD),
    "garbage commitment": (garbage_record, RejectReason.MALFORMED),
    "tokens nobody has": (endless_tokens, RejectReason.MALFORMED),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_lie_gets_its_verdict_and_the_round_goes_on(tmp_path: Path, name: str) -> None:
    # given a liar who waits until it has seen the others
    lie, reason = LIES[name]
    async with Swarm(tmp_path, "ann", "bob", "liar", rounds=2) as swarm:
        swarm["liar"].lie, swarm["liar"].pace = lie, 1.0
        # when
        swarm.start()
        await swarm.finish()
        # then
        verdicts = swarm["ann"].report(1).verdicts
        assert verdicts[swarm["liar"].id] == reason
        assert verdicts[swarm["bob"].id] == "accepted"
        first = swarm.check_chain("bob")[1]
        assert {entry.peer for entry in first.counted} == {swarm["ann"].id, swarm["bob"].id}
        assert swarm["liar"].id not in first.roster
        # and the round ended, for everyone alike
        assert all(node.report(2).counted for node in (swarm["ann"], swarm["bob"]))
        assert len(swarm.anchors()) == 1


async def test_between_two_a_loud_payload_counts_and_moves_nothing_further_than_the_other(tmp_path: Path) -> None:
    # given one whose levels are as large as can be written, alone with one honest peer
    async with Swarm(tmp_path, "ann", "loud", rounds=2) as swarm:
        swarm["loud"].lie, swarm["loud"].pace = with_exponent(254), 1.0
        # when
        swarm.start()
        await swarm.finish()
        # then it is clipped to what the honest one said
        assert swarm["ann"].report(1).verdicts[swarm["loud"].id] == "accepted"
        assert len(swarm.anchors()) == 1
        assert max(value.abs().max() for value in swarm["ann"].session.anchor.values()) < 2.0


async def test_who_is_not_in_the_roster_is_not_even_looked_at(tmp_path: Path) -> None:
    # given somebody who was not there when the run began, and contributes all the same
    async with Swarm(tmp_path, "ann", "bob", rounds=2) as swarm:
        stranger = identity("eve").peer
        swarm.start()
        await swarm.rounds_done(0)
        exchange = swarm.network.join(stranger, "demo")
        await exchange.post(CONTRIBUTION, 1, b"\xff")
        # when
        await swarm.finish()
        # then
        assert set(swarm["ann"].report(1).verdicts) == {swarm["ann"].id, swarm["bob"].id}
        assert not swarm.check_chain("ann")[1].counts(stranger)
        assert len(swarm.anchors()) == 1
