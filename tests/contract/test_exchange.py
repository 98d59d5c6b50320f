"""What every Exchange promises, checked in memory, with buckets, and on the real one over loopback."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elastic.config_local import NetworkConfig
from elastic.contracts import Exchange
from elastic.errors import AveragingError, FetchError, NetworkError
from elastic.exchange.blobs import selection
from elastic.exchange.blobs.store import BlobStore, Offer
from elastic.exchange.hivemind import HivemindExchange
from elastic.exchange.memory import MemoryExchange, MemoryNetwork
from elastic.messages import Digest, PeerCard, PeerId, PeerStage, RoundIndex, digest_of
from elastic.wire.signing import Identity
from elastic.wire.tree import CHUNK_BYTES, Table, blob_digest

RUN = "contract"
CARD_SECONDS = 3.0
ROUND = RoundIndex(1)


class Swarm:
    """Peers of one run, made as the test asks for them."""

    def __init__(self) -> None:
        self.exchanges: list[Any] = []

    async def join(self) -> Any:
        raise NotImplementedError

    def store(self, exchange: Any) -> BlobStore:
        """Where that peer keeps its blobs."""
        raise NotImplementedError

    def give_part(self, exchange: Any, blob: bytes, chunks: Iterable[int]) -> None:
        """As if it had fetched so much of that blob, and no more yet."""
        with self.store(exchange).partials.receiving(Table.of(blob)) as partial:
            for chunk in chunks:
                assert partial.add(chunk, blob[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES])

    def on_read(self, exchange: Any, change: Callable[[int, bytes], bytes]) -> None:
        """Change each chunk of a blob that it sends from now on, or raise OSError."""
        store = self.store(exchange)
        upstream = store.offer

        def offer(digest: Digest) -> Offer | None:
            right = upstream(digest)
            return right and replace(right, read=lambda chunk: change(chunk, right.read(chunk)))

        store.offer = offer  # type: ignore[method-assign]

    async def plant_card(self, exchange: Any, body: bytes) -> None:
        """Announce bytes that need not be a card."""
        raise NotImplementedError

    def let_cards_expire(self) -> None:
        """Time passes, if it can be made to."""

    async def close(self) -> None:
        for exchange in reversed(self.exchanges):
            await exchange.close()


class MemorySwarm(Swarm):
    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self.network = MemoryNetwork(lambda: self.time, CARD_SECONDS)

    async def join(self) -> MemoryExchange:
        self.exchanges.append(self.network.join(Identity.generate().peer, RUN))
        return self.exchanges[-1]

    def store(self, exchange: MemoryExchange) -> BlobStore:
        return exchange.store

    async def plant_card(self, exchange: MemoryExchange, body: bytes) -> None:
        self.network.cards[RUN, exchange.peer] = (body, self.time + CARD_SECONDS)

    def let_cards_expire(self) -> None:
        self.time += CARD_SECONDS


class HivemindSwarm(Swarm):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    async def join(self) -> HivemindExchange:
        path = self.folder / f"peer{len(self.exchanges)}.key"
        network = NetworkConfig(
            host="127.0.0.1",
            bootstrap=tuple(self.exchanges[0].addresses) if self.exchanges else (),
            card_seconds=CARD_SECONDS,
        )
        identity = Identity.load_or_create(path)
        exchange = await HivemindExchange.start(identity=identity, identity_path=path, run=RUN, network=network)
        self.exchanges.append(exchange)
        return exchange

    def store(self, exchange: HivemindExchange) -> BlobStore:
        return exchange.store

    async def plant_card(self, exchange: HivemindExchange, body: bytes) -> None:
        await exchange._write(f"{RUN}/peers", body, time.time() + CARD_SECONDS, "planting")


class BucketSwarm(MemorySwarm):
    """Every peer of it has a bucket too, which the others may read."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    async def join(self) -> Any:
        bucket = pytest.importorskip("elastic.exchange.bucket.exchange", exc_type=ModuleNotFoundError)
        url = (self.folder / f"bucket{len(self.exchanges)}").as_uri()
        config = bucket.BucketConfig(url=url, public_url=url, allow_private=True, withhold_seconds=0)
        inner = self.network.join(Identity.generate().peer, RUN)
        self.exchanges.append(bucket.BucketExchange(inner, bucket.Bucket(config), config))
        return self.exchanges[-1]

    async def plant_card(self, exchange: Any, body: bytes) -> None:
        self.network.cards[RUN, exchange.peer] = (body, self.time + CARD_SECONDS)


@pytest.fixture(params=["memory", "bucket", "hivemind"])
async def swarm(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Swarm]:
    kinds: dict[str, Callable[[], Swarm]] = {
        "memory": MemorySwarm, "bucket": lambda: BucketSwarm(tmp_path), "hivemind": lambda: HivemindSwarm(tmp_path)
    }  # fmt: skip
    made = kinds[request.param]()
    yield made
    await made.close()


def card_of(exchange: Any, peer: PeerId | None = None, run: str = RUN) -> PeerCard:
    return PeerCard(
        peer=peer or exchange.peer,
        run=run,
        shared=digest_of(b"shared"),
        stage=PeerStage.READY,
        round=ROUND,
        addresses=tuple(exchange.addresses),
    )


async def eventually(condition: Callable[[], Awaitable[bool]], tries: int = 100) -> bool:
    for _ in range(tries):
        if await condition():
            return True
        await asyncio.sleep(0.1)
    return False


async def peers_seen(exchange: Exchange) -> set[PeerId]:
    return {card.peer for card in await exchange.cards()}


async def test_cards_of_all_peers_are_seen_by_all(swarm: Swarm) -> None:
    a, b, c = [await swarm.join() for _ in range(3)]
    for exchange in (a, b, c):
        await exchange.announce(card_of(exchange))
    for exchange in (a, b, c):
        assert await peers_seen(exchange) == {a.peer, b.peer, c.peer}


async def test_the_first_peer_is_alone_and_everything_works(swarm: Swarm) -> None:
    alone = await swarm.join()
    await alone.announce(card_of(alone))
    await alone.post("commit", ROUND, b"mine")
    assert await peers_seen(alone) == {alone.peer}
    assert await alone.records("commit", ROUND) == {alone.peer: b"mine"}


async def test_a_card_that_is_not_renewed_is_gone(swarm: Swarm) -> None:
    a, b = await swarm.join(), await swarm.join()
    await b.announce(card_of(b))
    assert await peers_seen(a) == {b.peer}
    swarm.let_cards_expire()

    async def gone() -> bool:
        return await peers_seen(a) == set()

    assert await eventually(gone)


async def test_of_many_cards_at_once_the_last_is_kept(swarm: Swarm) -> None:
    # given two peers
    first, second = await swarm.join(), await swarm.join()
    # when one announces itself many times without waiting
    cards = [card_of(first).model_copy(update={"round": RoundIndex(index)}) for index in range(8)]
    await asyncio.gather(*(first.announce(card) for card in cards))
    # then nobody failed, and the other sees the newest
    seen = {card.peer: card.round for card in await second.cards()}
    assert seen[first.peer] == 7


async def test_garbage_and_foreign_cards_are_left_out(swarm: Swarm) -> None:
    a, b, c, d = [await swarm.join() for _ in range(4)]
    await a.announce(card_of(a))
    await swarm.plant_card(b, b"\xff not a card")
    await swarm.plant_card(c, card_of(c, peer=a.peer).canonical())
    await swarm.plant_card(d, card_of(d, run="another").canonical())
    assert await peers_seen(b) == {a.peer}


async def test_records_are_one_per_peer_kind_and_round(swarm: Swarm) -> None:
    a, b = await swarm.join(), await swarm.join()
    await a.post("commit", ROUND, b"from a")
    await b.post("commit", ROUND, b"first")
    await b.post("commit", ROUND, b"from b")
    await b.post("vote", ROUND, b"vote of b")
    await b.post("commit", RoundIndex(2), b"later")
    assert await a.records("commit", ROUND) == {a.peer: b"from a", b.peer: b"from b"}
    assert await a.records("vote", ROUND) == {b.peer: b"vote of b"}
    assert await a.records("vote", RoundIndex(2)) == {}


async def test_heeding_someone_hides_nobody(swarm: Swarm) -> None:
    # given a peer that heeds one of two others, itself, and one that is not there
    a, b, c = [await swarm.join() for _ in range(3)]
    await a.heed([b.peer, a.peer, Identity.generate().peer])
    # when all are there
    for exchange in (a, b, c):
        await exchange.announce(card_of(exchange))
        await exchange.post("commit", ROUND, exchange.peer.encode())
    # then it reads all
    assert await peers_seen(a) == {a.peer, b.peer, c.peer}
    assert await a.records("commit", ROUND) == {each.peer: each.peer.encode() for each in (a, b, c)}


async def test_a_record_that_is_too_large_is_refused(swarm: Swarm) -> None:
    a = await swarm.join()
    await a.post("commit", ROUND, bytes(16 * 1024))
    with pytest.raises(NetworkError, match="16384"):
        await a.post("commit", RoundIndex(2), bytes(16 * 1024 + 1))
    assert len((await a.records("commit", ROUND))[a.peer]) == 16 * 1024


async def test_a_blob_is_fetched_from_whoever_provides_it(swarm: Swarm) -> None:
    a, b = await swarm.join(), await swarm.join()
    blob = np.random.default_rng(0).bytes(9 * 1024 * 1024 + 17)
    digest = await a.provide(blob)
    assert digest == blob_digest(blob)
    assert await b.fetch(digest, len(blob), [a.peer]) == blob
    assert (await a.traffic())[0] >= len(blob)
    assert (await b.traffic())[1] >= len(blob)


async def test_it_is_known_how_much_went_to_whom(swarm: Swarm) -> None:
    a, b = await swarm.join(), await swarm.join()
    assert not await a.partners()
    blob = np.random.default_rng(1).bytes(2 * CHUNK_BYTES)
    digest = await a.provide(blob)
    await b.fetch(digest, len(blob), [a.peer])
    ((partner, (out, received)),) = (await a.partners()).items()
    assert partner == b.peer
    assert out >= len(blob)
    assert received == 0
    ((partner, (out, received)),) = (await b.partners()).items()
    assert partner == a.peer
    assert received >= len(blob)
    assert out == 0


async def test_a_file_is_served_from_disk(swarm: Swarm, tmp_path: Path) -> None:
    a, b = await swarm.join(), await swarm.join()
    blob = np.random.default_rng(0).bytes(5 * 1024 * 1024)
    (tmp_path / "state.bin").write_bytes(blob)
    await a.provide_file(blob_digest(blob), str(tmp_path / "state.bin"))
    assert await b.fetch(blob_digest(blob), len(blob), [a.peer]) == blob


async def test_what_we_hold_is_returned_without_asking(swarm: Swarm) -> None:
    a = await swarm.join()
    digest = await a.provide(b"ours")
    assert await a.fetch(digest, 4, []) == b"ours"


async def test_wrong_bytes_are_refused_and_the_next_holder_is_used(swarm: Swarm, tmp_path: Path) -> None:
    liar, honest, b = [await swarm.join() for _ in range(3)]
    digest = await liar.provide(b"the truth")
    await honest.provide(b"the truth")
    swarm.on_read(liar, lambda chunk, data: b"falsehood")
    with pytest.raises(FetchError, match="wrong bytes"):
        await b.fetch(digest, 9, [liar.peer])
    assert await b.fetch(digest, 9, [liar.peer, honest.peer]) == b"the truth"


async def test_a_file_that_is_not_what_it_should_be_is_not_served(swarm: Swarm, tmp_path: Path) -> None:
    a, b = await swarm.join(), await swarm.join()
    (tmp_path / "spoilt").write_bytes(b"falsehood")
    await a.provide_file(blob_digest(b"the truth"), str(tmp_path / "spoilt"))
    with pytest.raises(FetchError, match="does not have it"):
        await b.fetch(blob_digest(b"the truth"), 9, [a.peer])


def a_blob(chunks: int) -> bytes:
    """The last chunk is shorter."""
    return np.random.default_rng(chunks).bytes(chunks * CHUNK_BYTES - 1000)


async def provided(blob: bytes, *holders: Exchange) -> Digest:
    """By all of these."""
    digests = {await holder.provide(blob) for holder in holders}
    return digests.pop()


async def test_what_many_hold_is_sent_once(swarm: Swarm) -> None:
    # given three holders of a blob
    *holders, b = [await swarm.join() for _ in range(4)]
    blob = a_blob(24)
    digest = await provided(blob, *holders)
    # when it is fetched
    assert await b.fetch(digest, len(blob), [holder.peer for holder in holders]) == blob
    # then hardly anything came twice
    assert (await b.traffic())[1] < 1.2 * len(blob)


async def test_a_poisoned_donor_costs_no_more_than_its_chunk(swarm: Swarm) -> None:
    # given a holder one of whose chunks is wrong, and two good ones
    poisoned, *good, b = [await swarm.join() for _ in range(4)]
    blob = a_blob(12)
    digest = await provided(blob, poisoned, *good)
    swarm.on_read(poisoned, lambda chunk, data: bytes(len(data)) if chunk % 4 == 0 else data)
    # when the blob is fetched
    for order in ([poisoned, *good], [*good, poisoned]):
        assert await b.fetch(digest, len(blob), [holder.peer for holder in order]) == blob
    # then little came twice
    assert (await b.traffic())[1] < len(blob) + 3 * CHUNK_BYTES


async def test_what_a_dying_donor_gave_is_kept(swarm: Swarm) -> None:
    # given a holder that sends two chunks and no more, and another one
    dying, whole, b = [await swarm.join() for _ in range(3)]
    blob = a_blob(8)
    digest = await provided(blob, dying, whole)
    left = [0, 1]

    def die(chunk: int, data: bytes) -> bytes:
        if not left:
            raise OSError("it is dead")
        left.pop()
        return data

    swarm.on_read(dying, die)
    # when the blob is fetched, at first from the dying one alone
    with pytest.raises(FetchError, match=dying.peer):
        await b.fetch(digest, len(blob), [dying.peer])
    assert await b.fetch(digest, len(blob), [dying.peer, whole.peer]) == blob
    # then what had come was not sent again
    assert (await whole.traffic())[0] < len(blob) - CHUNK_BYTES


async def test_two_that_have_a_part_each_make_a_whole(swarm: Swarm) -> None:
    # given two peers that are in the middle of a fetch themselves
    low, high, b = [await swarm.join() for _ in range(3)]
    blob = a_blob(9)
    swarm.give_part(low, blob, range(5))
    swarm.give_part(high, blob, range(4, 9))
    # then a third gets everything from them
    assert await b.fetch(blob_digest(blob), len(blob), [low.peer, high.peer]) == blob


async def test_a_fetch_that_broke_off_is_resumed(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a peer that has most of a blob, and a fetch that ended with that
    monkeypatch.setattr(selection, "STALL_SECONDS", 1.0)
    some, whole, b = [await swarm.join() for _ in range(3)]
    blob = a_blob(10)
    swarm.give_part(some, blob, range(7))
    with pytest.raises(FetchError):
        await b.fetch(blob_digest(blob), len(blob), [some.peer])
    before = (await b.traffic())[1]
    # when it is tried again
    await whole.provide(blob)
    assert await b.fetch(blob_digest(blob), len(blob), [whole.peer]) == blob
    # then only the rest is fetched
    assert (await b.traffic())[1] - before < 4 * CHUNK_BYTES


async def test_what_was_fetched_is_served_to_the_next(swarm: Swarm) -> None:
    a, b, c = [await swarm.join() for _ in range(3)]
    blob = a_blob(6)
    digest = await a.provide(blob)
    assert await b.fetch(digest, len(blob), [a.peer]) == blob
    assert await c.fetch(digest, len(blob), [b.peer]) == blob


async def test_an_empty_blob_is_a_blob(swarm: Swarm) -> None:
    a, b = await swarm.join(), await swarm.join()
    assert await b.fetch(await a.provide(b""), 0, [a.peer]) == b""


async def test_a_holder_that_announces_another_size_is_refused(swarm: Swarm) -> None:
    a, b = await swarm.join(), await swarm.join()
    digest = await a.provide(b"nine byte")
    with pytest.raises(FetchError, match="announces 9 bytes, expected 8"):
        await b.fetch(digest, 8, [a.peer])


async def test_missing_holders_make_a_fetch_error_that_names_them(swarm: Swarm) -> None:
    a, b = await swarm.join(), await swarm.join()
    nobody = Identity.generate().peer
    with pytest.raises(FetchError) as caught:
        await b.fetch(blob_digest(b"nowhere"), 7, [a.peer, nobody])
    assert a.peer in str(caught.value)
    assert nobody in str(caught.value)
    with pytest.raises(FetchError, match="no holder"):
        await b.fetch(blob_digest(b"nowhere"), 7, [])


@pytest.mark.parametrize("num_peers", [1, 2, 3])
async def test_average_gives_everyone_the_same_bits(swarm: Swarm, num_peers: int) -> None:
    # Given peers with different tensors
    random = np.random.default_rng(num_peers)
    exchanges = [await swarm.join() for _ in range(num_peers)]
    inputs = [
        {
            "w": random.normal(size=(700, 501)).astype(np.float32),
            "b": random.normal(size=7).astype(np.float32),
        }
        for _ in exchanges
    ]
    # When they average
    results = await asyncio.gather(
        *(e.average("r1", mine, num_peers, 60.0) for e, mine in zip(exchanges, inputs, strict=True))
    )
    # Then all have the same bits, near the mean
    for name in ("w", "b"):
        mean = np.mean([mine[name] for mine in inputs], axis=0)
        assert results[0][name].dtype == np.float32
        assert len({result[name].tobytes() for result in results}) == 1
        np.testing.assert_allclose(results[0][name], mean, rtol=2e-3, atol=2e-3)


async def test_an_average_with_too_few_peers_fails(swarm: Swarm) -> None:
    a, b = await swarm.join(), await swarm.join()
    tensors = {"w": np.ones(10, np.float32)}
    outcomes = await asyncio.gather(
        *(exchange.average("r1", tensors, 3, 4.0) for exchange in (a, b)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [AveragingError, AveragingError]


async def test_an_average_of_what_is_not_finite_fails(swarm: Swarm) -> None:
    a = await swarm.join()
    with pytest.raises(AveragingError, match="not finite"):
        await a.average("r1", {"w": np.array([1.0, np.nan], np.float32)}, 1, 4.0)


async def test_close_twice_and_calls_after_it_fail(swarm: Swarm) -> None:
    a = await swarm.join()
    await a.close()
    await a.close()
    with pytest.raises(NetworkError, match="closed"):
        await a.cards()
    with pytest.raises(NetworkError, match="closed"):
        await a.heed([a.peer])
