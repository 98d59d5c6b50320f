"""pydantic's errors as one line for the person who wrote the run file."""

import difflib

from pydantic import BaseModel, ValidationError

TYPES = {
    "model_type": "should be a table",
    "tuple_type": "should be a list, in [ ]",
    "path_type": "should be a path, in quotes",
}
"""What TOML calls what pydantic calls otherwise."""


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """A validation error in one line: where, what, and the nearest key if a key is unknown (then that comes first)."""
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"]]
    where = ".".join(location)
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] != "extra_forbidden":
        plain = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        message = TYPES.get(first["type"]) or " ".join(plain.split())
        seen = "" if isinstance(first["input"], dict | BaseModel) else f" (got {first['input']!r:.80})"
        return f"{where}: {message}{seen}" if where else f"{message}{seen}"
    known = list(_section_at(root, location[:-1]).model_fields)
    near = difflib.get_close_matches(location[-1], known, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(known) or 'none'}"
    return f'unknown key "{where}"; {hint}'


def _section_at(section: type[BaseModel], location: list[str]) -> type[BaseModel]:
    for part in location:
        inner = section.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return section
        section = inner
    return section
