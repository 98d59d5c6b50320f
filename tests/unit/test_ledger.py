"""Who took how much in how long, with streams side by side."""

from elastic.exchange.blobs.ledger import MAX_PEERS, OTHERS, Ledger
from elastic.messages import PeerId

ANN, BOB = PeerId("ann"), PeerId("bob")


class Clock:
    """Stands still until it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_streams_side_by_side_count_once() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.begin(ANN)
    clock.now = 1.0
    ledger.begin(ANN, b"span")
    ledger.add(ANN, 10)
    clock.now = 3.0
    ledger.end(ANN)
    ledger.add(ANN, 5)
    clock.now = 4.0
    ledger.end(ANN)
    (ann,) = ledger.take()
    assert (ann.peer, ann.num_bytes, ann.seconds, ann.span) == (ANN, 15, 4.0, b"span")


def test_what_is_under_way_counts_up_to_now_and_goes_on() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.begin(ANN)
    ledger.add(ANN, 10)
    clock.now = 2.0
    assert [(each.num_bytes, each.seconds) for each in ledger.take()] == [(10, 2.0)]
    clock.now = 5.0
    ledger.add(ANN, 1)
    ledger.end(ANN)
    assert [(each.num_bytes, each.seconds) for each in ledger.take()] == [(1, 3.0)]
    assert ledger.take() == []


def test_most_first_and_nothing_is_nobody() -> None:
    ledger = Ledger(Clock())
    for peer, amount in ((ANN, 1), (BOB, 2), (PeerId("cyd"), 0)):
        ledger.begin(peer)
        ledger.add(peer, amount)
        ledger.end(peer)
    assert [each.peer for each in ledger.take()] == [BOB, ANN]


def test_a_crowd_is_put_together() -> None:
    ledger = Ledger(Clock())
    for at in range(MAX_PEERS + 100):
        ledger.begin(PeerId(f"p{at}"))
        ledger.add(PeerId(f"p{at}"), 1)
        ledger.end(PeerId(f"p{at}"))
    found = ledger.take()
    assert len(found) == MAX_PEERS + 1
    assert (found[0].peer, found[0].num_bytes) == (OTHERS, 100)
