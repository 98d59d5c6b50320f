"""The runtime's pallets, as far as a client for weights uses them: storage, calls, events, errors.

Indices, hashers, key types and defaults follow Subtensor's spec 461, except where a default differs on purpose: an
unset rate limit is 100 blocks and an unset tempo 360, as they are on a new subnet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from incentives.devnet.scale import Variant, fields
from incentives.devnet.types import unit

SUBTENSOR = "SubtensorModule"
NETUID, INDEX = "identity NetUid", "identity NetIdx"


@dataclass(frozen=True)
class Item:
    """One storage item: a value, or a map with a "hasher Type" for each of its keys."""

    value: str
    keys: tuple[str, ...] = ()
    default: bytes | None = None
    """Encoded; None: a missing entry is None, too."""


@dataclass(frozen=True)
class Pallet:
    """One pallet of the runtime."""

    index: int
    storage: Mapping[str, Item] = field(default_factory=dict)
    calls: Sequence[Variant] = ()
    events: Sequence[Variant] = ()
    errors: Sequence[Variant] = ()


def number(value: int, size_bytes: int = 8) -> bytes:
    return value.to_bytes(size_bytes, "little")


def by_netuid(value: str, default: bytes) -> Item:
    return Item(value, (NETUID,), default)


SUBNETS: dict[str, Item] = {
    "NetworksAdded": by_netuid("bool", b"\0"),
    "Tempo": by_netuid("u16", number(360, 2)),
    "WeightsSetRateLimit": by_netuid("u64", number(100)),
    "CommitRevealWeightsEnabled": by_netuid("bool", b"\1"),
    "MinAllowedWeights": by_netuid("u16", number(1, 2)),
    "MaxWeightsLimit": by_netuid("u16", number(65535, 2)),
    "RevealPeriodEpochs": Item("u64", ("twox64concat NetUid",), number(1)),
    "WeightsVersionKey": by_netuid("u64", number(0)),
    "StakeThreshold": Item("u64", (), number(0)),
    "SubnetworkN": by_netuid("u16", number(0, 2)),
    "LastUpdate": Item("Vec<u64>", (INDEX,), b"\0"),
    "ValidatorPermit": by_netuid("Vec<bool>", b"\0"),
    "LastEpochBlock": by_netuid("u64", number(0)),
    "PendingEpochAt": by_netuid("u64", number(0)),
    "SubnetEpochIndex": by_netuid("u64", number(0)),
    "BlocksSinceLastStep": by_netuid("u64", number(0)),
    "TokenSymbol": by_netuid("Vec<u8>", b"\0"),
    "Uids": Item("u16", ("identity NetUid", "blake128concat AccountId")),
    "Keys": Item("AccountId", ("identity NetUid", "identity u16"), bytes(32)),
    "Weights": Item("Vec<(u16,u16)>", ("identity NetIdx", "identity u16"), b"\0"),
    "SubnetEpochConsensus": by_netuid("EpochConsensus", b"\0"),
    "Burn": by_netuid("Tao", number(0)),
    "TimelockedWeightCommits": Item(
        "Vec<(AccountId,u64,Vec<u8>,u64)>", ("twox64concat NetIdx", "twox64concat u64"), b"\0"
    ),
}

WEIGHT_ERRORS = unit(
    "WeightVecNotEqualSize", "MechanismDoesNotExist", "UidsLengthExceedUidsInSubNet", "HotKeyNotRegisteredInSubNet",
    "NotEnoughStakeToSetWeights", "IncorrectWeightVersionKey", "SettingWeightsTooFast", "CommitRevealEnabled",
    "CommitRevealDisabled", "IncorrectCommitRevealVersion", "CommittingWeightsTooFast", "TooManyUnrevealedCommits",
    "NeuronNoValidatorPermit", "DuplicateUids", "UidVecContainInvalidOne", "WeightVecLengthIsLow", "MaxWeightExceeded",
)  # fmt: skip

SERVE_AXON = "netuid:NetUid, version:u32, ip:u128, port:u16, ip_type:u8, protocol:u8, placeholder1:u8, placeholder2:u8"
COMMIT_TIMELOCKED = "netuid:NetUid, mecid:MechId, commit:Vec<u8>, reveal_round:u64, commit_reveal_version:u16"
SET_MECHANISM_WEIGHTS = "netuid:NetUid, mecid:MechId, dests:Vec<u16>, weights:Vec<u16>, version_key:u64"

PALLETS: dict[str, Pallet] = {
    "System": Pallet(
        0,
        {
            "Account": Item("AccountInfo", ("blake128concat AccountId",), bytes(56)),
            "Number": Item("u32", (), number(0, 4)),
            "Events": Item("Vec<EventRecord>", (), b"\0"),
        },
        [Variant(0, "remark", fields("remark:Vec<u8>"))],
        [
            Variant(0, "ExtrinsicSuccess", fields("dispatch_info:DispatchEventInfo")),
            Variant(1, "ExtrinsicFailed", fields("dispatch_error:DispatchError, dispatch_info:DispatchEventInfo")),
        ],
        unit("CallFiltered"),
    ),
    "Timestamp": Pallet(2, {"Now": Item("u64", (), number(0))}, [Variant(0, "set", fields("now:Compact<u64>"))]),
    "Aura": Pallet(3),
    SUBTENSOR: Pallet(
        7,
        SUBNETS,
        [
            Variant(0, "set_weights", fields("netuid:NetUid, dests:Vec<u16>, weights:Vec<u16>, version_key:u64")),
            Variant(4, "serve_axon", fields(SERVE_AXON)),
            Variant(7, "burned_register", fields("netuid:NetUid, hotkey:AccountId")),
            Variant(118, "commit_timelocked_mechanism_weights", fields(COMMIT_TIMELOCKED)),
            Variant(119, "set_mechanism_weights", fields(SET_MECHANISM_WEIGHTS)),
        ],
        [
            Variant(5, "WeightsSet", fields(":NetIdx, :u16")),
            Variant(90, "TimelockedWeightsCommitted", fields(":AccountId, :NetIdx, :H256, :u64")),
        ],
        WEIGHT_ERRORS,
    ),
    "Commitments": Pallet(
        18,
        {
            "CommitmentOf": Item("Registration", ("identity NetUid", "twox64concat AccountId")),
            "RevealedCommitments": Item("Vec<(Vec<u8>,u64)>", ("identity NetUid", "twox64concat AccountId")),
        },
        [Variant(0, "set_commitment", fields("netuid:NetUid, info:CommitmentInfo"))],
        [Variant(0, "Commitment", fields("netuid:NetUid, who:AccountId"))],
        unit("TooManyFieldsInCommitmentInfo", "AccountNotAllowedCommit"),
    ),
}

EXTENSIONS = (
    ("CheckNonZeroSender", "()", "()"),
    ("CheckSpecVersion", "()", "u32"),
    ("CheckTxVersion", "()", "u32"),
    ("CheckGenesis", "()", "H256"),
    ("CheckMortality", "Era", "H256"),
    ("CheckNonce", "Compact<u32>", "()"),
    ("CheckWeight", "()", "()"),
    ("ChargeTransactionPayment", "Compact<Tao>", "()"),
    ("CheckMetadataHash", "Mode", "Option<[u8;32]>"),
)
"""(name, what of it is in the extrinsic, what of it is only signed)."""

APIS: dict[str, dict[str, tuple[str, str]]] = {
    "SubnetInfoRuntimeApi": {
        "get_metagraph": ("netuid:NetUid", "Option<Metagraph>"),
        "get_subnet_hyperparams": ("netuid:NetUid", "Option<Hyperparameters>"),
        "get_next_epoch_start_block": ("netuid:NetUid", "Option<u64>"),
    },
    "TransactionPaymentApi": {"query_info": ("uxt:Vec<u8>, len:u32", "FeeInfo")},
}
"""Runtime API → method → (arguments, answer)."""
