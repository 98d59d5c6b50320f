"""The churn benchmark: the emulated network does what a network of that kind does, and rows tell what was seen."""

import struct
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from elastic.bench.churn import donors, goodput, kills, splits
from elastic.bench.churn.link import Link, Port, address, destination
from elastic.bench.churn.swarm import Host, good
from elastic.reports import RoundReport

RATE, DELAY = 1000.0, 0.5


def packet(host: int, size: int = 100) -> bytes:
    """IPv4, for that host."""
    receiver = bytes(int(part) for part in address(host).split("."))
    return (b"\x45" + bytes(15) + receiver).ljust(size, b"\0")


def link(hosts: int = 2, loss: float = 0.0, queue_seconds: float = 1.0, up: float = RATE, down: float = RATE) -> Link:
    return Link([], [Port(up, down, DELAY, loss) for _ in range(hosts)], queue_seconds, seed=1)


def test_addresses_name_hosts_and_nothing_else_does() -> None:
    for host in (0, 1, 254, 255, 256, 600):
        assert destination(packet(host)) == host
    assert destination(packet(1)[:19]) is None
    assert destination(b"\x60" + packet(1)[1:]) is None
    assert destination(packet(1)[:16] + struct.pack("!I", 0x08080808)) is None


def arrivals(wan: Link) -> list[float]:
    return [at for at, _, _ in wan.arrivals(now=1e9)]


def test_a_packet_takes_its_time_on_both_lines_and_in_between() -> None:
    wan = link()
    wan.send(0, packet(1), now=10.0)
    # 100 bytes at 1000 B/s are 0.1 s up and 0.1 s down
    assert arrivals(wan) == pytest.approx([10.0 + 0.1 + DELAY + 0.1])


def test_nothing_arrives_before_its_time() -> None:
    wan = link()
    wan.send(0, packet(1), now=10.0)
    assert list(wan.arrivals(now=10.6)) == []
    assert [(receiver, data) for _, receiver, data in wan.arrivals(now=10.8)] == [(1, packet(1))]


def test_packets_queue_and_what_would_wait_too_long_is_dropped() -> None:
    # given a line of ten packets a second, and a second of queue
    wan = link(queue_seconds=1.0, down=1e9)
    # when thirty come at once
    for _ in range(30):
        wan.send(0, packet(1), now=0.0)
    # then eleven go out, one after the other
    assert arrivals(wan) == pytest.approx([0.1 * n + DELAY for n in range(1, 12)], abs=1e-6)


def test_a_slow_line_has_room_for_a_few_packets_however_long_they_wait() -> None:
    wan = Link([], [Port(RATE, 1e9, DELAY, 0.0) for _ in range(2)], queue_seconds=0.1, seed=1, queue_bytes=500)
    for _ in range(30):
        wan.send(0, packet(1), now=0.0)
    assert arrivals(wan) == pytest.approx([0.1 * n + DELAY for n in range(1, 7)], abs=1e-6)


def test_senders_share_the_downlink_of_who_receives() -> None:
    wan = link(hosts=3, up=1e9)
    for sender in (0, 1):
        wan.send(sender, packet(2), now=0.0)
    assert arrivals(wan) == pytest.approx([DELAY + 0.1, DELAY + 0.2], abs=1e-6)


def test_a_slow_sender_holds_up_nobody_elses_packets() -> None:
    # given a host whose line takes a second for a packet
    wan = link(hosts=3, up=1e9)
    wan.change({"up": [100.0, 1e9, 1e9]})
    # when it sends to where a fast one sends too, a little later
    wan.send(0, packet(2), now=0.0)
    wan.send(1, packet(2), now=0.2)
    # then the fast one's packet is there first
    assert arrivals(wan) == pytest.approx([0.2 + DELAY + 0.1, 1.0 + DELAY + 0.1], abs=1e-6)


def test_a_bad_way_is_bad_between_two_hosts_only_and_in_both_directions() -> None:
    wan = link(hosts=3, up=1e9, down=1e9)
    wan.change({"narrow": [0, 1, 50.0]})
    for sender, receiver in ((0, 1), (1, 0), (0, 2), (2, 1)):
        wan.send(sender, packet(receiver), now=0.0)
    assert arrivals(wan) == pytest.approx([DELAY, DELAY, DELAY + 2.0, DELAY + 2.0], abs=1e-6)
    wan.change({"narrow": []})
    wan.send(0, packet(1), now=10.0)
    assert arrivals(wan) == pytest.approx([10.0 + DELAY], abs=1e-6)


@pytest.mark.parametrize("changed", [{"loss": [0.1, 0.0]}, {"down_loss": [0.0, 0.1]}], ids=str)
def test_losses_are_as_many_as_told_and_the_same_for_a_seed(changed: dict[str, list[float]]) -> None:
    def came() -> list[float]:
        wan = link(up=1e9, down=1e9)
        wan.change(changed)
        for n in range(2000):
            wan.send(0, packet(1), now=float(n))
        return arrivals(wan)

    assert came() == came()
    assert 140 < 2000 - len(came()) < 260


def test_a_split_network_carries_nothing_between_its_sides_until_it_heals() -> None:
    wan = link(hosts=3)
    wan.change({"side": [0, 1, 0]})
    wan.send(0, packet(1), now=0.0)
    assert arrivals(wan) == []
    wan.send(0, packet(2), now=0.0)
    assert len(arrivals(wan)) == 1
    wan.change({"side": [0, 0, 0]})
    wan.send(0, packet(1), now=9.0)
    assert len(arrivals(wan)) == 1


def test_nothing_is_routed_to_who_is_not_there() -> None:
    wan = link()
    wan.send(0, packet(7), now=0.0)
    assert arrivals(wan) == []


def test_rows_fit_under_their_headers() -> None:
    blow = kills.Blow("another validator", "gather", 0, 3.21, 9.87)
    nobody = kills.Blow("trace collector (hangs)", "any", 1, 3.21, None)
    split = splits.Split("halves", 60.0, 0, 4, 7.8, 1)
    row = goodput.Goodput("adaptive", 0.1, 7, 12, 1, 900.0, 11.2)
    transfer = donors.Transfer("8, one of them lies", 3.5, 1.0)
    for line, header in (
        (kills.line(blow), kills.header()), (kills.line(nobody), kills.header()),
        (splits.line(split), splits.header()), (goodput.line(row, calm=1000.0), goodput.header()),
        (donors.line(transfer), donors.header()),
    ):  # fmt: skip
        assert len(line) == len(header)
    assert goodput.line(row, calm=1000.0).split()[-2:] == ["90%", "11.2"]


def report(manifest: str | None = "0" * 64, skipped: str | None = None, round_: int = 1) -> RoundReport:
    return RoundReport.model_validate({
        "run": "r", "round": round_, "peer": "1" * 46, "name": "", "contributed": True, "counted": False,
        "skipped": skipped, "digest": "0" * 64, "manifest": manifest, "seconds": {},
    })  # fmt: skip


def test_a_round_is_good_if_it_took_an_outer_step() -> None:
    assert good(report())
    assert good(report("0" * 64, "arrived after the round was decided"))
    assert not good(report("0" * 64, "void: nobody's contribution counted"))
    assert not good(report(None, "no manifest for this round yet"))


async def test_a_collector_that_hangs_is_measured_by_the_round_that_begins_then() -> None:
    # given a swarm whose peer has just finished round 4
    def ends(round_: int) -> None:
        host.reports.append((time.monotonic(), report(round_=round_)))

    host: Any = SimpleNamespace(reports=[])
    host.good_at = partial(Host.good_at, host)
    ends(4)

    async def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
        if not holds():
            ends(host.reports[-1][1].round + 1)
        assert holds()

    collector = SimpleNamespace(stop=lambda: None, kill=lambda: None)
    swarm: Any = SimpleNamespace(hosts=[host], round=4, collector=collector, all_good=AsyncMock(), until=until)
    # when
    blow = await kills._hang_collector(swarm)
    # then it took until the end of round 5, and no other
    assert [report.round for _, report in host.reports] == [4, 5]
    assert blow.rounds_lost == 0 and blow.back_after is None
