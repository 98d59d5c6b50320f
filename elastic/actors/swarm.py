"""The one actor of a peer that owns the network, and the Exchange that forwards to it from the peer actor."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from elastic import trace
from elastic.actors.logs import log_to_file, trace_to
from elastic.config import RunConfig
from elastic.errors import BugError, ElasticError, NetworkError
from elastic.exchange.blobs.store import BLOB_FOLDER
from elastic.exchange.known import KNOWN_FILE
from elastic.messages import Digest, PeerCard, PeerId, RoundIndex, Seconds
from elastic.registry import resolve
from elastic.reports import Carried
from elastic.wire.signing import Identity

logger = logging.getLogger(__name__)

BACK_SECONDS = 180.0
"""For the network actor to come back, before this life of the peer is given up."""
LONGEST_PAUSE = 5.0
"""Between two looks whether it is back."""


class Swarm:
    """Owns the exchange: a p2p daemon, a DHT node, the blobs being served. Killing it frees all of them."""

    def __init__(self, config: RunConfig) -> None:
        log_to_file(config)
        trace_to(config)
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
                    blob_dir=self._config.local.state_dir / BLOB_FOLDER,
                    known_file=self._config.local.state_dir / KNOWN_FILE, settings=settings,
                )  # fmt: skip
        return list(self._exchange.addresses)

    async def call(self, context: dict[str, str], verb: str, *args: Any) -> Any:
        """One verb of the Exchange contract, for the span of the peer whose `trace.carrier()` this is."""
        if self._exchange is None:
            raise RestartedError("the network actor has not joined the DHT")
        try:
            with trace.attached(context):
                return await getattr(self._exchange, verb)(*args)
        except NetworkError:
            if not self._exchange.lost:
                raise
        await self.close()
        raise RestartedError("the p2p daemon died")

    async def stop(self) -> None:
        """Leave the DHT for good; the last spans are on their way when this returns."""
        await self.close()
        await asyncio.to_thread(trace.shutdown)

    async def close(self) -> None:
        """Leave the DHT and stop the daemon."""
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            await exchange.close()


class RemoteExchange:
    """Exchange whose work happens in the network actor, which Ray starts again if it dies."""

    def __init__(self, actor: Any, on_restart: Callable[[list[str]], None]) -> None:
        """Nothing is called before `start`.

        Args:
            actor: a `Swarm`.
            on_restart: told the new addresses when it has died and come back.
        """
        self._actor, self._on_restart = actor, on_restart
        self._files: dict[Digest, str] = {}
        self._heeded: list[PeerId] = []
        self._counted = self._carried = (0, 0)
        self._recovering, self._lives = asyncio.Lock(), 0

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

    async def heed(self, peers: Sequence[PeerId]) -> None:
        self._heeded = list(peers)
        await self._call("heed", self._heeded)

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

    async def partners(self) -> Mapping[PeerId, tuple[int, int]]:
        partners: Mapping[PeerId, tuple[int, int]] = await self._call("partners")
        return partners

    async def served(self) -> Sequence[Carried]:
        served: Sequence[Carried] = await self._call("served")
        return served

    async def close(self) -> None:
        try:
            await asyncio.wait_for(_plain(self._actor.stop.remote()), 10)
        except (NetworkError, BugError, TimeoutError) as error:
            logger.warning("closing the network: %s", error)

    async def _call(self, verb: str, *args: Any) -> Any:
        deadline, pause = None, 0.0
        while True:
            life = self._lives
            try:
                return await _plain(self._actor.call.remote(trace.carrier(), verb, *args))
            except RestartedError as error:
                logger.warning("the network died (%s); starting it again", error)
                deadline = deadline or time.monotonic() + BACK_SECONDS
                if time.monotonic() > deadline:
                    raise BugError(f"the network did not come back within {BACK_SECONDS:.0f} s: see peer.log") from None
            await asyncio.sleep(pause)
            pause = min(pause + 0.5, LONGEST_PAUSE)
            await self._recover(life)

    async def _recover(self, life: int) -> None:
        """Start it again, unless another call has done so since that life of it."""
        async with self._recovering:
            if self._lives != life:
                return
            try:
                addresses = await self.start()
                await _plain(self._actor.call.remote({}, "heed", self._heeded))
                for digest, path in self._files.items():
                    await _plain(self._actor.call.remote({}, "provide_file", digest, path))
            except RestartedError:
                logger.warning("the network is not back yet")
                return
            self._lives += 1
        self._on_restart(addresses)


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
    except ActorDiedError as error:
        raise BugError(f"the network actor died for good: {str(error).splitlines()[0]}") from None
    except RayActorError as error:
        raise RestartedError(type(error).__name__) from None
