"""pydantic's errors as one line for the person who wrote the run file."""

import difflib
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from elastic.messages import PEER_ID

TYPES = {
    "model_type": "should be a table",
    "dict_type": "should be a table",
    "tuple_type": "should be a list, in [ ]",
    "path_type": "should be a path, in quotes",
}
"""What TOML calls what pydantic calls otherwise."""
NO_PEER_ID = 'is not a peer id, which is 52 letters and digits, "12D3KooW…", as `elastic id` prints it'


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """A validation error in one line: where, what, and the nearest key if a key is unknown (then that comes first)."""
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    location = first["loc"]
    if first["type"] == "extra_forbidden":
        return f'unknown key "{_place(location)}"; {_hint([str(part) for part in location], root)}'
    where, message = _place(location), _message(first)
    return f"{where}{'' if message.startswith('is ') else ':'} {message}" if where else message


def _place(location: Sequence[int | str]) -> str:
    """Keys as they are written one in the other; who reads it counts the entries of a list from 1."""
    text = ""
    for part in location:
        if part == "[key]":  # the part before it is no key's name but the key that is wrong
            table, _, key = text.rpartition(".")
            text = f'{table}, its key "{key:.80}"'
        elif isinstance(part, int):
            text += f", entry {part + 1}"
        else:
            text += f".{part}" if text else part
    return text


def _message(first: Any) -> str:
    context = first.get("ctx", {})
    if first["type"] == "missing":
        return "is missing"
    if first["type"] == "too_long" and "actual_length" in context:
        return f"at most {context['max_length']} entries can be there, not {context['actual_length']}: leave some out"
    told = isinstance(first["input"], dict | BaseModel) or first["loc"][-1:] == ("[key]",)
    seen = "" if told else f" (got {first['input']!r:.80})"
    if context.get("pattern") == PEER_ID:
        return NO_PEER_ID + seen
    plain = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return (TYPES.get(first["type"]) or " ".join(plain.split())) + seen


def _hint(location: list[str], root: type[BaseModel]) -> str:
    """What an unknown key may have been meant for: one of that table, or of a table in it."""
    section, key = _section_at(root, location[:-1]), location[-1]
    known = list(section.model_fields)
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f'did you mean "{near[0]}"?'
    inner = [name for name in known if key in _section_at(section, [name]).model_fields and _is_table(section, name)]
    if inner:
        return f'did you mean "{".".join([*location[:-1], inner[0], key])}"?'
    return f"known keys: {', '.join(known) or 'none'}"


def _section_at(section: type[BaseModel], location: list[str]) -> type[BaseModel]:
    """The table there; an entry of a list of tables has the number as a name."""
    for part in location:
        if part.isdecimal():
            continue
        if not _is_table(section, part):
            return section
        section = _table(section, part)
    return section


def _is_table(section: type[BaseModel], field: str) -> bool:
    inner = _table(section, field)
    return isinstance(inner, type) and issubclass(inner, BaseModel)


def _table(section: type[BaseModel], field: str) -> Any:
    """What a field holds, or each entry of it if it is a list."""
    inner = section.model_fields[field].annotation
    return get_args(inner)[0] if get_origin(inner) is tuple else inner
