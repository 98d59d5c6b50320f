"""Signed extrinsics: what arrives as bytes, and whether the signature covers exactly this on exactly this chain."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bittensor_core as core

from incentives.devnet.codec import Codec, blake2
from incentives.devnet.rules import RefusedError, invalid, raw_bytes

IMMORTAL = "00"
SCHEMES = {"Ed25519": core.CRYPTO_ED25519, "Sr25519": core.CRYPTO_SR25519}


@dataclass(frozen=True)
class Era:
    """From which block to before which one a transaction is valid."""

    period: int
    phase: int

    def birth(self, block: int) -> int:
        """The block that the signature names, for a transaction in (or just after) this block."""
        return (max(block, self.phase) - self.phase) // self.period * self.period + self.phase


@dataclass(frozen=True)
class Extrinsic:
    """One decoded extrinsic whose signature was good."""

    data: bytes
    hash: bytes
    signer: str
    scheme: str
    nonce: int
    era: Era | None
    era_hash: bytes
    """Hash of the block its era counts from; on another fork it is invalid."""
    call: tuple[str, str]
    """(pallet, name)"""
    arguments: dict[str, Any]


def decode(codec: Codec, data: bytes, block: int, hash_of: Callable[[int], bytes]) -> Extrinsic:
    """Read a signed extrinsic and verify its signature over the payload as this chain would have it.

    Args:
        codec: of the runtime that it must be signed for.
        data: with its length in front, as clients send it.
        block: the number of our newest block.
        hash_of: a block's hash by number.

    Raises:
        RefusedError: it does not decode, or is signed for something else.
    """
    try:
        parts = codec.runtime.decode_extrinsic(data, True)
        named = parts["call"]
        arguments = {each["name"]: each["value"] for each in named["call_args"]}
        call = codec.compose(named["call_module"], named["call_function"], arguments)
        decoded = codec.runtime.decode_call(call)
        scheme, signature = _signature(parts["signature"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RefusedError("Verification Error", f"Could not decode the extrinsic: {error}", 1002) from error
    if not data.endswith(call):
        raise RefusedError("Verification Error", "The call is not in its one canonical form", 1002)
    era = None if parts["era"] in (IMMORTAL, "0x00") else Era(*parts["era"])
    era_hash = hash_of(era.birth(block) if era else 0)
    payload = codec.runtime.signature_payload(
        call,
        era={"period": era.period, "phase": era.phase} if era else IMMORTAL,
        nonce=parts["nonce"],
        tip=parts["tip"] or 0,
        tip_asset_id=None,
        genesis_hash=hash_of(0),
        era_block_hash=era_hash,
        metadata_hash=None,
    )
    if not core.verify(bytes(payload), signature, parts["address"], SCHEMES[scheme]):
        raise invalid("Transaction has a bad signature")
    return Extrinsic(
        data=data,
        hash=blake2(data),
        signer=parts["address"],
        scheme=scheme,
        nonce=parts["nonce"],
        era=era,
        era_hash=era_hash,
        call=(decoded["call_module"], decoded["call_function"]),
        arguments={each["name"]: each["value"] for each in decoded["call_args"]},
    )


def _signature(value: Any) -> tuple[str, bytes]:
    scheme, raw = next(iter(value.items())) if isinstance(value, dict) else ("Sr25519", value)
    if scheme not in SCHEMES:
        raise ValueError(f"signatures of {scheme} are not taken")
    return scheme, raw_bytes(raw)
