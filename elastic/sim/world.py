"""One simulated swarm from a seed, and what must hold in it after every event.

* No two manifests of one round are ever final, on anyone's disk.
* Whoever holds the anchor of a round holds the same one.
* Nothing is applied twice, and nothing is lost: each round's work is in the anchor, in its author's residual or in its
  open contribution, unless the author's disk was lost.
* When the network has healed and everyone is up again, the run goes on to its end.
"""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from elastic.agreement.simplex import max_liars
from elastic.config import Shared
from elastic.messages import Digest, Manifest, PeerId, RoundIndex, Seconds
from elastic.sim.liar import Liar
from elastic.sim.loop import VirtualClock, run
from elastic.sim.network import Faults, SimNetwork
from elastic.sim.node import SimNode
from elastic.sim.trainer import ViolationError
from elastic.wire.signing import Identity

logger = logging.getLogger(__name__)

HEAL, END = 40.0, 300.0
"""Seconds: the network is good from then on; everyone must have finished by then."""
GRAIN = 0.25
"""Nobody polls more often, in seconds."""
MEMORY_DISK = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a schedule."""

    seed: int
    violation: str | None
    seconds: float
    """Virtual, until the last peer finished."""
    lives: int
    trace: str
    """Digest of everything that was decided, and when: equal for equal seeds."""


def simulate(seed: int) -> Outcome:
    """Run one schedule to its end."""
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None) as folder:
        return run(lambda: World(seed, Path(folder)).outcome())


class World:
    """The peers, the network between them, and what has been seen of them so far."""

    def __init__(self, seed: int, folder: Path) -> None:
        """Draw everything from the seed."""
        self.seed, rng = seed, random.Random(seed)
        self.rng, self.crash_rng = rng, random.Random(seed + 1)
        num_validators = rng.choice([1, 2, 3, 3, 4, 4, 4, 4, 5, 7])
        keys = [_identity(f"{seed}/{number}") for number in range(num_validators + rng.randrange(3))]
        validators = keys[:num_validators]
        liars = validators[: rng.choice([0, max_liars(num_validators)])]
        self.liars = {key.peer for key in liars}
        honest = [key for key in keys if key.peer not in self.liars]
        self.shared = Shared.model_validate({
            "run": "sim", "rounds": rng.randrange(2, 5),
            "round": {"train_seconds": 4.0, "gather_seconds": 4.0, "min_peers": rng.randrange(1, len(honest) + 1)},
            "agreement": {"validators": tuple(key.peer for key in validators)},
        })  # fmt: skip
        self.clock = VirtualClock(GRAIN)
        self.network = SimNetwork(rng, self.clock, _faults(rng, [key.peer for key in keys]))
        self.crash_rate = rng.choice([0.0, 0.02, 0.1, 0.2])
        self.kills = rng.choice([0, 0, 3, 8])
        self.spare = max_liars(num_validators) - len(self.liars)
        """So many validators may lose their disk, and with it what they said: that makes them liars too."""
        slow = rng.choice(honest).peer if rng.random() < 0.3 else None
        self.nodes = [
            SimNode(self, key, folder / key.peer[-8:], rng.uniform(0.5, 1.5) * (6.0 if key.peer == slow else 1.0))
            for key in honest
        ]
        outsiders = [node for node in self.nodes if node.id not in self.shared.agreement.validators]
        if outsiders and rng.random() < 0.4:
            rng.choice(outsiders).fools = [node.id for node in self.nodes if rng.random() < 0.5]
        self._liars = [Liar(self, key, random.Random(f"{seed}/{key.peer}")) for key in liars]
        self._final: dict[RoundIndex, Digest] = {}
        self._anchors: dict[RoundIndex, Digest] = {}
        self._trace = sha256()
        self._tasks: set[asyncio.Task[None]] = set()

    async def outcome(self) -> Outcome:
        """Live through it."""
        violation = None
        try:
            await self._run()
        except ViolationError as error:
            violation = str(error)
        except Exception as error:
            logger.exception("a peer's life ended")
            violation = f"a peer's life ended: {type(error).__name__}: {error}"
        finally:
            for task in self._tasks:
                task.cancel()
            for node in self.nodes:
                await node.kill(disk=True)
        lives = sum(node.lives for node in self.nodes)
        return Outcome(self.seed, violation, self.clock.now(), lives, self._trace.hexdigest())

    # --- what peers show -------------------------------------------------------------------------------------------

    def decided(self, peer: PeerId, manifest: Manifest) -> None:
        """A peer holds this manifest for final."""
        self._note(f"{peer} {manifest.round} {manifest.digest()}")
        first = self._final.setdefault(manifest.round, manifest.digest())
        if first != manifest.digest():
            raise ViolationError(f"two final manifests of round {manifest.round}: {first[:8]}, {manifest.digest()[:8]}")

    def anchor(self, peer: PeerId, round_: RoundIndex, anchor: Digest) -> None:
        """A peer begins a round with this anchor."""
        self._note(f"{peer} {round_} {anchor}")
        first = self._anchors.setdefault(round_, anchor)
        if first != anchor:
            raise ViolationError(f"two anchors of round {round_}: {first[:8]}, {anchor[:8]}")

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        """Let it happen so many seconds from now."""
        asyncio.get_running_loop().call_later(seconds, event)

    def _note(self, line: str) -> None:
        self._trace.update(f"{self.clock.now():.6f} {line}\n".encode())

    # --- what happens ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        for node in self.nodes:
            self.later(self.rng.choice([0.0, self.rng.uniform(0, 30)]), node.start)
        for liar in self._liars:
            self._spawn(liar.live())
        self._spawn(self._kill_some())
        while not all(node.done and node.alive for node in self.nodes):
            await self.clock.sleep(Seconds(1.0))
            for node in self.nodes:
                node.check()
            for task in self._tasks:
                if task.done():
                    task.result()
            if self.clock.now() > END:
                stuck = {node.id[-6:]: node.trainer.round if node.trainer else 0 for node in self.nodes}
                raise ViolationError(f"not finished after {END:.0f} s; rounds {stuck} of {self.shared.rounds}")
        self._check_nothing_is_lost()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(work))

    async def _kill_some(self) -> None:
        """SIGKILL at any moment; sometimes the disk goes too."""
        for _ in range(self.kills):
            await self.clock.sleep(Seconds(self.crash_rng.uniform(0, HEAL / self.kills)))
            node = self.crash_rng.choice(self.nodes)
            if not node.alive or not self.network.bad:
                continue
            disk = self.crash_rng.random() < 0.8 or not self._may_lose_disk(node)
            await node.kill(disk=disk)
            node.done = False
            self.later(self.crash_rng.uniform(0, 10), node.start)

    def _may_lose_disk(self, node: SimNode) -> bool:
        if node.id not in self.shared.agreement.validators:
            return True
        lost = sum(other.lost_disk for other in self.nodes if other.id in self.shared.agreement.validators)
        return node.lost_disk or lost < self.spare

    def _check_nothing_is_lost(self) -> None:
        applied = set(next(node.trainer.applied for node in self.nodes if node.trainer))
        for node in self.nodes:
            trainer = node.trainer
            assert trainer is not None
            held = applied | set(trainer.residual) | set(trainer.pending or []) | set(trainer.dropped)
            lost = trainer.made - held
            if lost and not node.fools:
                raise ViolationError(f"{node.id[-6:]} lost {sorted(lost)}")
            if set(trainer.residual) & applied:
                raise ViolationError(f"{node.id[-6:]} would send {sorted(set(trainer.residual) & applied)} again")


def _identity(name: str) -> Identity:
    return Identity(Ed25519PrivateKey.from_private_bytes(sha256(name.encode()).digest()))


def _faults(rng: random.Random, peers: list[PeerId]) -> Faults:
    start = rng.choice([0.0, rng.uniform(0, 20)])  # from birth, or later
    split = (start, rng.uniform(start, HEAL)) if rng.random() < 0.4 else (1.0, 0.0)
    return Faults(
        heal=HEAL, loss=rng.choice([0.0, 0.1, 0.4]), delay=rng.choice([0.1, 0.5, 3.0]),
        stale=rng.choice([0.0, 0.2]), corrupt=rng.choice([0.0, 0.2]), split=split,
        sides={peer: rng.randrange(2) for peer in peers},
    )  # fmt: skip
