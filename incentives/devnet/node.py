"""The devnet's node: a chain behind a WebSocket on a free loopback port, in a thread of its own.

with Node(chain) as node:
    client = bittensor.Subtensor(node.url)
    node.produce()
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Self, TypeVar

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from incentives.devnet.chain import Block, Chain
from incentives.devnet.rpc import Faults, Rpc

T = TypeVar("T")

HOST = "127.0.0.1"
MAX_FRAME_BYTES = 2**24
PATIENCE = 30.0
"""Seconds that a call into the node's thread may take."""


class Node:
    """Serves a chain to clients on this machine only. A local devnet: what happens here happens on no real chain."""

    def __init__(self, chain: Chain, *, block_seconds: float | None = None) -> None:
        """
        Args:
            chain: from now on used in the node's thread only; see `ask`.
            block_seconds: produce a block this often; None: only when `produce` is called.
        """
        self._chain, self._rpc, self._block_seconds = chain, Rpc(chain), block_seconds
        self.port = 0
        """The port; kept when the node is stopped and started again."""
        self.clients = 0
        """Connections that are open."""
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Condition()
        self._server: Server | None = None
        self._timer: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="devnet", daemon=True)
        self._thread.start()
        self.start()

    @property
    def url(self) -> str:
        return f"ws://{HOST}:{self.port}"

    @property
    def faults(self) -> Faults:
        return self._rpc.faults

    @property
    def requests(self) -> list[tuple[str, list[Any]]]:
        """Every (method, parameters) that clients have sent."""
        return self._rpc.requests

    def start(self) -> None:
        """Listen, again after `stop` on the same port."""
        self._do(self._start())

    def stop(self) -> None:
        """Hang up on everyone and stop listening; the chain keeps what it has."""
        self._do(self._stop())

    def drop(self) -> None:
        """Abort every connection in mid-air; clients may come back at once."""
        self._do(self._drop())

    def produce(self, count: int = 1) -> None:
        """Build blocks and announce them."""
        for _ in range(count):
            self._do(self._produce())

    def reorg(self, depth: int, *, forget: bool = False) -> None:
        """Replace the last blocks by a longer fork; see `Chain.reorg`."""
        self._do(self._reorg(depth, forget))

    def tell_watchers(self, status: str) -> None:
        """Say to those who watch extrinsics that this became of them: "usurped", "dropped", "invalid"."""
        self._do(self._rpc.tell_watchers(status))

    def ask(self, question: Callable[[Chain], T]) -> T:
        """Read or change the chain, in the node's thread."""

        async def answer() -> T:
            return question(self._chain)

        return self._do(answer())

    def wait_for(self, condition: Callable[[Chain], bool]) -> None:
        """Return when this holds of the chain, which is looked at after each request, block and good-bye.

        Raises:
            TimeoutError: it did not within half a minute.
        """

        async def wait() -> None:
            async with self._changed:
                await self._changed.wait_for(lambda: condition(self._chain))

        self._do(wait())

    def close(self) -> None:
        """Stop for good."""
        if self._thread.is_alive():
            self.stop()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE)
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(PATIENCE)

    async def _start(self) -> None:
        self._server = await serve(self._client, HOST, self.port, max_size=MAX_FRAME_BYTES, compression=None)
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        if self._block_seconds is not None:
            self._timer = asyncio.create_task(self._tick(self._block_seconds))

    async def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close(close_connections=False)
            await self._drop()
            await self._server.wait_closed()
            self._server = None

    async def _drop(self) -> None:
        if self._server is not None:
            for connection in list(self._server.connections):
                connection.transport.abort()

    async def _tick(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._produce()

    async def _produce(self) -> None:
        await self._rpc.announce(self._chain.produce())
        await self._tell_of_change()

    async def _tell_of_change(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _reorg(self, depth: int, forget: bool) -> None:
        fork: list[Block] = self._chain.reorg(depth, forget=forget)
        for block in fork:
            await self._rpc.announce(block)

    async def _client(self, connection: ServerConnection) -> None:
        """Requests are answered side by side, as a node does."""

        async def send(text: str) -> None:
            try:
                await connection.send(text)
            except ConnectionClosed as error:
                raise ConnectionError from error

        self.clients += 1
        async with asyncio.TaskGroup() as answers:
            with suppress(ConnectionClosed):
                async for frame in connection:
                    answers.create_task(self._answer(frame, send))
            self._rpc.hang_up(send)
        self.clients -= 1
        await self._tell_of_change()

    async def _answer(self, frame: str | bytes, send: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        with suppress(ConnectionError, ValueError, KeyError, TypeError):  # it has gone, or sends rubbish
            await self._rpc.receive(frame, send)
        await self._tell_of_change()
