"""What is read from the chain, as frozen values; answers that no chain would give are refused here."""

from dataclasses import dataclass
from typing import Any, Literal

from incentives.subnet.binding import Commitment
from incentives.subnet.errors import ChainAnswerError
from incentives.subnet.receipts import Intention, Outcome

MAX_NEURONS = 4096


@dataclass(frozen=True)
class Neuron:
    """One registered hotkey."""

    uid: int
    hotkey: str
    stake: int
    """In the subnet's smallest unit, all of it together."""
    validator_permit: bool
    last_update: int
    """Block of its last weights, or of its last commit of some; 0: never."""


@dataclass(frozen=True)
class Snapshot:
    """A subnet at one finalized block."""

    block: int
    head: int
    """The newest block, not final yet."""
    time: float
    """Unix seconds that the newest block is stamped with."""
    block_seconds: float
    neurons: tuple[Neuron, ...]
    """In uid order."""
    tempo: int
    rate_limit: int
    """Blocks between two sets of weights."""
    commit_reveal: bool
    commitments: tuple[Commitment, ...]

    @property
    def uids(self) -> dict[str, int]:
        """hotkey → uid"""
        return {each.hotkey: each.uid for each in self.neurons}

    def neuron(self, hotkey: str) -> Neuron | None:
        return next((each for each in self.neurons if each.hotkey == hotkey), None)


@dataclass(frozen=True)
class Signed:
    """An extrinsic ready to be sent, and what to write down before."""

    intention: Intention
    unsigned: Any
    signature: bytes


@dataclass(frozen=True)
class Fate:
    """What a finalized block says of an intention."""

    outcome: Outcome | None
    """None: nothing yet, it may still come."""
    read_at: int
    block: int | None = None
    detail: str = ""


def number(value: Any, name: str, limit: int = 2**63) -> int:
    number = int(value)
    if not 0 <= number < limit:
        raise ChainAnswerError(f"the endpoint says that {name} is {number}, which cannot be")
    return number


def neurons_of(graph: Any, block: int) -> tuple[Neuron, ...]:
    """
    Raises:
        ChainAnswerError: no chain would hold these.
    """
    if len(graph.neurons) > MAX_NEURONS or len(set(graph.hotkeys)) < len(graph.neurons):
        raise ChainAnswerError(f"the endpoint lists {len(graph.neurons)} neurons, too many or some of them twice")
    if int(graph.block) != block:
        raise ChainAnswerError(f"asked for block {block}, the endpoint answers about block {graph.block}")
    return tuple(
        Neuron(
            uid=each.uid,
            hotkey=each.hotkey,
            stake=number(each.total_stake.rao, "a stake"),
            validator_permit=each.validator_permit,
            last_update=number(each.last_update, "a last update", block + 1),
        )
        for each in graph.neurons
    )


def commitment_of(hotkey: Any, record: Any) -> Commitment:
    """A stranger's commitment; of what is not plain bytes nothing is kept."""
    parts = []
    for field in record["info"]["fields"]:
        for variant, value in field.items() if isinstance(field, dict) else ():
            if variant.startswith("Raw") and isinstance(value, str):
                parts.append(raw_bytes(value))
    return Commitment(str(hotkey), number(record["block"], "a commitment's block"), b"".join(parts))


def traces_of(decoded: Any) -> tuple[Literal["weights", "commit", "binding"], Any]:
    """What a call of ours will have left on the chain, if it lands."""
    arguments = {each["name"]: each["value"] for each in decoded["call_args"]}
    name = decoded["call_function"]
    if name == "set_mechanism_weights":
        pairs = zip(arguments["dests"], arguments["weights"], strict=True)
        return "weights", tuple(sorted((int(uid), int(value)) for uid, value in pairs))
    if name == "commit_timelocked_mechanism_weights":
        return "commit", raw_bytes(arguments["commit"]).hex()
    if name == "set_commitment":
        return "binding", commitment_of("", {"info": arguments["info"], "block": 0}).data.hex()
    raise ChainAnswerError(f"the SDK made a call {name} that was not asked for")


def raw_bytes(value: Any) -> bytes:
    """Bytes as the SDK hands them over: 0x-hex, or text if they happen to be some."""
    if not isinstance(value, str):
        return bytes(value)
    try:
        return bytes.fromhex(value[2:]) if value.startswith("0x") else value.encode()
    except ValueError:
        return value.encode()
