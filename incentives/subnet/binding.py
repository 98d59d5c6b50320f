"""Which peer is which hotkey: a statement that both keys sign, committed on the chain by the hotkey.

Neither can claim the other alone, an endpoint that lies can forge nothing, and what is read is some stranger's bytes
until both signatures verify. A statement holds for one run on one subnet, and until a block.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from elastic.errors import MalformedError, SignatureInvalidError
from elastic.messages import PeerId
from elastic.wire.signing import SIGNATURE_BYTES, Identity, peer_id_of, public_key_of, verify_bytes

Verify = Callable[[bytes, bytes, str, int], bool]
"""(message, signature, hotkey, scheme) → whether the hotkey signed it."""

MAGIC = b"elastic\1"
"""Tells our commitments from those of other programs; the last byte is the version."""
DOMAIN = "Binding"
BINDING_BYTES = len(MAGIC) + 1 + 32 + 8 + 2 * SIGNATURE_BYTES


class Refusal(StrEnum):
    """Why a commitment binds nobody."""

    MALFORMED = "not a binding of this version"
    EXPIRED = "expired"
    TOO_LONG = "expires later than this run allows"
    HOTKEY_SIGNATURE = "the hotkey did not sign it for this run and subnet"
    PEER_SIGNATURE = "the peer did not sign it for this run and subnet"
    HOTKEY_CLAIMS_TWO = "the hotkey claims two peers"
    PEER_CLAIMED_TWICE = "the peer is claimed by two hotkeys, and the other claim is newer or as new"


@dataclass(frozen=True)
class Statement:
    """What both keys sign."""

    run: str
    netuid: int
    hotkey: str
    peer: PeerId
    expires: int
    """The first block in which it holds no more."""

    def body(self) -> bytes:
        """The bytes under both signatures."""
        named = {"run": self.run, "netuid": self.netuid, "hotkey": self.hotkey, "peer": self.peer}
        return b"elastic binding\0" + orjson.dumps({**named, "expires": self.expires}, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True)
class Binding:
    """A statement with both signatures."""

    statement: Statement
    scheme: int
    """Of the hotkey: 0 for Ed25519, 1 for sr25519."""
    hotkey_signature: bytes
    peer_signature: bytes

    def encode(self) -> bytes:
        """As it is committed; run, subnet and hotkey are known from where it is found."""
        key = public_key_of(self.statement.peer).public_bytes_raw()
        expires = self.statement.expires.to_bytes(8, "little")
        return MAGIC + bytes([self.scheme]) + key + expires + self.hotkey_signature + self.peer_signature


@dataclass(frozen=True)
class Commitment:
    """A hotkey's bytes on the chain, unread."""

    hotkey: str
    block: int
    """When they were committed."""
    data: bytes


@dataclass(frozen=True)
class Bindings:
    """What all commitments of a subnet come to at one block."""

    hotkeys: Mapping[PeerId, str]
    refused: Mapping[str, Refusal]
    """Hotkey → why its commitment binds nobody; those of other programs are not named."""
    expires: Mapping[str, int]
    """Hotkey → the block at which its binding ends."""


def bind(statement: Statement, scheme: int, sign: Callable[[bytes], bytes], identity: Identity) -> Binding:
    """Have both keys sign.

    Args:
        statement: names the identity's peer id.
        scheme: the hotkey's.
        sign: with the hotkey.
        identity: of the peer.
    """
    body = statement.body()
    return Binding(statement, scheme, sign(body), identity.sign_bytes(DOMAIN, body))


def decode(data: bytes, run: str, netuid: int, hotkey: str) -> Binding:
    """Read what a hotkey committed; nothing is verified yet.

    Raises:
        MalformedError: it is not a binding of this version.
    """
    if len(data) != BINDING_BYTES or not data.startswith(MAGIC):
        raise MalformedError(f"{len(data)} bytes that are no binding of this version")
    at = len(MAGIC)
    scheme, key, expires, signatures = data[at], data[at + 1 : at + 33], data[at + 33 : at + 41], data[at + 41 :]
    peer = peer_id_of(Ed25519PublicKey.from_public_bytes(key))
    return Binding(
        Statement(run, netuid, hotkey, peer, int.from_bytes(expires, "little")),
        scheme,
        signatures[:SIGNATURE_BYTES],
        signatures[SIGNATURE_BYTES:],
    )


def examine(binding: Binding, block: int, max_blocks: int, verify: Verify) -> Refusal | None:
    """Whether a binding holds at a block, on its own."""
    statement = binding.statement
    if statement.expires <= block:
        return Refusal.EXPIRED
    if statement.expires > block + max_blocks:
        return Refusal.TOO_LONG
    if not verify(statement.body(), binding.hotkey_signature, statement.hotkey, binding.scheme):
        return Refusal.HOTKEY_SIGNATURE
    try:
        verify_bytes(statement.peer, DOMAIN, statement.body(), binding.peer_signature)
    except SignatureInvalidError:
        return Refusal.PEER_SIGNATURE
    return None


def judge(
    commitments: Iterable[Commitment], *, run: str, netuid: int, block: int, max_blocks: int, verify: Verify
) -> Bindings:
    """Who is bound to whom; the same for everyone who reads the same block.

    Of two hotkeys with one peer the one that committed last has it: a peer that moves to another hotkey says so by
    binding itself there. As both have the peer's signature, nobody else loses by it.

    Args:
        commitments: of all hotkeys, in any order.
        run: name of the run.
        netuid: of the subnet.
        block: at which they were read.
        max_blocks: a binding that lasts longer is refused.
        verify: signatures of hotkeys.
    """
    valid, refused = dict[str, tuple[Commitment, Binding]](), dict[str, Refusal]()
    for commitment in commitments:
        if not commitment.data.startswith(MAGIC[:-1]):
            continue
        try:
            binding = decode(commitment.data, run, netuid, commitment.hotkey)
        except MalformedError:
            refused[commitment.hotkey] = Refusal.MALFORMED
            continue
        refusal = examine(binding, block, max_blocks, verify)
        if refusal is not None:
            refused.setdefault(commitment.hotkey, refusal)
            continue
        other = valid.setdefault(commitment.hotkey, (commitment, binding))[1]
        if other.statement.peer != binding.statement.peer:
            refused[commitment.hotkey] = Refusal.HOTKEY_CLAIMS_TWO
    claims = [each for hotkey, each in valid.items() if refused.get(hotkey) is not Refusal.HOTKEY_CLAIMS_TWO]
    return _settled(claims, refused)


def _settled(claims: list[tuple[Commitment, Binding]], refused: dict[str, Refusal]) -> Bindings:
    newest = dict[PeerId, int]()
    for commitment, binding in claims:
        peer = binding.statement.peer
        newest[peer] = max(newest.get(peer, 0), commitment.block)
    holders = dict[PeerId, list[Binding]]()
    for commitment, binding in claims:
        peer = binding.statement.peer
        if commitment.block == newest[peer]:
            holders.setdefault(peer, []).append(binding)
        else:
            refused[commitment.hotkey] = Refusal.PEER_CLAIMED_TWICE
    for tied in holders.values():
        if len(tied) > 1:
            refused.update({each.statement.hotkey: Refusal.PEER_CLAIMED_TWICE for each in tied})
    bound = {peer: each[0].statement for peer, each in sorted(holders.items()) if len(each) == 1}
    return Bindings(
        hotkeys={peer: each.hotkey for peer, each in bound.items()},
        refused={hotkey: why for hotkey, why in sorted(refused.items()) if hotkey not in _hotkeys(bound)},
        expires={each.hotkey: each.expires for each in bound.values()},
    )


def _hotkeys(bound: Mapping[PeerId, Statement]) -> set[str]:
    return {each.hotkey for each in bound.values()}
