"""What a peer cannot find out alone: whether others can dial it, and how fast its line is.

Peers tell the first only, entry points both.

    request    kind u8 · number u32
    response   status u8 · the IPv4 address the asker comes from, 4 bytes; if the status is OK,
      DIAL     the key of the peer that answers at that address and port `number`, 32 bytes
      DOWN     `number` bytes of noise
      UP       when the asker has sent up to `number` bytes: bytes counted u32 · microseconds u32
    end        the asker closes: who closes first may cut off what it sent last

A request names a port only: whom to dial is read off its connection, so nobody can be sent to a third machine. All
else that a stranger could want too much of is bounded by `ProbeLimits`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from elastic.exchange.limits import MIB
from elastic.exchange.probe.dialback import NotLibp2pError, who_answers
from elastic.wire.signing import public_key_of

logger = logging.getLogger(__name__)

PROTOCOL = "/elastic/probe/1"
REQUEST = struct.Struct("!BI")
RESPONSE = struct.Struct("!B4s")
KEY_BYTES = 32
COUNTED = struct.Struct("!II")
MEASURE_SECONDS = 5.0
MEASURE_BYTES = 8 * MIB
"""Both of one measurement, one way."""
PIECE_BYTES = 64 * 1024
FAREWELL_BYTES = MIB
"""What an asker may still have under way when it is answered; more counts against no ration, and is not read."""
_DIRECT = re.compile(r"/ip4/([0-9.]+)/tcp/[0-9]+")
NOWHERE = "0.0.0.0"


class Kind(IntEnum):
    """What is asked for."""

    DIAL = 0
    DOWN = 1
    UP = 2


class Status(IntEnum):
    """What is answered."""

    OK = 0
    REFUSED = 1
    """Nobody listens there."""
    SILENT = 2
    """No answer in time, or no way there."""
    NOT_LIBP2P = 3
    """Something else listens there."""
    BUSY = 4
    UNSERVED = 5
    """Peers measure nothing."""
    BAD_REQUEST = 6
    INDIRECT = 7
    """The asker comes through a relay."""


@dataclass(frozen=True, slots=True)
class ProbeLimits:
    """What strangers get, at most. By address, because a new peer id costs nothing."""

    streams: int = 16
    """At a time; one of each address and each peer."""
    at_once: tuple[int, int] = (4, 2)
    """Dials and measurements at a time."""
    each: tuple[int, int] = (8, 64 * MIB)
    """Dials, and bytes of measurements, per minute of one address,"""
    in_all: tuple[int, int] = (60, 256 * MIB)
    """and of all."""
    request_seconds: float = 5.0
    """For the request to come, and for the asker to close."""
    dial_seconds: float = 5.0


class Ration:
    """How many of one kind are given at a time, and how much per minute."""

    def __init__(self, at_once: int, each: int, in_all: int) -> None:
        self._at_once, self._each, self._in_all = at_once, each, in_all
        self._under_way = 0
        self._given: deque[tuple[float, str, int]] = deque()

    @contextmanager
    def one(self, address: str, amount: int, now: float) -> Iterator[bool]:
        """Whether this address gets one, which lasts until the end of the block."""
        while self._given and self._given[0][0] <= now - 60:
            self._given.popleft()
        each = sum(given for _, to, given in self._given if to == address)
        in_all = sum(given for _, _, given in self._given)
        if self._under_way >= self._at_once or each + amount > self._each or in_all + amount > self._in_all:
            yield False
            return
        self._given.append((now, address, amount))
        self._under_way += 1
        try:
            yield True
        finally:
            self._under_way -= 1


class ProbeServer:
    """Answers on a node's event loop.

    Args:
        measures: entry points only, which have little else to do: a measurement takes the line from a peer's payloads,
            and what is left of it beside them is no measure.
    """

    def __init__(self, p2p: P2P, *, measures: bool, limits: ProbeLimits | None = None) -> None:
        self._p2p, self._measures, self._limits = p2p, measures, limits or ProbeLimits()
        self._dials, self._measurements = map(Ration, self._limits.at_once, self._limits.each, self._limits.in_all)
        self._answering: dict[asyncio.Task[None], set[str]] = {}
        self._closed = False

    async def start(self) -> None:
        """Have p2pd hand streams of our protocol over."""
        await self._p2p.add_binary_stream_handler(PROTOCOL, self.handle)

    def close(self) -> None:
        """Break off what is under way."""
        self._closed = True
        for task in self._answering:
            task.cancel()

    async def handle(self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One stream, from its request to its end; nothing that comes on it raises."""
        task, ip = asyncio.current_task(), address_of(str(info.addr))
        assert task is not None, "called by an event loop"
        caller = {info.peer_id.to_base58(), ip or NOWHERE}
        crowded = len(self._answering) >= self._limits.streams or any(caller & of for of in self._answering.values())
        try:
            if crowded:
                await self._say(writer, Status.BUSY, ip)  # a few bytes into an empty buffer: never waits
            else:
                self._answering[task] = caller
                await self._answer(ip, reader, writer)
                async with asyncio.timeout(self._limits.request_seconds):
                    await _hear_out(reader)
        except (OSError, EOFError) as error:
            logger.debug("a probe of %s ended early: %s", info.peer_id, error)
        except asyncio.CancelledError:
            if not self._closed:  # a handler that ends as cancelled is reported as a fault by asyncio (Python 3.11)
                raise
        finally:
            self._answering.pop(task, None)
            if crowded:
                writer.close()
            else:
                writer.transport.abort()

    async def _answer(self, ip: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(self._limits.request_seconds):
            kind, number = REQUEST.unpack(await reader.readexactly(REQUEST.size))
        if kind not in tuple(Kind) or number > (0xFFFF if kind == Kind.DIAL else MEASURE_BYTES) or not number:
            await self._say(writer, Status.BAD_REQUEST, ip)
        elif ip is None:
            await self._say(writer, Status.INDIRECT, ip)
        elif kind == Kind.DIAL:
            with self._dials.one(ip, 1, time.monotonic()) as granted:
                status, key = await self._dial(ip, number) if granted else (Status.BUSY, b"")
            await self._say(writer, status, ip, key)
        elif not self._measures:
            await self._say(writer, Status.UNSERVED, ip)
        else:
            # Tiny ones count as a piece each, or there would be no end of them.
            with self._measurements.one(ip, max(number, PIECE_BYTES), time.monotonic()) as granted:
                await self._say(writer, Status.OK if granted else Status.BUSY, ip)
                if granted:
                    await self._measure(Kind(kind), number, reader, writer)

    async def _say(self, writer: asyncio.StreamWriter, status: Status, ip: str | None, more: bytes = b"") -> None:
        writer.write(RESPONSE.pack(status, ipaddress.IPv4Address(ip or NOWHERE).packed) + more)
        await writer.drain()

    async def _dial(self, ip: str, port: int) -> tuple[Status, bytes]:
        try:
            peer = await who_answers(ip, port, self._limits.dial_seconds)
            return Status.OK, public_key_of(peer).public_bytes_raw()
        except ConnectionRefusedError:
            return Status.REFUSED, b""
        except NotLibp2pError:
            return Status.NOT_LIBP2P, b""
        except OSError:
            return Status.SILENT, b""

    async def _measure(
        self, kind: Kind, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if kind == Kind.DOWN:
            async with asyncio.timeout(MEASURE_SECONDS + 1):  # the asker, who counts, is to stop first
                await send_noise(writer, number)
        else:
            counted, seconds = await count(reader, number)
            writer.write(COUNTED.pack(counted, round(seconds * 1e6)))
            await writer.drain()


async def _hear_out(reader: asyncio.StreamReader) -> None:
    """Until the asker closes: what is left unread would make the end look like a fault."""
    left = FAREWELL_BYTES
    while left and (piece := await reader.read(min(PIECE_BYTES, left))):
        left -= len(piece)


async def send_noise(writer: asyncio.StreamWriter, number: int) -> None:
    """So many bytes that nothing on the way can make smaller."""
    noise = os.urandom(PIECE_BYTES)
    for start in range(0, number, PIECE_BYTES):
        writer.write(noise[: number - start])
        await writer.drain()


async def count(reader: asyncio.StreamReader, most: int) -> tuple[int, float]:
    """Receive until `most` bytes are here, the stream ends or is cut, or MEASURE_SECONDS are over.

    Returns:
        The bytes that came after the first piece, and in how many seconds: the way to us does not count.
    """
    first = total = 0
    begin = last = time.monotonic()
    try:
        async with asyncio.timeout(MEASURE_SECONDS):
            while total < most and (piece := await reader.read(min(PIECE_BYTES, most - total))):
                total, last = total + len(piece), time.monotonic()
                if not first:
                    first, begin = total, last
    except TimeoutError:
        last = time.monotonic()
    except OSError as error:
        logger.debug("cut after %d bytes: %s", total, error)
    return total - first, last - begin


def address_of(multiaddr: str) -> str | None:
    """The IPv4 address at the other end of a connection; None if that is a relay's, or no IPv4."""
    match = _DIRECT.fullmatch(multiaddr)
    return match[1] if match else None
