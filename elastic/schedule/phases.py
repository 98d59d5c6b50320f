"""Where the time of a round went: a span and a sum of seconds per verb of the story."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from elastic import trace
from elastic.contracts import Clock
from elastic.messages import Seconds


class Phases:
    """Times the phases of one round; each is also a span named after its verb."""

    def __init__(self, clock: Clock, on_phase: Callable[[str], None]) -> None:
        self._clock, self._on_phase = clock, on_phase
        self.start = clock.now()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = self._clock.now()
        self._on_phase(name)
        with trace.span(f"round.{name}"):
            try:
                yield
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + self._clock.now() - begin

    def elapsed(self) -> Seconds:
        """Since the start of the round."""
        return Seconds(self._clock.now() - self.start)

    def totals(self) -> dict[str, float]:
        """Seconds per phase, and `total`, to the millisecond."""
        return {name: round(value, 3) for name, value in {**self.seconds, "total": self.elapsed()}.items()}
