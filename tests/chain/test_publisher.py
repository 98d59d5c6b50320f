"""Weights reach the chain once, whatever fails on the way: the real SDK, a real socket, a devnet that fails at will."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from elastic.errors import ClockSkewError
from incentives.devnet.codec import blake2
from incentives.devnet.rpc import from_hex, to_hex
from incentives.devnet.rules import RefusedError
from incentives.subnet.chain import ERA_BLOCKS, Hotkey
from incentives.subnet.errors import ChainAnswerError, ChainRefusedError, ChainUnreachableError
from incentives.subnet.journal import Journal
from incentives.subnet.publisher import Publisher, Rules
from incentives.subnet.receipts import Intention, Outcome, Receipt
from tests.chain.world import NETUID, ONE, PAIRS, STRANGER, TEMPO, TWO, VALIDATOR, World

MakeWorld = Callable[..., World]
SCORES = {ONE: 2.0, TWO: 1.0}
WEIGHTS = {1: 65535, 2: 32768}


class Bench:
    """A publisher, and what a test does with it."""

    def __init__(self, world: World, where: Path, hotkey: Hotkey = VALIDATOR, **rules: Any) -> None:
        self.world, self.journal, self.link = world, Journal(where), world.link(hotkey)
        self.publisher = Publisher(self.link, self.journal, Rules(**rules))

    async def publish(self, scores: Mapping[str, float] = SCORES) -> Intention | None:
        return await self.publisher.publish(await self.link.snapshot(), scores, 7)

    async def settle(self, blocks: int = 0) -> Receipt | None:
        self.world.node.produce(blocks)
        return await self.publisher.settle()


@pytest.fixture
def bench(world: World, tmp_path: Path) -> Bench:
    return Bench(world, tmp_path / "journal")


async def test_plain_weights_land_once(bench: Bench) -> None:
    intention = await bench.publish()
    assert intention is not None
    assert await bench.settle() is None
    receipt = await bench.settle(1)
    assert receipt is not None
    assert (receipt.outcome, receipt.block, intention.kind, intention.round) == (Outcome.LANDED, 2, "weights", 7)
    assert bench.world.weights() == dict(intention.expected) == WEIGHTS
    assert await bench.publish() is None
    assert bench.world.sent() == 1


async def test_they_are_due_again_before_the_tempo_is_over(bench: Bench) -> None:
    await bench.publish()
    await bench.settle(1)
    bench.world.node.produce(TEMPO * 3 // 4 - 1)
    assert await bench.publish() is None
    bench.world.node.produce()
    assert await bench.publish({ONE: 1.0}) is not None
    await bench.settle(1)
    assert bench.world.weights() == {1: 65535}


async def test_timelocked_weights_are_committed(make_world: MakeWorld, tmp_path: Path) -> None:
    bench = Bench(make_world(commit_reveal=True), tmp_path)
    intention = await bench.publish()
    assert intention is not None
    assert intention.kind == "commit"
    assert intention.reveal_round is not None
    receipt = await bench.settle(1)
    assert receipt is not None
    assert receipt.outcome is Outcome.LANDED
    ((who, block, commit, reveal_round),) = bench.world.node.ask(
        lambda chain: chain.state.get("TimelockedWeightCommits", NETUID, 0)
    )
    assert (who, block, reveal_round) == (VALIDATOR.address, receipt.block, intention.reveal_round)
    assert commit.removeprefix("0x") == intention.expected
    assert bench.world.weights() == {}


async def test_a_commit_is_found_after_the_chain_has_opened_and_dropped_it(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    bench = Bench(make_world(commit_reveal=True), tmp_path)
    await bench.publish()
    bench.world.node.produce()
    bench.world.node.ask(lambda chain: chain.state.drop("TimelockedWeightCommits", NETUID, 0))
    receipt = await bench.settle(30)
    assert receipt is not None
    assert (receipt.outcome, receipt.block) == (Outcome.LANDED, 2)


async def test_an_ed25519_hotkey_publishes_as_well(world: World, tmp_path: Path) -> None:
    pair = type(PAIRS["One"]).create_from_seed(bytes([5]) * 32, crypto_type=0)
    hotkey = Hotkey(pair.ss58_address, pair.crypto_type, pair)
    world.node.ask(lambda chain: chain.register(NETUID, hotkey.address, ONE, stake=10, permit=True))
    world.node.produce()
    bench = Bench(world, tmp_path, hotkey)
    await bench.publish()
    receipt = await bench.settle(1)
    assert receipt is not None
    assert receipt.outcome is Outcome.LANDED


async def test_who_is_gone_is_named_and_the_others_get_its_part(bench: Bench) -> None:
    bench.world.node.ask(lambda chain: chain.register(NETUID, STRANGER.address, ONE, uid=2))
    bench.world.node.produce()
    intention = await bench.publish({ONE: 1.0, TWO: 5.0, VALIDATOR.address: 9.0})
    assert intention is not None
    assert intention.dropped == (TWO,)
    assert intention.weights == {"1": 1.0}


async def test_the_burn_goes_to_its_uid(world: World, tmp_path: Path) -> None:
    bench = Bench(world, tmp_path, burn=0.5, burn_uid=3)
    intention = await bench.publish()
    assert intention is not None
    assert intention.weights == pytest.approx({"1": 1 / 3, "2": 1 / 6, "3": 0.5})


# --- Faults: each leaves at most one extrinsic on the chain.


def accepted_then(world: World, after: Callable[[], Any]) -> Callable[[list[Any]], Any]:
    """The pool takes an extrinsic, and then something happens instead of the answer."""

    def submit(parameters: list[Any]) -> Any:
        world.node._chain.submit(from_hex(parameters[0]))
        return after()

    return submit


async def test_a_socket_that_is_cut_while_sending(bench: Bench) -> None:
    node = bench.world.node
    await bench.link.finalized()
    connections = node._server.connections  # type: ignore[union-attr]
    node.faults.override["author_submitExtrinsic"] = accepted_then(
        bench.world, lambda: [each.transport.abort() for each in list(connections)]
    )
    await bench.publish()
    assert bench.journal.open is not None
    receipt = await bench.settle(1)
    assert receipt is not None
    assert (receipt.outcome, bench.world.landed(), bench.world.sent()) == (Outcome.LANDED, 1, 1)


async def test_a_pool_that_takes_it_and_says_no(bench: Bench) -> None:
    def refuse() -> Any:
        raise RefusedError("Invalid Transaction", "Transaction is temporarily banned", 1012)

    bench.world.node.faults.override["author_submitExtrinsic"] = accepted_then(bench.world, refuse)
    await bench.publish()
    assert await bench.publish() is None
    receipt = await bench.settle(1)
    assert receipt is not None
    assert (receipt.outcome, bench.world.sent()) == (Outcome.LANDED, 1)
    assert "banned" in receipt.detail


async def test_a_node_that_forgets_it(bench: Bench) -> None:
    node = bench.world.node
    node.faults.forgetful = True
    first = await bench.publish()
    assert first is not None
    assert await bench.settle(ERA_BLOCKS - 1) is None
    assert await bench.publish() is None
    receipt = await bench.settle(1)
    assert receipt is not None
    assert (receipt.outcome, receipt.settled) == (Outcome.LOST, first.death)
    node.faults.forgetful = False
    await bench.publish()
    again = await bench.settle(1)
    assert again is not None
    assert (again.outcome, bench.world.landed(), bench.world.sent()) == (Outcome.LANDED, 1, 2)


async def test_a_node_that_says_it_took_it_and_did_not(bench: Bench) -> None:
    bench.world.node.faults.override["author_submitExtrinsic"] = lambda parameters: to_hex(blake2(b"lie"))
    await bench.publish()
    receipt = await bench.settle(ERA_BLOCKS)
    assert receipt is not None
    assert receipt.outcome is Outcome.LOST


async def test_a_chain_that_stands_still_and_moves_again(bench: Bench) -> None:
    await bench.publish()
    for _ in range(5):
        assert await bench.settle() is None
        assert await bench.publish() is None
    receipt = await bench.settle(1)
    assert receipt is not None
    assert (receipt.outcome, bench.world.sent()) == (Outcome.LANDED, 1)


async def test_a_pool_that_holds_it_back_nearly_to_the_end_of_its_era(bench: Bench) -> None:
    node = bench.world.node
    node.ask(lambda chain: setattr(chain, "withheld", True))
    await bench.publish()
    assert await bench.settle(ERA_BLOCKS - 2) is None
    node.ask(lambda chain: setattr(chain, "withheld", False))
    receipt = await bench.settle(1)
    assert receipt is not None
    assert (receipt.outcome, receipt.block) == (Outcome.LANDED, ERA_BLOCKS)


async def test_nothing_is_believed_before_it_is_final(bench: Bench) -> None:
    bench.world.node.ask(lambda chain: setattr(chain, "finality_lag", 3))
    bench.world.node.produce(4)
    await bench.publish()
    assert await bench.settle(3) is None
    assert bench.world.weights() == WEIGHTS
    receipt = await bench.settle(1)
    assert receipt is not None
    assert receipt.outcome is Outcome.LANDED


@pytest.mark.parametrize(("forget", "outcome"), [(False, Outcome.LANDED), (True, Outcome.LOST)])
async def test_a_fork_that_drops_the_block_it_was_in(bench: Bench, forget: bool, outcome: Outcome) -> None:
    node = bench.world.node
    node.ask(lambda chain: setattr(chain, "finality_lag", 4))
    node.produce(5)
    await bench.publish()
    node.produce(1)
    assert bench.world.weights() == WEIGHTS
    node.reorg(2, forget=forget)
    receipt = await bench.settle(ERA_BLOCKS + 4)
    assert receipt is not None
    assert (receipt.outcome, bench.world.sent()) == (outcome, 1)
    assert bench.world.weights() == ({} if forget else WEIGHTS)


async def test_a_chain_that_refuses_in_the_block(bench: Bench) -> None:
    node = bench.world.node
    node.ask(lambda chain: chain.state.put("WeightsVersionKey", NETUID, value=9))
    await bench.publish()
    receipt = await bench.settle(1)
    assert receipt is not None
    assert (receipt.outcome, receipt.block) == (Outcome.FAILED, 2)
    assert "IncorrectWeightVersionKey" in receipt.detail
    assert await bench.publish() is None
    node.produce(100)
    assert await bench.publish() is not None


async def test_a_second_process_with_the_same_hotkey(bench: Bench) -> None:
    """The lock keeps it out on one machine; on another one it is at least noticed."""
    node = bench.world.node
    node.faults.override["author_submitExtrinsic"] = lambda parameters: to_hex(bytes(32))
    await bench.publish()
    del node.faults.override["author_submitExtrinsic"]
    other = bench.world.link()
    await other.send(await other.weights({3: 1.0}))
    receipt = await bench.settle(2)
    assert receipt is not None
    assert receipt.outcome is Outcome.LOST
    assert "who else signs with this hotkey" in receipt.detail


def pruned(parameters: list[Any]) -> Any:
    raise RefusedError(f"State already discarded for {parameters[0]}", code=4003)


@pytest.mark.parametrize("commit_reveal", [False, True])
async def test_what_is_stored_is_proof_enough_where_old_blocks_are_gone(
    make_world: MakeWorld, tmp_path: Path, commit_reveal: bool
) -> None:
    bench = Bench(make_world(commit_reveal=commit_reveal), tmp_path)
    await bench.publish()
    bench.world.node.faults.override["chain_getBlock"] = pruned
    receipt = await bench.settle(30)
    assert receipt is not None
    assert (receipt.outcome, receipt.block) == (Outcome.LANDED, 2)


async def test_a_commitment_of_any_bytes_lands_and_is_recognised(bench: Bench) -> None:
    for number, data in enumerate((b"plain text", b"0x61", bytes(range(256)), bytes(384))):
        await bench.publisher.commit(await bench.link.snapshot(), data)
        bench.world.node.faults.override["chain_getBlock"] = pruned
        receipt = await bench.settle(1)
        assert receipt is not None
        assert (receipt.outcome, receipt.block) == (Outcome.LANDED, 2 + number)
        (kept,) = (await bench.link.snapshot()).commitments
        assert kept.data == data
    with pytest.raises(ValueError, match="384 bytes, not 385"):
        await bench.link.commitment(bytes(385))


async def test_blocks_that_cannot_be_read_any_more(bench: Bench) -> None:
    await bench.publish()
    bench.world.node.produce(1)
    bench.world.node.ask(lambda chain: chain.state.put("Weights", NETUID, 0, value=[(3, 65535)]))
    bench.world.node.produce(40)

    bench.world.node.faults.override["chain_getBlock"] = pruned
    receipt = await bench.settle()
    assert receipt is not None
    assert receipt.outcome is Outcome.UNPROVEN


async def test_a_node_that_dies_before_and_after_sending(bench: Bench) -> None:
    node = bench.world.node
    snapshot = await bench.link.snapshot()
    node.stop()
    with pytest.raises(ChainUnreachableError):
        await bench.publisher.publish(snapshot, SCORES, 7)
    assert bench.journal.open is None
    node.start()
    await bench.publish()
    node.stop()
    with pytest.raises(ChainUnreachableError):
        await bench.settle(1)
    node.start()
    receipt = await bench.settle()
    assert receipt is not None
    assert (receipt.outcome, bench.world.sent()) == (Outcome.LANDED, 1)


async def test_another_chain_behind_the_endpoint(bench: Bench, make_world: MakeWorld) -> None:
    await bench.publish()
    elsewhere = make_world(without=frozenset({"Burn"}))
    bench.link._endpoint = elsewhere.node.url
    await bench.link.close()
    with pytest.raises(ChainAnswerError, match="another chain"):
        await bench.settle()
    assert bench.journal.open is not None


async def test_six_at_once_are_one(bench: Bench) -> None:
    snapshot = await bench.link.snapshot()
    for _ in range(6):
        await bench.publisher.publish(snapshot, SCORES, 7)
    await bench.settle(1)
    assert (bench.world.sent(), bench.world.landed()) == (1, 1)


# --- What is not sent at all.


async def test_strangers_and_miners_are_told_what_they_lack(world: World, tmp_path: Path) -> None:
    with pytest.raises(ChainRefusedError, match="register it with `btcli"):
        await Bench(world, tmp_path / "a", STRANGER).publish()
    pair = PAIRS["One"]
    with pytest.raises(ChainRefusedError, match="no validator permit at block 1"):
        await Bench(world, tmp_path / "b", Hotkey(pair.ss58_address, pair.crypto_type, pair)).publish()
    assert world.sent() == 0


@pytest.mark.parametrize("scores", [{}, {ONE: 0.0}, {STRANGER.address: 3.0}, {VALIDATOR.address: 3.0}])
async def test_nobody_to_rate(bench: Bench, scores: dict[str, float]) -> None:
    with pytest.raises(ChainRefusedError, match="nobody with a positive score"):
        await bench.publish(scores)


@pytest.mark.parametrize(("hours", "why"), [(1, "behind the chain's newest block"), (-1, "stands still, or the clock")])
async def test_a_clock_that_is_off_commits_nothing(make_world: MakeWorld, tmp_path: Path, hours: int, why: str) -> None:
    world = make_world(commit_reveal=True)
    world.node.ask(lambda chain: setattr(chain, "clock", lambda: time.time() + 3600 * hours))
    world.node.produce()
    with pytest.raises(ClockSkewError, match=why):
        await Bench(world, tmp_path).publish()
    assert world.sent() == 0


async def test_no_secret_is_in_the_journal(bench: Bench, tmp_path: Path) -> None:
    await bench.publish()
    await bench.settle(1)
    written = b"".join(path.read_bytes() for path in (tmp_path / "journal").iterdir())
    assert VALIDATOR.address.encode() in written
    assert b"secret" not in written.lower()
