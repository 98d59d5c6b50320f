"""A node without neighbours knocks at the doors it knows: once for all who wait for it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hivemind.p2p import PeerID

from elastic.exchange.dht.bootstrap import Entry, Node
from elastic.messages import PeerId
from elastic.wire.signing import Identity

ENTRY = Entry(Identity.generate().peer, "/ip4/203.0.113.5/tcp/4001")


class Table(set[PeerID]):
    """A routing table: who is in it."""

    @property
    def uid_to_peer_id(self) -> list[PeerID]:
        return list(self)


class Blacklist(set[PeerID]):
    """Of those who are silent: nobody, as yet."""

    ban_counter: tuple[PeerID, ...] = ()

    def register_success(self, peer: PeerID) -> None:
        self.discard(peer)


class Alone(Node):
    """A node that has lost everyone; a door opens when the test says so."""

    def __init__(self) -> None:
        self.neighbours = Table()
        self.knocks: list[PeerId] = []
        self.opens = asyncio.Event()
        p2p: Any = SimpleNamespace(_child=SimpleNamespace(wait=asyncio.Event().wait))
        dht: Any = SimpleNamespace(protocol=SimpleNamespace(routing_table=self.neighbours), blacklist=Blacklist())
        super().__init__(p2p, dht, [ENTRY], [])

    async def _knock(self, entry: Entry, seconds: float = 0.0) -> str | None:
        self.knocks.append(entry.peer)
        await self.opens.wait()
        self.neighbours.add(PeerID.from_base58(entry.peer))
        return None


async def steps() -> None:
    """What can happen by now has."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_gives_up_waiting_leaves_it_to_the_others() -> None:
    # given three who wait for the same door
    node = Alone()
    waiting = [asyncio.create_task(node.rejoin()) for _ in range(3)]
    await steps()
    # when one is cancelled, and then the door opens
    waiting[0].cancel()
    await steps()
    assert [each.done() for each in waiting] == [True, False, False]
    node.opens.set()
    # then the others are in
    await asyncio.gather(*waiting[1:])
    assert waiting[0].cancelled() and node.knocks == [ENTRY.peer] and node.neighbours


async def test_no_second_round_of_knocking_begins_before_the_first_is_over() -> None:
    # given a door that takes longer to open than the time between two rounds
    node = Alone()
    waiting = [asyncio.create_task(node.rejoin())]
    await steps()
    node._knock_again_at = 0.0
    # when somebody else needs the network
    waiting.append(asyncio.create_task(node.rejoin()))
    await steps()
    # then it waits for the same round
    assert node.knocks == [ENTRY.peer] and not any(each.done() for each in waiting)
    node.opens.set()
    await asyncio.gather(*waiting)
    assert node.knocks == [ENTRY.peer]


async def test_what_goes_wrong_while_knocking_is_not_lost() -> None:
    # given a mistake of ours
    node = Alone()

    async def fails(*_: object) -> None:
        raise AssertionError("a mistake")

    node._knock = fails  # type: ignore[method-assign, assignment]
    # then who waits is told
    with pytest.raises(AssertionError, match="a mistake"):
        await node.rejoin()
