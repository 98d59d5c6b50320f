"""Reading the chain: what comes back, and what is said when it cannot be read, lies, or does not fit."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bittensor as bt
import bittensor_core as core
import pytest

from incentives.devnet.rules import RefusedError
from incentives.subnet.chain import Hotkey, verify
from incentives.subnet.errors import (
    ChainAnswerError,
    ChainRefusedError,
    ChainUnreachableError,
    KeyFileError,
    NoSubnetError,
    RuntimeMismatchError,
)
from tests.chain.world import NETUID, ONE, PAIRS, RATE_LIMIT, STRANGER, TEMPO, TWO, VALIDATOR, World

MakeWorld = Callable[..., World]


async def test_a_snapshot_is_a_subnet_at_a_finalized_block(world: World) -> None:
    world.node.ask(lambda chain: setattr(chain, "finality_lag", 2))
    world.node.produce(4)
    seen = await world.link().snapshot()
    assert (seen.block, seen.head, seen.tempo, seen.rate_limit, seen.commit_reveal) == (3, 5, TEMPO, RATE_LIMIT, False)
    me = seen.neuron(VALIDATOR.address)
    assert me is not None
    assert (me.uid, me.stake, me.validator_permit, me.last_update) == (0, 10**12, True, 0)
    assert seen.uids[TWO] == 2
    assert abs(seen.time - time.time()) < 3600


async def test_256_neurons_are_read_in_few_questions(make_world: MakeWorld) -> None:
    world = make_world()
    for number in range(252):
        world.node.ask(
            lambda chain, number=number: chain.register(NETUID, core.ss58_encode(number.to_bytes(32, "big"), 42), ONE)
        )
    world.node.produce()
    link = world.link()
    await link.finalized()
    before = len(world.node.requests)
    assert len((await link.snapshot()).neurons) == 256
    assert len(world.node.requests) - before < 30


async def test_a_node_that_is_down_is_asked_again_and_found_when_it_is_back(world: World) -> None:
    link = world.link()
    world.node.stop()
    with pytest.raises(ChainUnreachableError, match="check the endpoint"):
        await link.snapshot()
    world.node.start()
    assert (await link.snapshot()).block == 1
    world.node.stop()
    with pytest.raises(ChainUnreachableError):
        await link.snapshot()
    world.node.start()
    assert (await link.snapshot()).block == 1


async def test_reads_survive_an_aborted_connection(world: World) -> None:
    link = world.link()
    await link.snapshot()
    world.node.drop()
    assert (await link.snapshot()).block == 1


async def test_a_silent_node_is_waited_for_until_the_deadline_only(world: World) -> None:
    link = world.link(deadline=0.2)
    world.node.faults.silent = True
    with pytest.raises(ChainUnreachableError, match="did not read the subnet within"):
        await link.snapshot()
    world.node.faults.silent = False
    assert (await world.link().snapshot()).block == 1


async def test_a_connection_whose_opening_took_too_long_is_closed(world: World) -> None:
    link = world.link(deadline=0.1)
    world.node.faults.silent = True
    for _ in range(3):
        with pytest.raises(ChainUnreachableError):
            await link.snapshot()
    await link.close()
    await asyncio.to_thread(world.node.wait_for, lambda _: world.node.clients == 0)


async def test_a_slow_node_is_unreachable_or_slow_but_never_wrong(world: World) -> None:
    world.node.faults.delay = 0.02
    with pytest.raises(ChainUnreachableError, match="within"):
        await world.link(deadline=0.05).snapshot()
    assert (await world.link().snapshot()).block == 1


async def test_an_endpoint_that_turns_us_away_says_for_how_long(world: World) -> None:
    def limited(_: list[Any]) -> Any:
        error = RefusedError("storage work rate limit exceeded", code=-32004)
        error.error["data"] = {"retry_after": 7, "policy": "storage"}  # type: ignore[assignment]
        raise error

    link = world.link()
    await link.finalized()
    world.node.faults.override["state_getStorageAt"] = limited
    with pytest.raises(ChainUnreachableError, match=r"turns us away.*asks to wait 7 s"):
        await link.weights({1: 1.0})


async def test_a_runtime_that_the_sdk_does_not_fit_is_named(make_world: MakeWorld) -> None:
    world = make_world(without=frozenset({"SubnetEpochConsensus"}), spec_version=460)
    link = world.link()
    for _ in range(2):
        with pytest.raises(RuntimeMismatchError, match=rf"SDK bittensor {bt.__version__} does not fit runtime 460"):
            await link.snapshot()


async def test_a_first_block_without_a_hash_is_no_chain(world: World) -> None:
    link = world.link()
    world.node.faults.override["chain_getBlockHash"] = lambda _: "0x12"
    with pytest.raises(ChainAnswerError, match="'0x12' is not the hash of a first block"):
        await link.snapshot()
    del world.node.faults.override["chain_getBlockHash"]
    assert (await link.snapshot()).block == 1


async def test_a_subnet_that_is_not_there_is_named(world: World) -> None:
    link = world.link()
    link._netuid = 99
    with pytest.raises(NoSubnetError, match="no subnet 99"):
        await link.snapshot()


LIES: dict[str, Callable[[list[Any]], Any]] = {
    "no number": lambda _: "seventeen",
    "nothing": lambda _: None,
    "another shape": lambda _: {"block": []},
    "rubbish": lambda _: "0x" + "ff" * 40,
    "a list": lambda _: [1, 2, 3],
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize(
    "method", ["chain_getFinalizedHead", "chain_getHeader", "chain_getBlockHash", "state_call", "state_getKeysPaged"]
)
async def test_an_endpoint_that_lies_is_an_error_of_ours(world: World, method: str, lie: str) -> None:
    link = world.link(deadline=5.0)
    await link.finalized()
    world.node.faults.override[method] = LIES[lie]
    world.node.produce()
    try:
        seen = await link.snapshot()
    except (ChainAnswerError, ChainUnreachableError, NoSubnetError):
        pass
    else:
        assert method in ("chain_getBlockHash", "state_getKeysPaged")  # not asked for, or it tells of no commitments
        assert (seen.block, len(seen.neurons), seen.commitments) == (2, 4, ())
    del world.node.faults.override[method]
    assert (await link.snapshot()).block == 2


async def test_finality_that_goes_back_is_not_believed(world: World) -> None:
    link = world.link()
    world.node.produce(40)
    assert await link.finalized() == 41
    world.node.ask(lambda chain: setattr(chain, "finality_lag", 3))
    with pytest.raises(ChainUnreachableError, match="a node that lags"):
        await link.finalized()
    world.node.ask(lambda chain: setattr(chain, "finality_lag", 30))
    with pytest.raises(ChainAnswerError, match="another chain, or it lies"):
        await link.snapshot()


async def test_numbers_that_cannot_be_are_refused(world: World) -> None:
    def boast(chain: Any) -> None:
        chain.state.put("LastUpdate", NETUID, value=[10**6, 0, 0, 0])

    world.node.ask(boast)
    world.node.produce()
    with pytest.raises(ChainAnswerError, match="a last update is 1000000, which cannot be"):
        await world.link().snapshot()


async def test_a_hotkey_that_is_listed_twice_is_refused(world: World) -> None:
    world.node.ask(lambda chain: chain.register(NETUID, ONE, TWO))
    world.node.produce()
    with pytest.raises(ChainAnswerError, match="some of them twice"):
        await world.link().snapshot()


async def test_weights_that_the_chain_would_refuse_are_not_signed(world: World) -> None:
    with pytest.raises(ChainRefusedError, match="not registered"):
        await world.link(STRANGER).weights({1: 1.0})
    assert world.sent() == 0


async def test_weights_that_are_too_few_or_too_soon_are_not_signed(make_world: MakeWorld) -> None:
    few = make_world(MinAllowedWeights=3)
    with pytest.raises(ChainRefusedError, match="at least 3"):
        await few.link().weights({1: 1.0})
    few.node.ask(lambda chain: chain.state.touch(NETUID, 0, 1))
    few.node.produce()
    with pytest.raises(ChainRefusedError, match="rate limit is 10 blocks"):
        await few.link().weights({1: 1.0, 2: 1.0, 3: 1.0})


def test_signatures_of_hotkeys_of_both_kinds_verify() -> None:
    for pair in (PAIRS["One"], core.Keypair.create_from_seed(bytes([9]) * 32, crypto_type=core.CRYPTO_ED25519)):
        hotkey = Hotkey(pair.ss58_address, pair.crypto_type, pair)
        signature = hotkey.sign(b"words")
        assert verify(b"words", signature, hotkey.address, hotkey.scheme)
        assert not verify(b"other", signature, hotkey.address, hotkey.scheme)
        assert not verify(b"words", signature, hotkey.address, 7)
        assert not verify(b"words", b"short", hotkey.address, hotkey.scheme)
        assert not verify(b"words", signature, "no address", hotkey.scheme)


def wallet_in(path: Path, *, crypto_type: int = core.CRYPTO_SR25519) -> Any:
    wallet = bt.Wallet("cold", "hot", path=str(path))
    wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(suppress=True, crypto_type=crypto_type)
    return wallet


@pytest.mark.parametrize("crypto_type", [core.CRYPTO_SR25519, core.CRYPTO_ED25519])
def test_only_the_hotkeys_file_is_read(tmp_path: Path, crypto_type: int) -> None:
    wallet = wallet_in(tmp_path, crypto_type=crypto_type)
    for path in (tmp_path / "cold").iterdir():
        if path.name != "hotkeys":
            path.unlink()
    hotkey = Hotkey.load(tmp_path, "cold", "hot")
    assert (hotkey.address, hotkey.scheme) == (wallet.hotkey.ss58_address, crypto_type)


def test_no_secret_is_shown(tmp_path: Path) -> None:
    wallet_in(tmp_path)
    file = tmp_path / "cold" / "hotkeys" / "hot"
    seed = json.loads(file.read_text())["secretSeed"].removeprefix("0x")
    assert seed not in repr(Hotkey.load(tmp_path, "cold", "hot"))
    file.write_text(file.read_text()[:-20])
    with pytest.raises(KeyFileError, match="not a key file of a hotkey") as caught:
        Hotkey.load(tmp_path, "cold", "hot")
    assert seed not in str(caught.value)


def test_an_encrypted_hotkey_is_refused_and_nobody_is_asked_for_a_password(tmp_path: Path) -> None:
    wallet = wallet_in(tmp_path)
    wallet.hotkey_file.set_keypair(wallet.hotkey, encrypt=True, overwrite=True, password="secret words")
    with pytest.raises(KeyFileError, match="encrypted"):
        Hotkey.load(tmp_path, "cold", "hot")
