"""Hosts of their own on this machine: network namespaces with an emulated wide-area network between them.

Needs Linux, root, iproute2 and /dev/net/tun; `obstacle` says what is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from elastic.bench.churn.link import address, remove
from elastic.errors import ElasticError

PREFIX = "el"
"""Of our namespaces and devices; the number of the process that made them follows. Device names have 15 letters."""


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """What every host's connection is like: a good home line, as the Covenant run assumed."""

    up_mbps: float = 110.0
    down_mbps: float = 500.0
    rtt_ms: float = 40.0
    loss: float = 0.001
    mtu: int = 1500
    queue_ms: float = 100.0
    queue_packets: int = 16
    """A queue has room for so many, also where they take longer than that."""

    def port(self) -> dict[str, float]:
        """The same as `link.Port` has it."""
        up, down = self.up_mbps * 1e6 / 8, self.down_mbps * 1e6 / 8
        return {"up": up, "down": down, "delay": self.rtt_ms / 2000, "loss": self.loss}

    def __str__(self) -> str:
        return f"{self.up_mbps:g}/{self.down_mbps:g} Mb/s, {self.rtt_ms:g} ms, {self.loss:.1%} loss"


def obstacle() -> str | None:
    """Why there can be no emulated network here; None: there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if shutil.which("ip") is None:
        return "there is no `ip` command (package iproute2)"
    trial = f"{PREFIX}{os.getpid()}t"
    made = subprocess.run(["ip", "netns", "add", trial], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespace can be made ({made.stderr.strip()}); it takes root"
    remove(trial)
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun cannot be opened ({error.strerror}); it takes root, and the tun module"
    return None


class Wan:
    """Hosts, numbered from 0; use it as a context, which removes all of them and ends what runs there."""

    def __init__(self, hosts: int, speed: LinkSpeed, seed: int = 0) -> None:
        self.hosts, self.speed, self._seed = hosts, speed, seed
        self._namespaces = [f"{PREFIX}{os.getpid()}.{host}" for host in range(hosts)]
        self._mover: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        _sweep()
        setup = {
            "namespaces": self._namespaces, "mtu": self.speed.mtu, "port": self.speed.port(),
            "queue_seconds": self.speed.queue_ms / 1000, "seed": self._seed,
            "queue_bytes": self.speed.queue_packets * self.speed.mtu,
        }  # fmt: skip
        self._mover = subprocess.Popen(
            [sys.executable, "-m", "elastic.bench.churn.link", json.dumps(setup)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._mover.stdout is not None
        answer = self._mover.stdout.readline().strip()
        if answer != "ready":
            self.__exit__(None, None, None)
            raise ElasticError(f"the emulated network could not be set up: {answer or 'its process died'}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._mover is not None and self._mover.stdin is not None
        self._mover.stdin.close()
        self._mover.wait()

    def inside(self, host: int) -> list[str]:
        """What goes in front of a command to run it there."""
        return ["ip", "netns", "exec", self._namespaces[host]]

    def address(self, host: int) -> str:
        """Its IPv4 address."""
        return address(host)

    def split(self, sides: Sequence[int]) -> None:
        """From now on only hosts with equal numbers hear each other."""
        self.change({"side": list(sides)})

    def heal(self) -> None:
        """From now on everyone hears everyone."""
        self.split([0] * self.hosts)

    def change(self, change: Mapping[str, Sequence[float]]) -> None:
        """Let connections be different from now on; see `link.Link.change`."""
        assert self._mover is not None and self._mover.stdin is not None
        self._mover.stdin.write(json.dumps(change) + "\n")
        self._mover.stdin.flush()


def _sweep() -> None:
    """Remove namespaces of runs that were killed together with their janitor."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for pid, host in re.findall(rf"^{PREFIX}(\d+)\.(\d+)\b", listed, re.MULTILINE):
        if not os.path.exists(f"/proc/{pid}"):
            remove(f"{PREFIX}{pid}.{host}")
