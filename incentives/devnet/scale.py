"""SCALE, the chain's binary format: as much of it as metadata is written with.

Values are encoded by `bittensor_core` from that metadata; this file only writes the metadata's own bytes.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PRIMITIVES = (
    "bool", "char", "str", "u8", "u16", "u32", "u64", "u128", "u256", "i8", "i16", "i32", "i64", "i128", "i256",
)  # fmt: skip
NO_DOCS = b"\0"

Fields = Sequence[tuple[str | None, str]]
"""(name, type) pairs; a tuple struct's fields have no name."""


def compact(number: int) -> bytes:
    """A length or number in as few bytes as it needs."""
    if number < 1 << 6:
        return bytes([number << 2])
    if number < 1 << 14:
        return (number << 2 | 1).to_bytes(2, "little")
    if number < 1 << 30:
        return (number << 2 | 2).to_bytes(4, "little")
    raw = number.to_bytes((number.bit_length() + 7) // 8, "little")
    return bytes([len(raw) - 4 << 2 | 3]) + raw


def blob(data: bytes) -> bytes:
    return compact(len(data)) + data


def text(value: str) -> bytes:
    return blob(value.encode())


def vector(items: Iterable[bytes]) -> bytes:
    encoded = list(items)
    return compact(len(encoded)) + b"".join(encoded)


def option(value: bytes | None) -> bytes:
    return b"\0" if value is None else b"\1" + value


def fields(spec: str) -> Fields:
    """`"netuid: u16, dests: Vec<u16>"` → pairs; a field without a name is written `": u16"`."""
    return [
        (part.partition(":")[0].strip() or None, part.partition(":")[2].strip()) for part in split(spec) if part.strip()
    ]


def split(spec: str) -> list[str]:
    """Cut at the commas that are in no bracket."""
    parts, depth = [""], 0
    for letter in spec:
        depth += (letter in "<([") - (letter in ">)]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@dataclass(frozen=True)
class Variant:
    """One case of an enum."""

    index: int
    name: str
    fields: Fields = ()


@dataclass(frozen=True)
class Definition:
    """A named type: a struct if it has `fields`, else an enum of `variants`."""

    path: str
    fields: Fields | None = None
    variants: Sequence[Variant] = ()


class Registry:
    """Metadata's list of types, which refer to each other by index.

    A type is asked for by name: a primitive, a defined name, or `Vec<T>`, `[T;N]`, `(A,B)`, `Compact<T>`, `Option<T>`.
    """

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._written: list[bytes] = []
        self._definitions: dict[str, Definition] = {}

    def define(self, name: str, definition: Definition) -> None:
        self._definitions[name] = definition

    def id(self, name: str) -> int:
        """The index of a type, which is written when first asked for."""
        name = name.replace(" ", "")
        if name not in self._ids:
            index = self._ids[name] = len(self._written)
            self._written.append(b"")
            self._written[index] = compact(index) + self._type(name)
        return self._ids[name]

    def ref(self, name: str) -> bytes:
        return compact(self.id(name))

    def encoded(self) -> bytes:
        return vector(self._written)

    def _type(self, name: str) -> bytes:
        path, parameters = "", b"\0"
        if name in self._definitions:
            path = self._definitions[name].path
            body = self._defined(self._definitions[name])
        elif inner := re.fullmatch(r"Option<(.+)>", name):
            path, parameters = "Option", vector([text("T") + option(self.ref(inner[1]))])
            body = b"\1" + self._variants([Variant(0, "None"), Variant(1, "Some", [(None, inner[1])])])
        else:
            body = self._structural(name)
        return vector(text(part) for part in path.split(".") if part) + parameters + body + NO_DOCS

    def _defined(self, definition: Definition) -> bytes:
        if definition.fields is not None:
            return b"\0" + self._fields(definition.fields)
        return b"\1" + self._variants(definition.variants)

    def _structural(self, name: str) -> bytes:
        if name in PRIMITIVES:
            return b"\5" + bytes([PRIMITIVES.index(name)])
        if name == "()":
            return b"\4\0"
        if inner := re.fullmatch(r"Vec<(.+)>", name):
            return b"\2" + self.ref(inner[1])
        if inner := re.fullmatch(r"Compact<(.+)>", name):
            return b"\6" + self.ref(inner[1])
        if inner := re.fullmatch(r"\[(.+);(\d+)\]", name):
            return b"\3" + int(inner[2]).to_bytes(4, "little") + self.ref(inner[1])
        if inner := re.fullmatch(r"\((.+)\)", name):
            return b"\4" + vector(self.ref(part) for part in split(inner[1]))
        raise ValueError(f"{name!r} is no type that the devnet knows")

    def _fields(self, members: Fields) -> bytes:
        return vector(
            option(text(name) if name else None) + self.ref(kind) + option(None) + NO_DOCS for name, kind in members
        )

    def _variants(self, variants: Sequence[Variant]) -> bytes:
        return vector(text(each.name) + self._fields(each.fields) + bytes([each.index]) + NO_DOCS for each in variants)
