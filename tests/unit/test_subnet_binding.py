"""A peer and a hotkey are bound when both said so, for this run and subnet, and not for ever."""

import random
from dataclasses import replace
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from elastic.errors import MalformedError
from elastic.wire.signing import Identity
from incentives.subnet.binding import (
    BINDING_BYTES,
    MAGIC,
    Binding,
    Bindings,
    Commitment,
    Refusal,
    Statement,
    bind,
    decode,
    judge,
)

RUN, NETUID, BLOCK, LONGEST = "demo", 3, 1000, 500
PEERS = [Identity(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in range(1, 4)]
KEYS = {name: Ed25519PrivateKey.from_private_bytes(name.encode() * 16) for name in ("h1", "h2")}
"""Hotkeys, here with plain Ed25519 keys and addresses that are their names."""


def verify(message: bytes, signature: bytes, hotkey: str, scheme: int) -> bool:
    key: Ed25519PublicKey = KEYS[hotkey].public_key()
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return scheme == 0


def bound(hotkey: str = "h1", peer: Identity = PEERS[0], *, expires: int = BLOCK + 400, **other: Any) -> Binding:
    statement = Statement(
        **{"run": RUN, "netuid": NETUID, "hotkey": hotkey, "peer": peer.peer, **other}, expires=expires
    )
    return bind(statement, 0, KEYS[hotkey].sign, peer)


def judged(*commitments: tuple[str, bytes, int]) -> Bindings:
    rows = [Commitment(hotkey, block, data) for hotkey, data, block in commitments]
    one = judge(rows, run=RUN, netuid=NETUID, block=BLOCK, max_blocks=LONGEST, verify=verify)
    random.Random(0).shuffle(rows)
    assert judge(rows, run=RUN, netuid=NETUID, block=BLOCK, max_blocks=LONGEST, verify=verify) == one
    return one


def test_a_binding_fits_a_commitment_and_comes_back() -> None:
    binding = bound()
    data = binding.encode()
    assert len(data) == BINDING_BYTES <= 3 * 128
    assert decode(data, RUN, NETUID, "h1") == binding
    assert judged(("h1", data, 1)).hotkeys == {PEERS[0].peer: "h1"}
    assert judged(("h1", data, 1)).expires == {"h1": BLOCK + 400}


@pytest.mark.parametrize(
    ("binding", "why"),
    [
        (bound(expires=BLOCK), Refusal.EXPIRED),
        (bound(expires=BLOCK + LONGEST + 1), Refusal.TOO_LONG),
        (bound(run="another"), Refusal.HOTKEY_SIGNATURE),
        (bound(netuid=4), Refusal.HOTKEY_SIGNATURE),
        (replace(bound(), scheme=1), Refusal.HOTKEY_SIGNATURE),
        (replace(bound(), peer_signature=bytes(64)), Refusal.PEER_SIGNATURE),
        (replace(bound(), peer_signature=bound(peer=PEERS[1]).peer_signature), Refusal.PEER_SIGNATURE),
    ],
    ids=str,
)
def test_what_does_not_hold_binds_nobody(binding: Binding, why: Refusal) -> None:
    assert judged(("h1", binding.encode(), 1)) == Bindings(hotkeys={}, refused={"h1": why}, expires={})


def test_nobody_can_take_over_what_another_hotkey_committed() -> None:
    copied = bound("h1").encode()
    assert judged(("h1", copied, 1), ("h2", copied, 2)) == Bindings(
        hotkeys={PEERS[0].peer: "h1"}, refused={"h2": Refusal.HOTKEY_SIGNATURE}, expires={"h1": BLOCK + 400}
    )


def test_a_peer_that_moves_to_another_hotkey_takes_its_binding_along() -> None:
    made = judged(("h1", bound("h1").encode(), 5), ("h2", bound("h2").encode(), 6))
    assert made.hotkeys == {PEERS[0].peer: "h2"}
    assert made.refused == {"h1": Refusal.PEER_CLAIMED_TWICE}


def test_a_peer_that_two_hotkeys_claim_at_once_is_bound_to_none() -> None:
    made = judged(("h1", bound("h1").encode(), 5), ("h2", bound("h2").encode(), 5))
    assert made.hotkeys == {}
    assert made.refused == dict.fromkeys(("h1", "h2"), Refusal.PEER_CLAIMED_TWICE)


def test_a_hotkey_that_claims_two_peers_is_bound_to_none() -> None:
    made = judged(("h1", bound("h1").encode(), 5), ("h1", bound("h1", PEERS[1]).encode(), 6))
    assert made.hotkeys == {}
    assert made.refused == {"h1": Refusal.HOTKEY_CLAIMS_TWO}


def test_commitments_of_other_programs_are_nobodys_fault() -> None:
    assert judged(("h1", b"{some: json}", 1), ("h2", b"", 1)) == Bindings({}, {}, {})


@pytest.mark.parametrize("data", [MAGIC, MAGIC + bytes(BINDING_BYTES), bound().encode()[:-1], MAGIC[:-1] + b"\2"])
def test_a_binding_of_another_shape_or_version_is_named(data: bytes) -> None:
    assert judged(("h1", data, 1)).refused == {"h1": Refusal.MALFORMED}


@given(st.integers(0, BINDING_BYTES * 8 - 1))
def test_no_flipped_bit_goes_unnoticed(place: int) -> None:
    data = bytearray(bound().encode())
    data[place // 8] ^= 1 << place % 8
    assert judged(("h1", bytes(data), 1)).hotkeys == {}


@given(st.binary(max_size=400))
def test_no_bytes_of_a_stranger_do_any_harm(data: bytes) -> None:
    for each in (data, MAGIC + data, (MAGIC + data).ljust(BINDING_BYTES, b"\0")[:BINDING_BYTES]):
        assert judged(("h1", each, 1)).hotkeys == {}
        try:
            decode(each, RUN, NETUID, "h1")
        except MalformedError:
            continue
