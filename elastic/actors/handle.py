"""A peer as its driver sees it: started, watched, started again if it dies, and freed in the end."""

import contextlib
import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from elastic.actors.peer import JOINING, PeerActor
from elastic.actors.revival import GiveUp, Past, after_death
from elastic.actors.swarm import Swarm
from elastic.config import RunConfig
from elastic.errors import BugError, ElasticError, MalformedError, PeerDiedError, RayUnavailableError
from elastic.messages import PeerId, RoundIndex
from elastic.reports import STATUS_FILE, PeerStatus, RoundReport

LEAVE_SECONDS = 50.0
"""A polite farewell takes a second or two; after this long the actors are killed."""
ANSWER_SECONDS = 1.0
"""A peer that starts or dies does not answer; what it said last is good enough then."""
GONE_SECONDS = 30.0
"""For Ray to bury the actors of the last life."""


class PeerHandle:
    """A peer's actors, as seen by the process that started them; they end with it.

    The network actor is restarted by Ray, Ray Train's processes by the peer actor, and the peer actor from here, with
    everything that belongs to it: a driver that goes on asking `ended` has a peer that comes back.
    """

    def __init__(self, config: RunConfig, peer: PeerId, namespace: str, *, stay: bool) -> None:
        """Start it.

        Raises:
            ValueError: an actor of that name is in that namespace.
        """
        self.config, self._namespace, self._stay = config, namespace, stay
        self._status = PeerStatus(
            peer=peer, name=config.local.name or peer[-6:], run=config.shared.run, stage="starting",
            phase=JOINING, updated=time.time(), pid=0,
        )  # fmt: skip
        self._past, self._deaths = Past(), 0
        self._again_at: float | None = None
        """When the next life begins, while there is none."""
        self._gave_up: PeerDiedError | None = None
        self._begin()

    def ended(self, seconds: float) -> bool:
        """Wait up to so many seconds for the end of the peer; a life that ended by a death is followed by another."""
        if self._again_at is not None:
            time.sleep(max(0.0, min(seconds, self._again_at - time.monotonic())))
            if time.monotonic() >= self._again_at:
                self._again_at = None
                self._begin()
            return False
        if not ray.wait([self.life], timeout=seconds)[0]:
            return False
        because = self._death()
        if because is None:
            return True
        self._bury(because)
        return self._gave_up is not None

    def reason(self) -> str:
        """Why it ended.

        Raises:
            ElasticError: what a person must act on.
        """
        if self._gave_up is not None:
            raise self._gave_up
        return str(self.ask(self.life))

    def status(self) -> PeerStatus:
        """What the peer says of itself; while it is down, what it said last and what happens now."""
        if self._again_at is None:
            with contextlib.suppress(RayError, GetTimeoutError):
                self._status = ray.get(self.peer.status.remote(), timeout=ANSWER_SECONDS)
        return self._status

    def reports(self, after: RoundIndex) -> list[RoundReport]:
        """Reports of rounds after this one, of its present life."""
        if self._again_at is not None or self._status.stage == "starting":
            return []
        try:
            found: list[RoundReport] = ray.get(self.peer.reports.remote(after), timeout=5 * ANSWER_SECONDS)
        except (RayError, GetTimeoutError):
            return []
        return found

    def ask(self, reference: Any) -> Any:
        """The value of a call, our own errors without Ray's traceback around them."""
        try:
            return ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, ElasticError):
                raise error.cause from None
            raise
        except RayActorError as error:
            raise RayUnavailableError(f"the peer's actor died: {str(error).splitlines()[0]}") from None

    def leave(self, hand_in: bool) -> None:
        """Leave politely, with what is done of this round or without; kill what does not go by itself."""
        with contextlib.suppress(RayActorError, RayTaskError):
            ray.wait([self.peer.leave.remote(hand_in)], timeout=LEAVE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Free what is left."""
        for actor in (self.peer, self.swarm):
            with contextlib.suppress(RayActorError, ValueError):
                ray.kill(actor)

    def _begin(self) -> None:
        options = {"namespace": self._namespace, "num_cpus": 0}
        self.swarm = ray.remote(Swarm).options(name="swarm", max_restarts=-1, **options).remote(self.config)
        self.peer = (
            ray.remote(PeerActor)
            .options(name="peer", **options)
            .remote(self.config, "peer", self._namespace, self._past)
        )
        self.life = self.peer.run.remote(self._stay)

    def _death(self) -> str | None:
        """What the life died of; None if it ended as lives should, or with an error that another would end with too."""
        try:
            ray.get(self.life)
        except RayActorError:
            return "its process died"
        except RayTaskError as error:
            return str(error.cause) if isinstance(error.cause, BugError) else None
        return None

    def _bury(self, because: str) -> None:
        """Free what is left of the last life, and decide whether there is a next one."""
        self._status = self._last_word()
        got_somewhere = self._status.rounds_finished > 0
        self._deaths = 1 if got_somewhere else self._deaths + 1
        self._past = Past(self._status.restarts + 1, because, self._past.met or got_somewhere)
        self.kill()
        next_ = after_death(self._deaths)
        if isinstance(next_, GiveUp):
            log = self.config.local.state_dir / "peer.log"
            self._gave_up = PeerDiedError(f"the peer {next_.because}; the last time: {because} (log: {log})")
            return
        self._await_silence()
        self._again_at = time.monotonic() + next_.pause
        self._status = self._status.model_copy(
            update={
                "stage": "starting", "phase": f"restarting in {next_.pause:.0f} s: {because}", "updated": time.time(),
                "restarts": self._past.restarts, "restarted_after": because, "rounds_finished": 0,
            }
        )  # fmt: skip

    def _last_word(self) -> PeerStatus:
        """What the peer said last, which may be on its disk and not have reached us."""
        with contextlib.suppress(OSError, MalformedError):
            written = PeerStatus.from_bytes((self.config.local.state_dir / STATUS_FILE).read_bytes())
            if (written.peer, written.run) == (self._status.peer, self._status.run):
                return max(written, self._status, key=lambda status: status.updated)
        return self._status

    def _await_silence(self) -> None:
        """Until the names are free: the processes of the last life, and what they started, are gone then."""
        deadline = time.monotonic() + GONE_SECONDS
        while lives_in(self._namespace) and time.monotonic() < deadline:
            time.sleep(0.05)


def lives_in(namespace: str) -> bool:
    """Whether a peer's actors are there."""
    for name in ("peer", "swarm"):
        with contextlib.suppress(ValueError):
            ray.get_actor(name, namespace=namespace)
            return True
    return False
