"""The runtime's types that a client for weights meets. Names, orders and widths follow Subtensor's.

`EpochConsensus` is a guess from the SDK's names: no public runtime that we could read has it.
"""

from incentives.devnet.scale import Definition, Variant, fields


def unit(*names: str) -> list[Variant]:
    """Cases without fields, numbered from 0."""
    return [Variant(index, name) for index, name in enumerate(names)]


STRUCTS: dict[str, tuple[str, str]] = {
    "AccountId": ("sp_core.crypto.AccountId32", ":[u8;32]"),
    "H256": ("primitive_types.H256", ":[u8;32]"),
    "NetUid": ("subtensor_runtime_common.NetUid", ":u16"),
    "NetIdx": ("subtensor_runtime_common.NetUidStorageIndex", ":u16"),
    "MechId": ("subtensor_runtime_common.MechId", ":u8"),
    "PerU16": ("sp_arithmetic.per_things.PerU16", ":u16"),
    "Tao": ("subtensor_runtime_common.currency.TaoBalance", ":u64"),
    "Alpha": ("subtensor_runtime_common.currency.AlphaBalance", ":u64"),
    "I96F32": ("substrate_fixed.FixedI128", "bits:i128"),
    "AccountData": ("pallet_balances.types.AccountData", "free:Tao, reserved:Tao, frozen:Tao, flags:u128"),
    "AccountInfo": (
        "frame_system.AccountInfo",
        "nonce:u32, consumers:u32, providers:u32, sufficients:u32, data:AccountData",
    ),
    "Weight": ("sp_weights.weight_v2.Weight", "ref_time:Compact<u64>, proof_size:Compact<u64>"),
    "DispatchEventInfo": ("frame_system.DispatchEventInfo", "weight:Weight, class:Class, pays_fee:Pays"),
    "ModuleError": ("sp_runtime.ModuleError", "index:u8, error:[u8;4]"),
    "EventRecord": ("frame_system.EventRecord", "phase:Phase, event:RuntimeEvent, topics:Vec<H256>"),
    "FeeInfo": ("pallet_transaction_payment.types.RuntimeDispatchInfo", "weight:Weight, class:Class, partial_fee:Tao"),
    "AxonInfo": (
        "pallet_subtensor.pallet.AxonInfo",
        "block:u64, version:u32, ip:u128, port:u16, ip_type:u8, protocol:u8, placeholder1:u8, placeholder2:u8",
    ),
    "CommitmentInfo": ("pallet_commitments.types.CommitmentInfo", "fields:Vec<Data>"),
    "Registration": ("pallet_commitments.types.Registration", "deposit:Tao, block:u32, info:CommitmentInfo"),
    "Identity": ("pallet_subtensor.pallet.SubnetIdentityV3", "subnet_name:Vec<u8>"),
    "ChainId": ("pallet_subtensor.pallet.ChainIdentityV2", "name:Vec<u8>"),
    "Metagraph": (
        "pallet_subtensor.rpc_info.metagraph.Metagraph",
        "netuid:Compact<NetUid>, name:Vec<Compact<u8>>, symbol:Vec<Compact<u8>>, identity:Option<Identity>,"
        "network_registered_at:Compact<u64>, owner_hotkey:AccountId, owner_coldkey:AccountId, block:Compact<u64>,"
        "tempo:Compact<u16>, last_step:Compact<u64>, blocks_since_last_step:Compact<u64>, alpha_in:Compact<Alpha>,"
        "tao_in:Compact<Tao>, moving_price:I96F32, min_allowed_weights:Compact<u16>, max_weights_limit:Compact<u16>,"
        "weights_rate_limit:Compact<u64>, num_uids:Compact<u16>, max_uids:Compact<u16>,"
        "commit_reveal_weights_enabled:bool, hotkeys:Vec<AccountId>, coldkeys:Vec<AccountId>,"
        "identities:Vec<Option<ChainId>>, axons:Vec<AxonInfo>, active:Vec<bool>, validator_permit:Vec<bool>,"
        "pruning_score:Vec<Compact<u16>>, last_update:Vec<Compact<u64>>, emission:Vec<Compact<Alpha>>,"
        "dividends:Vec<Compact<PerU16>>, incentives:Vec<Compact<PerU16>>, consensus:Vec<Compact<PerU16>>,"
        "trust:Vec<Compact<PerU16>>, rank:Vec<Compact<u16>>, block_at_registration:Vec<Compact<u64>>,"
        "alpha_stake:Vec<Compact<Alpha>>, tao_stake:Vec<Compact<Tao>>, total_stake:Vec<Compact<Tao>>,"
        "collateral_locked:Vec<Compact<Alpha>>, collateral_min:Vec<Compact<Alpha>>,"
        "collateral_earned:Vec<Compact<Alpha>>",
    ),
    "Hyperparameters": (
        "pallet_subtensor.rpc_info.subnet_info.SubnetHyperparameters",
        "tempo:Compact<u16>, weights_rate_limit:Compact<u64>, min_allowed_weights:Compact<u16>,"
        "max_weights_limit:Compact<u16>, commit_reveal_period:Compact<u64>, commit_reveal_weights_enabled:bool",
    ),
}
"""Name → (path, fields)."""

ENUMS: dict[str, tuple[str, list[Variant]]] = {
    "Class": ("frame_support.dispatch.DispatchClass", unit("Normal", "Operational", "Mandatory")),
    "Pays": ("frame_support.dispatch.Pays", unit("Yes", "No")),
    "Phase": (
        "frame_system.Phase",
        [Variant(0, "ApplyExtrinsic", fields(":u32")), Variant(1, "Finalization"), Variant(2, "Initialization")],
    ),
    "DispatchError": (
        "sp_runtime.DispatchError",
        [*unit("Other", "CannotLookup", "BadOrigin"), Variant(3, "Module", fields(":ModuleError"))],
    ),
    "MultiAddress": (
        "sp_runtime.multiaddress.MultiAddress",
        [
            Variant(0, "Id", fields(":AccountId")),
            Variant(1, "Index", fields(":Compact<()>")),
            Variant(2, "Raw", fields(":Vec<u8>")),
            Variant(3, "Address32", fields(":[u8;32]")),
            Variant(4, "Address20", fields(":[u8;20]")),
        ],
    ),
    "MultiSignature": (
        "sp_runtime.MultiSignature",
        [
            Variant(0, "Ed25519", fields(":[u8;64]")),
            Variant(1, "Sr25519", fields(":[u8;64]")),
            Variant(2, "Ecdsa", fields(":[u8;65]")),
        ],
    ),
    "Era": (
        "sp_runtime.generic.era.Era",
        [Variant(0, "Immortal"), *(Variant(index, f"Mortal{index}", fields(":u8")) for index in range(1, 256))],
    ),
    "Mode": ("frame_metadata_hash_extension.Mode", unit("Disabled", "Enabled")),
    "Data": (
        "pallet_commitments.types.Data",
        [
            Variant(0, "None"),
            *(Variant(size + 1, f"Raw{size}", fields(f":[u8;{size}]")) for size in range(129)),
            *(
                Variant(130 + place, name, fields(":[u8;32]"))
                for place, name in enumerate(("BlakeTwo256", "Sha256", "Keccak256", "ShaThree256"))
            ),
        ],
    ),
    "EpochConsensus": ("subtensor_runtime_common.EpochConsensus", unit("Yuma", "Null")),
}
"""Name → (path, cases)."""

DEFINITIONS = {name: Definition(path, fields=fields(spec)) for name, (path, spec) in STRUCTS.items()} | {
    name: Definition(path, variants=cases) for name, (path, cases) in ENUMS.items()
}
