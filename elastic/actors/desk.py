"""The calls that Ray Train workers make to the actor whose mailbox they serve."""

from elastic.actors.mailbox import Command, Mailbox, Reply
from elastic.errors import ElasticError

GpuMemory = tuple[int, int]
"""Bytes in use, and bytes in all."""


class TrainerDesk:
    """Base of an actor that has trainers: the mailbox's worker side as actor methods."""

    def __init__(self) -> None:
        self._mailbox = Mailbox()

    async def worker_hello(self, rank: int, world_size: int, incarnation: str) -> None:
        self._mailbox.hello(rank, world_size, incarnation)

    async def next_command(self, rank: int, incarnation: str) -> Command | None:
        return await self._mailbox.next_command(rank, incarnation)

    async def worker_reply(self, rank: int, incarnation: str, reply: Reply) -> None:
        self._mailbox.reply(rank, incarnation, reply)

    async def worker_failed(self, error: ElasticError) -> None:
        self._mailbox.fail(error)

    async def progress(self, step: int, loss: float, gpu: GpuMemory | None = None) -> bool:
        """How training goes, now and then, and what its GPU holds; returns whether that was enough."""
        return False
