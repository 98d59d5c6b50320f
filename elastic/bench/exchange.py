"""One payload to many peers: as a swarm, and everyone from its origin alone. Real p2pd daemons, on loopback.

Every peer's uplink is limited, as at home: without that the figures would be those of this machine's cores.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elastic.config_local import NetworkConfig
from elastic.exchange.hivemind import HivemindExchange
from elastic.messages import NO_DIGEST, PeerCard, PeerStage, RoundIndex
from elastic.wire.signing import Identity

RUN = "benchmark"
CARD_SECONDS = 600.0

Say = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One way of giving a payload to that many peers."""

    way: str
    peers: int
    origin_copies: float
    """Bytes that the origin sent ÷ bytes of the payload."""
    busiest_copies: float
    """The same of the other peer that sent most."""
    seconds: float
    """Until the last peer had it."""


def measure(folder: Path, peers: Sequence[int], megabytes: float, upload_mbps: float, say: Say) -> list[dict[str, Any]]:
    """Both ways for every number of peers.

    Args:
        folder: for the peers' keys.
        peers: how many receive, beside the origin.
        megabytes: of the payload, 10⁶ bytes each.
        upload_mbps: limit of every peer's uplink, in megabits per second.
    """
    return asyncio.run(_measure(folder, peers, round(megabytes * 1e6), upload_mbps, say))


async def _measure(folder: Path, peers: Sequence[int], size: int, upload_mbps: float, say: Say) -> list[dict[str, Any]]:
    rng, rows = np.random.default_rng(0), []
    async with AsyncExitStack() as stack:
        swarm: list[HivemindExchange] = []
        for number in range(max(peers) + 1):
            bootstrap = tuple(swarm[0].addresses) if swarm else ()
            exchange = await _join(folder / f"{number}.key", bootstrap, upload_mbps)
            stack.push_async_callback(exchange.close)
            swarm.append(exchange)
        for exchange in swarm:
            await exchange.cards()
        say(f"{len(swarm)} peers run")
        for count in peers:
            for way in ("from the origin alone", "as a swarm"):
                row = await _give(swarm[: count + 1], rng.bytes(size), way)
                say(f"{count:3d} peers, {way}: {row.seconds:.1f} s")
                rows.append(asdict(row))
    return rows


async def _join(key: Path, bootstrap: tuple[str, ...], upload_mbps: float) -> HivemindExchange:
    identity = Identity.load_or_create(key)
    network = NetworkConfig(
        host="127.0.0.1", bootstrap=bootstrap, upload_mbps=upload_mbps, card_seconds=CARD_SECONDS
    )  # fmt: skip
    exchange = await HivemindExchange.start(identity=identity, identity_path=key, run=RUN, network=network)
    addresses = tuple(exchange.addresses)
    card = PeerCard(
        peer=exchange.peer, run=RUN, shared=NO_DIGEST, stage=PeerStage.READY, round=RoundIndex(0), addresses=addresses
    )  # fmt: skip
    await exchange.announce(card)
    return exchange


async def _give(swarm: Sequence[HivemindExchange], payload: bytes, way: str) -> Row:
    origin, *receivers = swarm
    digest = await origin.provide(payload)
    others = [each.peer for each in receivers] if way == "as a swarm" else []
    before = [(await each.traffic())[0] for each in swarm]
    start = time.perf_counter()
    await asyncio.gather(*(each.fetch(digest, len(payload), [origin.peer, *others]) for each in receivers))
    seconds = time.perf_counter() - start
    copies = [((await each.traffic())[0] - was) / len(payload) for each, was in zip(swarm, before, strict=True)]
    return Row(way, len(receivers), copies[0], max(copies[1:]), seconds)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people; the ratio is to the other way with as many peers."""
    alone = {row["peers"]: row["seconds"] for row in rows if row["way"] != "as a swarm"}
    lines = ["way                     peers  sent by the origin  by the busiest other  seconds  faster"]
    for row in rows:
        copies = f"{row['origin_copies']:11.2f} copies  {row['busiest_copies']:13.2f} copies"
        ratio = alone[row["peers"]] / row["seconds"]
        lines.append(f"{row['way']:22s}  {row['peers']:5d}  {copies}  {row['seconds']:7.1f}  {ratio:5.1f}x")
    return "\n".join(lines)
