"""An incentive's way to the world outside, in an actor of its own: whatever it waits for, no round does."""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from elastic.actors.logs import log_to_file
from elastic.config import RunConfig
from elastic.contracts import SettledIncentive, Settler
from elastic.errors import ConfigError, ElasticError, StateError
from elastic.messages import JSON, Scoreboard
from elastic.registry import local_settings, resolve
from elastic.sections import PluginChoice
from elastic.wire.signing import Identity

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 15.0
TAKEOVER_SECONDS = 20.0
"""For the settler of the last life to be dead, which holds the keys until then."""


class SettlerActor:
    """Owns the settler; killing it loses nothing that is not written down."""

    def __init__(self, config: RunConfig, choice: PluginChoice) -> None:
        log_to_file(config)
        self._config, self._choice = config, choice
        self._settler: Settler | None = None

    async def start(self) -> None:
        """Build the settler, once.

        Raises:
            ElasticError: what a person must mend, such as a key that cannot be read.
        """
        give_up = time.monotonic() + TAKEOVER_SECONDS
        while self._settler is None:
            try:
                self._settler = self._made()
            except ConfigError:
                raise
            except ElasticError:
                if time.monotonic() >= give_up:
                    raise
                await asyncio.sleep(1.0)

    def _made(self) -> Settler:
        shared, local = self._config.shared, self._config.local
        cls, settings = resolve("incentive", self._choice)
        made: Settler = cls.settler(
            settings, local_settings(self._config, self._choice), local.state_dir,
            run=shared.run, identity=Identity.load(self._config.key_path),
        )  # fmt: skip
        return made

    async def exchange(self, board: Scoreboard | None) -> JSON:
        """Leave a board, take the news; also after this actor was started again."""
        await self.start()
        assert self._settler is not None
        if board is not None:
            await self._settler.settle(board)
        return await self._settler.news()

    async def close(self) -> None:
        """Stop, also in the middle of something."""
        if self._settler is not None:
            await self._settler.close()


class RemoteSettler:
    """The settler as the incentive in the peer actor sees it: boards go in, news come when they come."""

    def __init__(self, config: RunConfig, choice: PluginChoice, incentive: SettledIncentive) -> None:
        self._incentive = incentive
        self._actor: Any = ray.remote(SettlerActor).options(num_cpus=0, max_restarts=-1).remote(config, choice)
        self._asked: asyncio.Task[JSON] | None = None
        self.news: JSON | None = None
        """What it told last."""

    async def start(self) -> None:
        """Wait until it is there.

        Raises:
            ElasticError: see `SettlerActor.start`.
        """
        try:
            await self._actor.start.remote()
        except RayError as error:
            raise getattr(error, "cause", None) or StateError(f"the settler did not start: {error}") from error

    async def settle(self, board: Scoreboard) -> None:
        """Leave it to the actor; hear what it said last time. Never waits for it."""
        if self._asked is not None and not self._asked.done():
            return  # it is busy: the next board is newer
        if self._asked is not None:
            self._hear(self._asked)
        self._asked = asyncio.ensure_future(_answer(self._actor.exchange.remote(board)))

    async def close(self) -> None:
        """End it; politely, if it answers."""
        if self._asked is not None:
            self._asked.cancel()
        with suppress(RayError, TimeoutError):
            await asyncio.wait_for(_answer(self._actor.close.remote()), CLOSE_SECONDS)
        ray.kill(self._actor)

    def _hear(self, asked: "asyncio.Task[JSON]") -> None:
        try:
            self._incentive.learn(asked.result())
            self.news = asked.result()
        except (RayError, ElasticError) as error:
            logger.warning("the settler: %s", str(error).splitlines()[0])


async def _answer(reference: Any) -> Any:
    return await reference
