"""The composition root: from a run file to actors on a Ray cluster."""

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from elastic.actors.handle import PeerHandle, lives_in
from elastic.check import check_evaluator
from elastic.config import RunConfig
from elastic.config_local import RayConfig
from elastic.errors import ConfigError, RayUnavailableError
from elastic.wire.signing import Identity

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
RELEASE_SECONDS = 5.0
"""A peer that has just left may still hold its CPUs in Ray's books."""
JOB_COPY = "working_dir_files"
"""Folder below which Ray unpacks the files of submitted jobs."""


def connect(config: RayConfig) -> None:
    """Attach this process to the peer's Ray cluster.

    Raises:
        RayUnavailableError: there is none, or it has too little for the trainer; the message says what to do.
    """
    address = _reachable(config.address)
    silence_ray()
    try:
        with quiet():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        raise RayUnavailableError(
            "the Ray cluster wants another token: set RAY_AUTH_TOKEN_PATH to the file it was started with"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RayUnavailableError(
            f"the Ray cluster at {address} does not let us in: {error}".splitlines()[0] + _on_tokens()
        ) from error


def _reachable(address: str) -> str:
    """The cluster's address, after a look whether anybody listens there: Ray itself would try for minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "") or _started_here()
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise RayUnavailableError(f'local.ray.address = "{address}": expected "host:port", as `ray start` prints it')
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise RayUnavailableError(
            f"no Ray cluster at {address} ({error.strerror or error}): start one with `ray start --head`"
        ) from error
    return address


def _started_here() -> str:
    """Address of the cluster that `ray start` made last on this machine, which it notes in a file."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        return note.read_text().strip()
    except OSError:
        raise RayUnavailableError("no Ray cluster on this machine: start one with `ray start --head`") from None


def require_resources(config: RayConfig) -> None:
    """Raises RayUnavailableError if the cluster has too little left for the trainer."""
    kind, each = ("GPU", 1.0) if config.gpu else ("CPU", config.cpus_per_worker)
    needed, free = config.workers * each, ray.available_resources().get(kind, 0.0)
    deadline = time.monotonic() + RELEASE_SECONDS
    while needed > free and time.monotonic() < deadline:
        time.sleep(0.5)
        free = ray.available_resources().get(kind, 0.0)
    if needed > free:
        advice = "" if config.gpu else ", a smaller local.ray.cpus_per_worker, or `ray start --head --num-cpus N`"
        raise RayUnavailableError(
            f"Ray has {free:g} free {kind}s and this peer's trainer needs {needed:g} ({config.workers} workers x "
            f"{each:g}): choose fewer local.ray.workers{advice}"
        )


def start_peer(config: RunConfig, *, stay: bool = False) -> PeerHandle:
    """Start a peer's actors on the connected cluster; with `stay` it outlives the end of its run until told to leave.

    Raises:
        ConfigError: this peer already runs there, or is an evaluator with the key of a validator.
    """
    identity = Identity.load_or_create(config.key_path)
    check_evaluator(config, identity.peer)
    namespace = f"elastic-{config.shared.run}-{identity.peer[-12:]}"
    taken = ConfigError(
        f"peer {identity.peer[-6:]} of run {config.shared.run} already runs on this Ray cluster "
        f"(key {config.key_path}): give a second peer its own state_dir"
    )
    if lives_in(namespace):
        raise taken
    require_resources(config.local.ray)
    if JOB_COPY in config.local.state_dir.parts:
        raise ConfigError(
            f"{config.local.state_dir} lies in Ray's copy of this job's folder, which goes when the job ends: "
            "give local.state_dir as an absolute path"
        )
    try:
        return PeerHandle(config, identity.peer, namespace, stay=stay)
    except ValueError as error:
        raise taken from error


def silence_ray() -> None:
    """Send the raylet's remarks to the log; `log_to_driver=False` leaves them on the user's screen (Ray 2.60)."""

    def note(data: dict[str, Any], *_: Any, **__: Any) -> None:
        logger.info("raylet: %s", " ".join(map(str, data.get("lines", ()))))

    ray._private.worker.print_to_stdstream = note


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries write to stderr while they start (file descriptor 2, C++ included) away from the user."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _on_tokens() -> str:
    """A cluster that was started where this file lies asks for it, and a driver shows it only if it is told to."""
    if not (Path.home() / ".ray" / "auth_token").is_file() or "RAY_AUTH_MODE" in os.environ:
        return ""
    return "; this machine has a token for Ray (~/.ray/auth_token): try again with RAY_AUTH_MODE=token"
