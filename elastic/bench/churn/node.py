"""A peer's exchange alone, in a process: serves an anchor, or fetches one, as it is told on standard input.

Run by `donors.Node`. One JSON object per line, in and out.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from elastic.bench.churn.swarm import RUN
from elastic.config_local import NetworkConfig
from elastic.errors import FetchError
from elastic.exchange.hivemind import HivemindExchange
from elastic.life import announced
from elastic.messages import NO_DIGEST, PeerCard, PeerStage, RoundIndex
from elastic.wire.signing import Identity
from elastic.wire.tree import Table

CARD_SECONDS = 600.0


def _say(**fields: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(fields) + b"\n")
    sys.stdout.buffer.flush()


async def _serve(exchange: HivemindExchange, path: Path, size: int, lies: bool) -> None:
    """Serve that many random bytes, the same on every donor; a liar shows the right hashes and sends other bytes."""
    await asyncio.to_thread(path.write_bytes, np.random.default_rng(0).bytes(size))
    digest = Table.of_file(path).digest
    await exchange.provide_file(digest, str(path))
    exchange.store.offer(digest)  # the hashes are remembered
    if lies:
        await asyncio.to_thread(path.write_bytes, np.random.default_rng(1).bytes(size))
    _say(serves=digest)


async def _fetch(exchange: HivemindExchange, digest: Any, size: int, holders: list[Any]) -> None:
    await exchange.cards()
    start = time.monotonic()
    try:
        data = await exchange.fetch(digest, size, holders)
    except FetchError as error:
        _say(failed=str(error))
        return
    seconds = time.monotonic() - start
    _say(seconds=seconds, right=Table.of(data).digest == digest, received=(await exchange.traffic())[1])


async def _live(setup: dict[str, Any]) -> None:
    folder = Path(setup["folder"])
    identity = Identity.load_or_create(folder / "peer.key")
    network = NetworkConfig(bootstrap=tuple(setup["bootstrap"]), map_port=False, card_seconds=CARD_SECONDS)
    exchange = await HivemindExchange.start(
        identity=identity, identity_path=folder / "peer.key", run=RUN, network=network
    )  # fmt: skip
    try:
        addresses = announced(exchange.addresses)
        card = PeerCard(
            peer=exchange.peer, run=RUN, shared=NO_DIGEST, stage=PeerStage.READY, round=RoundIndex(0),
            addresses=addresses,
        )  # fmt: skip
        await exchange.announce(card)
        _say(ready=addresses[0])
        while line := await asyncio.to_thread(sys.stdin.buffer.readline):
            told = orjson.loads(line)
            if "serve" in told:
                await _serve(exchange, folder / "anchor.bin", told["serve"], told["lies"])
            else:
                await _fetch(exchange, told["fetch"], told["size"], told["holders"])
    finally:
        await exchange.close()


if __name__ == "__main__":
    asyncio.run(_live(orjson.loads(sys.argv[1])))
