"""A peer without Ray, in one process: life, round, agreement, Hivemind, model, text and disk are the real ones.

A Ray cluster for each of many peers would leave two cores with nothing to do but Ray; what becomes of Ray's own
processes when they die is shown by `elastic quickstart --chaos`. Run by `swarm.Host`; says what happens on standard
output, one JSON object per line, and ends when standard input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import orjson
import torch

from elastic import trace
from elastic.actors.assembly import assemble, session_parts
from elastic.actors.logs import log_to_file
from elastic.config import RunConfig, parse_config
from elastic.errors import NetworkError
from elastic.exchange.blobs.store import BLOB_FOLDER
from elastic.exchange.hivemind import HivemindExchange
from elastic.exchange.known import KNOWN_FILE
from elastic.life import Life, Presence, announced
from elastic.messages import JSON, InnerReport, PeerStage, RoundPlan, Seconds
from elastic.peer import Peer
from elastic.reports import RoundReport
from elastic.schedule.clock import WallClock
from elastic.train.local import LocalTrainer
from elastic.train.session import Session
from elastic.train.workers import Worker
from elastic.wire.signing import Identity

T = TypeVar("T")

PACE = "pace_seconds"
"""Key beside [shared] and [local]: inner steps take at least so long, as on a machine of one's own."""


class PacedTrainer(LocalTrainer):
    """Works in a thread, so that the network goes on; real inner steps, and then a pause: many peers share the cores of
    this machine, and would not in a real run.
    """

    def __init__(self, session: Session, pace: float) -> None:
        super().__init__(session)
        self._pace = pace

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    async def inner_steps(self, plan: RoundPlan) -> InnerReport:
        start = time.monotonic()
        inner = await super().inner_steps(plan)
        await asyncio.sleep(min(self._pace, plan.train_seconds) - (time.monotonic() - start))
        return inner


class Narrator:
    """The `Watch` of a life: says everything, with the time on this machine's clock."""

    def __init__(self) -> None:
        self._round = 0

    def say(self, what: str, **fields: Any) -> None:
        sys.stdout.buffer.write(orjson.dumps({"what": what, "at": time.monotonic(), **fields}) + b"\n")
        sys.stdout.buffer.flush()

    def phase(self, name: str) -> None:
        self.say("phase", phase=name, round=self._round)

    def note(self, **fields: Any) -> None:
        if "stage" in fields or "phase" in fields:
            self.say("note", **{key: fields[key] for key in ("stage", "phase") if key in fields})

    def begin(self, plan: RoundPlan) -> None:
        self._round = plan.round

    def record(self, report: RoundReport, memories: Mapping[str, JSON]) -> None:
        self.say("report", report=report.model_dump(mode="json"), cpu=time.process_time())


Make = Callable[[Session, float], LocalTrainer]
"""A trainer of that session, at that pace."""


async def live(config: RunConfig, make: Make, pace: float, narrator: Narrator) -> None:
    """One life, to the end of the run or of standard input."""
    identity, local, shared = Identity.load(config.key_path), config.local, config.shared
    trace.setup(local.trace, run=shared.run, peer=identity.peer, name=local.name, state_dir=local.state_dir)
    exchange = await HivemindExchange.start(
        identity=identity, identity_path=config.key_path, run=shared.run, network=local.network,
        blob_dir=local.state_dir / BLOB_FOLDER, known_file=local.state_dir / KNOWN_FILE,
    )  # fmt: skip
    presence = Presence(identity.peer, local.name, shared, exchange)
    presence.addresses = announced(exchange.addresses)
    life = Life(presence, WallClock(), narrator, local.network.card_seconds)

    async def assembled() -> Peer:
        session = await asyncio.to_thread(lambda: Session(shared, session_parts(config), worker=Worker()))
        trainer = make(session, pace)
        return assemble(config, exchange, trainer, await trainer.state(), narrator.phase)

    try:
        await life.patiently(presence.renew)
        peer = await life.patiently(assembled)
        narrator.say("begins", holds=peer.holds())
        async with life.heartbeat(peer):
            narrator.say("ends", because=await life.live(peer))
    finally:
        with contextlib.suppress(NetworkError, TimeoutError):
            await asyncio.wait_for(presence.become(PeerStage.LEAVING), Seconds(3.0))
        await exchange.close()


async def until_told(config: RunConfig, make: Make, pace: float) -> None:
    """Live until standard input closes: whoever started us wants us to leave, or is gone."""
    living = asyncio.create_task(live(config, make, pace, Narrator()))
    ending = asyncio.create_task(asyncio.to_thread(sys.stdin.buffer.read))
    await asyncio.wait([living, ending], return_when=asyncio.FIRST_COMPLETED)
    if not living.done():
        living.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await living


def main(make: Make = PacedTrainer) -> None:
    """`python -m elastic.bench.churn.bare FILE`, a run file as JSON."""
    path = Path(sys.argv[1])
    tree = orjson.loads(path.read_bytes())
    pace = tree.pop(PACE)
    config = parse_config(tree, base=path.parent, source=str(path))
    log_to_file(config)
    torch.set_num_threads(1)
    try:
        asyncio.run(until_told(config, make, pace))
    except Exception:
        logging.getLogger(__name__).exception("this life ended")
        raise
    finally:
        trace.shutdown()


if __name__ == "__main__":
    main()
