"""What the chain allows, in the chain's order of checks; mirrored by hand from Subtensor's pallets."""

from collections.abc import Callable, Sequence
from typing import Any

from incentives.devnet.codec import blake2
from incentives.devnet.pallets import SUBTENSOR
from incentives.devnet.state import State

U16_MAX = 65535
COMMIT_VERSION = 4
MAX_COMMITS, MAX_FIELDS = 10, 3

Event = dict[str, Any]


class RefusedError(Exception):
    """The transaction pool does not take it: no block, no fee. Carries the JSON-RPC error."""

    def __init__(self, message: str, data: str = "", code: int = 1010) -> None:
        super().__init__(data or message)
        self.error = {"code": code, "message": message, **({"data": data} if data else {})}


class FailedError(Exception):
    """It is in a block, its nonce is spent, and nothing else came of it."""

    def __init__(self, pallet: str, name: str) -> None:
        super().__init__(f"{pallet}.{name}")
        self.pallet, self.name = pallet, name


def ensure(condition: bool, name: str, pallet: str = SUBTENSOR) -> None:
    """
    Raises:
        FailedError: the condition does not hold.
    """
    if not condition:
        raise FailedError(pallet, name)


def invalid(data: str) -> RefusedError:
    """What the pool answers to a transaction that can never be valid."""
    return RefusedError("Invalid Transaction", data)


def check_for_pool(state: State, who: str, call: tuple[str, str], arguments: dict[str, Any], block: int) -> None:
    """The runtime's transaction extension: what is refused before it reaches a block.

    Raises:
        RefusedError: not registered (19), or plain weights set too fast (6).
    """
    if call not in ((SUBTENSOR, "set_mechanism_weights"), (SUBTENSOR, "set_weights")):
        return
    netuid = arguments["netuid"]
    uid = state.uid(netuid, who)
    if uid is None:
        raise invalid("Custom error: 19")
    if not state.get("CommitRevealWeightsEnabled", netuid) and not rate_allows(state, netuid, uid, block):
        raise invalid("Custom error: 6")


def rate_allows(state: State, netuid: int, uid: int, block: int) -> bool:
    last = int(state.get("LastUpdate", netuid)[uid])
    return last == 0 or block - last >= int(state.get("WeightsSetRateLimit", netuid))


def dispatch(state: State, who: str, call: tuple[str, str], arguments: dict[str, Any], block: int) -> list[Event]:
    """Execute a call in the block that is being built.

    Raises:
        FailedError: what the chain's event would say.
    """
    execute = CALLS.get(call)
    if execute is None:
        raise FailedError("System", "CallFiltered")
    return execute(state, who, arguments, block)


def _set_weights(state: State, who: str, arguments: dict[str, Any], block: int) -> list[Event]:
    netuid, uids, values = arguments["netuid"], list(arguments["dests"]), list(arguments["weights"])
    ensure(not state.get("CommitRevealWeightsEnabled", netuid), "CommitRevealEnabled")
    ensure(len(uids) == len(values), "WeightVecNotEqualSize")
    ensure(netuid in state.neurons and arguments.get("mecid", 0) == 0, "MechanismDoesNotExist")
    count = len(state.neurons[netuid])
    ensure(len(uids) <= count, "UidsLengthExceedUidsInSubNet")
    uid = _standing(state, netuid, who)
    ensure(arguments["version_key"] >= state.get("WeightsVersionKey", netuid), "IncorrectWeightVersionKey")
    ensure(rate_allows(state, netuid, uid, block), "SettingWeightsTooFast")
    itself = uids == [uid]
    ensure(itself or state.neurons[netuid][uid].permit, "NeuronNoValidatorPermit")
    ensure(len(set(uids)) == len(uids), "DuplicateUids")
    ensure(all(each < count for each in uids), "UidVecContainInvalidOne")
    if not itself:
        _check_shape(state, netuid, values, count)
    top = max(values, default=0) or 1
    scaled = [(each, round(value * U16_MAX / top)) for each, value in zip(uids, values, strict=True)]
    state.put("Weights", netuid, uid, value=scaled)
    state.touch(netuid, uid, block)
    return [{SUBTENSOR: {"WeightsSet": (netuid, uid)}}]


def _standing(state: State, netuid: int, who: str) -> int:
    uid = state.uid(netuid, who)
    if uid is None:
        raise FailedError(SUBTENSOR, "HotKeyNotRegisteredInSubNet")
    stake = state.neurons[netuid][uid].stake
    ensure(stake >= state.get("StakeThreshold"), "NotEnoughStakeToSetWeights")
    return uid


def _check_shape(state: State, netuid: int, values: Sequence[int], count: int) -> None:
    ensure(len(values) >= min(count, state.get("MinAllowedWeights", netuid)), "WeightVecLengthIsLow")
    limit = state.get("MaxWeightsLimit", netuid)
    ensure(limit == U16_MAX or max(values) * U16_MAX <= limit * sum(values), "MaxWeightExceeded")


def _commit_timelocked(state: State, who: str, arguments: dict[str, Any], block: int) -> list[Event]:
    netuid, commit, reveal_round = arguments["netuid"], raw_bytes(arguments["commit"]), arguments["reveal_round"]
    ensure(netuid in state.neurons and arguments["mecid"] == 0, "MechanismDoesNotExist")
    ensure(state.get("CommitRevealWeightsEnabled", netuid), "CommitRevealDisabled")
    ensure(arguments["commit_reveal_version"] == COMMIT_VERSION, "IncorrectCommitRevealVersion")
    uid = _standing(state, netuid, who)
    ensure(rate_allows(state, netuid, uid, block), "CommittingWeightsTooFast")
    epoch = int(state.get("SubnetEpochIndex", netuid))
    commits = list(state.get("TimelockedWeightCommits", netuid, epoch))
    ensure(sum(each[0] == who for each in commits) < MAX_COMMITS, "TooManyUnrevealedCommits")
    commits.append((who, block, "0x" + commit.hex(), reveal_round))
    state.put("TimelockedWeightCommits", netuid, epoch, value=commits)
    state.touch(netuid, uid, block)
    return [{SUBTENSOR: {"TimelockedWeightsCommitted": (who, netuid, "0x" + blake2(commit).hex(), reveal_round)}}]


def _set_commitment(state: State, who: str, arguments: dict[str, Any], block: int) -> list[Event]:
    netuid, info = arguments["netuid"], arguments["info"]
    ensure(state.uid(netuid, who) is not None, "AccountNotAllowedCommit", "Commitments")
    ensure(len(info["fields"]) <= MAX_FIELDS, "TooManyFieldsInCommitmentInfo", "Commitments")
    held = [{name: "0x" + raw_bytes(value).hex() for name, value in each.items()} for each in info["fields"]]
    registration = {"deposit": 0, "block": block, "info": {"fields": held}}
    state.put("CommitmentOf", netuid, who, value=registration, pallet="Commitments")
    return [{"Commitments": {"Commitment": {"netuid": netuid, "who": who}}}]


def raw_bytes(value: Any) -> bytes:
    """Bytes as the codec hands them over: 0x-hex, text, or numbers."""
    if isinstance(value, str):
        return bytes.fromhex(value[2:]) if value.startswith("0x") else value.encode()
    return bytes(value)


CALLS: dict[tuple[str, str], Callable[[State, str, dict[str, Any], int], list[Event]]] = {
    (SUBTENSOR, "set_weights"): _set_weights,
    (SUBTENSOR, "set_mechanism_weights"): _set_weights,
    (SUBTENSOR, "commit_timelocked_mechanism_weights"): _commit_timelocked,
    ("Commitments", "set_commitment"): _set_commitment,
    ("System", "remark"): lambda _state, _who, _arguments, _block: [],
}
