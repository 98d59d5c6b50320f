"""Commands from the story to the Ray Train workers, and their answers back.

The workers call us (long polls), because Ray Train restarts them whenever it must and nobody can hold a handle to
them. An incarnation is one life of the worker group; when a new one says hello, whatever the old one owed is lost.
"""

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any

from elastic import trace
from elastic.errors import ElasticError, TrainerLostError


@dataclass(frozen=True, slots=True)
class Command:
    """One verb of the session with its arguments; `serial` pairs it with the reply."""

    serial: int
    verb: str
    args: tuple[Any, ...]
    context: dict[str, str] = field(default_factory=dict)
    """What the peer does this for: its `trace.carrier()`."""
    asked: float = 0.0
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker answers: a value or an error of ours."""

    serial: int
    value: Any = None
    error: ElasticError | None = None


@dataclass(slots=True)
class _Group:
    """The workers of one incarnation."""

    incarnation: str
    world_size: int
    queues: dict[int, asyncio.Queue[Command | None]] = field(default_factory=dict)


class Mailbox:
    """Lives in the peer actor; every method runs on its event loop."""

    def __init__(self) -> None:
        self._group: _Group | None = None
        self._complete = asyncio.Event()
        self._waiting: dict[int, tuple[asyncio.Future[Any], int]] = {}
        """Serial → who waits, and how many ranks must answer."""
        self._replies: dict[int, dict[int, Any]] = {}
        """Serial → rank → value."""
        self._serial = 0
        self.answers = 0
        """How many commands were carried out: whether a life of the workers got anything done."""
        self._past: set[str] = set()
        """Incarnations that were lost: whatever they still say comes too late."""
        self._fatal: ElasticError | None = None
        self._closed = False

    # --- the story's side ---

    async def ready(self) -> None:
        """Wait until all workers of an incarnation are there.

        Raises:
            ElasticError: they failed in a way that no restart mends.
        """
        while not self._fatal and not self._complete.is_set():  # a restart may come between `set` and waking up
            await self._complete.wait()
        if self._fatal:
            raise self._fatal

    async def call(self, verb: str, *args: Any, everyone: bool = False, others: tuple[Any, ...] | None = None) -> Any:
        """Have rank 0 (or all ranks) run a verb of the session; returns rank 0's value.

        Args:
            verb: of the session.
            args: its arguments.
            everyone: all ranks are asked.
            others: they are, and the others get these arguments: what is large, and only rank 0 needs, goes once.

        Raises:
            TrainerLostError: the group was restarted before it answered, or the mailbox is closed.
            ElasticError: what the session raised.
        """
        await self.ready()
        if self._closed:
            raise TrainerLostError("the trainer is closed")
        group = self._group
        assert group is not None
        ranks = range(group.world_size) if everyone or others is not None else range(1)
        self._serial += 1
        command = Command(self._serial, verb, args, trace.carrier(), time.time())
        for_others = command if others is None else replace(command, args=others)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[command.serial] = (future, len(ranks))
        for rank in ranks:
            group.queues[rank].put_nowait(for_others if rank else command)
        try:
            return await future
        finally:
            self._waiting.pop(command.serial, None)
            self._replies.pop(command.serial, None)

    @property
    def waiting(self) -> int:
        """How many commands were not answered yet."""
        return len(self._waiting)

    def fail(self, error: ElasticError) -> None:
        """The group is gone for good: everyone who waits, now or later, gets this error; the first one stays."""
        self._fatal = self._fatal or error
        self._lose(self._fatal)
        self._dismiss()
        self._complete.set()

    def close(self) -> None:
        """Tell the workers to return from the train function; what they still owe will not come."""
        self._closed = True
        self._lose(TrainerLostError("the trainer is closed"))
        self._dismiss()

    # --- the workers' side ---

    def hello(self, rank: int, world_size: int, incarnation: str) -> bool:
        """A worker of a new (or the same) incarnation is ready for commands; whether it replaces another one's."""
        replaces = False
        if self._fatal or incarnation in self._past:
            return False
        if self._group is None or self._group.incarnation != incarnation:
            replaces = self._group is not None
            self._complete.clear()
            self._lose(TrainerLostError("the trainer's workers were restarted"))
            self._dismiss()
            self._group = _Group(incarnation, world_size)
        self._group.queues.setdefault(rank, asyncio.Queue())
        if len(self._group.queues) == world_size:
            self._complete.set()
        return replaces

    async def next_command(self, rank: int, incarnation: str) -> Command | None:
        """The next command for this worker; None: return from the train function."""
        group = self._group
        if self._closed or self._fatal or group is None or group.incarnation != incarnation:
            return None
        return await group.queues[rank].get()

    def reply(self, rank: int, incarnation: str, reply: Reply) -> None:
        """A worker's answer. Late answers of lost incarnations are ignored."""
        waiting = self._waiting.get(reply.serial)
        if waiting is None or self._group is None or self._group.incarnation != incarnation or waiting[0].done():
            return
        future, expected = waiting
        if reply.error is not None:
            future.set_exception(reply.error)
            return
        values = self._replies.setdefault(reply.serial, {})
        values[rank] = reply.value
        if len(values) == expected:
            self.answers += 1
            future.set_result(values[0])

    def _dismiss(self) -> None:
        """Let the group's workers return, those that wait for a command included."""
        if self._group is not None:
            self._past.add(self._group.incarnation)
            for queue in self._group.queues.values():
                queue.put_nowait(None)

    def _lose(self, error: ElasticError) -> None:
        for future, _ in self._waiting.values():
            if not future.done():
                future.set_exception(error)
