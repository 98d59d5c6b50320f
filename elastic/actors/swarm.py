"""The one actor of a peer that owns the network, and the Exchange that forwards to it from the peer actor."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from elastic.actors.logs import log_to_file
from elastic.config import RunConfig
from elastic.errors import ElasticError, NetworkError, StateError
from elastic.exchange.blobs import BLOB_FOLDER
from elastic.messages import Digest, PeerCard, PeerId, RoundIndex, Seconds
from elastic.registry import resolve
from elastic.wire.signing import Identity

logger = logging.getLogger(__name__)

RESTART_TRIES = 5
"""Restarts of the network actor within one call before the peer gives up."""


class Swarm:
    """Owns the exchange: a p2p daemon, a DHT node, the blobs being served. Killing it frees all of them."""

    def __init__(self, config: RunConfig) -> None:
        log_to_file(config)
        self._config = config
        self._exchange: Any = None
        self._starting = asyncio.Lock()

    async def start(self) -> list[str]:
        """Join the DHT (once); returns the addresses that others can reach us at."""
        async with self._starting:
            if self._exchange is None:
                cls, settings = resolve("exchange", self._config.local.exchange)
                self._exchange = await cls.start(
                    identity=Identity.load(self._config.key_path), identity_path=self._config.key_path,
                    run=self._config.shared.run, network=self._config.local.network,
                    blob_dir=self._config.local.state_dir / BLOB_FOLDER, settings=settings,
                )  # fmt: skip
        return list(self._exchange.addresses)

    async def call(self, verb: str, *args: Any) -> Any:
        """One verb of the Exchange contract."""
        if self._exchange is None:
            raise RestartedError("the network actor has not joined the DHT")
        try:
            return await getattr(self._exchange, verb)(*args)
        except NetworkError:
            if not self._exchange.lost:
                raise
        await self.close()
        raise RestartedError("the p2p daemon died")

    async def close(self) -> None:
        """Leave the DHT and stop the daemon."""
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            await exchange.close()


class RemoteExchange:
    """Exchange whose work happens in the network actor; restarts that actor if it died."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._files: dict[Digest, str] = {}
        self._counted = self._carried = (0, 0)

    async def start(self) -> list[str]:
        """Join the DHT; returns our addresses."""
        addresses: list[str] = await _plain(self._actor.start.remote())
        return addresses

    async def announce(self, card: PeerCard) -> None:
        await self._call("announce", card)

    async def cards(self) -> Sequence[PeerCard]:
        cards: Sequence[PeerCard] = await self._call("cards")
        return cards

    async def post(self, kind: str, round_: RoundIndex, body: bytes) -> None:
        await self._call("post", kind, round_, body)

    async def records(self, kind: str, round_: RoundIndex) -> Mapping[PeerId, bytes]:
        records: Mapping[PeerId, bytes] = await self._call("records", kind, round_)
        return records

    async def provide(self, blob: bytes) -> Digest:
        digest: Digest = await self._call("provide", blob)
        return digest

    async def provide_file(self, digest: Digest, path: str) -> None:
        self._files = {**dict(list(self._files.items())[-3:]), digest: path}
        await self._call("provide_file", digest, path)

    async def fetch(self, digest: Digest, size_bytes: int, holders: Sequence[PeerId]) -> bytes:
        blob: bytes = await self._call("fetch", digest, size_bytes, list(holders))
        return blob

    async def average(self, key: str, tensors: Mapping[str, Any], num_peers: int, timeout: Seconds) -> dict[str, Any]:
        mean: dict[str, Any] = await self._call("average", key, dict(tensors), num_peers, timeout)
        return mean

    async def traffic(self) -> tuple[int, int]:
        now: tuple[int, int] = await self._call("traffic")
        if now[0] < self._counted[0] or now[1] < self._counted[1]:  # the actor was restarted and counts from 0
            self._carried = (self._carried[0] + self._counted[0], self._carried[1] + self._counted[1])
        self._counted = now
        return self._carried[0] + now[0], self._carried[1] + now[1]

    async def close(self) -> None:
        try:
            await asyncio.wait_for(_plain(self._actor.close.remote()), 10)
        except (NetworkError, TimeoutError) as error:
            logger.warning("closing the network: %s", error)

    async def _call(self, verb: str, *args: Any) -> Any:
        for attempt in range(RESTART_TRIES):
            try:
                return await _plain(self._actor.call.remote(verb, *args))
            except RestartedError as error:
                logger.warning("the network actor died (%s); starting it again", error)
                await asyncio.sleep(attempt)
                await self._recover()
        raise StateError(f"the network actor died {RESTART_TRIES} times in a row: see peer.log")

    async def _recover(self) -> None:
        try:
            await self.start()
            for digest, path in self._files.items():
                await _plain(self._actor.call.remote("provide_file", digest, path))
        except RestartedError:
            logger.warning("the network actor is not back yet")


class RestartedError(NetworkError):
    """The call may not have happened: the actor was down, or has come back empty."""


async def _plain(reference: Any) -> Any:
    """Await an actor call; our own errors come out as themselves, without Ray's traceback around them."""
    try:
        return await reference
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ElasticError):
            raise cause from None
        raise
    except RayActorError as error:
        raise RestartedError(type(error).__name__) from None
