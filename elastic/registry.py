"""Names in a run file → classes, imported only when chosen.

Ours are registered exactly like third parties' are named: as "module:Class" strings. A chosen class has a nested
frozen pydantic `Config`, which validates the settings written beside the name.
"""

import difflib
import importlib
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from elastic.config import RunConfig
from elastic.errors import ConfigError, ElasticError, MissingExtraError
from elastic.explain import explain
from elastic.sections import PluginChoice

KNOWN: dict[str, dict[str, str]] = {
    "model": {"llama": "model_zoo.llama:Llama"},
    "reducer": {
        "sparseloco": "elastic.reduce.sparseloco:SparseLoCo",
        "average": "elastic.reduce.dense:Average",
    },
    "exchange": {
        "hivemind": "elastic.exchange.hivemind:HivemindExchange",
        "bucket": "elastic.exchange.bucket.exchange:BucketExchange",
        "memory": "elastic.exchange.memory:MemoryExchange",
    },
    "incentive": {
        "uniform": "incentives.uniform:Uniform",
        "reputation": "incentives.reputation:Reputation",
        "subnet": "incentives.subnet.backend:Subnet",
    },
}

SHAPES = {"llama": "model_zoo.shapes:shape_of"}
"""Models whose sizes are known without torch: (preset, changes) → shape."""
DEVNET = "incentives.devnet"
"""A chain on this machine for demonstrations, as `python -m`."""
CORPUS = "model_zoo.corpus:load_tokens"
"""How a worker gets the run's tokens."""
READ_CORPUS = "model_zoo.corpus:read_corpus"
"""The bytes of a text that ships with the project."""
PREPARE = "model_zoo.prepare:prepare"
"""Text → tokens in a folder, and"""
PREPARE_SETTINGS = "model_zoo.prepare:settings_for"
"""how;"""
READING = "model_zoo.documents:Reading"
OPEN_PIECES = "model_zoo.documents:pieces"
KIND_OF = "model_zoo.documents:kind_of"
READ_INDEX = "model_zoo.prepared:read_index"
"""what such a folder's index says, from its bytes;"""
OPEN_PREPARED = "model_zoo.prepared:open_folder"
"""from the folder;"""
VERIFY_PREPARED = "model_zoo.prepared:verify"
"""whether all in it is whole;"""
ROW = "model_zoo.prepared:Row"
"""its tokens."""
BPE = "model_zoo.tokenizer:BPETokenizer"
WRITE_FOLDER = "model_zoo.hugging_face:write_folder"
"""A model as a folder that Hugging Face `transformers` opens, and"""
OPEN_FOLDER = "model_zoo.hugging_face:open_folder"
"""such a folder as a model."""
HUGGING_FACE_CONFIG = "model_zoo.hugging_face:config_json"
"""(shape, dtype) → settings of a `LlamaConfig` there, and"""
HUGGING_FACE_ROWS = "model_zoo.hugging_face:rows_of"
"""shape → parameter here → names and shapes of those there whose rows it is."""

EXTRAS = {
    "torch": "train",
    "tokenizers": "train",
    "safetensors": "train",
    "numpy": "train",
    "ray": "ray",
    "psutil": "ray",
    "hivemind": "hivemind",
    "msgpack": "hivemind",
    "obstore": "bucket",
    "pyarrow": "data",
    "opentelemetry": "otel",
    "bittensor": "bittensor",
    "matplotlib": "plot",
    "lm_eval": "eval",
    "datasets": "eval",
    "nicegui": "dashboard",
    "fastapi": "dashboard",
    "uvicorn": "dashboard",
}
"""Library → the extra of ours that installs it."""

TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""What "package.module:Class" looks like."""


def target_of(slot: str, name: str) -> str:
    """The "module:Class" behind a name, which is not imported.

    Raises:
        ConfigError: no such name.
    """
    target = name if ":" in name else KNOWN[slot].get(name)
    if target is None:
        near = difflib.get_close_matches(name, KNOWN[slot], n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(KNOWN[slot])}."
        raise ConfigError(
            f'{slot}: no implementation is called "{name}"; {hint} Your own is named "package.module:Class"'
        )
    return target


def resolve(slot: str, choice: PluginChoice) -> tuple[type[Any], BaseModel]:
    """The class chosen for a slot, and its validated settings.

    Raises:
        ConfigError: no such name, no such class, or settings that its `Config` refuses.
        MissingExtraError: the class needs a library that is not installed.
    """
    target = target_of(slot, choice.name)
    cls = load(target)
    if not _has_config(cls):
        raise ConfigError(f'{slot}: "{target}" has no nested pydantic class `Config` for its settings; give it one')
    try:
        return cls, cls.Config.model_validate(choice.settings)
    except ValidationError as error:
        raise ConfigError(f"{slot} {choice.name}: {explain(error, cls.Config)}") from error
    except Exception as error:  # whatever others' code raises
        raise ConfigError(f"{slot} {choice.name}: its settings cannot be read: {error!r}") from error


def local_settings(config: RunConfig, choice: PluginChoice) -> BaseModel | None:
    """This machine's settings of an incentive, by its nested class `Local`.

    What stands in the run file is for the incentive that it names there, or for the run file's own; `choice` may be
    another, which the run agreed on later.

    Returns:
        None: there are none for that one.

    Raises:
        ConfigError: `Local` refuses them, or the incentive that they are for takes none.
    """
    settings = dict(config.local.incentive)
    name = settings.pop("name", config.shared.incentive.name)
    local = getattr(load(target_of("incentive", str(name))), "Local", None)
    if local is None:
        if settings:
            raise ConfigError(f'local.incentive: the incentive "{name}" has no settings of this machine')
        return None
    try:
        found: BaseModel = local.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"local.incentive: {explain(error, local)}") from error
    return found if name == choice.name else None


def require_accepted(config: RunConfig, choice: PluginChoice) -> None:
    """Whether this machine runs an incentive that others name: ours, the run file's, and what the run file accepts.

    Raises:
        ConfigError: it does not. Importing a module runs it, so a quorum may not name any that is installed.
    """
    if choice.name not in {*KNOWN["incentive"], config.shared.incentive.name, *config.local.incentives}:
        raise ConfigError(
            f'the incentive "{choice.name}" is not accepted on this machine: if you trust it, add it to '
            f"local.incentives in the run file and start the peer again"
        )


def build(slot: str, choice: PluginChoice) -> Any:
    """An instance of the class chosen for a slot, made from its settings alone.

    Raises:
        ConfigError: see `resolve`; or it cannot be made.
    """
    cls, settings = resolve(slot, choice)
    try:
        return cls(settings)
    except ElasticError:
        raise
    except Exception as error:  # whatever others' code raises
        raise ConfigError(f"{slot} {choice.name}: cannot be made: {error!r}") from error


def load(target: str) -> Any:
    """Import "package.module:Class".

    Raises:
        ConfigError: it is not there.
        MissingExtraError: a library it needs is not installed.
    """
    if TARGET.fullmatch(target) is None:
        raise ConfigError(f'"{target}" does not name a class; write "package.module:Class"')
    module_name, _, name = target.partition(":")
    module = _module(module_name, target)
    try:
        return getattr(module, name)
    except AttributeError as error:
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise ConfigError(f'"{target}": module {module_name} has no {name}{hint}') from error


def _module(name: str, target: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in EXTRAS:
            raise MissingExtraError(f"{target} needs {missing}: pip install 'elastic[{EXTRAS[missing]}]'") from error
        hint = " (is it installed, or its folder on PYTHONPATH?)" if missing == name.partition(".")[0] else ""
        raise ConfigError(f'"{target}" cannot be imported: {error}{hint}') from error
    except Exception as error:  # whatever others' code raises
        raise ConfigError(f'"{target}" cannot be imported: {error!r}') from error


def _has_config(cls: Any) -> bool:
    config = getattr(cls, "Config", None)
    return isinstance(config, type) and issubclass(config, BaseModel)
