"""What a block knows: storage keys and bytes, and who is registered where."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from incentives.devnet.codec import Codec
from incentives.devnet.pallets import SUBTENSOR
from incentives.devnet.scale import compact


@dataclass(frozen=True)
class Neuron:
    """One registered hotkey, as far as it is not in storage."""

    hotkey: str
    coldkey: str
    stake: int
    """In the subnet's smallest unit."""
    permit: bool
    block: int
    """Of its registration."""


@dataclass
class State:
    """The state after one block. A block keeps a copy, so reads of old blocks and reorgs are real."""

    codec: Codec
    storage: dict[bytes, bytes] = field(default_factory=dict)
    neurons: dict[int, tuple[Neuron, ...]] = field(default_factory=dict)
    """netuid → neurons in uid order."""

    def copy(self) -> Self:
        return type(self)(self.codec, dict(self.storage), dict(self.neurons))

    def get(self, item: str, *keys: Any, pallet: str = SUBTENSOR) -> Any:
        """An item's value, decoded; its default if it was never set."""
        return self.codec.decode_item(pallet, item, self.storage.get(self.codec.key(pallet, item, keys)))

    def put(self, item: str, *keys: Any, value: Any, pallet: str = SUBTENSOR) -> None:
        self.storage[self.codec.key(pallet, item, keys)] = self.codec.encode_item(pallet, item, value)

    def drop(self, item: str, *keys: Any, pallet: str = SUBTENSOR) -> None:
        self.storage.pop(self.codec.key(pallet, item, keys), None)

    def push(self, item: str, *keys: Any, value: Any) -> None:
        """Append to a stored vector without decoding what is there: a subnet of 256 grows in linear time."""
        key, one = self.codec.key(SUBTENSOR, item, keys), self.codec.encode_item(SUBTENSOR, item, [value])
        body = self.storage.get(key, b"\0")
        size = 1 << (body[0] & 3)
        count = int.from_bytes(body[:size], "little") >> 2
        self.storage[key] = compact(count + 1) + body[size:] + one[1:]

    def keys_under(self, prefix: bytes, after: bytes, count: int) -> list[bytes]:
        """At most `count` keys that begin so, in order, after the one named."""
        return sorted(key for key in self.storage if key.startswith(prefix) and key > after)[:count]

    def uid(self, netuid: int, hotkey: str) -> int | None:
        uid: int | None = self.get("Uids", netuid, hotkey)
        return uid

    def nonce(self, who: str) -> int:
        return int(self.get("Account", who, pallet="System")["nonce"])

    def spend_nonce(self, who: str) -> None:
        account = self.get("Account", who, pallet="System")
        self.put("Account", who, value={**account, "nonce": account["nonce"] + 1}, pallet="System")

    def touch(self, netuid: int, uid: int, block: int) -> None:
        """This neuron has set its weights."""
        updates: Sequence[int] = self.get("LastUpdate", netuid)
        self.put("LastUpdate", netuid, value=[block if place == uid else each for place, each in enumerate(updates)])

    def add_subnet(self, netuid: int, settings: dict[str, Any]) -> None:
        """Found a subnet; settings are storage items by name."""
        for item, value in {"NetworksAdded": True, "TokenSymbol": list("α".encode()), **settings}.items():
            self.put(item, netuid, value=value)
        self.neurons[netuid] = ()

    def register(self, netuid: int, neuron: Neuron) -> int:
        """Give a neuron the next uid."""
        uid = len(self.neurons[netuid])
        self.put("SubnetworkN", netuid, value=uid + 1)
        self.push("LastUpdate", netuid, value=0)
        self.push("ValidatorPermit", netuid, value=neuron.permit)
        self.neurons[netuid] += (neuron,)
        self._seat(netuid, uid, neuron)
        return uid

    def replace(self, netuid: int, uid: int, neuron: Neuron) -> None:
        """A newcomer takes a uid; who had it is no longer registered."""
        self.drop("Uids", netuid, self.neurons[netuid][uid].hotkey)
        self.drop("Weights", netuid, uid)
        seats = list(self.neurons[netuid])
        seats[uid] = neuron
        self.neurons[netuid] = tuple(seats)
        self.put("ValidatorPermit", netuid, value=[each.permit for each in seats])
        self.touch(netuid, uid, neuron.block)
        self._seat(netuid, uid, neuron)

    def _seat(self, netuid: int, uid: int, neuron: Neuron) -> None:
        self.put("Uids", netuid, neuron.hotkey, value=uid)
        self.put("Keys", netuid, uid, value=neuron.hotkey)
