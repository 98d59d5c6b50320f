"""The settler, tick by tick, and in its own thread: boards in, news out, and no trouble of the chain gets out of it."""

import asyncio
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from elastic.messages import JSON, PeerId, RoundIndex, Scoreboard
from elastic.wire.signing import Identity
from incentives.subnet.backend import Subnet
from incentives.subnet.binding import Statement, bind
from incentives.subnet.chain import ERA_BLOCKS, Hotkey, Link
from incentives.subnet.errors import KeyFileError, LockedError
from incentives.subnet.journal import Journal
from incentives.subnet.news import News
from incentives.subnet.publisher import Publisher, Rules
from incentives.subnet.receipts import Outcome
from incentives.subnet.settler import LOOK_BLOCKS, Cycle, Settler
from tests.chain.world import COLDKEY, HOTKEYS, NETUID, ONE, TEMPO, VALIDATOR, World

RUN = "demo"
US, FIRST, SECOND = (Identity(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in (1, 2, 3))
CONFIG = Subnet.Config(netuid=NETUID, binding_blocks=1000)
ROOT = Path(__file__).parents[2]


def board(round_: int = 5, **scores: float) -> Scoreboard:
    peers = {"us": US.peer, "first": FIRST.peer, "second": SECOND.peer}
    return Scoreboard(round=RoundIndex(round_), scores={peers[name]: score for name, score in scores.items()})


def commit(world: World, hotkey: Hotkey, identity: Identity, *, expires: int = 900) -> None:
    """A binding that this hotkey committed."""
    statement = Statement(RUN, NETUID, hotkey.address, identity.peer, expires)
    data = bind(statement, hotkey.scheme, hotkey.sign, identity).encode()
    cut = [data[at : at + 128] for at in range(0, len(data), 128)]
    info = {"fields": [{f"Raw{len(part)}": "0x" + part.hex()} for part in cut]}

    def put(chain: Any) -> None:
        registration = {"deposit": 0, "block": chain.head.number, "info": info}
        chain.state.put("CommitmentOf", NETUID, hotkey.address, value=registration, pallet="Commitments")

    world.node.ask(put)
    world.node.produce()


def cycle(
    world: World,
    where: Path,
    identity: Identity | None = None,
    *,
    clock: Callable[[], float] = time.time,
    publishes: bool = True,
    **settings: Any,
) -> Cycle:
    config = CONFIG.model_copy(update=settings)
    rules = Rules(config.burn, config.burn_uid, config.version_key)
    publisher = Publisher(world.link(), Journal(where), rules, clock=clock)
    return Cycle(config, publisher, run=RUN, identity=identity, publishes=publishes)


def peers(news: News) -> dict[PeerId, int]:
    return {peer: each.uid for peer, each in news.roster.items()}


async def test_it_says_who_is_bound_and_publishes_their_scores(world: World, tmp_path: Path) -> None:
    commit(world, HOTKEYS["One"], FIRST)
    commit(world, HOTKEYS["Two"], SECOND)
    one = cycle(world, tmp_path)
    news = await one.tick(board(first=3.0, second=1.0, us=9.0))
    assert peers(news) == {FIRST.peer: 1, SECOND.peer: 2}
    assert news.open is not None
    world.node.produce()
    news = await one.tick(board(first=3.0, second=1.0))
    assert news.receipt is not None
    assert (news.receipt.outcome, news.receipt.intention.round, news.open) == (Outcome.LANDED, 5, None)
    assert world.weights() == {1: 65535, 2: 21845}
    assert News.from_json(json.loads(json.dumps(news.to_json()))) == news


async def test_it_binds_our_peer_before_anything_else_and_renews_it_half_way(world: World, tmp_path: Path) -> None:
    one = cycle(world, tmp_path, US)
    assert (await one.tick(None)).open is not None
    world.node.produce()
    news = await one.tick(None)
    assert news.receipt is not None
    assert (news.receipt.outcome, news.receipt.intention.kind) == (Outcome.LANDED, "binding")
    assert peers(news) == {US.peer: 0}
    for _ in range(3):
        world.node.produce(LOOK_BLOCKS)
        assert (await one.tick(None)).open is None
    world.node.produce(490)
    assert (await one.tick(None)).open is not None
    assert world.sent() == 2


async def test_a_binding_that_others_may_not_take_is_not_sent_again_and_again(world: World, tmp_path: Path) -> None:
    one = cycle(world, tmp_path, US)
    await one.tick(None)
    world.node.produce(2)
    commit(world, HOTKEYS["One"], US)
    for _ in range(10):
        world.node.produce(LOOK_BLOCKS)
        news = await one.tick(None)
    assert peers(news) == {US.peer: 1}
    assert VALIDATOR.address in news.refused
    assert world.sent() == 1


async def test_a_peer_whose_hotkey_is_deregistered_is_off_the_roster(world: World, tmp_path: Path) -> None:
    commit(world, HOTKEYS["One"], FIRST)
    one = cycle(world, tmp_path)
    assert peers(await one.tick(None)) == {FIRST.peer: 1}
    world.node.ask(lambda chain: chain.register(NETUID, HOTKEYS["Stranger"].address, COLDKEY, uid=1))
    world.node.produce(LOOK_BLOCKS)
    commit(world, HOTKEYS["Two"], SECOND)
    news = await one.tick(board(first=5.0, second=1.0))
    assert peers(news) == {SECOND.peer: 2}
    assert news.open is not None
    assert news.open.dropped == (ONE,)


async def test_trouble_is_an_alarm_and_the_last_roster_stays(world: World, tmp_path: Path) -> None:
    commit(world, HOTKEYS["One"], FIRST)
    one = cycle(world, tmp_path)
    await one.tick(None)
    world.node.stop()
    news = await one.tick(board(first=1.0))
    assert [each.level for each in news.alarms] == ["warning"]
    assert peers(news) == {FIRST.peer: 1}
    world.node.start()
    news = await one.tick(board(first=1.0))
    assert (news.alarms, news.open is not None) == ((), True)


async def test_silence_is_an_alarm_also_while_the_chain_cannot_be_read(world: World, tmp_path: Path) -> None:
    now = [1e9]
    world.node.ask(lambda chain: setattr(chain, "clock", lambda: now[0]))
    commit(world, HOTKEYS["One"], FIRST)
    world.node.produce(3 * TEMPO)  # before we began: no silence of ours
    one = cycle(world, tmp_path / "one", clock=lambda: now[0])
    quiet = cycle(world, tmp_path / "two", clock=lambda: now[0], publishes=False)
    assert (await one.tick(None)).alarms == ()
    world.node.produce(TEMPO)
    assert (await one.tick(None)).alarms == ()
    world.node.produce(LOOK_BLOCKS)
    assert [each.level for each in (await one.tick(None)).alarms] == ["warning"]
    assert (await quiet.tick(None)).alarms == ()
    world.node.stop()
    now[0] += 12.0 * (TEMPO + 1)
    assert [each.level for each in (await one.tick(None)).alarms] == ["error", "warning"]


async def test_what_the_chain_refused_stays_an_alarm(world: World, tmp_path: Path) -> None:
    commit(world, HOTKEYS["One"], FIRST)
    world.node.ask(lambda chain: chain.state.put("StakeThreshold", value=10**15))
    one = cycle(world, tmp_path)
    await one.tick(board(first=1.0))
    world.node.produce()
    news = await one.tick(board(first=1.0))
    assert news.alarms[-1].level == "error"
    assert "NotEnoughStakeToSetWeights" in news.alarms[-1].text


async def test_what_got_lost_is_an_alarm_until_something_lands(world: World, tmp_path: Path) -> None:
    commit(world, HOTKEYS["One"], FIRST)
    world.node.ask(lambda chain: setattr(chain, "withheld", True))
    one = cycle(world, tmp_path)
    await one.tick(board(first=1.0))
    world.node.produce(ERA_BLOCKS)
    world.node.ask(lambda chain: setattr(chain, "withheld", False))
    news = await one.tick(board(first=1.0))
    assert "never got into a block" in news.alarms[0].text
    world.node.produce()
    assert (await one.tick(None)).alarms == ()
    assert world.weights() == {1: 65535}


async def test_between_looks_it_asks_little(world: World, tmp_path: Path) -> None:
    one = cycle(world, tmp_path)
    await one.tick(None)
    before = len(world.node.requests)
    for _ in range(LOOK_BLOCKS - 1):
        world.node.produce()
        await one.tick(None)
    assert len(world.node.requests) - before <= 2 * LOOK_BLOCKS


# --- The settler itself, with its thread and the files of a wallet.


class Outside:
    """A settler and the news that it told."""

    def __init__(self, world: World, root: Path, **local: Any) -> None:
        self.told: queue.Queue[JSON] = queue.Queue()
        named = {"endpoint": world.node.url, "wallet_path": root, "wallet": "cold", "hotkey": "hot"}
        self.local = Subnet.Local(**{**named, "poll_seconds": 0.01, **local})
        self.root = root
        self.settler = self.another()

    def another(self) -> Settler:
        return Settler(CONFIG, self.local, self.root / "state", run=RUN, identity=US, tell=self.told.put)

    async def until(self, condition: Callable[[News], bool]) -> News:
        """The first news that fit; the settler tells some a second."""
        while True:
            news = News.from_json(await asyncio.to_thread(self.told.get, True, 10))
            if condition(news):
                return news


@pytest.fixture
def wallet(tmp_path: Path) -> Any:
    wallet = bt.Wallet("cold", "hot", path=str(tmp_path))
    wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(suppress=True)
    (tmp_path / "cold" / "coldkey").unlink()
    return wallet


@pytest.fixture
async def outside(world: World, tmp_path: Path, wallet: Any) -> AsyncIterator[Outside]:
    world.node.ask(lambda chain: chain.register(NETUID, wallet.hotkey.ss58_address, COLDKEY, stake=10, permit=True))
    world.node.produce()
    outside = Outside(world, tmp_path)
    yield outside
    await outside.settler.close()


async def test_a_board_becomes_weights(world: World, outside: Outside) -> None:
    commit(world, HOTKEYS["One"], FIRST)
    await outside.settler.settle(board(first=1.0))
    await outside.until(lambda news: news.open is not None)
    world.node.produce()
    await outside.until(lambda news: news.receipt is not None and news.receipt.intention.kind == "binding")
    await outside.until(lambda news: news.open is not None)
    world.node.produce()
    news = await outside.until(lambda news: news.receipt is not None and news.receipt.intention.kind == "weights")
    assert news.receipt is not None
    assert news.receipt.outcome is Outcome.LANDED
    assert set(news.roster) == {FIRST.peer, US.peer}
    assert world.weights(4) == {1: 65535}
    incentive = Subnet(CONFIG)
    incentive.learn(await outside.settler.news())
    assert incentive.select(RoundIndex(1), [US.peer, SECOND.peer, FIRST.peer], 5) == sorted([US.peer, FIRST.peer])


@pytest.mark.parametrize("trouble", ["down", "silent", "lying", "refusing"])
async def test_no_trouble_of_the_chain_gets_out(world: World, outside: Outside, trouble: str) -> None:
    await outside.until(lambda news: news.block is not None)
    if trouble == "down":
        world.node.stop()
    world.node.faults.silent = trouble == "silent"
    if trouble == "lying":
        world.node.faults.override["chain_getFinalizedHead"] = lambda _: None
    if trouble == "refusing":
        world.node.ask(lambda chain: chain.state.put("StakeThreshold", value=10**15))
    for round_ in range(50):
        await outside.settler.settle(board(round_, first=1.0))
        assert (await outside.settler.news())["block"] is not None
    if trouble in ("down", "lying"):
        assert (await outside.until(lambda news: bool(news.alarms))).alarms
    await outside.settler.close()
    assert not outside.settler._thread.is_alive()


async def test_one_settler_per_hotkey_and_a_next_one_when_it_has_ended(outside: Outside) -> None:
    with pytest.raises(LockedError, match=str(os.getpid())):
        outside.another()
    await outside.settler.close()
    await outside.settler.close()
    outside.settler = outside.another()
    await outside.until(lambda news: news.block is not None)


async def test_it_ends_at_once_when_it_has_hardly_begun(outside: Outside) -> None:
    await outside.settler.close()
    outside.settler = outside.another()
    await outside.settler.close()
    assert not outside.settler._thread.is_alive()


def test_a_key_that_others_may_read_starts_nothing(world: World, tmp_path: Path, wallet: Any) -> None:
    (tmp_path / "cold" / "hotkeys" / "hot").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        Outside(world, tmp_path)


async def test_no_secret_is_told_or_written(
    world: World, outside: Outside, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    seed = json.loads((tmp_path / "cold" / "hotkeys" / "hot").read_text())["secretSeed"].removeprefix("0x")
    await outside.until(lambda news: news.open is not None)
    world.node.produce()
    news = await outside.until(lambda news: news.receipt is not None)
    world.node.stop()
    await outside.until(lambda news: bool(news.alarms))
    written = [path.read_text() for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert written
    assert all(seed not in text for text in [*written, news.model_dump_json(), caplog.text, repr(outside.settler)])


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
import bittensor_core as core
from incentives.subnet.chain import Hotkey, Link
from incentives.subnet.journal import Journal
from incentives.subnet.publisher import Publisher, Rules

url, where, miner, when = sys.argv[1:]

class Dying(Link):
    async def send(self, signed):
        if when == "after":
            await super().send(signed)
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    pair = core.Keypair.create_from_uri("//Validator")
    link = Dying(url, 3, Hotkey(pair.ss58_address, pair.crypto_type, pair))
    await Publisher(link, Journal(Path(where)), Rules()).publish(await link.snapshot(), {miner: 1.0}, 5)

asyncio.run(main())
"""


@pytest.mark.parametrize(("when", "outcome"), [("before", Outcome.LOST), ("after", Outcome.LANDED)])
async def test_a_process_killed_around_the_sending_settles_it_after_a_restart(
    world: World, tmp_path: Path, when: str, outcome: Outcome
) -> None:
    commit(world, HOTKEYS["One"], FIRST)
    where = tmp_path / "journal"
    command = [sys.executable, "-c", KILLED, world.node.url, str(where), ONE, when]
    killed = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    one = cycle(world, where)
    assert one.news.open is not None
    assert (await one.tick(board(first=1.0))).open == one.news.open
    world.node.produce(ERA_BLOCKS)
    news = await one.tick(None)
    assert news.receipt is not None
    assert (news.receipt.outcome, world.sent()) == (outcome, int(when == "after"))


@pytest.mark.skipif("BT_CHAIN_ENDPOINT" not in os.environ, reason="BT_CHAIN_ENDPOINT is not set")
async def test_a_real_localnet_can_be_read() -> None:
    """Opt-in, for a subtensor localnet that has subnet 1. It has never been run: no node was to be had."""
    link = Link(os.environ["BT_CHAIN_ENDPOINT"], int(os.environ.get("BT_CHAIN_NETUID", "1")), VALIDATOR)
    try:
        seen = await link.snapshot()
        assert seen.block > 0
        assert seen.tempo > 0
    finally:
        await link.close()
