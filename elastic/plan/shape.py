"""From a run file to the tensors of its model, and what a token costs. No model is made and torch is not needed."""

import dataclasses
import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from elastic.errors import ConfigError
from elastic.registry import SHAPES, load, resolve
from elastic.sections import PluginChoice

LARGEST = 2**31
"""Of any size of a model; products of sizes stay far inside a float."""


class Sizes(Protocol):
    """What a Llama-like model says of itself; the `shape` of a model's `Config`."""

    vocab_size: int
    layers: int
    dim: int
    heads: int
    kv_heads: int
    ffn_dim: int
    tied: bool
    head_dim: int

    def num_params(self) -> int:
        """Trained numbers, exactly."""


@dataclass(frozen=True, slots=True)
class Tensors:
    """Equal tensors of a model."""

    name: str
    shape: tuple[int, ...]
    times: int = 1
    """How many of them there are."""

    @property
    def numbers(self) -> int:
        """In all of them."""
        return self.times * math.prod(self.shape)


def sizes_of(choice: PluginChoice) -> Sizes:
    """The sizes of a run's model.

    Keys that are not of the shape are left to `elastic check`, which imports the model.

    Raises:
        ConfigError: no such preset, sizes that do not go together, or a model that does not tell its sizes.
    """
    if choice.name in SHAPES:
        return _from_settings(load(SHAPES[choice.name]), choice)
    _, settings = resolve("model", choice)
    sizes = getattr(settings, "shape", None)
    missing = [name for name in Sizes.__annotations__ if not hasattr(sizes, name)]
    if missing:
        raise ConfigError(
            f"model {choice.name}: `elastic plan` needs its sizes, a property `shape` of its Config with "
            f"{', '.join(missing)}"
        )
    found: Sizes = sizes  # type: ignore[assignment]
    return found


def _from_settings(shape_of: Any, choice: PluginChoice) -> Sizes:
    settings = choice.settings
    preset = settings.pop("preset", "nano")
    known: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(shape_of("nano", {}))}
    for key in settings.keys() - known.keys():
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if near:
            raise ConfigError(f'model {choice.name}: unknown key "{key}"; did you mean "{near[0]}"?')
    changes = {key: value for key, value in settings.items() if key in known}
    for key, value in changes.items():
        wanted: Any = {bool: bool, int: int, float: (int, float)}[known[key]]
        if not isinstance(value, wanted) or (isinstance(value, bool) and known[key] is not bool):
            raise ConfigError(f"model {choice.name}: {key}: should be {_article(known[key])} (got {value!r:.80})")
        if not isinstance(value, bool) and not 1 <= value <= LARGEST:
            raise ConfigError(f"model {choice.name}: {key}: should be from 1 to {LARGEST:,} (got {value!r:.80})")
    try:
        sizes: Sizes = shape_of(str(preset), changes)
    except ValueError as error:
        raise ConfigError(f"model {choice.name}: {error}") from error
    return sizes


def _article(kind: type) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}[kind]


def tensors_of(sizes: Sizes) -> Iterator[Tensors]:
    """All parameters, as `model_zoo.llama` holds them: query, key and value are one matrix, and so are gate and up."""
    dim, layers = sizes.dim, sizes.layers
    yield Tensors("embedding", (sizes.vocab_size, dim), 1 if sizes.tied else 2)
    yield Tensors("qkv", ((sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim, dim), layers)
    yield Tensors("out", (dim, dim), layers)
    yield Tensors("gate_up", (2 * sizes.ffn_dim, dim), layers)
    yield Tensors("down", (dim, sizes.ffn_dim), layers)
    yield Tensors("norm", (dim,), 2 * layers + 1)


def block_params(sizes: Sizes) -> int:
    """Numbers of one decoder block."""
    outside = (1 if sizes.tied else 2) * sizes.vocab_size * sizes.dim + sizes.dim
    return (sizes.num_params() - outside) // sizes.layers


def flops_per_token(sizes: Sizes, sequence_length: int) -> float:
    """Forward and backward pass of one token: 6 for every number of a matrix it is multiplied with, and attention.

    Attention is causal, so a token looks at half a sequence on average: 2 products of 2 · D · T / 2, three times over.
    What is computed again because of checkpointing is work, but not the model's: it does not count.

    Source: Kaplan et al., arXiv 2001.08361, 6 N; PaLM, arXiv 2204.02311, appendix B, 12 · L · D · T for attention,
    which counts what the causal mask leaves out, too; we do not. An embedding that is only looked up is no product.
    """
    products = sizes.layers * (block_params(sizes) - 2 * sizes.dim) + sizes.vocab_size * sizes.dim
    return 6.0 * products + 6.0 * sizes.layers * sizes.heads * sizes.head_dim * sequence_length
