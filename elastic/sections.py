"""What every table of the run file is made of."""

from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from elastic.errors import ConfigError
from elastic.explain import explain

Positive = Annotated[int, Field(ge=1, le=2**40)]
PositiveSeconds = Annotated[float, Field(gt=0)]
TomlPath = Annotated[Path, Field(strict=False)]
"""Written as a string."""
Strings = Annotated[tuple[str, ...], Field(strict=False)]
"""Written as a list of them."""


class Section(BaseModel):
    """A table of the run file: frozen, no unknown keys, and no value of another type than the key's."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class PluginChoice(BaseModel):
    """A name from the registry, or "package.module:Class", and that class's own settings beside it."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    name: str
    """Which implementation."""

    @property
    def settings(self) -> dict[str, Any]:
        """What belongs to the chosen class's own `Config`."""
        return dict(self.__pydantic_extra__ or {})

    def canonical(self) -> str:
        """The one form in which peers name it to each other."""
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS).decode()

    @classmethod
    def from_canonical(cls, text: str) -> "PluginChoice":
        """Back from that form.

        Raises:
            ConfigError: it is none.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(f"{text[:200]!r} names no implementation: {explain(error, cls)}") from error

    @model_validator(mode="after")
    def _can_be_hashed(self) -> "PluginChoice":
        try:
            orjson.dumps(self.settings)
        except TypeError as error:
            raise ValueError(f"a setting cannot be part of the run's digest: {error}") from error
        return self
