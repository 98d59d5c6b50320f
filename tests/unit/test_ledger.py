"""Who took how much in how long, with streams side by side."""

from elastic.exchange.blobs.ledger import MAX_PEERS, OTHERS, Ledger
from elastic.messages import PeerId
from elastic.reports import Carried

ANN, BOB = PeerId("ann"), PeerId("bob")


class Clock:
    """Stands still until it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_streams_side_by_side_count_once() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    one = ledger.begin(ANN)
    clock.now = 1.0
    other = ledger.begin(ANN, b"span")
    ledger.add(one, 10)
    clock.now = 3.0
    ledger.end(one)
    ledger.add(other, 5)
    clock.now = 4.0
    ledger.end(other)
    (ann,) = ledger.take()
    assert (ann.peer, ann.num_bytes, ann.seconds, ann.span) == (ANN, 15, 4.0, b"span")


def test_what_is_under_way_counts_up_to_now_and_goes_on() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    entry = ledger.begin(ANN)
    ledger.add(entry, 10)
    clock.now = 2.0
    assert [(each.num_bytes, each.seconds) for each in ledger.take()] == [(10, 2.0)]
    clock.now = 5.0
    ledger.add(entry, 1)
    ledger.end(entry)
    assert [(each.num_bytes, each.seconds) for each in ledger.take()] == [(1, 3.0)]
    assert ledger.take() == []


def test_most_first_and_nothing_is_nobody() -> None:
    ledger = Ledger(Clock())
    for peer, amount in ((ANN, 1), (BOB, 2), (PeerId("cyd"), 0)):
        entry = ledger.begin(peer)
        ledger.add(entry, amount)
        ledger.end(entry)
    assert [each.peer for each in ledger.take()] == [BOB, ANN]


def test_a_crowd_is_put_together() -> None:
    ledger = Ledger(Clock())
    for at in range(MAX_PEERS + 100):
        entry = ledger.begin(PeerId(f"p{at}"))
        ledger.add(entry, 1)
        ledger.end(entry)
    found = ledger.take()
    assert len(found) == MAX_PEERS + 1
    assert (found[0].peer, found[0].num_bytes) == (OTHERS, 100)


def test_who_came_in_a_crowd_ends_in_it_also_when_there_is_room_again() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    # given a stream that was put together with others, as there were too many
    for at in range(MAX_PEERS):
        ledger.end(ledger.begin(PeerId(f"p{at}")))
    clock.now = 100_000.0
    entry = ledger.begin(ANN)
    assert ledger.take() == []
    # when it goes on after all those have gone
    clock.now = 100_001.0
    ledger.add(entry, 5)
    ledger.end(entry)
    # then it counts where it began, and nothing stays open
    assert ledger.take() == [Carried(OTHERS, 5, 1.0)]
    ledger.add(ledger.begin(ANN), 1)
    assert [each.peer for each in ledger.take()] == [ANN]
    clock.now = 200_000.0
    assert ledger.take() == []
