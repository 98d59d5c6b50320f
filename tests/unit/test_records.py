"""What a DHT node keeps when a crowd posts: those who are heeded always, and never more than it can carry."""

import time
from dataclasses import replace

import base58
import pytest
from hivemind.dht.routing import DHTID
from hypothesis import given
from hypothesis import strategies as st

from elastic.exchange.dht.identity_validator import MAX_VALUE_BYTES
from elastic.exchange.dht.records import Heeded, Records
from elastic.exchange.dht.strict import StrictSerializer
from elastic.exchange.limits import MIB, RECORD_COST, RecordLimits
from elastic.messages import PeerId

SMALL = RecordLimits(
    heeded=3, bytes_of_heeded=4 * RECORD_COST, strangers_in_key=4, stranger_bytes_in_key=6 * RECORD_COST,
    stranger_bytes=12 * RECORD_COST, bytes_in_key=16 * RECORD_COST, handover_bytes=5 * RECORD_COST,
)  # fmt: skip
KEYS = [DHTID(number) for number in range(8)]


def raw(number: int) -> bytes:
    return b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big")


def peer(number: int) -> PeerId:
    return PeerId(base58.b58encode(raw(number)).decode())


ME, ANN, BOB, CYD, DAN = range(5)
CROWD = range(100, 200)


class Shelf:
    """Records of a node on a clock that the test moves."""

    def __init__(self, limits: RecordLimits = SMALL, *heeded: int) -> None:
        self.start = self.time = time.time()
        self.heeded = Heeded(peer(ME), limits)
        self.heeded.heed(map(peer, heeded))
        self.records = Records(self.heeded, lambda: self.time)

    def put(self, author: int, key: int = 0, size: int = 0, until: float = 1000.0) -> bool:
        return self.records.store(KEYS[key], bytes(size), self.start + until, subkey=raw(author))

    def authors(self, key: int = 0) -> set[int]:
        found = self.records.get(KEYS[key])
        return set() if found is None else {int.from_bytes(author[6:], "big") for author, _ in found.value.items()}


def test_a_crowd_gets_a_little_room_and_who_is_heeded_all_it_needs() -> None:
    # given a key full of strangers
    shelf = Shelf(SMALL, ANN, BOB)
    taken = [author for author in CROWD if shelf.put(author)]
    assert taken == list(CROWD)[: SMALL.strangers_in_key]
    # then those whom we heed, and we, are kept all the same
    assert all(shelf.put(author, size=2 * RECORD_COST) for author in (ME, ANN, BOB))
    assert shelf.authors() == {*taken, ME, ANN, BOB}


def test_strangers_share_bytes_under_a_key_and_in_all() -> None:
    shelf = Shelf(SMALL, ANN)
    # given strangers with large records: three of them fill a key, and six everything
    assert [shelf.put(author, size=RECORD_COST) for author in range(100, 104)] == [True, True, True, False]
    assert [shelf.put(author, key=1, size=RECORD_COST) for author in range(100, 104)] == [True, True, True, False]
    # then there is no room under any other key either, but for who is heeded
    assert not any(shelf.put(author, key) for author in CROWD for key in range(2, 8))
    assert shelf.put(ANN, key=7)
    assert shelf.records.held_bytes == SMALL.stranger_bytes + RECORD_COST


def test_who_was_there_first_stays_while_it_renews() -> None:
    # given an entry point, which heeds nobody, and a crowd that takes all that was left
    shelf = Shelf(SMALL)
    assert shelf.put(ANN, until=20)
    for author in CROWD:
        shelf.put(author, until=20)
    # then it can be renewed, but not made larger, again and again
    for second in range(21, 200, 5):
        shelf.time = shelf.start + second - 10
        assert shelf.put(ANN, until=second)
        assert not shelf.put(ANN, until=second + 1, size=4 * RECORD_COST)
        for author in CROWD:
            shelf.put(author, until=second)
        assert ANN in shelf.authors()


def test_what_has_expired_is_neither_shown_nor_in_the_way() -> None:
    shelf = Shelf(SMALL)
    for author in CROWD:
        for key in range(8):
            shelf.put(author, key, until=10)
    shelf.time += 11
    assert not any(shelf.authors(key) for key in range(8))
    assert shelf.put(ANN)
    assert (shelf.records.held_bytes, len(shelf.records)) == (RECORD_COST, 1)


@pytest.mark.parametrize("until", [999.0, 1000.0, -1.0, float("nan"), float("-inf")])
def test_an_older_record_does_not_take_the_place_of_a_newer_one(until: float) -> None:
    shelf = Shelf(SMALL, ANN)
    assert shelf.put(ANN, until=1000.0)
    assert not shelf.put(ANN, size=1, until=until)
    found = shelf.records.get(KEYS[0])
    assert found is not None and found.value.get(raw(ANN)) == (b"", shelf.start + 1000)


def test_a_plain_value_is_never_kept() -> None:
    shelf = Shelf()
    assert not shelf.records.store(KEYS[0], b"plain", shelf.start + 10)
    assert shelf.records.get(KEYS[0]) is None


def test_who_is_heeded_has_a_bound_of_its_own_and_then_counts_as_a_stranger() -> None:
    # given a heeded peer that writes under ever more keys
    shelf = Shelf(SMALL, ANN, BOB)
    assert all(shelf.put(ANN, key) for key in range(8))
    # when strangers have taken the rest
    for author in CROWD:
        for key in range(8):
            shelf.put(author, key)
    # then it cannot have more, and the other one has lost nothing by it
    assert shelf.records.held_bytes == 4 * RECORD_COST + SMALL.stranger_bytes
    assert not shelf.put(ANN, key=7, size=2 * RECORD_COST, until=2000)
    assert all(shelf.put(BOB, key) for key in range(4))


def test_of_many_that_are_heeded_those_named_last_stay() -> None:
    heeded = Heeded(peer(ME), SMALL)
    heeded.heed(map(peer, (ANN, BOB, CYD)))
    heeded.heed(map(peer, (ANN, DAN, ME)))
    assert [raw(one) in heeded for one in (ME, ANN, BOB, CYD, DAN)] == [True, True, False, False, True]
    assert heeded.latest == {raw(ANN), raw(DAN)}


def test_of_a_crowd_some_are_read_those_met_before_others_and_those_heeded_before_all() -> None:
    heeded = Heeded(peer(ME), SMALL)
    heeded.heed([peer(ANN)])
    heeded.meet([peer(110), peer(111)])
    sizes = {raw(author): 0 for author in (*CROWD, ANN)}
    for _ in range(20):
        chosen = heeded.choose(sizes)
        assert len(set(chosen)) == 1 + SMALL.strangers_in_key
        assert chosen[0] == raw(ANN)
        assert set(chosen[1:3]) == {raw(110), raw(111)}
    # and large ones are fewer
    assert len(heeded.choose(dict.fromkeys(sizes, RECORD_COST))) == 1 + 3


def test_the_newest_records_are_handed_over_and_few() -> None:
    shelf = Shelf(SMALL, ANN)
    for key in range(4):
        assert shelf.put(ANN, key)
    assert shelf.put(BOB, 0, size=4 * RECORD_COST)  # too large for the handover, with Ann's
    assert [key for key, _ in shelf.records.items()] == [KEYS[3], KEYS[2], KEYS[1]]


def test_the_fullest_key_can_be_told_in_one_message() -> None:
    # given as many heeded peers and strangers as there can be, with the largest records that there are
    limits = RecordLimits()
    shelf = Shelf(limits, *range(1, limits.heeded + 1))
    for author in (ME, *range(1, limits.heeded + 1), *range(1000, 2000)):
        shelf.put(author, size=MAX_VALUE_BYTES)
    # then all the heeded are there, and reading them takes one message
    found = shelf.records.get(KEYS[0])
    assert found is not None and shelf.authors() >= {ME, *range(1, limits.heeded + 1)}
    told = StrictSerializer.dumps(found.value)
    assert len(told) < limits.bytes_in_key < 4 * MIB
    assert len(StrictSerializer.loads(told)) == len(found.value)


def test_a_crowd_that_has_passed_through_rosters_keeps_nobody_out() -> None:
    # given five rosters of 48 fresh peers, each of which filled the key of a ballot to come
    shelf = Shelf(RecordLimits())
    for first in range(1000, 1240, 48):
        roster = range(first, first + 48)
        shelf.heeded.heed([peer(ANN), *map(peer, roster)])
        assert all(shelf.put(author, size=MAX_VALUE_BYTES) for author in roster)
    # when the validator votes, honest peers that are new to the roster post too, and so does a newcomer
    shelf.heeded.heed(map(peer, (ANN, *range(1, 49))))
    assert shelf.put(ANN, size=2000)
    assert shelf.put(BOB, size=MAX_VALUE_BYTES) and shelf.put(CYD, size=MAX_VALUE_BYTES)
    assert shelf.put(5000, size=2000)
    # then all of them are there, and no more of the crowd had to go than was in the way
    assert shelf.authors() >= {ANN, BOB, CYD, 5000}
    assert len(shelf.authors()) > 170


def test_strangers_do_not_push_each_other_out() -> None:
    # given a key with no room but what one who was heeded once, and strangers, have
    shelf = Shelf(replace(SMALL, bytes_in_key=6 * RECORD_COST), ANN)
    assert shelf.put(ANN, size=2 * RECORD_COST)
    shelf.heeded.heed(map(peer, (BOB, CYD, DAN)))
    assert all(shelf.put(author) for author in CROWD[:3])
    # then another stranger gets the room of the former, and a heeded peer that of strangers too
    assert shelf.put(CROWD[3]) and not shelf.put(CROWD[4])
    assert shelf.authors() == set(CROWD[:4])
    assert shelf.put(BOB, size=3 * RECORD_COST)
    assert len(shelf.authors()) == 3 and BOB in shelf.authors()


def test_those_heeded_once_keep_a_bounded_part_of_the_memory() -> None:
    # given four rosters of one that wrote all they could, and passed
    shelf = Shelf(replace(SMALL, bytes_of_former=6 * RECORD_COST))
    for author in range(1, 5):
        shelf.heeded.heed([peer(author)])
        assert all(shelf.put(author, key) for key in (2 * author - 2, 2 * author - 1))
    shelf.heeded.heed(map(peer, (ANN, BOB, CYD)))
    shelf.heeded.heed(map(peer, (5, 6, 7)))
    # when some time has passed
    shelf.time += 10
    assert shelf.put(5, key=7)
    # then what they wrote first is gone
    assert [shelf.authors(key) for key in range(8)] == [set(), set(), {2}, {2}, {3}, {3}, {4}, {4, 5}]


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from([ME, ANN, BOB, CYD, *CROWD[:6]]), st.integers(0, 3), st.integers(0, 3), st.integers(0, 30)
    ),
    max_size=120,
)


@given(ACTIONS, st.sampled_from([SMALL, replace(SMALL, bytes_in_key=7 * RECORD_COST)]))
def test_no_bound_is_ever_passed_and_nothing_is_counted_twice(
    actions: list[tuple[int, int, int, int]], limits: RecordLimits
) -> None:
    shelf = Shelf(limits, ANN, BOB)
    for step, (author, key, size, seconds) in enumerate(actions):
        shelf.time = shelf.start + step
        if author == CYD:
            shelf.heeded.heed([peer(CROWD[key])])
        wanted, before = (size + 1) * RECORD_COST, dict(shelf.records._keys.get(KEYS[key], {}))
        old = before.pop(raw(author), None)
        held = shelf.records._held[raw(author)] - (old.cost if old is not None and old.account else 0)
        heeded = [record.cost for other, record in before.items() if other in shelf.heeded]
        fits = held + wanted <= limits.bytes_of_heeded and sum(heeded) + wanted <= limits.bytes_in_key
        is_new = old is None or old.expiration < shelf.start + step + seconds
        stored = shelf.put(author, key, size * RECORD_COST, until=step + seconds)
        if fits and is_new and raw(author) in shelf.heeded:  # then it always gets in
            assert stored
        kept = [record for records in shelf.records._keys.values() for record in records.values()]
        assert shelf.records.held_bytes == sum(record.cost for record in kept)
        assert sum(record.cost for record in kept if not record.account) <= limits.stranger_bytes
        for records in shelf.records._keys.values():
            assert sum(record.cost for record in records.values()) <= limits.bytes_in_key
            strangers = [record.cost for record in records.values() if not record.account]
            assert len(strangers) <= limits.strangers_in_key
            assert sum(strangers) <= limits.stranger_bytes_in_key
        accounts = {record.account for record in kept} - {b""}
        assert all(shelf.records._held[account] <= limits.bytes_of_heeded for account in accounts)
