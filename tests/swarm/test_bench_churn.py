"""Hosts of their own, where this machine may make them: the network between them, and what dies there."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from elastic.bench.churn import kills
from elastic.bench.churn.swarm import Settings, Swarm
from elastic.bench.churn.wan import LinkSpeed, Wan, obstacle

pytestmark = pytest.mark.slow

SERVE = """
import socket
server = socket.create_server(("0.0.0.0", 5000))
print("up", flush=True)
while True:
    server.accept()[0].close()
"""
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 5000), timeout=float(sys.argv[2])).close()
    print("through")
except OSError:
    print("cut off")
"""


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    problem = obstacle()
    if problem is not None:
        pytest.skip(problem)


@pytest.fixture
def wan() -> Iterator[Wan]:
    with Wan(3, LinkSpeed()) as three:
        yield three


def names() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def test_hosts_hear_each_other_unless_they_are_split_and_leave_nothing_behind() -> None:
    python = [sys.executable, "-c"]
    with Wan(2, LinkSpeed()) as wan:

        def connect(seconds: float) -> str:
            command = [*wan.inside(1), *python, CONNECT, wan.address(0), str(seconds)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

        # given a server on one of two hosts
        server = subprocess.Popen([*wan.inside(0), *python, SERVE], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        # when the network is whole, split, and whole again
        assert connect(30) == "through"
        wan.split([0, 1])
        assert connect(1) == "cut off"
        wan.heal()
        assert connect(30) == "through"
        ours = wan.inside(0)[3]
        assert ours in names()
    # then in the end neither the host nor what ran there is left
    server.stdout.close()
    assert server.wait(30) == -signal.SIGKILL
    assert ours not in names()


async def test_a_peer_that_is_killed_comes_back_and_the_others_go_on(wan: Wan, tmp_path: Path) -> None:
    # given two peers over the emulated network, of which one decides
    swarm = Swarm(wan, tmp_path, peers=2, validators=1, settings=Settings(pace=0.2))
    async with swarm.running():
        # when the other is killed while it gathers
        blow = await kills.kill_one(swarm, "contributor", "gather")
        # then it comes back, and both hold the same
        assert (blow.role, blow.phase, blow.rounds_lost) == ("contributor", "gather", 0)
        assert blow.back_after is not None
        last = min(host.round for host in swarm.hosts)
        assert len(swarm.anchors(last)) == 1
        pids = [host.child.process.pid for host in swarm.hosts if host.child.process]
    # and nothing is left of them
    assert not any(map(psutil.pid_exists, pids))
