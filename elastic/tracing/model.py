"""A span as it was read, wherever from. All of it may be a stranger's: bounded and printable by the time it is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = str | int | float | bool

MAX_TEXT = 300
"""Letters of a text."""
MAX_NAME = 80
"""Letters of a name."""
MAX_ATTRIBUTES, MAX_EVENTS = 64, 128
"""Of a span."""
MAX_NUMBER = 1e18
"""A larger one, or none, is not believed."""
MAX_SECONDS = 1e6
"""A span that lasted longer is not believed, nor is one that ended before it began."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened during a span."""

    name: str
    at: int
    """Unix time in ns."""
    attributes: Mapping[str, Value] = field(default_factory=dict)

    def text(self, key: str) -> str:
        """`swarm.<key>`; empty if it is not there."""
        return str(self.attributes.get(f"swarm.{key}", ""))

    def number(self, key: str, default: float = 0.0) -> float:
        """`swarm.<key>` if it is a number."""
        return _number(self.attributes.get(f"swarm.{key}"), default)


@dataclass(frozen=True, slots=True)
class Span:
    """One span."""

    trace: str
    """32 hex digits."""
    id: str
    """16 hex digits."""
    parent: str
    """The same; empty: it is a root."""
    name: str
    start: int
    """Unix time in ns."""
    end: int
    peer: str
    """Peer id, as whoever collects spans stamped it, or as the peer says; empty if nobody does."""
    service: str
    """What viewers call the peer."""
    run: str
    attributes: Mapping[str, Value] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    error: str | None = None
    """What went wrong; empty if it is not said."""

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return (self.end - self.start) / 1e9

    def number(self, key: str, default: float = 0.0) -> float:
        """`swarm.<key>` if it is a number."""
        return _number(self.attributes.get(f"swarm.{key}"), default)

    def text(self, key: str) -> str:
        """`swarm.<key>`; empty if it is not there."""
        return str(self.attributes.get(f"swarm.{key}", ""))


def _number(value: Value | None, default: float) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < MAX_NUMBER else default
