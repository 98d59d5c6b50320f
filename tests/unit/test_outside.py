"""What the doctor says of the answers of those it asked."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from elastic.actors import outside
from elastic.actors.finding import Level
from elastic.actors.outside import bandwidth, reach
from elastic.config import RunConfig
from elastic.config_local import NetworkConfig
from elastic.exchange.probe.server import Status
from elastic.exchange.probe.visit import Answer, ports_of
from elastic.messages import PeerId
from elastic.wire.signing import Identity

ME, OTHER = (Identity(Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32))).peer for seed in range(2))
ENTRY, OURS = "203.0.113.5:4001", "8.8.8.8"


def config(network: dict[str, Any] | None = None, **shared: Any) -> RunConfig:
    tree = {
        "shared": {"run": "demo", "agreement": {"validators": [ME]}, **shared},
        "local": {"state_dir": str(Path("nowhere")), "network": network or {}},
    }
    return RunConfig.model_validate(tree)


def answer(status: Status = Status.OK, ip: str = OURS, peer: PeerId | None = ME) -> Answer:
    return Answer(status, ip, peer if status is Status.OK else None)


@pytest.mark.parametrize(
    ("network", "ip", "level", "says"),
    [
        ({}, OURS, Level.OK, "dialled us at 8.8.8.8:4001"),
        ({"announce": ["/ip4/8.8.8.8/tcp/4001"]}, OURS, Level.OK, "dialled us"),
        ({"announce": ["/ip4/1.1.1.1/tcp/4001"]}, OURS, Level.WARNING, "tells others to dial 1.1.1.1"),
        ({}, "192.168.1.5", Level.WARNING, "only an entry point there can tell"),
        ({"host": "192.168.1.5"}, "192.168.1.5", Level.OK, "within our own network"),
        ({"host": "127.0.0.1"}, "127.0.0.1", Level.OK, "within our own network"),
    ],
)
def test_a_peer_that_was_dialled(network: dict[str, Any], ip: str, level: Level, says: str) -> None:
    found = reach(NetworkConfig.model_validate(network), ME, ENTRY, 4001, answer(ip=ip))
    assert found.level is level and says in found.says


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (answer(peer=OTHER), f"another peer answers ({OTHER})"),
        (answer(Status.NOT_LIBP2P), "something answers that is no peer"),
        (answer(Status.REFUSED), "connection refused: let TCP port 4001 in at the firewall"),
        (answer(Status.SILENT), "no answer: let TCP port 4001 in at the firewall"),
        (answer(Status.SILENT), "forward it to this machine"),
        (answer(Status.BUSY), "try again in a minute"),
        (answer(Status.INDIRECT), "through a relay"),
        (answer(Status.UNSERVED), "UNSERVED"),
    ],
)
def test_a_peer_that_was_not_reached(given: Answer, says: str) -> None:
    found = reach(NetworkConfig(port=4001), ME, ENTRY, 4001, given)
    assert found.level is Level.WARNING and says in found.says


def test_a_port_that_is_another_one_at_every_start_cannot_be_forwarded() -> None:
    assert "set local.network.port to one" in reach(NetworkConfig(), ME, ENTRY, 4001, answer(Status.SILENT)).says


def measured(settings: RunConfig, down: float, up: float, ip: str = OURS) -> tuple[Level, str]:
    """Lines in Mb/s."""
    found = bandwidth(
        settings,
        ENTRY,
        Answer(Status.OK, ip, counted=int(down * 125_000), seconds=1.0),
        Answer(Status.OK, ip, counted=int(up * 125_000), seconds=1.0),
    )
    return found.level, found.says


def test_a_line_that_will_do() -> None:
    # given the default model: a payload of 16.4 kB
    level, says = measured(config(), 50.0, 10.0)
    assert level is Level.OK
    assert "10 Mb/s up and 50 down, to 203.0.113.5:4001" in says
    assert "(at most 16.4 kB) leaves in less than 0.1 s" in says and "time for all others" in says


def test_a_line_on_which_a_payload_comes_late() -> None:
    # given 16.4 kB in 10 s at 0.01 Mb/s: 13 s
    level, says = measured(config(round={"gather_seconds": 10.0}), 50.0, 0.01)
    assert level is Level.WARNING and "leaves in 13 s" in says and "A bucket helps" in says


@pytest.mark.parametrize(("min_peers", "level"), [(4, Level.OK), (6, Level.WARNING)])
def test_a_line_on_which_some_others_come_late(min_peers: int, level: Level) -> None:
    # given time for four payloads of 2.6 s each
    found, says = measured(config(round={"gather_seconds": 12.0, "min_peers": min_peers}), 0.05, 10.0)
    assert found is level and "time for 4 of at most 47 others" in says


def test_averaging_moves_everything_twice() -> None:
    # given 1.64 MB there and back
    shared = {"reducer": {"name": "average"}, "round": {"gather_seconds": 20.0}}
    assert measured(config(**shared), 10.0, 2.0)[0] is Level.OK
    level, says = measured(config(**shared), 10.0, 1.0)
    assert level is Level.WARNING and "takes 26 s" in says


def test_an_uplink_that_is_promised_more_than_it_has() -> None:
    level, says = measured(config({"upload_mbps": 20.0}), 50.0, 10.0)
    assert level is Level.WARNING and "local.network.upload_mbps = 20 is more: lower it" in says
    # and one that is given less: that is what payloads leave with
    level, says = measured(config({"upload_mbps": 0.01}), 50.0, 10.0)
    assert level is Level.OK and "leaves in 13 s" in says


def test_a_line_of_which_nothing_is_known() -> None:
    level, says = measured(config(), 0.0, 10.0)
    assert level is Level.WARNING and "too little came to tell" in says


def test_a_line_within_the_own_network_says_so() -> None:
    level, says = measured(config(), 900.0, 900.0, "192.168.1.5")
    assert level is Level.WARNING and "within our own network" in says


def test_nobody_to_ask() -> None:
    (found,) = outside.outside(config(), [])
    assert found.level is Level.WARNING and "nobody outside can be asked" in found.says


def test_ports_in_addresses() -> None:
    addresses = ["/ip4/1.2.3.4/tcp/4001/p2p/Qm", "/dns4/a.b/tcp/4001", "/ip4/1.2.3.4/tcp/5/p2p/Qm/p2p-circuit", "junk"]
    assert ports_of([*addresses, "/ip6/::1/tcp/80"]) == (4001, 80)
