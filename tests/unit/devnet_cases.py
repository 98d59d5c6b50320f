"""A devnet with a validator and miners, and extrinsics signed for it without the SDK."""

import itertools
from typing import Any

import bittensor_core as core

from incentives.devnet.chain import Chain

NETUID = 3
VALIDATOR = core.Keypair.create_from_uri("//Validator")
MINERS = [core.Keypair.create_from_uri(f"//Miner{number}") for number in range(4)]
STRANGER = core.Keypair.create_from_uri("//Stranger")
SUBTENSOR = "SubtensorModule"


def made(*, commit_reveal: bool = False, rate_limit: int = 5, **settings: Any) -> Chain:
    """A subnet with the validator as uid 0 and four miners; its second block is its head. Its clock stands still."""
    seconds = itertools.count(1_700_000_000, 12)
    chain = Chain(clock=lambda: float(next(seconds)))
    chain.add_subnet(NETUID, tempo=20, rate_limit=rate_limit, commit_reveal=commit_reveal, **settings)
    chain.register(NETUID, VALIDATOR.ss58_address, STRANGER.ss58_address, stake=1000, permit=True)
    for miner in MINERS:
        chain.register(NETUID, miner.ss58_address, STRANGER.ss58_address, stake=1)
    chain.produce()
    return chain


def weights(uids: list[int], values: list[int], **arguments: Any) -> tuple[str, dict[str, Any]]:
    named = {"netuid": NETUID, "mecid": 0, "dests": uids, "weights": values, "version_key": 0, **arguments}
    return "set_mechanism_weights", named


def signed(
    chain: Chain,
    call: tuple[str, dict[str, Any]],
    *,
    by: Any = VALIDATOR,
    nonce: int | None = None,
    period: int | None = 16,
    pallet: str = SUBTENSOR,
) -> bytes:
    """What a client would send: signed for this chain, at its newest block."""
    runtime = chain.codec.runtime
    data = bytes(runtime.compose_call(pallet, *call))
    chosen = chain.next_nonce(by.ss58_address) if nonce is None else nonce
    era: Any = "00" if period is None else {"period": period, "phase": chain.head.number % period}
    birth = 0 if period is None else chain.head.number
    payload = runtime.signature_payload(
        data, era=era, nonce=chosen, tip=0, tip_asset_id=None, genesis_hash=chain.blocks[0].hash,
        era_block_hash=chain.blocks[birth].hash, metadata_hash=None,
    )  # fmt: skip
    extrinsic, _ = runtime.encode_signed_extrinsic(
        data, public_key=bytes(by.public_key), signature=bytes(by.sign(bytes(payload))),
        signature_version=by.crypto_type, era=era, nonce=chosen, tip=0, tip_asset_id=None,
    )  # fmt: skip
    return bytes(extrinsic)
