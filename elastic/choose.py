"""Another incentive than the run file's, as a person names it on the command line."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from elastic.errors import ConfigError
from elastic.explain import explain
from elastic.registry import load, resolve, target_of
from elastic.sections import PluginChoice

FILE = ".toml"
"""What ends so is a file, and no name."""


def by_name(name: str, option: str) -> PluginChoice:
    """An incentive with its defaults.

    Args:
        name: as in a run file.
        option: what takes a file instead, for those that have no defaults.

    Raises:
        ConfigError, MissingExtraError: see `elastic.registry.resolve`; or it needs settings.
    """
    fields = getattr(load(target_of("incentive", name)), "Config", BaseModel).model_fields
    needed = {key: field for key, field in fields.items() if field.is_required()}
    if needed:
        reasons = "; ".join(f"{key}: {field.description or 'see its documentation'}" for key, field in needed.items())
        lines = " and ".join(f"{key} = {'NUMBER' if field.annotation is int else '…'}" for key, field in needed.items())
        raise ConfigError(
            f'incentive {name}: it needs settings ({reasons.rstrip(".")}): write a file of the lines name = "{name}" '
            f"and {lines}, and give it with {option}"
        )
    choice = PluginChoice(name=name)
    resolve("incentive", choice)
    return choice


def by_file(file: Path) -> PluginChoice:
    """An incentive with the settings of a TOML file: name = "…", and its settings.

    Raises:
        ConfigError, MissingExtraError: it cannot be read, or names no incentive, or one that refuses these settings.
    """
    try:
        tree: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        choice = PluginChoice.model_validate(tree)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{file}: {explain(error, PluginChoice)}") from error
    try:
        resolve("incentive", choice)
    except ConfigError as error:
        raise type(error)(f"{file}: {error}") from error
    return choice


def by_either(text: str, option: str) -> PluginChoice:
    """By what was given to an option that takes a name, or a file whose name ends in .toml.

    Raises:
        ConfigError, MissingExtraError: see `by_name` and `by_file`.
    """
    return by_file(Path(text)) if text.endswith(FILE) else by_name(text, f"{option} FILE{FILE}")
