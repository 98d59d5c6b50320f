"""The validator says: one signed manifest per round, and nobody applies another."""

from typing import Any

import pytest

from elastic.agreement.validator import KIND, NamedValidator, check_manifest, draft, genesis
from elastic.contracts import Agreement
from elastic.errors import MalformedError, SignatureInvalidError
from elastic.exchange.memory import MemoryNetwork
from elastic.messages import (
    Counted,
    Digest,
    Manifest,
    PeerCard,
    PeerId,
    PeerStage,
    RoundIndex,
    digest_of,
)
from elastic.wire.signing import Identity

VALIDATOR, PEER, STRANGER = (Identity.generate() for _ in range(3))
FIRST, SECOND = digest_of(b"first anchor"), digest_of(b"second anchor")
BOTH = sorted((VALIDATOR.peer, PEER.peer))


def counted(peer: PeerId, share: float, payload: bytes = b"payload") -> Counted:
    return Counted(peer=peer, payload=digest_of(payload), size_bytes=7, share=share)


def zeroth() -> Manifest:
    return VALIDATOR.sign(genesis("demo", FIRST, BOTH, proposer=VALIDATOR.peer))


def after(previous: Manifest, payload: bytes = b"payload", anchor: Digest = FIRST) -> Manifest:
    entries = [counted(PEER.peer, 0.25, payload), counted(VALIDATOR.peer, 0.75, payload)]
    return draft(previous, anchor, entries, BOTH, VALIDATOR.peer)


def check(manifest: Manifest, previous: Manifest | None = None) -> None:
    check_manifest(manifest, run="demo", validators=[VALIDATOR.peer], previous=previous)


def test_a_draft_is_in_order_whatever_order_it_is_given() -> None:
    manifest = after(zeroth())
    shuffled = draft(zeroth(), FIRST, reversed(manifest.counted), reversed(BOTH), VALIDATOR.peer)
    assert shuffled == manifest
    assert list(manifest.roster) == BOTH
    assert (manifest.round, manifest.previous, manifest.anchor) == (1, zeroth().digest(), FIRST)


def test_a_chain_of_drafts_holds() -> None:
    first = VALIDATOR.sign(after(zeroth()))
    void = VALIDATOR.sign(draft(first, SECOND, [], BOTH, VALIDATOR.peer))
    check(zeroth())
    check(first, zeroth())
    check(void, first)
    assert void.void


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "another"}, "is of run"),
        ({"roster": tuple(reversed(BOTH))}, "roster that is not in PeerId order"),
        ({"roster": (BOTH[0], BOTH[0])}, "roster that is not in PeerId order"),
        ({"counted": (counted(BOTH[1], 0.5), counted(BOTH[0], 0.5))}, "counts peers out of PeerId order"),
        ({"counted": (counted(BOTH[0], 0.5), counted(BOTH[0], 0.5))}, "counts peers out of PeerId order"),
        ({"counted": (counted(BOTH[0], 0.5),)}, "shares that sum to 0.5"),
        ({"counted": (counted(BOTH[0], 0.9), counted(BOTH[1], 0.9))}, "shares that sum to 1.8"),
        ({"round": 0}, "is no genesis"),
        ({"round": 2}, "does not follow round 0"),
        ({"previous": SECOND}, "names another predecessor"),
        ({"anchor": SECOND}, "changes the anchor after a void round"),
        ({"counted": (counted(STRANGER.peer, 1.0),)}, "not in its roster"),
    ],
)
def test_each_broken_rule_is_named(changes: dict[str, Any], message: str) -> None:
    signed = VALIDATOR.sign(after(zeroth()).model_copy(update=changes))
    with pytest.raises(MalformedError, match=message):
        check(signed, zeroth())


def test_only_a_validator_may_propose() -> None:
    manifest = STRANGER.sign(after(zeroth()).model_copy(update={"proposer": STRANGER.peer}))
    with pytest.raises(MalformedError, match="who is no validator"):
        check(manifest)


def test_the_signature_is_over_everything() -> None:
    with pytest.raises(SignatureInvalidError):
        check(after(zeroth()))
    signed = VALIDATOR.sign(after(zeroth()))
    with pytest.raises(SignatureInvalidError):
        check(signed.model_copy(update={"roster": (BOTH[0],)}))


def agreements(network: MemoryNetwork) -> tuple[NamedValidator, NamedValidator]:
    """The validator's and another peer's."""
    deciding, following = (
        NamedValidator(identity, [VALIDATOR.peer], "demo", network.join(identity.peer, "demo"))
        for identity in (VALIDATOR, PEER)
    )
    return deciding, following


async def test_what_the_validator_proposes_everyone_learns() -> None:
    deciding, following = agreements(MemoryNetwork())
    agreement: Agreement = following
    assert await agreement.decided(RoundIndex(0)) is None
    start = await deciding.propose(genesis("demo", FIRST, BOTH, proposer=VALIDATOR.peer))
    first = await deciding.propose(after(start))
    assert await agreement.decided(RoundIndex(0)) == start
    assert await agreement.decided(RoundIndex(1)) == first
    assert await deciding.decided(RoundIndex(1)) == first
    assert await agreement.decided(RoundIndex(2)) is None
    assert agreement.validates(VALIDATOR.peer)
    assert not agreement.validates(PEER.peer)


async def test_a_round_is_decided_once(caplog: pytest.LogCaptureFixture) -> None:
    deciding, following = agreements(MemoryNetwork())
    start = await deciding.propose(zeroth())
    first = await deciding.propose(after(start))
    again = await deciding.propose(after(start, b"something else"))
    assert again == first
    assert await following.decided(RoundIndex(1)) == first
    assert "that decision stands" in caplog.text


async def test_a_restarted_validator_keeps_its_word() -> None:
    kept: dict[int, Manifest] = {}

    def journal(manifest: Manifest) -> Manifest:
        return kept.setdefault(manifest.round, manifest)

    network = MemoryNetwork()
    before, restarted = (
        NamedValidator(VALIDATOR, [VALIDATOR.peer], "demo", network.join(VALIDATOR.peer, "demo"), journal)
        for _ in range(2)
    )
    start = await before.propose(zeroth())
    first = await before.propose(after(start))
    assert await restarted.propose(after(start, b"something else")) == first


async def test_nothing_is_signed_behind_the_last_signature() -> None:
    deciding, _ = agreements(MemoryNetwork())
    start = zeroth()
    await deciding.propose(after(VALIDATOR.sign(after(start)), anchor=SECOND))
    with pytest.raises(MalformedError, match="older than one that we signed"):
        await deciding.propose(after(start))


async def test_a_bad_draft_is_not_signed() -> None:
    deciding, following = agreements(MemoryNetwork())
    start = await deciding.propose(zeroth())
    with pytest.raises(MalformedError):
        await deciding.propose(after(start).model_copy(update={"counted": (counted(PEER.peer, 0.5),)}))
    assert await following.decided(RoundIndex(1)) is None
    good = await deciding.propose(after(start))
    assert await following.decided(RoundIndex(1)) == good


async def test_what_others_post_is_ignored_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    network = MemoryNetwork()
    _, following = agreements(network)
    stranger = network.join(STRANGER.peer, "demo")
    await stranger.post(KIND, RoundIndex(1), VALIDATOR.sign(after(zeroth())).canonical())
    assert await following.decided(RoundIndex(1)) is None
    assert not caplog.records
    lying = network.peers[VALIDATOR.peer]
    for body in (b"garbage", after(zeroth()).canonical(), zeroth().canonical()):
        caplog.clear()
        await lying.post(KIND, RoundIndex(1), body)
        assert await following.decided(RoundIndex(1)) is None
        assert await following.decided(RoundIndex(1)) is None
        assert len(caplog.records) == 1


async def test_a_manifest_that_does_not_continue_ours_is_not_taken() -> None:
    network = MemoryNetwork()
    _, following = agreements(network)
    posting = network.peers[VALIDATOR.peer]
    await posting.post(KIND, RoundIndex(0), zeroth().canonical())
    other = VALIDATOR.sign(genesis("demo", SECOND, BOTH, proposer=VALIDATOR.peer))
    await posting.post(KIND, RoundIndex(1), VALIDATOR.sign(after(other, anchor=SECOND)).canonical())
    assert await following.decided(RoundIndex(0)) == zeroth()
    assert await following.decided(RoundIndex(1)) is None


async def chain_of(deciding: NamedValidator, length: int) -> Manifest:
    head = await deciding.propose(zeroth())
    for _ in range(length):
        head = await deciding.propose(after(head))
    return head


def card(peer: PeerId, round_: int) -> PeerCard:
    return PeerCard(peer=peer, run="demo", shared=FIRST, stage=PeerStage.READY, round=RoundIndex(round_), addresses=())


@pytest.mark.parametrize("on_card", [0, 3, 6, 7, 9])
async def test_the_head_is_found_near_the_validators_card(on_card: int) -> None:
    network = MemoryNetwork()
    deciding, following = agreements(network)
    newest = await chain_of(deciding, 6)
    await network.peers[VALIDATOR.peer].announce(card(VALIDATOR.peer, on_card))
    assert await following.head() == newest


async def test_other_peers_cards_lead_nowhere() -> None:
    network = MemoryNetwork()
    deciding, following = agreements(network)
    await chain_of(deciding, 2)
    await network.peers[PEER.peer].announce(card(PEER.peer, 2))
    assert await following.head() is None


async def test_without_a_validator_the_head_is_what_we_know() -> None:
    deciding, following = agreements(MemoryNetwork())
    newest = await chain_of(deciding, 2)
    assert await following.head() is None
    assert await following.decided(RoundIndex(2)) == newest
    assert await following.head() == newest


async def test_memory_is_bounded() -> None:
    deciding, following = agreements(MemoryNetwork())
    newest = await chain_of(deciding, 100)
    assert await deciding.head() == newest
    assert await following.decided(RoundIndex(1)) is not None  # forgotten by its author, found where it was posted
