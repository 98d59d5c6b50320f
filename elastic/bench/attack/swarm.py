"""The swarm of the benchmark: real peers with a real model and text in one process, on simulated time."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from elastic.bench.attack.conduct import UNLUCKY, Conduct
from elastic.bench.attack.member import CARD_SECONDS, Member
from elastic.config import Shared
from elastic.config_data import DataConfig
from elastic.data.corpus import Corpus, of_text
from elastic.exchange.memory import MemoryNetwork
from elastic.messages import JSON, PeerId, RoundPlan
from elastic.registry import READ_CORPUS, build, load
from elastic.schedule.assignment import assigned_sequences
from elastic.sections import PluginChoice
from elastic.sim.loop import VirtualClock
from elastic.state.store import StateStore
from elastic.train.session import Parts, Session
from elastic.train.workers import Worker
from elastic.wire.signing import Identity

RUN = "attack"
MODEL = PluginChoice.model_validate(
    {"name": "llama", "preset": "nano", "layers": 2, "dim": 48, "heads": 4, "kv_heads": 2, "ffn_dim": 96}
)
"""54,000 parameters: 16 peers' inner steps take half a second of one core."""
VALIDATORS = 4
"""One of them may lie."""
GRAIN = 0.1
"""Simulated seconds; nobody polls more often."""
MEMORY = Path("/dev/shm")
"""Where states lie if there is such a place: this benchmark is about no disk."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A swarm, but for who is in it and what defends it."""

    peers: int = 16
    bad: float = 0.25
    rounds: int = 24

    @property
    def num_bad(self) -> int:
        return round(self.bad * self.peers)


@dataclass(frozen=True, slots=True)
class Defence:
    """What stands against bad peers."""

    name: str
    incentive: str
    sequences: int = 8
    """On which contributions are assessed; 0: they are not."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the incentive."""
    news: Callable[[Sequence[PeerId]], JSON] | None = None
    """What its settler would tell, if it has one, of a chain on which all these peers are bound."""


def _all_bound(peers: Sequence[PeerId]) -> JSON:
    """A subnet's news, from a look at a chain that never changes."""
    keys = {"stake": 0, "validator_permit": False}
    return {"block": 1, "roster": {peer: {"hotkey": f"of {uid}", "uid": uid, **keys} for uid, peer in enumerate(peers)}}


DEFENCES = {
    each.name: each
    for each in (
        Defence("none", "uniform", sequences=0),
        Defence("reputation", "reputation"),
        Defence("subnet", "subnet", settings={"netuid": 1}, news=_all_bound),
    )
}
USUAL = ("none", "reputation")
"""A subnet trains as reputation does; what differs is whom its chain would pay."""


def identity(name: str) -> Identity:
    """The same key for the same name, in every run."""
    return Identity(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


class Swarm:
    """Honest peers, some of them out of luck, and bad ones of one kind.

    The first honest peers are the validators; where the kind has a validator of its own, it takes one of their seats.
    """

    def __init__(self, setting: Setting, defence: Defence, kind: type[Conduct] | None, seed: int, folder: Path) -> None:
        """Everything follows from the seed. `kind`: None leaves the bad peers out."""
        self.setting, self._seed, self._folder = setting, seed, folder
        bad = [identity(f"bad {seed} {number}") for number in range(setting.num_bad)] if kind else []
        honest = [identity(f"good {seed} {number}") for number in range(setting.peers - setting.num_bad)]
        seats = [*bad[: kind.validators if kind else 0], *honest][:VALIDATORS]
        self.shared = _shared(setting, defence, seed, [each.peer for each in seats], len(bad) + len(honest))
        self.clock = VirtualClock(GRAIN)
        self.network = MemoryNetwork(self.clock.now, CARD_SECONDS, self.clock.sleep)
        gang = frozenset(each.peer for each in bad)
        leader = kind() if kind else Conduct()
        conducts = [leader if leader.together or not kind else kind() for _ in bad]
        unlucky = [each() for each in UNLUCKY[: max(0, len(honest) - VALIDATORS)]]
        conducts += [Conduct() for _ in honest[len(unlucky) :]] + [*unlucky]
        news = defence.news([each.peer for each in [*bad, *honest]]) if defence.news else None
        self.members = [
            self._member(each, conduct, gang if each.peer in gang else frozenset(), news)
            for each, conduct in zip([*bad, *honest], conducts, strict=True)
        ]

    def _member(self, who: Identity, conduct: Conduct, gang: frozenset[PeerId], news: JSON | None) -> Member:
        place = self._folder / who.peer
        number = int(hashlib.sha256(f"{self._seed}/{who.peer}".encode()).hexdigest()[:15], 16)
        session = _session(self.shared, place)
        return Member(who, conduct, session, place, self.clock, self.network, gang, np.random.default_rng(number), news)

    async def live(self) -> None:
        """Until the run is complete for everyone; a failure of any peer raises."""
        tasks = [member.start() for member in self.members]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def of(self, *, bad: bool) -> Sequence[Member]:
        """Its bad peers, or its honest ones."""
        return [member for member in self.members if member.bad is bad]


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary one, in memory if possible."""
    with tempfile.TemporaryDirectory(prefix="elastic-attack-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        yield Path(name)


@cache
def _corpus() -> Corpus:
    return of_text(np.frombuffer(load(READ_CORPUS)("pride_and_prejudice"), np.uint8), DataConfig().held_out)


def _shared(setting: Setting, defence: Defence, seed: int, validators: list[PeerId], peers: int) -> Shared:
    tree: dict[str, Any] = {
        "run": RUN, "seed": seed, "rounds": setting.rounds, "model": MODEL,
        "incentive": {"name": defence.incentive, **defence.settings},
        "inner": {"steps": 8, "batch_size": 8, "sequence_length": 32, "warmup_steps": 8, "learning_rate": 4e-3},
        "reducer": {"name": "sparseloco", "chunk": 1024, "k": 32},
        "round": {"train_seconds": 30.0, "gather_seconds": 10.0, "min_peers": peers},
        "scoring": {"sequences": defence.sequences},
        "agreement": {"validators": tuple(validators)},
    }  # fmt: skip
    return Shared.model_validate(tree)


@lru_cache(maxsize=4096)
def _assigned(total: int, seed: int, round_: int, slot: int, count: int, slots: int) -> Any:
    """As `assigned_sequences`; all peers of this process ask the same."""
    return assigned_sequences(total, seed, RUN, round_, slot, count, slots)


def _session(shared: Shared, place: Path) -> Session:
    torch.set_num_threads(1)
    inner = shared.inner
    (total,) = _corpus().sizes(inner.sequence_length)

    def assign(plan: RoundPlan) -> Any:
        assert plan.slot is not None
        count = plan.inner_steps * inner.batch_size
        return _assigned(total, plan.seed, plan.round, plan.slot, count, len(plan.roster))

    parts = Parts(
        build("model", shared.model), _corpus(), assign, build("reducer", shared.reducer), StateStore(place / "state")
    )
    return Session(shared, parts, worker=Worker())
