"""Where a peer's numbers come from that its journal does not know, and the exporters that the run file wants."""

import asyncio
import logging
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from elastic import trace
from elastic.actors.mailbox import Mailbox
from elastic.config import RunConfig
from elastic.errors import ElasticError, MissingExtraError
from elastic.messages import JSON, PeerId, Scoreboard
from elastic.metrics import LEVELS, Labels, Meters

if TYPE_CHECKING:
    from elastic.metrics_export import Exports

logger = logging.getLogger(__name__)

Moved = Mapping[PeerId, tuple[int, int]]
"""Peer → bytes out and in."""
LOOK_SECONDS = 5.0
"""Between two times that the network actor is asked how much it moved."""


class Sources(Protocol):
    """What a peer actor lets be looked at; nothing of it is changed."""

    def board(self) -> Scoreboard | None: ...

    def news(self) -> JSON | None: ...


class Measuring:
    """Metrics of one peer, from its first word to its last. Off, it does nothing and loads nothing."""

    def __init__(self, config: RunConfig, peer: PeerId, meters: Meters) -> None:
        self._config, self._peer, self._meters = config, peer, meters
        self._exports: Exports | None = None
        self._looking: asyncio.Task[None] | None = None

    def start(self, mailbox: Mailbox, sources: Sources) -> str:
        """Begin to export, if the run file wants it; returns the address of the Prometheus endpoint, "" if none.

        Args:
            mailbox: the trainer's.
            sources: what is looked at when somebody asks.

        Raises:
            MissingExtraError: metrics are wanted, and the OpenTelemetry SDK is not installed. Nothing else is raised.
        """
        if not self._config.local.metrics.wanted:
            return ""
        try:
            from elastic.metrics_export import Exports
        except ImportError as error:
            raise MissingExtraError(
                "local.metrics needs the OpenTelemetry SDK: pip install 'elastic[otel]', or leave that section out"
            ) from error
        self._watch(mailbox, sources)
        run, name = self._config.shared.run, self._config.local.name or self._peer[-6:]
        self._exports = Exports(
            self._config.local.metrics, self._meters,
            {
                "service.name": trace.service_name(self._peer, name), "service.namespace": run,
                "service.instance.id": self._peer,
            },
        )  # fmt: skip
        return self._exports.address

    def follow(self, moved: Callable[[], Awaitable[Moved]]) -> None:
        """From now on ask the exchange, which has started, how much it moved."""
        if self._exports is not None:
            self._looking = asyncio.create_task(self._look(moved))

    def close(self) -> None:
        """Export once more and stop."""
        if self._looking is not None:
            self._looking.cancel()
        if self._exports is not None:
            self._exports.close()

    def _watch(self, mailbox: Mailbox, sources: Sources) -> None:
        watch, folder = self._meters.watch, self._config.local.state_dir
        watch("swarm.mailbox.waiting", lambda: mailbox.waiting)
        watch("swarm.score", lambda: self._meters.scores(sources.board()))
        watch("swarm.spans.waiting", lambda: trace.counts()[0])
        watch("swarm.spans.exported", lambda: trace.counts()[1])
        watch("swarm.spans.dropped", lambda: trace.counts()[2])
        watch("swarm.disk.free", lambda: shutil.disk_usage(folder).free)
        watch("swarm.disk.size", lambda: shutil.disk_usage(folder).total)
        watch("swarm.chain.weights.age", lambda: landed_ago(sources.news(), time.time()))
        watch("swarm.chain.alarms", lambda: alarms(sources.news()))

    async def _look(self, moved: Callable[[], Awaitable[Moved]]) -> None:
        while True:
            with suppress(ElasticError):  # while it is away it moves nothing
                self._meters.moved(await moved())
            await asyncio.sleep(LOOK_SECONDS)


def landed_ago(news: JSON | None, now: float) -> float | None:
    """Seconds since something of ours arrived outside: any settler's news may have `landed`, a Unix time."""
    landed = news.get("landed") if news is not None else None
    return max(now - landed, 0.0) if isinstance(landed, int | float) else None


def alarms(news: JSON | None) -> Mapping[Labels, float]:
    """How many `alarms` of each `level`, "warning" and "error", a settler has."""
    if news is None:
        return {}
    told = Counter(str(each.get("level")) for each in news.get("alarms", ()))
    return {(("swarm.level", level),): float(told[level]) for level in LEVELS}
