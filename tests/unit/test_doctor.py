"""The doctor finds what is wrong with a machine, one thing at a time, and says what to do."""

import socket
import struct
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elastic.actors import doctor
from elastic.actors.doctor import Level
from elastic.config import RunConfig
from elastic.state.claim import claim, is_claimed
from elastic.wire.signing import Identity

ENTRY = f"/ip4/127.0.0.1/tcp/%d/p2p/{Identity.generate().peer}"


def config(folder: Path, network: dict[str, Any] | None = None, **local: Any) -> RunConfig:
    tree = {
        "shared": {"run": "demo", "agreement": {"validators": [Identity.generate().peer]}},
        "local": {"state_dir": str(folder / "state"), "network": network or {}, **local},
    }
    return RunConfig.model_validate(tree)


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of somebody who listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_is_a_problem(tmp_path: Path, listener: int) -> None:
    taken = doctor.port(config(tmp_path, {"host": "127.0.0.1", "port": listener}))
    assert taken.level is Level.PROBLEM and "choose another local.network.port" in taken.says
    assert doctor.port(config(tmp_path)).level is Level.OK


def test_entry_points_answer_or_are_named(tmp_path: Path, listener: int) -> None:
    # given one that listens, and a port that nobody has any more
    with socket.create_server(("127.0.0.1", 0)) as gone:
        free = gone.getsockname()[1]
    # when
    there, silent = doctor.entries(config(tmp_path, {"bootstrap": [ENTRY % listener, ENTRY % free]}))
    # then
    assert there.level is Level.OK and f"127.0.0.1:{listener} answers" in there.says
    assert silent.level is Level.PROBLEM and f"127.0.0.1:{free}" in silent.says
    assert [found.level for found in doctor.entries(config(tmp_path))] == [Level.WARNING]


@pytest.mark.parametrize(
    ("network", "level", "says"),
    [
        ({"host": "127.0.0.1"}, Level.WARNING, "only peers on this machine"),
        ({"host": "192.168.1.5"}, Level.WARNING, "local.network.announce"),
        ({"host": "8.8.8.8"}, Level.OK, "public"),
        ({"announce": ["/dns4/peer.example.org/tcp/4001"]}, Level.OK, "peer.example.org"),
    ],
)
def test_what_others_can_dial(tmp_path: Path, network: dict[str, Any], level: Level, says: str) -> None:
    found = doctor.address(config(tmp_path, network))
    assert found.level is level and says in found.says


@pytest.mark.parametrize(("free", "level"), [(10**8, Level.PROBLEM), (5 * 10**9, Level.WARNING), (10**11, Level.OK)])
def test_a_disk_that_will_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: Level) -> None:
    usage = namedtuple("usage", "total used free")(10**12, 0, free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert doctor.disk(config(tmp_path), 10**6).level is level


@pytest.mark.parametrize(
    ("checkpoints", "level", "knob"),
    [
        ({}, Level.OK, ""),
        ({"keep_last": 100}, Level.PROBLEM, "lower local.checkpoints.keep_last"),
        ({"keep_every": 1}, Level.WARNING, "(local.checkpoints.keep_every)"),
    ],
)
def test_a_disk_on_which_too_much_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, int], level: Level, knob: str
) -> None:
    # given room for 50 anchors of a run of 100 rounds, and for payloads
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(1, 0, 50 * 10**9)
    )
    found = doctor.disk(config(tmp_path, checkpoints=checkpoints), 10**9)
    assert found.level is level and knob in found.says


def test_a_model_that_is_too_large_for_this_machine(tmp_path: Path) -> None:
    assert doctor.memory(config(tmp_path), 10**6).level is Level.OK
    assert doctor.memory(config(tmp_path), 10**13).level is Level.WARNING


@pytest.mark.parametrize(("off", "level"), [(0.0, Level.OK), (60.0, Level.PROBLEM), (-60.0, Level.PROBLEM)])
def test_a_wrong_clock(off: float, level: Level) -> None:
    # given a time server that is so far ahead of us
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def answer() -> None:
            _, client = server.recvfrom(512)
            now = time.time() + off + doctor.NTP_ZERO
            server.sendto(bytes(40) + struct.pack("!II", int(now), int(now % 1 * 2**32)), client)

        thread = threading.Thread(target=answer)
        thread.start()
        # when
        found = doctor.clock(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    # then
    assert found.level is level
    assert ("behind" in found.says) == (off > 0) and ("ahead" in found.says) == (off < 0)


@pytest.mark.parametrize("answer", [b"what?", bytes(48)])
def test_a_time_server_that_talks_nonsense_is_no_reason_to_fail(answer: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=lambda: server.sendto(answer, server.recvfrom(512)[1]))
        thread.start()
        found = doctor.clock(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert found.level is Level.WARNING
    assert doctor.clock("no such host:what").level is Level.WARNING


def test_a_key_that_others_may_read_is_a_problem(tmp_path: Path) -> None:
    # given
    settings = config(tmp_path)
    assert "made at the first start" in doctor.key(settings).says
    mine = Identity.load_or_create(settings.key_path)
    assert mine.peer in doctor.key(settings).says
    # when
    settings.key_path.chmod(0o644)
    # then
    assert doctor.key(settings).level is Level.PROBLEM


def test_gpus_that_are_wanted_and_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    wanted = doctor.gpus(config(tmp_path, ray={"gpu": True, "workers": 2}))
    assert wanted.level is Level.PROBLEM and "wants 2, torch sees 0" in wanted.says
    assert doctor.gpus(config(tmp_path)).level is Level.OK


def test_the_packages_of_this_very_installation_are_right() -> None:
    assert doctor.packages().level is Level.OK


def test_another_version_of_a_pinned_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "0.1")
    found = doctor.packages()
    assert found.level is Level.PROBLEM and "hivemind is 0.1, expected 1.1.12" in found.says


def test_what_a_running_peer_has_is_no_problem(tmp_path: Path, listener: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a peer that is running, and has its port
    mine = config(tmp_path, {"port": listener, "host": "127.0.0.1"})
    monkeypatch.setattr("elastic.actors.outside.outside", lambda *args: [])
    with claim(mine.local.state_dir):
        found = {each.what: each for each in doctor.examine(mine, "127.0.0.1:1")}
    # then that is said, and not found fault with
    assert "it is running" in found["peer"].says
    assert {"port", "memory", "Ray"}.isdisjoint(found)
    # and nothing is made where no peer ever ran
    assert not is_claimed(tmp_path / "nowhere") and not (tmp_path / "nowhere").exists()


def test_a_state_directory_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    finding = doctor.disk(config(tmp_path), 1000)
    assert finding.level is Level.PROBLEM and "is a file" in finding.says
