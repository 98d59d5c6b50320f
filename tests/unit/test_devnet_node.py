"""The devnet's node over a real socket, asked by hand: JSON in, JSON out."""

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

pytest.importorskip("bittensor_core")

from devnet_cases import NETUID, VALIDATOR, made, signed, weights
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from incentives.devnet.node import Node
from incentives.devnet.rpc import to_hex
from incentives.devnet.rules import RefusedError

NUMBERS = itertools.count(1)


@pytest.fixture
def node() -> Iterator[Node]:
    with Node(made()) as node:
        yield node


@pytest.fixture
async def socket(node: Node) -> AsyncIterator[ClientConnection]:
    async with connect(node.url) as socket:
        yield socket


async def call(socket: ClientConnection, method: str, *parameters: Any) -> Any:
    """The result, or the error, of one request."""
    number = next(NUMBERS)
    await socket.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": parameters}))
    answer = json.loads(await socket.recv())
    assert answer["id"] == number
    return answer["result"] if "result" in answer else answer["error"]


async def test_it_answers_about_blocks(node: Node, socket: ClientConnection) -> None:
    head = await call(socket, "chain_getHead")
    assert head == await call(socket, "chain_getFinalizedHead") == await call(socket, "chain_getBlockHash", 1)
    assert (await call(socket, "chain_getHeader", head))["number"] == "0x1"
    assert (await call(socket, "chain_getBlock", head))["block"]["header"]["parentHash"] == await call(
        socket, "chain_getBlockHash", 0
    )
    assert await call(socket, "chain_getBlockHash", 7) is None
    assert await call(socket, "chain_getHeader", to_hex(bytes(32))) is None
    assert (await call(socket, "state_getRuntimeVersion", None))["specVersion"] == 461


async def test_it_reads_storage_at_a_block(node: Node, socket: ClientConnection) -> None:
    key = to_hex(node.ask(lambda chain: chain.codec.key("SubtensorModule", "Tempo", [NETUID])))
    before = await call(socket, "chain_getHead")
    node.ask(lambda chain: chain.state.put("Tempo", NETUID, value=99))
    node.produce()
    assert await call(socket, "state_getStorageAt", key, before) == "0x1400"
    assert await call(socket, "state_getStorageAt", key) == "0x6300"
    (group,) = await call(socket, "state_queryStorageAt", [key, "0x00"], before)
    assert group["changes"] == [[key, "0x1400"], ["0x00", None]]


async def test_it_lists_keys_in_pages(node: Node, socket: ClientConnection) -> None:
    prefix = to_hex(node.ask(lambda chain: chain.codec.key("SubtensorModule", "Uids", [NETUID])))
    first = await call(socket, "state_getKeysPaged", prefix, 3, prefix, None)
    rest = await call(socket, "state_getKeysPaged", prefix, 3, first[-1], None)
    assert (len(first), len(rest)) == (3, 2)
    assert not set(first) & set(rest)


async def test_it_gives_metadata_and_answers_of_runtime_apis(socket: ClientConnection) -> None:
    assert (await call(socket, "state_call", "Metadata_metadata_at_version", "0x0f000000"))[:4] == "0x01"
    assert await call(socket, "state_call", "Metadata_metadata_at_version", "0x0e000000") == "0x00"
    for method in ("get_metagraph", "get_subnet_hyperparams", "get_next_epoch_start_block"):
        assert (await call(socket, "state_call", f"SubnetInfoRuntimeApi_{method}", "0x0300"))[:4] == "0x01"
    assert await call(socket, "state_call", "SubnetInfoRuntimeApi_get_metagraph", "0x0900") == "0x00"
    assert (await call(socket, "state_call", "Core_nothing", "0x"))["code"] == -32000


async def test_a_submitted_extrinsic_is_watched_until_it_is_final(node: Node, socket: ClientConnection) -> None:
    node.ask(lambda chain: setattr(chain, "finality_lag", 1))
    data = to_hex(node.ask(lambda chain: signed(chain, weights([1], [1]))))
    watch = await call(socket, "author_submitAndWatchExtrinsic", data)
    assert await call(socket, "account_nextIndex", VALIDATOR.ss58_address) == 1
    node.produce(2)
    updates = [json.loads(await socket.recv())["params"] for _ in range(2)]
    assert [list(each["result"]) for each in updates] == [["inBlock"], ["finalized"]]
    assert {each["subscription"] for each in updates} == {watch}
    assert await call(socket, "author_unwatchExtrinsic", watch) is True


async def test_heads_are_announced_until_nobody_listens(node: Node, socket: ClientConnection) -> None:
    watch = await call(socket, "chain_subscribeNewHeads")
    node.produce()
    assert json.loads(await socket.recv())["params"]["result"]["number"] == "0x2"
    await call(socket, "chain_unsubscribeNewHeads", watch)
    node.produce()
    assert (await call(socket, "chain_getHeader"))["number"] == "0x3"


async def test_refusals_say_why(node: Node, socket: ClientConnection) -> None:
    data = bytearray(node.ask(lambda chain: signed(chain, weights([1], [1]))))
    data[-1] ^= 1
    assert (await call(socket, "author_submitExtrinsic", to_hex(bytes(data))))["code"] in (1002, 1010)
    assert (await call(socket, "no_such_method"))["code"] == -32601
    assert (await call(socket, "state_getStorageAt", "no hex"))["code"] == -32602
    assert "discarded" in (await call(socket, "state_getStorageAt", "0x00", to_hex(bytes(32))))["message"]


async def test_rubbish_ends_no_connection(socket: ClientConnection) -> None:
    for frame in ("", "[", "7", "[1]", "{}"):
        await socket.send(frame)
    assert (await call(socket, "chain_getHeader"))["number"] == "0x1"


async def test_faults_on_demand(node: Node, socket: ClientConnection) -> None:
    def refuse(_: list[Any]) -> Any:
        raise RefusedError("no", code=-1)

    node.faults.override["chain_getHead"] = lambda _: "a lie"
    node.faults.override["chain_getHeader"] = refuse
    assert await call(socket, "chain_getHead") == "a lie"
    assert (await call(socket, "chain_getHeader"))["code"] == -1
    node.faults.forgetful = True
    await call(socket, "author_submitExtrinsic", to_hex(node.ask(lambda chain: signed(chain, weights([1], [1])))))
    assert node.ask(lambda chain: chain.pool) == []


async def test_it_drops_stops_and_comes_back_on_the_same_port(node: Node, socket: ClientConnection) -> None:
    node.drop()
    with pytest.raises(ConnectionClosed):
        await socket.recv()
    url = node.url
    node.stop()
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await connect(url)
    node.start()
    async with connect(url) as again:
        assert (await call(again, "chain_getHeader"))["number"] == "0x1"
