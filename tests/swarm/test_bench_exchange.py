"""The benchmark of the exchange: real daemons on loopback, uplinks that are limited, and what the swarm is for."""

from dataclasses import asdict
from pathlib import Path

from elastic.bench.exchange import Row, measure, table


def test_a_swarm_takes_about_one_copy_from_the_origin(tmp_path: Path) -> None:
    # given four peers, and a payload that takes an uplink 0.8 s
    said: list[str] = []
    # when it is given to three of them both ways
    rows = [Row(**row) for row in measure(tmp_path, [3], 2.0, 20.0, said.append)]
    # then the origin sends a copy to each, or little more than one to all
    alone, swarm = rows
    assert (alone.peers, swarm.peers) == (3, 3)
    assert alone.origin_copies > 2.99
    assert alone.busiest_copies < 0.01
    assert swarm.origin_copies < 2
    assert swarm.busiest_copies > 0.1
    assert len(said) == 3


def test_the_table_shows_how_much_faster_the_swarm_is() -> None:
    rows = [Row("from the origin alone", 8, 8.0, 0.0, 80.0), Row("as a swarm", 8, 1.02, 1.1, 16.0)]
    lines = table([asdict(row) for row in rows]).splitlines()
    assert lines[1].split()[-3:] == ["copies", "80.0", "1.0x"]
    assert lines[2].split()[-2:] == ["16.0", "5.0x"]
