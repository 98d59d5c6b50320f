"""The packet mover: one TUN device per network namespace, and this process in between.

A kernel's own emulator (netem) is often not there, and needs no replacement for what we ask of it: every host has an
uplink and a downlink of some rate with a short queue that drops what does not fit (tail drop), a delay to the others,
random loss, a bad way to one of them, and a side: packets between different sides are dropped, which is a partition.

Run as a process of its own by `wan.Wan`, which also tells it changes. It is the janitor too: when its standard input
closes, whoever started it is gone or done, and it ends everything in the namespaces and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

SETIFF, TUN, NO_PI = 0x400454CA, 0x0001, 0x1000
BURST = 32
"""Packets read from one host before the others have their turn."""
TICK = 0.05
QUEUE_PACKETS = 200
HOSTS_PER_BYTE = 256


@dataclass(slots=True)
class Port:
    """One host's end of the network."""

    up: float
    """Bytes per second that leave it."""
    down: float
    """Bytes per second that reach it."""
    delay: float
    """Seconds from it to anyone."""
    loss: float
    """Probability that a packet it sends is lost."""
    down_loss: float = 0.0
    """Probability that a packet to it is lost."""
    side: int = 0
    up_free: float = 0.0
    down_free: float = 0.0


@dataclass(slots=True)
class Narrow:
    """A bad way between two hosts, in both directions, whatever their own lines are like."""

    hosts: frozenset[int]
    rate: float
    """Bytes per second."""
    free: dict[int, float] = field(default_factory=dict)
    """Sender → when its last packet is through."""


class Link:
    """Packets in, packets out at their time."""

    def __init__(
        self, tuns: list[int], ports: list[Port], queue_seconds: float, seed: int, queue_bytes: int = 0
    ) -> None:
        """Nothing moves before `run`.

        Args:
            tuns: one non-blocking TUN file descriptor per host.
            ports: what each host's connection is like.
            queue_seconds: a packet that would wait longer in a queue is dropped,
            seed: of the losses.
            queue_bytes: unless there are not so many before it: slow lines have room for a few packets too.
        """
        self._tuns, self.ports, self._queue, self._room = tuns, ports, queue_seconds, queue_bytes
        self._random = random.Random(seed)
        self._narrow: Narrow | None = None
        self._due: list[tuple[float, int, int, bytes, bool]] = []
        """(when, count, receiver, packet, whether it is through the receiver's own line)"""
        self._count = 0

    def run(self, control: int) -> None:
        """Until `control`, a file descriptor with one change per line, is closed."""
        poll = select.epoll()
        index = {tun: host for host, tun in enumerate(self._tuns)}
        for tun in self._tuns:
            poll.register(tun, select.EPOLLIN)
        poll.register(control, select.EPOLLIN)
        while True:
            self._deliver()
            wait = min(TICK, max(0.0, self._due[0][0] - time.monotonic())) if self._due else TICK
            for ready, _ in poll.poll(wait):
                if ready == control:
                    changes = os.read(control, 65536)
                    if not changes:
                        return
                    for line in changes.splitlines():
                        self.change(json.loads(line))
                else:
                    self._take(index[ready])

    def change(self, change: dict[str, list[float]]) -> None:
        """{"side": [0, 1, …]} or any other field of a port, a value for each host; or {"narrow": [2, 3, 1e4]}, the way
        between two hosts in bytes per second, and {"narrow": []} for none.
        """
        for name, values in change.items():
            if name == "narrow":
                self._narrow = Narrow(frozenset(map(int, values[:2])), values[2]) if values else None
                continue
            for port, value in zip(self.ports, values, strict=True):
                setattr(port, name, value)

    def send(self, sender: int, packet: bytes, now: float) -> None:
        """A host sends something; it may get lost."""
        receiver = destination(packet)
        if receiver is None or receiver >= len(self.ports):
            return
        source, sink, size = self.ports[sender], self.ports[receiver], len(packet)
        if source.side != sink.side or source.up_free - now > self._most(source.up):
            return
        source.up_free = max(now, source.up_free) + size / source.up
        if self._random.random() < 1 - (1 - source.loss) * (1 - sink.down_loss):
            return
        through = self._squeezed(sender, receiver, size, source.up_free)
        if through is not None:
            self._push(through + source.delay, receiver, packet, there=False)

    def arrivals(self, now: float) -> Iterator[tuple[float, int, bytes]]:
        """(when, receiver, packet) of all that has arrived by now, in order."""
        while self._due and self._due[0][0] <= now:
            at, _, receiver, packet, there = heapq.heappop(self._due)
            if there:
                yield at, receiver, packet
                continue
            # Only now that its turn has come: what took the slow way of another must hold up nobody.
            sink = self.ports[receiver]
            if sink.down_free - at <= self._most(sink.down):
                sink.down_free = max(at, sink.down_free) + len(packet) / sink.down
                self._push(sink.down_free, receiver, packet, there=True)

    def _push(self, at: float, receiver: int, packet: bytes, *, there: bool) -> None:
        self._count += 1
        heapq.heappush(self._due, (at, self._count, receiver, packet, there))

    def _squeezed(self, sender: int, receiver: int, size: int, at: float) -> float | None:
        """When a packet is through the bad way between two hosts, if there is one; None: it never is."""
        narrow = self._narrow
        if narrow is None or narrow.hosts != {sender, receiver}:
            return at
        begins = max(at, narrow.free.get(sender, 0.0))
        if begins - at > self._most(narrow.rate):
            return None
        narrow.free[sender] = begins + size / narrow.rate
        return narrow.free[sender]

    def _most(self, rate: float) -> float:
        """Seconds that a packet may wait for a line of that rate."""
        return max(self._queue, self._room / rate)

    def _take(self, sender: int) -> None:
        for _ in range(BURST):
            try:
                packet = os.read(self._tuns[sender], 65535)
            except BlockingIOError:
                return
            self.send(sender, packet, time.monotonic())

    def _deliver(self) -> None:
        for _, receiver, packet in self.arrivals(time.monotonic()):
            with contextlib.suppress(OSError):  # the receiver's own queue is full: lost, as anywhere
                os.write(self._tuns[receiver], packet)


def address(host: int) -> str:
    """The IPv4 address of a host, counted from 0."""
    return f"10.77.{(host + 1) // HOSTS_PER_BYTE}.{(host + 1) % HOSTS_PER_BYTE}"


def destination(packet: bytes) -> int | None:
    """The host that an IPv4 packet is for; None: nobody here."""
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[16:18] != b"\x0a\x4d":
        return None
    host = packet[18] * HOSTS_PER_BYTE + packet[19] - 1
    return host if host >= 0 else None


def remove(namespace: str) -> None:
    """End everything in a namespace, and the namespace."""
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for pid in listed.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def _add(namespace: str, host: int, mtu: int) -> int:
    """A namespace with one end of a TUN device; the other end is returned."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, SETIFF, struct.pack("16sH22x", namespace.encode(), TUN | NO_PI))
    inside = ["ip", "-n", namespace]
    for command in (
        ["ip", "netns", "add", namespace],
        ["ip", "link", "set", namespace, "netns", namespace],
        [*inside, "link", "set", "lo", "up"],
        [*inside, "addr", "add", f"{address(host)}/16", "dev", namespace],
        [*inside, "link", "set", namespace, "mtu", str(mtu), "txqueuelen", str(QUEUE_PACKETS), "up"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return tun


def main() -> None:
    """Set everything up, say so, move packets until the end."""
    for ignored in (signal.SIGINT, signal.SIGHUP):  # the end is told by standard input alone
        signal.signal(ignored, signal.SIG_IGN)
    setup = json.loads(sys.argv[1])
    namespaces: list[str] = setup["namespaces"]
    try:
        tuns = [_add(namespace, host, setup["mtu"]) for host, namespace in enumerate(namespaces)]
        ports = [Port(**setup["port"]) for _ in namespaces]
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        Link(tuns, ports, setup["queue_seconds"], setup["seed"], setup["queue_bytes"]).run(sys.stdin.fileno())
    except subprocess.CalledProcessError as error:
        sys.stdout.write(f"{' '.join(error.cmd)}: {error.stderr.decode().strip()}\n")
    finally:
        for namespace in namespaces:
            remove(namespace)


if __name__ == "__main__":
    main()
