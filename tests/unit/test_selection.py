"""What a fetch asks of whom: decided without sockets, threads or a clock."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.exchange.blobs.selection import (
    ANY_COPIES,
    MAX_BATCH,
    PATIENCE_SECONDS,
    PIPELINE,
    STAGGER_SECONDS,
    STALL_SECONDS,
    Ask,
    Bits,
    Selection,
    pick,
)
from elastic.messages import PeerId
from elastic.wire.tree import CHUNK_BYTES

ANN, BOB, CYD = (PeerId(name) for name in ("ann", "bob", "cyd"))


def bits(count: int, *chunks: int) -> Bits:
    held = np.zeros(count, np.bool_)
    held[list(chunks)] = True
    return held


def begun(num_chunks: int, *holders: PeerId, now: float = 0.0) -> Selection:
    """A fetch of which the first holder has given the table; it has all chunks."""
    selection = Selection(holders, np.random.default_rng(0), now)
    ask = selection.next(now)
    assert ask == Ask(holders[0], table=True)
    selection.got_table(bits(num_chunks), now)
    selection.told(holders[0], ~bits(num_chunks))
    selection.answered(ask, 0, 0.1, now)
    return selection


def test_the_first_holder_is_asked_first_and_the_others_a_little_later() -> None:
    selection = begun(10, ANN, BOB)
    ask = selection.next(0.0)
    assert ask is not None
    assert ask.holder == ANN
    assert selection.next(0.0) is None
    assert selection.wait(0.0) == STAGGER_SECONDS
    assert selection.next(STAGGER_SECONDS) == Ask(BOB)


def test_the_others_are_asked_at_once_when_the_first_has_nothing() -> None:
    selection = Selection([ANN, BOB], np.random.default_rng(0), 0.0)
    ask = selection.next(0.0)
    assert ask is not None
    selection.lacks(ask, "does not have it", 0.1)
    assert selection.next(0.1) == Ask(BOB, table=True)


def test_a_holder_that_keeps_the_table_waiting_does_not_keep_us_waiting() -> None:
    selection = Selection([ANN, BOB], np.random.default_rng(0), 0.0)
    assert selection.next(0.0) == Ask(ANN, table=True)
    assert selection.next(PATIENCE_SECONDS - 0.1) is None
    assert selection.next(PATIENCE_SECONDS) == Ask(BOB, table=True)


def test_a_large_blob_is_taken_thriftily_from_the_first_and_a_small_one_plainly() -> None:
    large, small = begun(100, ANN, BOB).next(0.0), begun(3, ANN, BOB).next(0.0)
    assert large is not None
    assert small is not None
    assert (large.copies, len(large.chunks), large.most) == (0, 100, 1)
    assert (small.copies, len(small.chunks), small.most) == (ANY_COPIES, 1, 1)


def test_the_first_is_not_asked_for_what_others_have() -> None:
    # given another holder of all chunks but one
    selection = begun(10, ANN, BOB)
    first = selection.next(STAGGER_SECONDS)
    assert first is not None
    news = selection.next(STAGGER_SECONDS)
    assert news == Ask(BOB)
    selection.told(BOB, ~bits(10, 4))
    selection.answered(news, 0, 0.1, STAGGER_SECONDS)
    selection.answered(first, 1, 0.1, STAGGER_SECONDS)
    # then the first is asked for that one only, and the other for one that it has
    asks = {ask.holder: ask for ask in (selection.next(0.5), selection.next(0.5)) if ask is not None}
    assert asks[ANN].chunks == (4,)
    assert 4 not in asks[BOB].chunks


def test_the_first_is_asked_for_second_copies_only_after_patience() -> None:
    # given a first holder that has handed out everything, and another one that has begun
    selection = begun(10, ANN, BOB)
    ask = selection.next(STAGGER_SECONDS)
    news = selection.next(STAGGER_SECONDS)
    assert ask is not None
    assert news is not None
    selection.told(BOB, bits(10))
    selection.answered(news, 0, 0.1, STAGGER_SECONDS)
    # when it gives nothing
    selection.answered(ask, 0, 0.1, 1.0)
    # then it is left alone for some time, and then asked for what it has handed out once
    assert selection.next(1.0 + PATIENCE_SECONDS - 0.01) in (None, Ask(BOB))
    asks = [selection.next(1.0 + PATIENCE_SECONDS + 5) for _ in range(2)]
    assert [ask.copies for ask in asks if ask is not None and ask.holder == ANN] == [1]


def test_without_others_there_is_nothing_to_wait_for() -> None:
    selection = begun(10, ANN)
    ask = selection.next(0.0)
    assert ask is not None
    selection.answered(ask, 0, 0.1, 1.0)
    again = selection.next(1.0)
    assert again is not None
    assert again.copies == ANY_COPIES


def test_the_rarest_chunk_is_asked_for_first() -> None:
    # given a small blob of which two others have all chunks but one
    selection = begun(3, ANN, BOB, CYD)
    for holder in (BOB, CYD):
        selection.told(holder, bits(3, 0, 2))
    # then that one is asked for first
    ask = selection.next(0.0)
    assert ask is not None
    assert ask.chunks == (1,)


def test_a_fast_holder_is_asked_for_more() -> None:
    selection = begun(100, ANN)
    ask = selection.next(0.0)
    assert ask is not None
    selection.answered(ask, 1, 0.2, 1.0)
    five = selection.next(1.0)
    assert five is not None
    assert five.most == 5
    selection.answered(five, 5, 0.001, 2.0)
    most = selection.next(2.0)
    assert most is not None
    assert most.most == MAX_BATCH


def test_a_chunk_that_is_late_is_asked_of_another() -> None:
    # given a blob of one chunk that was asked of the first, and another holder of it
    selection = begun(1, ANN, BOB)
    slow = selection.next(0.0)
    assert slow is not None
    selection.told(BOB, ~bits(1))
    assert selection.next(PATIENCE_SECONDS / 2) is None
    # when it does not come
    again = selection.next(PATIENCE_SECONDS * 1.5)
    # then the other is asked
    assert again is not None
    assert (again.holder, again.chunks) == (BOB, (0,))
    # and what comes first is enough
    selection.got(0, 4.0)
    assert selection.complete


def test_a_liar_is_never_asked_again_and_is_named() -> None:
    selection = begun(5, ANN, BOB)
    ask = selection.next(0.0)
    assert ask is not None
    selection.lied(ask, "gave wrong bytes", 0.1)
    for _ in range(100):
        ask = selection.next(100.0)
        assert ask is None or ask.holder == BOB
    assert selection.story == {ANN: "gave wrong bytes"}


def test_who_is_gone_is_tried_twice() -> None:
    selection = Selection([ANN], np.random.default_rng(0), 0.0)
    for now in (0.0, 1.0):
        assert not selection.hopeless(now)
        ask = selection.next(now)
        assert ask is not None
        selection.failed(ask, "refused", now)
    assert selection.hopeless(1.0)
    assert selection.story == {ANN: "refused"}


def test_a_fetch_from_nobody_is_hopeless_at_once_and_from_a_busy_one_after_long() -> None:
    assert Selection([], np.random.default_rng(0), 0.0).hopeless(0.0)
    selection, now = Selection([ANN], np.random.default_rng(0), 0.0), 0.0
    while not selection.hopeless(now):
        ask = selection.next(now)
        if ask is not None:
            selection.busy(ask, "is busy", now)
        now += 0.25
    assert now > STALL_SECONDS


class Swarm:
    """Holders of which the last is honest and the others do anything."""

    def __init__(self, num_chunks: int, num_holders: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.holders = [PeerId(f"holder{index}") for index in range(num_holders)]
        self.selection = Selection(self.holders, self.random, 0.0)
        self.held, self.handed = bits(num_chunks), np.zeros(num_chunks, np.uint8)
        self.liars: set[PeerId] = set()

    def answer(self, ask: Ask, now: float) -> None:
        """What one holder does about one request."""
        if ask.holder == self.holders[-1]:
            self.give(ask, now)
            return
        match int(self.random.integers(5)):
            case 0 if self.selection.has_table:
                self.selection.told(ask.holder, self.random.random(len(self.held)) < 0.5)
                self.selection.answered(ask, 0, 0.1, now)
            case 1:
                self.selection.busy(ask, "is busy", now)
            case 2:
                self.selection.lacks(ask, "does not have it", now)
            case 3:
                self.selection.failed(ask, "broke off", now)
            case _:
                self.liars.add(ask.holder)
                self.selection.lied(ask, "gave wrong bytes", now)

    def give(self, ask: Ask, now: float) -> None:
        if ask.table and not self.selection.has_table:
            self.selection.got_table(self.held.copy(), now)
        self.selection.told(ask.holder, ~bits(len(self.held)))
        picked = pick(ask.chunks, ask.most, ask.copies, ~bits(len(self.held)), self.handed)
        for chunk in picked:
            self.held[chunk] = True
            self.selection.got(chunk, now)
        self.selection.answered(ask, len(picked), 0.1, now)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_whatever_holders_do_one_honest_one_is_enough(num_chunks: int, num_holders: int, seed: int) -> None:
    swarm, now, pending = Swarm(num_chunks, num_holders, seed), 0.0, list[Ask]()
    while not swarm.selection.complete:
        assert not swarm.selection.hopeless(now), swarm.selection.story
        # when nobody is asked for much at a time, nor for the same, no liar again, and for nothing that is here
        while (ask := swarm.selection.next(now)) is not None:
            open_ = [each for each in pending if each.holder == ask.holder]
            assert ask.holder not in swarm.liars and len(open_) < PIPELINE
            assert not any(set(each.chunks) & set(ask.chunks) for each in open_)
            assert not swarm.held[list(ask.chunks)].any()
            pending.append(ask)
        now += max(0.01, min(swarm.selection.wait(now), 0.5))
        # and answers come in any order
        if pending:
            swarm.answer(pending.pop(int(swarm.random.integers(len(pending)))), now)
    # then everything arrives
    assert swarm.held.all()


@pytest.mark.parametrize(
    ("asked", "most", "copies", "expected"),
    [
        ((0, 1, 2, 3), 2, 255, [2, 3]),
        ((3, 2, 1, 0), 2, 255, [3, 2]),
        ((0, 1, 2, 3), 4, 0, [2, 3]),
        ((0, 1), 1, 1, [1]),
        ((0, 4), 9, 255, [0]),
        ((), 3, 255, []),
    ],
)
def test_a_holder_sends_what_it_has_handed_out_least(
    asked: tuple[int, ...], most: int, copies: int, expected: list[int]
) -> None:
    # given five chunks of which it has four, handed out twice, once and never
    handed = np.array([2, 1, 0, 0, 0], np.uint8)
    before = handed.copy()
    # then
    assert pick(asked, most, copies, bits(5, 0, 1, 2, 3), handed) == expected
    assert (handed - before).sum() == len(expected)


def test_a_donor_that_has_everything_is_asked_again_before_it_has_answered() -> None:
    # given a donor that has everything, and a peer that fetches too, both of known speed
    selection, now = begun(400, ANN, BOB, CYD), STAGGER_SECONDS
    news = {ask.holder: ask for ask in iter(lambda: selection.next(now), None)}
    selection.told(BOB, ~bits(400))
    selection.told(CYD, bits(400, *range(300)))
    for holder in (BOB, CYD):
        selection.answered(news[holder], 4, 0.25, now)
    # when as much is asked as may be
    asked = list(iter(lambda: selection.next(now), None))
    # then the donor has two requests, for different chunks
    assert Counter(ask.holder for ask in asked) == {BOB: PIPELINE, CYD: 1}
    chunks = [chunk for ask in asked for chunk in ask.chunks]
    assert len(set(chunks)) == len(chunks) == 3 * 16


def test_a_count_does_not_overflow() -> None:
    handed = np.array([255], np.uint8)
    assert pick((0,), 1, ANY_COPIES, bits(1, 0), handed) == [0]
    assert handed[0] == 255
    assert CHUNK_BYTES * MAX_BATCH <= 16 * 1024 * 1024
