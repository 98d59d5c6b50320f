"""What the SDK itself does when things fail, which is why we neither watch extrinsics nor believe what it returns.

If a newer SDK fails one of these, look at `chain.py` and `publisher.py` again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest

from tests.chain.world import NETUID, PAIRS, World

MakeWorld = Callable[..., World]
INTENT = bt.SetWeights(netuid=NETUID, weights={1: 1.0})
LANDED = {1: 65535}


@pytest.fixture
async def client(world: World) -> AsyncIterator[Any]:
    async with bt.Client(world.node.url, fallback_endpoints=[], archive_endpoints=[]) as client:
        yield client


async def submitted(world: World, count: int = 1) -> None:
    """Until so many extrinsics are in the pool."""
    await asyncio.to_thread(world.node.wait_for, lambda chain: len(chain.pool) == count)


def executing(client: Any, **settings: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(client.execute(INTENT, PAIRS["Validator"], period=16, **settings))


async def test_a_cut_while_it_watches_reads_as_failure_and_lands(world: World, client: Any) -> None:
    task = executing(client)
    await submitted(world)
    world.node.drop()
    result = await task
    assert not result.success
    world.node.produce()
    assert world.weights() == LANDED


@pytest.mark.parametrize("status", ["usurped", "dropped", "invalid"])
async def test_what_the_pool_says_while_it_watches_reads_as_failure_and_may_land(
    world: World, client: Any, status: str
) -> None:
    task = executing(client)
    await submitted(world)
    world.node.tell_watchers(status)
    result = await task
    assert (result.success, result.error.name) == (False, status.capitalize())
    world.node.produce()
    assert world.weights() == LANDED


async def test_a_chain_that_stands_still_is_waited_for_without_end_and_what_was_given_up_lands(
    world: World, client: Any
) -> None:
    task = executing(client)
    await submitted(world)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    world.node.produce()
    assert world.weights() == LANDED
    assert await client.block() == 2


async def test_without_finality_success_can_be_undone(world: World, client: Any) -> None:
    world.node.ask(lambda chain: setattr(chain, "finality_lag", 3))
    world.node.produce(4)
    task = executing(client, wait_for_finalization=False)
    await submitted(world)
    world.node.produce()
    assert (await task).success
    world.node.reorg(1, forget=True)
    assert world.weights() == {}


async def test_six_at_once_are_six_extrinsics(make_world: MakeWorld, tmp_path: Path) -> None:
    world = make_world(WeightsSetRateLimit=0)
    async with bt.Client(world.node.url, fallback_endpoints=[], archive_endpoints=[]) as client:
        tasks = [executing(client) for _ in range(6)]
        await submitted(world, 6)
        world.node.produce()
        assert all(result.success for result in await asyncio.gather(*tasks))
    assert world.node.ask(lambda chain: [each.extrinsic.nonce for each in chain.applied]) == list(range(6))


async def test_a_null_for_the_finalized_head_reads_as_the_newest_block(world: World, client: Any) -> None:
    world.node.ask(lambda chain: setattr(chain, "finality_lag", 1))
    world.node.produce(3)
    assert await client.finalized_block() == 3
    world.node.faults.override["chain_getFinalizedHead"] = lambda _: None
    assert await client.finalized_block() == 4
