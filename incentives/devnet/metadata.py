"""Runtime metadata, version 15, written from our own tables: about 14 kB that any client of the chain can read."""

from incentives.devnet.pallets import APIS, EXTENSIONS, PALLETS, Item, Pallet
from incentives.devnet.scale import NO_DOCS, Definition, Registry, Variant, blob, compact, fields, option, text, vector
from incentives.devnet.types import DEFINITIONS

MAGIC, VERSION = b"meta", 15
HASHERS = {
    "blake128": 0,
    "blake256": 1,
    "blake128concat": 2,
    "twox128": 3,
    "twox256": 4,
    "twox64concat": 5,
    "identity": 6,
}
EXTRINSIC_VERSION = 4


def metadata(slot_ms: int = 12_000, without: frozenset[str] = frozenset()) -> bytes:
    """The blob that a node's `Metadata_metadata_at_version` answers.

    Args:
        slot_ms: milliseconds per block, which clients read from here.
        without: storage items of SubtensorModule to leave out, as an older runtime would.
    """
    types = Registry()
    for name, definition in DEFINITIONS.items():
        types.define(name, definition)
    for name, pallet in PALLETS.items():
        _define(types, name, pallet)
    for kind in ("Call", "Event", "Error"):
        cases = [Variant(each.index, name, [(None, name + kind)]) for name, each in PALLETS.items() if _has(each, kind)]
        types.define(f"Runtime{kind}", Definition(f"node_subtensor_runtime.Runtime{kind}", variants=cases))
    pallets = vector(_pallet(types, name, each, slot_ms, without) for name, each in PALLETS.items())
    tail = pallets + _extrinsic(types) + types.ref("()") + _apis(types)
    tail += b"".join(types.ref(f"Runtime{kind}") for kind in ("Call", "Event", "Error")) + compact(0)
    return MAGIC + bytes([VERSION]) + types.encoded() + tail


def _has(pallet: Pallet, kind: str) -> bool:
    return bool({"Call": pallet.calls, "Event": pallet.events, "Error": pallet.errors}[kind])


def _define(types: Registry, name: str, pallet: Pallet) -> None:
    for kind, cases in (("Call", pallet.calls), ("Event", pallet.events), ("Error", pallet.errors)):
        if cases:
            types.define(name + kind, Definition(f"{name.lower()}.pallet.{kind}", variants=cases))


def _pallet(types: Registry, name: str, pallet: Pallet, slot_ms: int, without: frozenset[str]) -> bytes:
    items = [_item(types, item, each) for item, each in pallet.storage.items() if item not in without]
    storage = option(text(name) + vector(items) if items else None)
    calls, events, errors = (
        option(types.ref(name + kind) if _has(pallet, kind) else None) for kind in ("Call", "Event", "Error")
    )
    constants = []
    if name == "Aura":
        constants.append(text("SlotDuration") + types.ref("u64") + blob(slot_ms.to_bytes(8, "little")) + NO_DOCS)
    return text(name) + storage + calls + events + vector(constants) + errors + bytes([pallet.index]) + NO_DOCS


def _item(types: Registry, name: str, item: Item) -> bytes:
    hashers, keys = [key.split()[0] for key in item.keys], [key.split()[1] for key in item.keys]
    if keys:
        key = keys[0] if len(keys) == 1 else f"({','.join(keys)})"
        kind = b"\1" + vector(bytes([HASHERS[each]]) for each in hashers) + types.ref(key) + types.ref(item.value)
    else:
        kind = b"\0" + types.ref(item.value)
    optional = item.default is None
    return text(name) + bytes([not optional]) + kind + blob(b"\0" if optional else item.default or b"") + NO_DOCS


def _extrinsic(types: Registry) -> bytes:
    parts = ("MultiAddress", "RuntimeCall", "MultiSignature", "()")
    extensions = vector(text(name) + types.ref(carried) + types.ref(signed) for name, carried, signed in EXTENSIONS)
    return bytes([EXTRINSIC_VERSION]) + b"".join(types.ref(part) for part in parts) + extensions


def _apis(types: Registry) -> bytes:
    return vector(
        text(api)
        + vector(
            text(method)
            + vector(text(name or "") + types.ref(kind) for name, kind in fields(inputs))
            + types.ref(output)
            + NO_DOCS
            for method, (inputs, output) in methods.items()
        )
        + NO_DOCS
        for api, methods in APIS.items()
    )
