"""Joining: how long the state takes from one donor and from many, with a liar and with deaths among them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from elastic.bench.churn.swarm import Child, Say
from elastic.bench.churn.wan import Wan
from elastic.errors import ElasticError
from elastic.messages import Digest, PeerId
from elastic.wire.signing import Identity

DONORS = 8
MOMENT = 0.4
"""Part of the time of an undisturbed transfer after which donors die."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A joiner got the anchor, checked against its digest."""

    donors: str
    seconds: float
    """From asking to having checked the last byte; nothing is known of the donors but their cards."""
    copies: float
    """Bytes received ÷ bytes of the anchor."""


class Node:
    """`node` in a namespace."""

    def __init__(self, wan: Wan, host: int, folder: Path, bootstrap: Sequence[str]) -> None:
        setup = {"folder": str(folder), "bootstrap": list(bootstrap)}
        self.id: PeerId = Identity.load_or_create(folder / "peer.key").peer
        self.child = Child(wan, host, folder / "stderr.log", "elastic.bench.churn.node", orjson.dumps(setup).decode())
        self._output: asyncio.StreamReader | None = None

    async def start(self) -> str:
        """Returns its address."""
        self._output = await self.child.start()
        address: str = (await self._answer())["ready"]
        return address

    async def tell(self, **order: Any) -> dict[str, Any]:
        """Give it an order; returns its answer."""
        assert self.child.process is not None and self.child.process.stdin is not None
        self.child.process.stdin.write(orjson.dumps(order) + b"\n")
        return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        assert self._output is not None
        line = await self._output.readline()
        if not line:
            raise ElasticError(f"a donor or joiner died: see {self.child.log}")
        answer: dict[str, Any] = orjson.loads(line)
        return answer


async def transfers(wan: Wan, folder: Path, size: int, say: Say) -> list[Transfer]:
    """One donor, eight, eight with a liar, eight of which two die. `size` of the anchor in bytes."""
    found = []

    def note(transfer: Transfer) -> None:
        found.append(transfer)
        say(line(transfer))

    async with _donors(wan, folder, size) as (donors, digest, entry):

        async def join(name: str, holders: Sequence[Node], deaths: Sequence[Node] = (), after: float = 0.0) -> Transfer:
            joiner = Node(wan, DONORS, folder / f"joiner-{len(found)}", [entry])
            try:
                await joiner.start()
                fetching = asyncio.create_task(
                    joiner.tell(fetch=digest, size=size, holders=[holder.id for holder in holders])
                )
                await asyncio.sleep(after)
                for dying in deaths:
                    dying.child.kill()
                answer = await fetching
            finally:
                await joiner.child.leave()
            if not answer.get("right"):
                raise ElasticError(f"{name}: {answer.get('failed', 'the wrong bytes')}")
            return Transfer(name, answer["seconds"], answer["received"] / size)

        honest, liar = donors[:DONORS], donors[DONORS]
        note(await join("1", honest[:1]))
        note(await join(f"{DONORS}", honest))
        undisturbed = found[-1].seconds
        note(await join(f"{DONORS}, one of them lies", [*honest[: DONORS - 1], liar]))
        note(await join(f"{DONORS}, two of them die", honest, honest[1:3], MOMENT * undisturbed))
    return found


@asynccontextmanager
async def _donors(wan: Wan, folder: Path, size: int) -> AsyncIterator[tuple[list[Node], Digest, str]]:
    """Eight honest donors and a liar on the last donor's host; their anchor, and where to enter."""
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        entry: list[str] = []
        for number in range(DONORS + 1):
            node = Node(wan, min(number, DONORS - 1), folder / f"donor-{number}", entry)
            stack.push_async_callback(node.child.leave)
            address = await node.start()
            entry = entry or [address]
            nodes.append(node)
        answers = [await node.tell(serve=size, lies=node is nodes[-1]) for node in nodes]
        yield nodes, Digest(answers[0]["serves"]), entry[0]


def line(transfer: Transfer) -> str:
    """A transfer, for people."""
    return f"{transfer.donors:26s} {transfer.seconds:8.1f} {transfer.copies:15.2f}"


def header() -> str:
    """Above such lines."""
    return f"{'donors':26s} {'seconds':>8s} {'copies received':>15s}"
