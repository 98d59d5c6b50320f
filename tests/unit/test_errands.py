"""What is fetched beside everything else: one blob of each author at a time, and less and less of who never sends."""

import asyncio
import logging
from collections.abc import Sequence

import pytest

from elastic.agreement.errands import LONGEST_PAUSE, Errands
from elastic.exchange.memory import MemoryExchange, MemoryNetwork
from elastic.messages import BlobRef, Digest, PeerId, Seconds, digest_of
from elastic.schedule.clock import ManualClock

ANN, BOB = PeerId("A" * 46), PeerId("B" * 46)
NOWHERE = BlobRef(digest=digest_of(b"never sent"), size_bytes=7).canonical()


class Slow(MemoryExchange):
    """Notes when it was asked, and takes a while."""

    def __init__(self, clock: ManualClock, seconds: float = 0.0) -> None:
        super().__init__(MemoryNetwork(clock.now, 1000.0, clock.sleep), ANN, "run")
        self.clock, self.seconds = clock, seconds
        self.asked: list[float] = []
        self.cancelled = 0

    async def fetch(self, digest: Digest, size_bytes: int, holders: Sequence[PeerId]) -> bytes:
        self.asked.append(self.clock.now())
        try:
            await self.clock.sleep(Seconds(self.seconds))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().fetch(digest, size_bytes, holders)


async def test_what_comes_is_handed_over_once() -> None:
    # given
    clock = ManualClock()
    exchange = Slow(clock, 0.5)
    record = BlobRef(digest=await exchange.provide(b"ballot"), size_bytes=6).canonical()
    sut = Errands(exchange, clock, "the ballot")
    # when
    sut.send(BOB, record)
    assert sut.back() == {}
    await sut.wait([BOB], Seconds(5))
    # then
    assert clock.now() < 1
    assert sut.back() == {BOB: (record, b"ballot")}
    assert sut.back() == {}


async def test_who_is_silent_is_waited_for_only_so_long_and_asked_once_at_a_time() -> None:
    # given
    clock = ManualClock()
    exchange = Slow(clock, 1e6)
    sut = Errands(exchange, clock, "the ballot")
    # when it posts another reference all the time
    for number in range(50):
        sut.send(BOB, BlobRef(digest=digest_of(b"%d" % number), size_bytes=7).canonical())
        await sut.wait([ANN, BOB], Seconds(1))
    # then
    assert exchange.asked == [0.0]
    assert clock.now() < 1.5
    # and nothing is left when nobody wants it any more
    sut.cancel()
    await clock.sleep(Seconds(1))
    assert exchange.cancelled == 1
    assert sut.back() == {}


async def test_who_fails_us_is_asked_less_and_less_often() -> None:
    # given
    clock = ManualClock()
    exchange = Slow(clock)
    sut = Errands(exchange, clock, "the ballot")
    # when
    while clock.now() < 100:
        sut.send(BOB, NOWHERE)
        await clock.sleep(Seconds(0.5))
        assert sut.back() == {}
    # then
    pauses = [late - early for early, late in zip(exchange.asked, exchange.asked[1:], strict=False)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 2 and LONGEST_PAUSE <= pauses[-1] < LONGEST_PAUSE + 1
    # and another one is not
    sut.send(ANN, BlobRef(digest=await exchange.provide(b"hers"), size_bytes=4).canonical())
    await sut.wait([ANN], Seconds(5))
    assert [blob for _, blob in sut.back().values()] == [b"hers"]


async def test_a_record_that_refers_to_nothing_is_a_lie_that_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    exchange = Slow(clock)
    sut = Errands(exchange, clock, "the ballot")
    for _ in range(20):
        sut.send(BOB, b"garbage")
        await clock.sleep(Seconds(1))
        assert sut.back() == {}
    assert exchange.asked == []
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1


async def test_a_mistake_of_ours_is_not_swallowed() -> None:
    # given
    clock = ManualClock()

    class Broken(Slow):
        async def fetch(self, digest: Digest, size_bytes: int, holders: Sequence[PeerId]) -> bytes:
            raise ZeroDivisionError

    sut = Errands(Broken(clock), clock, "the ballot")
    sut.send(BOB, NOWHERE)
    await sut.wait([BOB], Seconds(1))
    # when / then
    with pytest.raises(ZeroDivisionError):
        sut.back()
