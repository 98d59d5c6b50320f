"""Into the DHT: one libp2p daemon and one DHT node per process, and the pure entry point that anyone can run.

`Node` is built on a running event loop; nothing forks but p2pd itself, which dies with its owner. Every call
on it is bounded in time and fails at once when p2pd is gone.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import ValidationError
from hivemind.p2p import P2P, P2PDaemonError, P2PHandlerError, PeerID
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr

from elastic.config_local import NetworkConfig
from elastic.errors import (
    BootstrapError,
    ClockSkewError,
    ConfigError,
    NetworkError,
    SignatureInvalidError,
)
from elastic.exchange.dht.daemon import CLOSE_SECONDS, check_can_listen, start_daemon, stop_daemon
from elastic.exchange.dht.guards import guard
from elastic.exchange.dht.identity_validator import IdentityValidator
from elastic.exchange.dht.leftovers import sweep
from elastic.exchange.dht.protocol import place_of
from elastic.exchange.dht.records import Heeded
from elastic.exchange.probe.server import ProbeServer
from elastic.messages import PeerId
from elastic.wire.signing import Identity, public_key_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

CALL_SECONDS = 15.0
"""Longest wait for one DHT or daemon call."""
_KNOCK_SECONDS = 10.0
_ALONE_SECONDS = 3.0
"""Between the beginnings of two rounds of knocking at all doors when no neighbour is left; more if the first goes on,
as a door may take this long to open and as long again to answer."""
_LOST_SECONDS = 5.0
"""Between two rounds of knocking while there are neighbours,"""
_DOORS = 8
"""and at how many doors in each."""
_NUM_REPLICAS = 8
_MAX_BANNED = 4096
_FORM = "/ip4/203.0.113.5/tcp/4001/p2p/12D3Koo…"
_ADDRESS = re.compile(r"(?P<transport>/(ip4|dns|dns4)/[^/\s]+/tcp/\d{1,5})/p2p/(?P<peer>[1-9A-HJ-NP-Za-km-z]+)")
_FOREIGN = (P2PDaemonError, P2PHandlerError, OSError, EOFError)
"""What calls of p2pd raise. `IncompleteReadError` is an EOFError, `TimeoutError` an OSError."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A bootstrap address, taken apart."""

    peer: PeerId
    transport: str

    @classmethod
    def parse(cls, address: str) -> Entry:
        """Raises ConfigError unless the address has the expected form."""
        match = _ADDRESS.fullmatch(address.strip())
        if match is None:
            raise ConfigError(f"bootstrap address {address!r:.120} is not of the form {_FORM}")
        try:
            public_key_of(PeerId(match["peer"]))
            Multiaddr(match["transport"]).to_bytes()
        except (SignatureInvalidError, ValueError) as error:
            raise ConfigError(f"bootstrap address {address!r:.120}: {error}; expected {_FORM}") from error
        return cls(PeerId(match["peer"]), match["transport"])

    def __str__(self) -> str:
        return f"{self.transport}/p2p/{self.peer}"


class Node:
    """A peer's place in the DHT; made by `start`."""

    def __init__(self, p2p: P2P, dht: DHTNode, entries: Sequence[Entry], addresses: list[str]) -> None:
        self.p2p = p2p
        self.dht = dht
        self.addresses = addresses
        """Full addresses to hand out, "/ip4/…/tcp/…/p2p/…"."""
        self._entries = entries
        self.known: Sequence[Entry] = ()
        """Peers met before, to knock at beside the entry points."""
        self._knock_again_at, self._turn = 0.0, 0
        self._knocking: asyncio.Task[None] | None = None
        self._exited: asyncio.Task[int] = asyncio.create_task(p2p._child.wait())
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, identity: Identity, identity_path: Path, network: NetworkConfig, known: Sequence[Entry] = ()
    ) -> Node:
        """Start p2pd and a DHT node, and join the DHT through the bootstrap addresses or peers met before, if any.

        Raises:
            ConfigError: an address is malformed, or the key file is not that of the identity.
            PortTakenError: the port to listen on is in use.
            BootstrapError: nobody answered within `bootstrap_seconds`.
            ClockSkewError: our clock disagrees with theirs.
            NetworkError: p2pd does not start.
        """
        entries = [entry for entry in map(Entry.parse, network.bootstrap) if entry.peer != identity.peer]
        check_can_listen(network)
        guard()
        sweep()
        use_hivemind_log_handler("nowhere")
        p2p = await start_daemon(identity_path, network)
        try:
            if p2p.peer_id.to_base58() != identity.peer:
                raise ConfigError(f"{identity_path}: the key of {p2p.peer_id}, expected that of {identity.peer}")
            async with asyncio.timeout(CALL_SECONDS):
                dht = await DHTNode.create(
                    p2p=p2p,
                    node_id=place_of(p2p.peer_id),
                    record_validator=IdentityValidator(identity),
                    num_replicas=_NUM_REPLICAS,
                    client_mode=not network.listen,
                    # No caches: every read asks the nodes that keep a key, and what they keep is bounded.
                    cache_locally=False,
                    cache_nearest=0,
                    cache_on_store=False,
                    cache_refresh_before_expiry=0,
                    # Else it would remember every key that was ever read.
                    reuse_get_requests=False,
                )
                visible = await p2p.get_visible_maddrs(latest=True) if network.listen else []
        except BaseException:
            await stop_daemon(p2p)
            raise
        node = cls(p2p, dht, entries, [str(address) for address in visible])
        node.known = known
        try:
            await node._join(network.bootstrap_seconds)
        except BaseException:
            await node.close()
            raise
        return node

    @property
    def heeded(self) -> Heeded:
        """Whose records are kept and read, whatever others post."""
        heeded: Heeded = self.dht.protocol.storage.heeded
        return heeded

    @property
    def control_path(self) -> str:
        """p2pd's unix socket."""
        return str(self.p2p.daemon_listen_maddr["unix"])

    @property
    def exited(self) -> asyncio.Task[int]:
        """Done when p2pd is gone, whether it was told to or not."""
        return self._exited

    async def call(self, awaitable: Awaitable[T], what: str, seconds: float | None = CALL_SECONDS) -> T:
        """Wait for a call on the daemon or the DHT.

        Raises:
            NetworkError: it failed, took too long, or p2pd is gone; the message starts with `what`.
        """
        task = asyncio.ensure_future(awaitable)
        try:
            await asyncio.wait({task, self._exited}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if self._exited.done():
                raise NetworkError(f"{what}: the local p2pd is gone, restart this peer")
            if not task.done():
                raise NetworkError(f"{what}: no answer within {seconds} s")
            return task.result()
        except _FOREIGN as error:
            raise NetworkError(f"{what}: {error}") from error
        finally:
            if not task.done():
                task.cancel()

    async def rejoin(self) -> None:
        """Knock at doors behind which nobody answers any more; if no neighbour is left at all, wait for that.

        When a partition heals, each side has neighbours of its own and Hivemind asks the others ever more rarely, the
        longer they were silent.
        """
        if len(self.dht.blacklist.ban_counter) > _MAX_BANNED:
            self.dht.blacklist.clear()  # it never forgets; whoever answers us can name peers that do not exist
        table = self.dht.protocol.routing_table
        alone, now = not table.uid_to_peer_id, asyncio.get_running_loop().time()
        if now >= self._knock_again_at and (self._knocking is None or self._knocking.done()):
            self._knock_where_lost(alone, now)
        knocking = self._knocking
        if alone and knocking is not None:
            await asyncio.wait({knocking})  # whoever is cancelled here leaves it to the others
            if not knocking.cancelled():
                knocking.result()

    def _knock_where_lost(self, alone: bool, now: float) -> None:
        lost = [entry for entry in dict.fromkeys((*self._entries, *self.known)) if self._is_lost(entry)]
        if not lost:
            return
        self._knock_again_at = now + (_ALONE_SECONDS if alone else _LOST_SECONDS)
        self._turn += 1
        doors = lost if alone else [lost[(self._turn * _DOORS + each) % len(lost)] for each in range(_DOORS)]
        self._knocking = asyncio.create_task(self._knock_again(list(dict.fromkeys(doors))))

    def _is_lost(self, entry: Entry) -> bool:
        peer = PeerID.from_base58(entry.peer)
        return peer not in self.dht.protocol.routing_table or peer in self.dht.blacklist

    async def _knock_again(self, doors: Sequence[Entry]) -> None:
        problems = await asyncio.gather(*(self._heard(each) for each in doors))
        if all(problems) and not self.dht.protocol.routing_table.uid_to_peer_id:
            logger.warning("no neighbour is left in the DHT, and nobody known answers: %s", problems[0])

    async def _heard(self, entry: Entry) -> str | None:
        """Knock; returns what went wrong, if only that a clock is off, which may be that of whoever answers."""
        try:
            problem = await self._knock(entry, _ALONE_SECONDS)
        except ClockSkewError as error:
            return str(error)
        if problem is None:
            self.dht.blacklist.register_success(PeerID.from_base58(entry.peer))
        return problem

    async def close(self) -> None:
        """Leave the DHT and end p2pd. Bounded; any number of times."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self.dht.is_alive = False
        if self._knocking is not None:
            self._knocking.cancel()
        if self.dht.cache_refresh_task is not None:
            self.dht.cache_refresh_task.cancel()
        if not self._exited.done():
            try:
                await asyncio.wait_for(self.dht.protocol.shutdown(), CLOSE_SECONDS)
            except _FOREIGN as error:
                logger.debug("leaving the DHT: %s", error)
        await stop_daemon(self.p2p)
        await self._exited

    async def _join(self, seconds: float) -> None:
        doors = [*self._entries, *self.known]
        if not doors:
            return
        loop = asyncio.get_running_loop()
        deadline, pause, attempt = loop.time() + seconds, 0.5, 0
        while True:
            attempt += 1
            problems = await asyncio.gather(*(self._knock(entry, deadline - loop.time()) for entry in doors))
            if not all(problems):
                break
            if not self._entries:
                return  # others have us as their entry point
            logger.info("attempt %d to reach the swarm failed: %s", attempt, "; ".join(filter(None, problems)))
            if loop.time() + pause > deadline:
                raise BootstrapError(_advice(self._entries, problems, seconds))
            await asyncio.sleep(pause)
            pause = min(2 * pause, 8.0)
        await self.call(self.dht.find_nearest_nodes([self.dht.node_id]), "looking for neighbours in the DHT")

    async def _knock(self, entry: Entry, seconds: float = _KNOCK_SECONDS) -> str | None:
        """Connect to one entry point and be added to its routing table. Returns what went wrong."""
        seconds = max(0.1, min(seconds, _KNOCK_SECONDS))
        peer = PeerID.from_base58(entry.peer)
        try:
            await asyncio.wait_for(self.p2p._client.connect(peer, [Multiaddr(entry.transport)]), seconds)
            found = await asyncio.wait_for(self.dht.protocol.call_ping(peer, validate=True), seconds)
        except ValidationError as error:
            if "local time" in str(error):
                raise ClockSkewError(
                    f"this machine's clock is off: {error}; set it by NTP, e.g. timedatectl set-ntp true"
                ) from error
            return f"{entry}: {error}"
        except _FOREIGN as error:
            return f"{entry}: {str(error) or 'no answer'}"
        return None if found is not None else f"{entry}: connected, but it does not answer as a node of this DHT"


async def run_bootstrap(
    identity_path: Path,
    host: str,
    port: int,
    announce: Sequence[str],
    on_ready: Callable[[list[str]], None],
    stop: asyncio.Event,
) -> None:
    """Be an entry point into the DHT, for any run, until `stop` is set; and answer `elastic doctor` (see `probe`).

    Args:
        identity_path: key file; made if there is none, so that the address stays the same.
        host: IPv4 address to listen on.
        port: TCP port; 0: any.
        announce: addresses to tell others instead of the ones found.
        on_ready: called once with the full addresses to hand out.
        stop: ends it.

    Raises:
        NetworkError: see `Node.start`, or p2pd died.
    """
    identity = Identity.load_or_create(identity_path)
    node = await Node.start(identity, identity_path, NetworkConfig(host=host, port=port, announce=tuple(announce)))
    stopping, probes = asyncio.create_task(stop.wait()), ProbeServer(node.p2p, measures=True)
    try:
        await node.call(probes.start(), "answering probes")
        on_ready(node.addresses)
        await asyncio.wait([stopping, node.exited], return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            raise NetworkError("the local p2pd is gone, restart this entry point")
    finally:
        stopping.cancel()
        probes.close()
        await node.close()


def _advice(entries: Sequence[Entry], problems: Sequence[str | None], seconds: float) -> str:
    listed = ", ".join(map(str, entries))
    return (
        f"nobody answered within {seconds:.0f} s at {listed}. Check that `elastic bootstrap` runs there, "
        f"that the address is the one it printed (peer id included), and that its TCP port is open to you. "
        f"Last answers: {'; '.join(filter(None, problems))}"
    )
