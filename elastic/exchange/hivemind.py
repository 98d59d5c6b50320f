"""The Exchange over the internet: a Hivemind DHT for records, libp2p streams for bytes.

Built and used on one running event loop. Bulk bytes are copied by threads; the loop only waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hivemind.p2p import PeerID
from pydantic import BaseModel, ConfigDict

from elastic.config_local import NetworkConfig
from elastic.errors import (
    AveragingError,
    ConfigError,
    FetchError,
    MalformedError,
    NetworkError,
    PortTakenError,
    StateError,
)
from elastic.exchange.averaging import average
from elastic.exchange.blobs.bulk import Holder, Traffic
from elastic.exchange.blobs.fetch import BulkClient
from elastic.exchange.blobs.serve import BulkServer
from elastic.exchange.blobs.store import BlobStore
from elastic.exchange.blobs.transfer import Account, transfer
from elastic.exchange.dht import keepers
from elastic.exchange.dht.bootstrap import Node
from elastic.exchange.dht.identity_validator import MAX_RECORD_BYTES
from elastic.exchange.known import Known
from elastic.exchange.limits import Limits
from elastic.exchange.probe.server import ProbeServer
from elastic.messages import Digest, PeerCard, PeerId, RoundIndex, Seconds
from elastic.reports import Carried
from elastic.wire.signing import Identity

logger = logging.getLogger(__name__)

RECORD_SECONDS = 1800.0
"""Records of a round are readable for so long."""
MAX_CARD_BYTES = 3 * 1024
"""Sixteen addresses, the longest that IPv4 has and a bucket's, take 2.2 KiB."""
_OWN_RECORDS = 256
_TICK_SECONDS = 0.01
_FP16_BYTES = 2


class HivemindExchange:
    """One peer's end of the swarm; implements `elastic.contracts.Exchange`. Made by `start`."""

    class Config(BaseModel):
        """Settings beside `exchange = {name = "hivemind"}`: none, see `NetworkConfig`."""

        model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(
        self, node: Node, identity: Identity, run: str, network: NetworkConfig, store: BlobStore, known: Known
    ) -> None:
        self.peer: PeerId = identity.peer
        self._node = node
        self._announcing = asyncio.Lock()
        self._card_expiry = 0.0
        self._run = run
        self._card_seconds = network.card_seconds
        self._known = known
        self.store = store
        """What we serve."""
        self._book: dict[PeerId, tuple[str, ...]] = {}
        self._own: OrderedDict[tuple[str, RoundIndex], bytes] = OrderedDict()
        self._traffic = Traffic()
        limits = Limits(upload_bytes_per_second=network.upload_mbps * 1e6 / 8)
        seed = zlib.crc32(identity.peer.encode())
        self._server = BulkServer(store, node.control_path, self._traffic, node.heeded, limits)
        self._probes = ProbeServer(node.p2p, measures=False)
        self._client = BulkClient(node.control_path, store.partials, self._traffic, seed, limits)
        self._threads = ThreadPoolExecutor(limits.max_fetches, thread_name_prefix="bulk-fetch")
        self._closed = threading.Event()

    @classmethod
    async def start(  # noqa: PLR0913 - each is named where it is called
        cls,
        *,
        identity: Identity,
        identity_path: Path,
        run: str,
        network: NetworkConfig,
        blob_dir: Path | None = None,
        known_file: Path | None = None,
        settings: BaseModel | None = None,
    ) -> HivemindExchange:
        """Start p2pd, join the DHT and serve.

        Args:
            identity: who we are.
            identity_path: the file it was read from, for p2pd.
            run: name of the run, part of every key.
            network: where to listen, whom to ask first.
            blob_dir: keep provided blobs as files there instead of in memory, also for the next start.
            known_file: remember our port and other peers' addresses there, for the next start.
            settings: our `Config`, which has none.

        Raises:
            ConfigError, PortTakenError, BootstrapError, ClockSkewError, NetworkError: see `Node.start`.
        """
        known = Known(known_file)
        node = await _start_where_we_were(identity, identity_path, network, known)
        exchange: HivemindExchange | None = None
        try:
            store = await asyncio.to_thread(BlobStore, blob_dir)
            exchange = cls(node, identity, run, network, store, known)
            await node.call(asyncio.to_thread(exchange._server.start), "serving blobs")
            await node.call(exchange._probes.start(), "answering probes")
        except BaseException:
            await (exchange or node).close()
            raise
        logger.info("peer %s listens at %s", exchange.peer, ", ".join(exchange.addresses))
        return exchange

    @property
    def addresses(self) -> list[str]:
        """Full addresses to hand out: "/ip4/…/tcp/…/p2p/12D3Koo…"."""
        return list(self._node.addresses)

    async def announce(self, card: PeerCard) -> None:
        """Raises ConfigError if the run file's addresses make it longer than others read."""
        body = card.canonical()
        if len(body) > MAX_CARD_BYTES:  # no other try makes it shorter
            raise ConfigError(
                f"this peer's card has {len(body)} bytes, and others read {MAX_CARD_BYTES} at most: name fewer or "
                "shorter addresses in local.network.announce, or a shorter local.exchange.public_url"
            )
        async with self._announcing:  # of two cards the DHT keeps the one that expires later: it must be the newer
            self._card_expiry = max(time.time() + self._card_seconds, self._card_expiry + _TICK_SECONDS)
            await self._write(f"{self._run}/peers", body, self._card_expiry, "announcing this peer")

    async def cards(self) -> Sequence[PeerCard]:
        found = await self._read(f"{self._run}/peers", "reading peer cards")
        cards = [card for peer, body in found.items() if (card := self._card_of(peer, body)) is not None]
        self._book = {card.peer: card.addresses for card in cards}
        self._node.heeded.meet(self._book)
        if self._known.meet(cards, but=self.peer):
            self._node.known = self._known.entries()
        return cards

    async def post(self, kind: str, round_: RoundIndex, body: bytes) -> None:
        if len(body) > MAX_RECORD_BYTES:
            raise NetworkError(f"a record of {len(body)} bytes; at most {MAX_RECORD_BYTES} are carried")
        self._own[kind, round_] = body
        if len(self._own) > _OWN_RECORDS:
            self._own.popitem(last=False)
        await self._write(
            self._key(kind, round_), body, time.time() + RECORD_SECONDS, f"posting {kind} of round {round_}"
        )

    async def records(self, kind: str, round_: RoundIndex) -> Mapping[PeerId, bytes]:
        found = await self._read(self._key(kind, round_), f"reading {kind} of round {round_}")
        own = self._own.get((kind, round_))
        return found if own is None else found | {self.peer: own}

    async def heed(self, peers: Sequence[PeerId]) -> None:
        self._check_open()
        self._node.heeded.heed(peers)

    async def provide(self, blob: bytes) -> Digest:
        self._check_open()
        try:
            return await asyncio.to_thread(self.store.add, blob)
        except OSError as error:
            raise StateError(f"a blob of {len(blob)} bytes cannot be kept to be served: {error}") from error

    async def provide_file(self, digest: Digest, path: str) -> None:
        self._check_open()
        await asyncio.to_thread(self.store.add_file, digest, Path(path))  # frees what has come of it, maybe gigabytes

    async def fetch(self, digest: Digest, size_bytes: int, holders: Sequence[PeerId]) -> bytes:
        self._check_open()
        own = await asyncio.to_thread(self.store.read, digest)
        if own is not None:
            return own
        others = [Holder(peer, self._book.get(peer, ())) for peer in dict.fromkeys(holders) if peer != self.peer]
        with transfer(digest, size_bytes) as account:
            return await self._fetch(others, digest, size_bytes, account)

    async def average(self, key: str, tensors: Mapping[str, Any], num_peers: int, timeout: Seconds) -> dict[str, Any]:
        self._check_open()
        averaging = average(self._node.p2p, self._node.dht, f"{self._run}/{key}", tensors, num_peers, timeout)
        try:
            averaged = await self._node.call(averaging, f"averaging {key}", seconds=None)
        except AveragingError:
            raise
        except NetworkError as error:
            raise AveragingError(str(error)) from error
        # As reducer of our part and sender of the others', nearly; headers left out.
        moved = 2 * _FP16_BYTES * sum(array.size for array in averaged.values()) * (num_peers - 1) // num_peers
        self._traffic.add(out=moved, received=moved)
        return averaged

    @property
    def lost(self) -> bool:
        """Whether the local p2pd has died: this exchange is of no use any more."""
        return self._node.exited.done()

    async def traffic(self) -> tuple[int, int]:
        return self._traffic.out, self._traffic.received

    async def partners(self) -> Mapping[PeerId, tuple[int, int]]:
        return self._traffic.by_peer()

    async def served(self) -> Sequence[Carried]:
        return self._server.ledger.take()

    async def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._server.close()
            self._probes.close()
            self._client.close()
            self._threads.shutdown(wait=False, cancel_futures=True)
        await self._node.close()

    async def _fetch(self, others: list[Holder], digest: Digest, size_bytes: int, account: Account) -> bytes:
        stop = threading.Event()
        fetching = asyncio.get_running_loop().run_in_executor(
            self._threads, self._client.fetch_blob, others, digest, size_bytes, stop, account
        )
        try:
            # Unbounded here: the client gives up by itself when nothing comes any more.
            return await self._node.call(fetching, f"fetching {digest[:12]}", seconds=None)
        except FetchError:
            raise
        except NetworkError as error:
            raise FetchError(str(error)) from error
        finally:
            stop.set()

    def _key(self, kind: str, round_: RoundIndex) -> str:
        return f"{self._run}/{kind}/{round_}"

    async def _write(self, key: str, body: bytes, expiry: float, what: str) -> None:
        """Store a record of ours; the DHT's validator signs it.

        Raises:
            NetworkError: no node took it.
        """
        self._check_open()
        await self._node.call(self._node.rejoin(), what)
        stored = await self._node.call(keepers.store(self._node.dht, key, body, expiry), what)
        # "Not stored" may mean that one of several copies was refused: only reading tells.
        if not stored and (await self._read(key, what)).get(self.peer) != body:
            raise NetworkError(f"{what}: no node of the DHT took the record")
        self._traffic.add(out=len(body))

    async def _read(self, key: str, what: str) -> dict[PeerId, bytes]:
        """All peers' records under a key; the DHT's validator has checked who they are from."""
        self._check_open()
        await self._node.call(self._node.rejoin(), what)
        found = await self._node.call(keepers.find(self._node.dht, key), what)
        bodies = {peer: entry.value for peer, entry in found.items() if isinstance(entry.value, bytes)}
        # Once more: each node that answered may have had a crowd of its own.
        chosen = self._node.heeded.choose({peer: len(body) for peer, body in bodies.items()})
        readable = dict(sorted((PeerId(PeerID(peer).to_base58()), bodies[peer]) for peer in chosen))
        self._traffic.add(received=sum(map(len, readable.values())))
        return readable

    def _card_of(self, peer: PeerId, body: bytes) -> PeerCard | None:
        if len(body) > MAX_CARD_BYTES:
            return None
        try:
            card = PeerCard.from_bytes(body)
        except MalformedError as error:
            logger.debug("the card of %s: %s", peer, error)
            return None
        return card if (card.peer, card.run) == (peer, self._run) else None

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise NetworkError("this exchange is closed")


async def _start_where_we_were(identity: Identity, path: Path, network: NetworkConfig, known: Known) -> Node:
    """A node, on the port of the last life if any will do: others may know no more of us than that."""
    again = network.model_copy(update={"port": known.port}) if network.port == 0 and known.port else network
    try:
        node = await Node.start(identity, path, again, known.entries())
    except PortTakenError:
        if again == network:
            raise
        node = await Node.start(identity, path, network, known.entries())
    if node.addresses:
        known.listens(node.addresses[0])
    return node
