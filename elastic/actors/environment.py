"""Ray's environment variables. Ray reads them when it is imported, so this file must not import it."""

import os
import time
from pathlib import Path

from elastic.errors import StateError

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` starts every worker through uv
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""What suits any peer; a user's own value stays."""
OWN_CLUSTER = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes everything of Ray listen on 127.0.0.1 only
    "RAY_enable_metrics_collection": "0",
    "RAY_enable_worker_prestart": "0",  # idle workers cost a second of start-up each
    "RAY_prestart_worker_first_driver": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
"""For a cluster that lives and dies with our process, on this machine only."""


def attach() -> None:
    """Before `import ray`, to attach to a cluster that somebody started."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def own_cluster(folder: Path) -> None:
    """Before `import ray`, to start a cluster of our own: loopback only, with a token that only we can read."""
    attach()
    token = folder / "ray.token"
    try:
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(os.urandom(32).hex())
    except OSError as error:
        raise StateError(f"{token}: {error.strerror}") from error
    os.environ.update(OWN_CLUSTER, RAY_AUTH_TOKEN_PATH=str(token))
    os.environ.pop("RAY_ADDRESS", None)


def new_folder(parent: Path) -> Path:
    """A fresh folder for a run, so that a second try never meets the first one's state.

    Raises:
        StateError: it cannot be made.
    """
    stem = time.strftime("quickstart-%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 100))):
        path = (parent / f"{stem}{suffix}").resolve()
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}; choose another place with --dir") from error
    raise StateError(f"{parent}: too many runs began in this second")
