"""Runtime APIs: what a client asks the runtime to work out, at a given block."""

from typing import Any

from incentives.devnet.chain import Block, Chain
from incentives.devnet.rules import RefusedError
from incentives.devnet.scale import blob
from incentives.devnet.state import State

SUBNET_INFO, PAYMENT = "SubnetInfoRuntimeApi", "TransactionPaymentApi"
METADATA_V15 = b"\x0f\0\0\0"
HYPERPARAMETERS = {
    "tempo": "Tempo",
    "weights_rate_limit": "WeightsSetRateLimit",
    "min_allowed_weights": "MinAllowedWeights",
    "max_weights_limit": "MaxWeightsLimit",
    "commit_reveal_weights_enabled": "CommitRevealWeightsEnabled",
}
"""Their names in answers → storage items."""
NO_AXON = {
    "block": 0, "version": 0, "ip": 0, "port": 0, "ip_type": 0, "protocol": 0, "placeholder1": 0, "placeholder2": 0,
}  # fmt: skip
FREE = {"weight": {"ref_time": 1000, "proof_size": 100}, "class": "Normal", "partial_fee": 0}


def state_call(chain: Chain, name: str, argument: bytes, block: Block) -> bytes:
    """The encoded answer of `Api_method` with encoded arguments.

    Raises:
        RefusedError: no such API here.
    """
    if name == "Metadata_metadata_at_version":
        return b"\1" + blob(chain.codec.metadata) if argument == METADATA_V15 else b"\0"
    netuid = int.from_bytes(argument[:2], "little")
    api, _, method = name.partition("_")
    if (api, method) == (PAYMENT, "query_info"):
        return chain.codec.answer(api, method, FREE)
    if (api, method) == (SUBNET_INFO, "get_metagraph"):
        return chain.codec.answer(api, method, _metagraph(block, netuid))
    if (api, method) == (SUBNET_INFO, "get_subnet_hyperparams"):
        return chain.codec.answer(api, method, _hyperparameters(block.state, netuid))
    if (api, method) == (SUBNET_INFO, "get_next_epoch_start_block"):
        return chain.codec.answer(api, method, _next_epoch(block.state, netuid))
    raise RefusedError(f"the devnet has no runtime API {name}", code=-32000)


def _metagraph(block: Block, netuid: int) -> dict[str, Any] | None:
    state = block.state
    if netuid not in state.neurons:
        return None
    neurons = state.neurons[netuid]
    blank, zeros = state.codec.blank(SUBNET_INFO, "get_metagraph"), [0] * len(neurons)
    stakes = [each.stake for each in neurons]
    return {
        **{name: zeros if value == [] else value for name, value in blank.items()},
        **{name: state.get(item, netuid) for name, item in HYPERPARAMETERS.items()},
        "netuid": netuid,
        "name": list(b"devnet"),
        "symbol": list("α".encode()),
        "block": block.number,
        "last_step": state.get("LastEpochBlock", netuid),
        "blocks_since_last_step": state.get("BlocksSinceLastStep", netuid),
        "num_uids": len(neurons),
        "max_uids": 256,
        "hotkeys": [each.hotkey for each in neurons],
        "coldkeys": [each.coldkey for each in neurons],
        "identities": [None] * len(neurons),
        "axons": [NO_AXON] * len(neurons),
        "active": [True] * len(neurons),
        "validator_permit": [each.permit for each in neurons],
        "last_update": state.get("LastUpdate", netuid),
        "block_at_registration": [each.block for each in neurons],
        "alpha_stake": stakes,
        "total_stake": stakes,
    }


def _hyperparameters(state: State, netuid: int) -> dict[str, Any] | None:
    if netuid not in state.neurons:
        return None
    named = {name: state.get(item, netuid) for name, item in HYPERPARAMETERS.items()}
    return {**named, "commit_reveal_period": state.get("RevealPeriodEpochs", netuid)}


def _next_epoch(state: State, netuid: int) -> int | None:
    tempo = int(state.get("Tempo", netuid))
    return int(state.get("LastEpochBlock", netuid)) + tempo if tempo else None
