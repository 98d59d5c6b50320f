"""Names in a run file → classes, imported only when chosen.

Ours are registered exactly like third parties' are named: as "module:Class" strings. A chosen class has a nested
frozen pydantic `Config`, which validates the settings written beside the name.
"""

import difflib
import importlib
from typing import Any

from pydantic import BaseModel, ValidationError

from elastic.config import PluginChoice, explain
from elastic.errors import ConfigError, MissingExtraError

KNOWN: dict[str, dict[str, str]] = {
    "model": {"llama": "model_zoo.llama:Llama"},
    "reducer": {
        "sparseloco": "elastic.reduce.sparseloco:SparseLoCo",
        "average": "elastic.reduce.dense:Average",
    },
    "exchange": {
        "hivemind": "elastic.exchange.hivemind:HivemindExchange",
        "memory": "elastic.exchange.memory:MemoryExchange",
    },
    "incentive": {
        "uniform": "incentives.uniform:Uniform",
        "reputation": "incentives.reputation:Reputation",
    },
}

CORPUS = "model_zoo.corpus:load_tokens"
"""How a worker gets the run's tokens."""
READ_CORPUS = "model_zoo.corpus:read_corpus"
"""The bytes of a text that ships with the project."""

EXTRAS = {
    "torch": "train",
    "tokenizers": "train",
    "numpy": "train",
    "ray": "ray",
    "hivemind": "hivemind",
    "opentelemetry": "otel",
    "bittensor": "bittensor",
}


def resolve(slot: str, choice: PluginChoice) -> tuple[type[Any], BaseModel]:
    """The class chosen for a slot, and its validated settings.

    Raises:
        ConfigError: no such name, no such class, or settings that its `Config` refuses.
        MissingExtraError: the class needs a library that is not installed.
    """
    target = choice.name if ":" in choice.name else KNOWN[slot].get(choice.name)
    if target is None:
        near = difflib.get_close_matches(choice.name, KNOWN[slot], n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(KNOWN[slot])}"
        raise ConfigError(
            f'{slot}: no implementation is called "{choice.name}"; {hint} Or write "package.module:Class"'
        )
    cls = load(target)
    try:
        return cls, cls.Config.model_validate(choice.settings)
    except ValidationError as error:
        raise ConfigError(f"{slot} {choice.name}: {explain(error, cls.Config)}") from error


def build(slot: str, choice: PluginChoice) -> Any:
    """An instance of the class chosen for a slot, made from its settings alone."""
    cls, settings = resolve(slot, choice)
    return cls(settings)


def load(target: str) -> Any:
    """Import "package.module:Class".

    Raises:
        ConfigError: it is not there.
        MissingExtraError: a library it needs is not installed.
    """
    module_name, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in EXTRAS:
            raise MissingExtraError(f"{target} needs {missing}: pip install 'elastic[{EXTRAS[missing]}]'") from error
        raise ConfigError(f'"{target}" cannot be imported: {error}') from error
    except AttributeError as error:
        raise ConfigError(f'"{target}": module {module_name} has no {name}') from error
