"""The peer's incentive with its memory and its way outside: the run file's, or what the run agrees on later."""

import asyncio
import logging
from typing import cast

from elastic.actors.journal import Journal
from elastic.actors.settling import RemoteSettler
from elastic.audit.evidence import account_of
from elastic.config import RunConfig
from elastic.contracts import Incentive, SettledIncentive
from elastic.errors import ConfigError
from elastic.guard import Guarded
from elastic.messages import JSON
from elastic.peer import memory_of
from elastic.registry import build, local_settings, require_accepted
from elastic.sections import PluginChoice

logger = logging.getLogger(__name__)

NEUTRAL = PluginChoice(name="uniform")
"""What answers where an incentive fails."""


class Backend:
    """One at a time."""

    def __init__(self, config: RunConfig, journal: Journal) -> None:
        self._config, self._journal = config, journal
        self._settler: RemoteSettler | None = None
        self._began = False
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()

    @property
    def news(self) -> JSON | None:
        """What the settler told last, if there is one."""
        return self._settler.news if self._settler is not None else None

    async def take_up(self, choice: PluginChoice) -> Guarded:
        """An incentive that knows what it knew and what this peer saw since; the one before is let go.

        Raises:
            ConfigError: there is none of that name, it cannot be made, or this machine does not accept it.
            ElasticError: its way outside needs a person, and the peer only begins. Later training goes on without.
        """
        require_accepted(self._config, choice)
        guarded = Guarded(choice.name, build("incentive", choice), build("incentive", NEUTRAL))
        self._journal.restore(memory_of(self._config.shared, choice.canonical()), guarded)
        await asyncio.to_thread(self._tell_what_was, guarded)
        if self._began:
            logger.warning("the run agreed on another incentive: %s", choice.name)
            change = asyncio.create_task(self._change_patiently(choice, guarded.within))
            self._changes.add(change)
            change.add_done_callback(self._changes.discard)
        else:
            await self._change(choice, guarded.within)
        self._began = True
        return guarded

    async def close(self) -> None:
        """Let go of what is outside."""
        for change in self._changes:
            change.cancel()
        async with self._changing:
            await self._let_go()

    async def _change_patiently(self, choice: PluginChoice, incentive: Incentive) -> None:
        """Beside the rounds, none of which waits for what is outside."""
        try:
            await self._change(choice, incentive)
        except Exception as error:  # others' code
            logger.exception("the incentive %s has no way outside: %s", choice.name, error)

    async def _change(self, choice: PluginChoice, incentive: Incentive) -> None:
        async with self._changing:
            await self._let_go()
            if self._config.local.incentive and local_settings(self._config, choice) is not None:
                settled = cast(SettledIncentive, incentive)
                self._settler = RemoteSettler(self._config, choice, settled)
                await self._settler.start()
                settled.attach(self._settler)

    async def _let_go(self) -> None:
        if self._settler is not None:
            await self._settler.close()
            self._settler = None

    def _tell_what_was(self, incentive: Guarded) -> None:
        """What it has missed: all of the run, the rounds under another incentive, or those before a crash."""
        try:
            account = account_of(self._config.local.state_dir)
        except ConfigError as error:
            logger.warning("the incentive is not told what this peer saw before: %s", error)
            return
        if account is not None:
            account.tell(incentive, after=incentive.round)
