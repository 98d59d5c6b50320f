"""What runs inside each Ray Train worker: build a session, then do what the mailbox says until it says stop."""

import logging
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError

from elastic import trace
from elastic.actors.assembly import session_parts
from elastic.actors.job import Job
from elastic.actors.logs import log_to_file, trace_to
from elastic.actors.mailbox import Command, Reply
from elastic.errors import ConfigError, ElasticError, StateError, TrainerFailedError, is_out_of_memory
from elastic.state.claim import claim
from elastic.train.gpu import gpu_memory
from elastic.train.session import Session
from elastic.train.workers import Worker

logger = logging.getLogger(__name__)

BUGS = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    OSError,
    MemoryError,
)
"""What broken code or a broken machine raises; everything else may pass."""
OUT_OF_MEMORY = (
    "out of memory; in [local.train] set micro_batch to fewer sequences (1 needs least), recompute = true or "
    'precision = "bf16", or share the model among more workers (local.ray.workers)'
)
TAKEOVER_SECONDS = 20.0
"""For the worker of the last life to be dead: two would write the same files."""
TOLD = frozenset({"inner_steps", "compress", "outer_step", "assess", "load"})
"""Verbs that are spans; the others take no time."""
PROGRESS_SECONDS = 0.5
"""Between two words to the peer about how training goes; its answers are not waited for."""


def train_loop(loop_config: dict[str, Any]) -> None:
    """The train function given to `TorchTrainer`; it returns when the peer leaves."""
    job: Job = loop_config["job"]
    log_to_file(job.config)
    trace_to(job.config)
    _silence_ray_train()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    peer = ray.get_actor(job.actor, namespace=job.namespace)
    incarnation = _incarnation()
    with ExitStack() as stack:
        stack.callback(trace.shutdown)
        try:
            if rank == 0:
                stack.enter_context(claim(job.config.local.state_dir, "trainer", TAKEOVER_SECONDS))
            session = make_session(job, rank, world_size, peer)
        except (ElasticError, *BUGS) as error:
            if _is_a_lost_partner(error, world_size):
                raise
            ray.get(peer.worker_failed.remote(_as_ours("starting the trainer", error)))  # a restart would fail alike
            return
        ray.get(peer.worker_hello.remote(rank, world_size, incarnation))
        serve(session, peer, incarnation)
        if rank == 0:
            _put_away(session)


def _put_away(session: Session) -> None:
    """Wait for the disk, so that a peer that left loses nothing to a power failure."""
    try:
        session.store.flush()
    except StateError as error:
        logger.error("%s", error)  # what is there is enough to come back to, and there is nobody to tell


def serve(session: Session, peer: Any, incarnation: str) -> None:
    """Do what the mailbox says until it says stop."""
    rank = session.worker.rank
    while (command := ray.get(peer.next_command.remote(rank, incarnation))) is not None:
        reply = execute(session, command)
        ray.get(peer.worker_reply.remote(rank, incarnation, reply))
        if session.worker.world_size > 1 and isinstance(reply.error, TrainerFailedError):
            raise reply.error  # the others wait for this worker in the middle of a verb: Ray Train starts them again
        if command.verb == "inner_steps" and reply.error is None:
            ray.train.report({"round": command.args[0].round, "loss": reply.value.mean_loss})


def make_session(job: Job, rank: int, world_size: int, peer: Any) -> Session:
    """Build everything a worker needs from the run file.

    Raises:
        ConfigError, MissingCorpusError, StateError: the user's to mend.
    """
    shared, ray_config = job.config.shared, job.config.local.ray
    if shared.inner.batch_size < world_size:
        raise ConfigError(
            f"local.ray.workers = {world_size}, but there are only shared.inner.batch_size = "
            f"{shared.inner.batch_size} sequences in a batch for them to share"
        )
    torch.set_num_threads(ray_config.threads or max(1, (os.cpu_count() or 1) // world_size))
    worker = Worker(rank, world_size, str(ray.train.torch.get_device()), job.config.local.train)
    return Session(shared, session_parts(job.config), worker=worker, on_step=_Progress(peer, rank))


def execute(session: Session, command: Command) -> Reply:
    """Run one verb of the session; whatever it raises travels back as an error of ours."""
    try:
        return Reply(command.serial, _done(session, command))
    except (ElasticError, *BUGS) as error:
        if _is_a_lost_partner(error, session.worker.world_size):
            raise
        return Reply(command.serial, error=_as_ours(command.verb, error))


def _done(session: Session, command: Command) -> Any:
    """The verb's value; what it took is a span of the peer's round, beside what Ray took to ask and to answer."""
    with trace.attached(command.context):
        verb = getattr(session, command.verb)
        if command.verb not in TOLD or not trace.active():
            return verb(*command.args)
        waited = max(0.0, time.time() - command.asked)
        with (
            trace.span(trace.WORKER + command.verb, rank=session.worker.rank, waited_s=waited),
            trace.fine(f"fine.{command.verb}", rank=session.worker.rank) as marks,
            _each_step(session, marks),
        ):
            return verb(*command.args)


@contextmanager
def _each_step(session: Session, marks: trace.Marks) -> Iterator[None]:
    """During the block each inner step is marked, if anyone wants that."""
    if not marks.active:
        yield
        return
    told, last = session.on_step, time.time_ns()

    def on_step(step: int, loss: Any) -> bool:
        nonlocal last
        begin, last = last, time.time_ns()
        marks.add("fine.step", begin, last, step=step)
        return told(step, loss)

    session.on_step = on_step
    try:
        yield
    finally:
        session.on_step = told


def _is_a_lost_partner(error: Exception, world_size: int) -> bool:
    """With several workers, one that dies makes the others' collectives fail with RuntimeErrors: Ray Train must restart
    the group, so this worker has to fail too, and say nothing that would end the peer.
    """
    ours = isinstance(error, NotImplementedError) or is_out_of_memory(error)
    return world_size > 1 and isinstance(error, RuntimeError) and not ours


def _as_ours(what: str, error: Exception) -> ElasticError:
    """One line for the user; a bug leaves its traceback in the log."""
    if isinstance(error, ElasticError):
        return error
    if is_out_of_memory(error):
        return TrainerFailedError(f"{what}: {OUT_OF_MEMORY}")
    logger.error("%s failed: %s", what, traceback.format_exc())
    first = str(error).strip().splitlines()[:1] or [""]
    return TrainerFailedError(f"{what} failed: {type(error).__name__}: {first[0][:300]} (traceback in peer.log)")


class _Progress:
    """Tells the peer the step and loss now and then, and hears whether it wants to leave with what is done."""

    def __init__(self, peer: Any, rank: int) -> None:
        self._peer, self._rank, self._last = peer, rank, 0.0
        self._answer: Any = None
        self._enough = False

    def __call__(self, step: int, loss: Any) -> bool:
        if self._rank or time.monotonic() - self._last < PROGRESS_SECONDS:
            return self._enough
        self._last = time.monotonic()
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            with suppress(RayError):  # the peer is being started again, and this worker will be
                self._enough = ray.get(self._answer)
        self._answer = self._peer.progress.remote(step + 1, float(loss), gpu_memory())
        return self._enough


def _incarnation() -> str:
    """The same on all workers of one life of the group: rank 0 draws it, the others are told."""
    import ray.train.collective

    drawn: str = ray.train.collective.broadcast_from_rank_zero(os.urandom(8).hex())
    return drawn


def _silence_ray_train() -> None:
    """Ray's "Reporting training result" line comes from a logger named after its file, which no setting reaches."""
    import ray.train.v2._internal.execution.context as context

    logging.getLogger(context.__file__).setLevel(logging.WARNING)
