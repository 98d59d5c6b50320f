"""A short visit to the network: p2pd without a DHT node, which asks entry points what `probe` answers, and goes."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr

from elastic.config_local import NetworkConfig
from elastic.errors import NetworkError
from elastic.exchange.dht.bootstrap import Entry
from elastic.exchange.dht.daemon import check_can_listen, start_daemon, stop_daemon
from elastic.exchange.dht.guards import guard
from elastic.exchange.dht.leftovers import sweep
from elastic.exchange.probe import server as probe
from elastic.exchange.probe.server import MEASURE_BYTES, MEASURE_SECONDS, Kind, Status
from elastic.messages import PeerId
from elastic.wire.signing import peer_id_of

logger = logging.getLogger(__name__)

OPEN_SECONDS = 10.0
"""For connecting, and for opening a stream."""
ANSWER_SECONDS = 20.0
"""For an answer: before it one may have to dial, and the question waits behind what a thin uplink still has to send."""
BUSY_SECONDS = (0.1, 2.0, 2.0)
"""Before one who is busy is asked again: at first it may only not know yet that our last stream has ended."""
LEAVE_SECONDS = 7.0
"""For the other end to be done with us: a little more than it gives itself."""
FIRST_BYTES = 128 * 1024
"""Of the first measurement; a slow line has enough to do with them."""
LONG_SECONDS, AIM_SECONDS = 1.0, 3.0
"""A measurement that lasts so long is good enough; the next one is to last so long."""
_FOREIGN = (P2PDaemonError, OSError, EOFError)


class TooOldError(NetworkError):
    """The one asked does not know the request."""


class HungUpError(NetworkError):
    """The one asked ended the stream before its first word."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request came to."""

    status: Status
    ip: str
    """Where the one asked sees us come from."""
    peer: PeerId | None = None
    """DIAL: who answers there."""
    counted: int = 0
    """DOWN, UP: bytes"""
    seconds: float = 0.0
    """in so many seconds."""

    @property
    def bits_per_second(self) -> float:
        """0: too little came to tell."""
        return 8 * self.counted / self.seconds if self.seconds else 0.0


@asynccontextmanager
async def visiting(identity_path: Path, network: NetworkConfig) -> AsyncIterator[Visit]:
    """Be there until the end of the block, under this key and where the run file says.

    Raises:
        ConfigError, PortTakenError, NetworkError: see `start_daemon`.
    """
    check_can_listen(network)
    guard()
    sweep()
    use_hivemind_log_handler("nowhere")
    p2p = await start_daemon(identity_path, network)
    try:
        yield Visit(p2p)
    finally:
        await stop_daemon(p2p)


class Visit:
    """Made by `visiting`."""

    def __init__(self, p2p: P2P) -> None:
        self._p2p = p2p

    async def ports(self) -> tuple[int, ...]:
        """TCP ports where we may be dialled, the one that the router gave us included, if it did already.

        Raises:
            NetworkError: our p2pd does not say.
        """
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                _, visible = await self._p2p._client.identify()
                return ports_of(list(map(str, visible)))
        except _FOREIGN as error:
            raise NetworkError(f"the local p2pd does not say where it listens: {error}") from error

    async def enter(self, entry: Entry) -> None:
        """Connect.

        Raises:
            NetworkError: it is not there, or it is another peer.
        """
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._p2p._client.connect(PeerID.from_base58(entry.peer), [Multiaddr(entry.transport)])
        except _FOREIGN as error:
            raise NetworkError(str(error) or f"no answer within {OPEN_SECONDS:.0f} s") from error

    async def measure(self, entry: Entry, kind: Kind) -> Answer:
        """The line to an entry point, with no more bytes than it carries in a few seconds; raises like `ask`.

        More of them would wait in queues along the way, and whatever is asked next behind them.
        """
        number = FIRST_BYTES
        while True:
            answer = await self.ask(entry, kind, number)
            if answer.status != Status.OK or number == MEASURE_BYTES or answer.seconds >= LONG_SECONDS:
                return answer
            number = min(MEASURE_BYTES, max(2 * number, int(answer.bits_per_second / 8 * AIM_SECONDS)))

    async def ask(self, entry: Entry, kind: Kind, number: int) -> Answer:
        """One request, again if the one asked is busy.

        Raises:
            TooOldError: it does not know such requests.
            NetworkError: it broke off, or what came makes no sense.
        """
        for pause in BUSY_SECONDS:
            with suppress(HungUpError):  # who hangs up at once may cut off its "busy"
                answer = await self._once(entry, kind, number)
                if answer.status != Status.BUSY:
                    return answer
            await asyncio.sleep(pause)
        return await self._once(entry, kind, number)

    async def _once(self, entry: Entry, kind: Kind, number: int) -> Answer:
        peer = PeerID.from_base58(entry.peer)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                _, reader, writer = await self._p2p.call_binary_stream_handler(peer, probe.PROTOCOL)
            try:
                answer = await _talk(reader, writer, kind, number)
                await _leave(reader, writer)
                return answer
            finally:
                writer.transport.abort()
        except _FOREIGN as error:
            if "protocols not supported" in str(error):
                raise TooOldError(str(error)) from error
            raise NetworkError(str(error) or "no answer in time") from error


async def _talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: Kind, number: int) -> Answer:
    first = b""
    writer.write(probe.REQUEST.pack(kind, number))
    async with asyncio.timeout(ANSWER_SECONDS):
        with suppress(ConnectionError):
            first = await reader.read(1)
        if not first:
            raise HungUpError("it hung up without a word")
        status, packed = probe.RESPONSE.unpack(first + await reader.readexactly(probe.RESPONSE.size - 1))
        ip = str(ipaddress.IPv4Address(packed))
        if status not in tuple(Status):
            raise NetworkError(f"answers with status {status}")
        if status != Status.OK:
            return Answer(Status(status), ip)
        if kind == Kind.DIAL:
            key = await reader.readexactly(probe.KEY_BYTES)
            return Answer(Status.OK, ip, peer=peer_id_of(Ed25519PublicKey.from_public_bytes(key)))
    if kind == Kind.DOWN:
        counted, seconds = await probe.count(reader, number)
    else:
        counted, seconds = await _send(reader, writer, number)
    return Answer(Status.OK, ip, counted=counted, seconds=seconds)


async def _send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> tuple[int, float]:
    """As many bytes as are taken in time; the other end counts."""
    sending = asyncio.create_task(probe.send_noise(writer, number))
    try:
        async with asyncio.timeout(MEASURE_SECONDS + ANSWER_SECONDS):
            counted, micros = probe.COUNTED.unpack(await reader.readexactly(probe.COUNTED.size))
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)  # it was cut off, or its failure is the reader's too
    if counted > number:
        raise NetworkError(f"counted {counted} bytes of {number}")
    return counted, micros / 1e6


async def _leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close, and wait until the other end has too: before that it would be busy with us."""
    try:
        writer.write_eof()
        async with asyncio.timeout(LEAVE_SECONDS):
            while await reader.read(probe.PIECE_BYTES):
                pass
    except OSError as error:
        logger.debug("after the answer: %s", error)


def ports_of(addresses: Sequence[str]) -> tuple[int, ...]:
    """The TCP ports in addresses, each once."""
    found = [address.partition("/tcp/")[2].partition("/")[0] for address in addresses if "/p2p-circuit" not in address]
    return tuple(dict.fromkeys(int(port) for port in found if port.isdecimal()))
