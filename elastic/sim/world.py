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
from collections.abc import Coroutine
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from elastic.agreement.simplex import max_liars
from elastic.config import Shared
from elastic.messages import Digest, Manifest, PeerId, RoundIndex, Seconds
from elastic.sim.change import Changes
from elastic.sim.liar import Liar
from elastic.sim.loop import VirtualClock, run
from elastic.sim.network import SimNetwork
from elastic.sim.node import SimNode
from elastic.sim.trainer import ViolationError
from elastic.sim.trouble import FIRST, Trouble, draw_faults
from elastic.wire.signing import Identity

logger = logging.getLogger(__name__)

HEAL, LONG_HEAL = 40.0, 80.0
"""Second from which the network is good: mostly, and in some schedules."""
LONGEST, LONGEST_ROUND = 80.0, 60.0
"""Seconds, and seconds a round, in which everyone must have finished once the network is good and all are up."""
LATE = 100.0
"""Second at which the last peers come."""
CHANGING, MORE_ROUNDS = 3, 4
"""Seeds with this remainder of four are those in which who decides changes; such runs are longer."""
LARGE_PAYLOAD = 12 * 1024
"""Bytes: so large that some rounds that were missed are a larger download than the anchor."""
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
    """Run one schedule to its end; in every fourth, who decides changes while it lasts."""
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None) as folder:
        return run(lambda: World(seed, Path(folder)).outcome())


class World:
    """The peers, the network between them, and what has been seen of them so far."""

    def __init__(self, seed: int, folder: Path) -> None:
        """Draw everything from the seed."""
        self.seed, rng, changing = seed, random.Random(seed), seed % 4 == CHANGING
        self.rng = rng
        num_validators = rng.choice([1, 2, 3, 3, 4, 4, 4, 4, 5, 7])
        keys = [_identity(f"{seed}/{number}") for number in range(num_validators + rng.randrange(3))]
        validators = keys[:num_validators]
        liars = validators[: rng.choice([0, max_liars(num_validators)])]
        self.liars = {key.peer for key in liars}
        honest = [key for key in keys if key.peer not in self.liars]
        rounds, enough = rng.choice([2, 3, 4, 6]) + MORE_ROUNDS * changing, rng.randint(1, rng.randint(1, len(honest)))
        self.shared = Shared.model_validate({
            "run": "sim", "rounds": rounds,
            "scoring": {"sequences": 0},
            "round": {"train_seconds": 4.0, "gather_seconds": 4.0, "min_peers": enough},
            "agreement": {"validators": tuple(key.peer for key in validators)},
        })  # fmt: skip
        self.clock = VirtualClock(GRAIN)
        self.network = SimNetwork(
            rng, self.clock, draw_faults(rng, [key.peer for key in keys], rng.choice([HEAL, HEAL, LONG_HEAL]))
        )
        self.payload_bytes = rng.choice([0, LARGE_PAYLOAD])
        self._all_up = self.network.faults.heal
        spare = 0 if changing else max_liars(num_validators) - len(self.liars)
        self.trouble = Trouble(self, random.Random(f"{seed}/trouble"), spare)
        slow = rng.choice(honest).peer if rng.random() < 0.3 else None
        self.nodes = [
            SimNode(self, key, folder / key.peer[-8:], rng.uniform(0.5, 1.5) * (6.0 if key.peer == slow else 1.0))
            for key in honest
        ]
        outsiders = [node for node in self.nodes if node.id not in self.shared.agreement.validators]
        if outsiders and rng.random() < 0.4:
            rng.choice(outsiders).fools = [node.id for node in self.nodes if rng.random() < 0.5]
        elif outsiders and rng.random() < 0.4:
            rng.choice(outsiders).thief = True
        self._liars = [Liar(self, key, random.Random(f"{seed}/{key.peer}")) for key in liars]
        self.changes = Changes(self, sorted(self.liars), random.Random(f"{seed}/changes")) if changing else None
        self.final: dict[RoundIndex, Digest] = {}
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

    @property
    def deciding(self) -> set[PeerId]:
        """Who is a validator, or may become one."""
        return set(self.shared.agreement.validators) | ({node.id for node in self.nodes} if self.changes else set())

    # --- what peers show -------------------------------------------------------------------------------------------

    def decided(self, node: SimNode, manifest: Manifest) -> None:
        """A peer holds this manifest for final."""
        self._note(f"{node.id} {manifest.round} {manifest.digest()}")
        if manifest.round not in self.final:
            self.trouble.strike(node, FIRST)
        first = self.final.setdefault(manifest.round, manifest.digest())
        if first != manifest.digest():
            raise ViolationError(f"two final manifests of round {manifest.round}: {first[:8]}, {manifest.digest()[:8]}")

    def anchor(self, peer: PeerId, round_: RoundIndex, anchor: Digest) -> None:
        """A peer begins a round with this anchor."""
        self._note(f"{peer} {round_} {anchor}")
        first = self._anchors.setdefault(round_, anchor)
        if first != anchor:
            raise ViolationError(f"two anchors of round {round_}: {first[:8]}, {anchor[:8]}")

    def start(self, node: SimNode, seconds: float) -> None:
        """Let a peer begin a life so many seconds from now."""
        self._all_up = max(self._all_up, self.clock.now() + seconds)
        asyncio.get_running_loop().call_later(seconds, node.start)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let it go on beside everything else; what it raises ends the world."""
        self._tasks.add(asyncio.create_task(work))

    def _note(self, line: str) -> None:
        self._trace.update(f"{self.clock.now():.6f} {line}\n".encode())

    # --- what happens ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        for node in self.nodes:
            late = self.rng.uniform(0, LATE if self.rng.random() < 0.2 else 30)
            self.start(node, self.rng.choice([0.0, 0.0, late]))
        for liar in self._liars:
            self.spawn(liar.live())
        self.spawn(self.trouble.kill_some())
        if self.changes is not None:
            self.spawn(self.changes.end_lives())
        while not all(node.done and node.alive for node in self.nodes):
            await self.clock.sleep(Seconds(1.0))
            for node in self.nodes:
                node.check()
            for task in self._tasks:
                if task.done():
                    task.result()
            if self.clock.now() > self._all_up + LONGEST + self.shared.rounds * LONGEST_ROUND:
                stuck = {node.id[-6:]: node.trainer.round if node.trainer else 0 for node in self.nodes}
                raise ViolationError(
                    f"not finished after {self.clock.now():.0f} s; rounds {stuck} of {self.shared.rounds}"
                )
        self._check_nothing_is_lost()

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
