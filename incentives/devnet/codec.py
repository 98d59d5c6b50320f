"""The runtime's codec: values to bytes and back, as the metadata says."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import bittensor_core as core

SS58_FORMAT = 42
NOBODY = bytes(32)


def blake2(data: bytes) -> bytes:
    """32 bytes of BLAKE2b: block and extrinsic hashes."""
    return hashlib.blake2b(data, digest_size=32).digest()


class Codec:
    """Encodes and decodes storage, calls and runtime APIs of one runtime version."""

    def __init__(self, metadata: bytes, spec_version: int, transaction_version: int) -> None:
        self.metadata, self.spec_version, self.transaction_version = metadata, spec_version, transaction_version
        self.runtime = core.Runtime(metadata, spec_version, transaction_version, SS58_FORMAT)
        self._types = {each["id"]: each["type"] for each in json.loads(self.runtime.registry_json())["types"]}
        pallets = self.runtime.metadata_ir()["pallets"]
        self._pallets = {each["name"]: each["index"] for each in pallets}
        self._errors = {(each["name"], error["name"]): error["index"] for each in pallets for error in each["errors"]}
        self._apis = self.runtime.runtime_api_map()

    def key(self, pallet: str, item: str, keys: Sequence[Any] = ()) -> bytes:
        """The storage key of an item; with fewer keys than the map has, the prefix of all that begin so."""
        return bytes(self.runtime.storage_key(pallet, item, list(keys)))

    def encode_item(self, pallet: str, item: str, value: Any) -> bytes:
        return bytes(self.runtime.encode(self.runtime.storage_entry(pallet, item).value_type, value))

    def decode_item(self, pallet: str, item: str, raw: bytes | None) -> Any:
        """The value of an item; of a missing one its default, or None."""
        entry = self.runtime.storage_entry(pallet, item)
        if raw is None and entry.modifier != "Default":
            return None
        return self.runtime.decode(entry.value_type, bytes(entry.default_bytes) if raw is None else raw)

    def has_item(self, pallet: str, item: str) -> bool:
        """Whether this runtime has such an item."""
        try:
            self.runtime.storage_entry(pallet, item)
        except KeyError:
            return False
        return True

    def compose(self, pallet: str, call: str, arguments: dict[str, Any]) -> bytes:
        return bytes(self.runtime.compose_call(pallet, call, arguments))

    def error(self, pallet: str, name: str) -> dict[str, Any]:
        """A dispatch error as events carry it."""
        return {"Module": {"index": self._pallets[pallet], "error": [self._errors[pallet, name], 0, 0, 0]}}

    def answer(self, api: str, method: str, value: Any) -> bytes:
        """A runtime API's answer; None is an empty option."""
        return b"\0" if value is None else bytes(self.runtime.encode(self._apis[api][method]["output"], value))

    def blank(self, api: str, method: str) -> dict[str, Any]:
        """The struct inside an API's optional answer, all zeros and empty lists."""
        output = self._types[int(self._apis[api][method]["output"].split("::")[1])]
        some = next(each for each in output["def"]["variant"]["variants"] if each["name"] == "Some")
        value: dict[str, Any] = self._zero(some["fields"][0]["type"])
        return value

    def _zero(self, index: int) -> Any:
        kind, body = next(iter(self._types[index]["def"].items()))
        path = (self._types[index].get("path") or [""])[-1]
        if kind == "primitive":
            return False if body == "bool" else 0
        if kind == "compact":
            return self._zero(body["type"])
        if kind == "composite":
            return self._zero_struct(path, body["fields"])
        return None if path == "Option" else []

    def _zero_struct(self, path: str, members: list[dict[str, Any]]) -> Any:
        if path == "AccountId32":
            return core.ss58_encode(NOBODY, SS58_FORMAT)
        if len(members) == 1 and members[0].get("name") is None:
            return self._zero(members[0]["type"])
        return {each["name"]: self._zero(each["type"]) for each in members}
