"""A directory belongs to one process at a time: a lock, `<role>.claim`, that ends with its holder."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elastic.errors import StateError
from elastic.state.files import explained

CLAIM_POLL = 0.05
"""Seconds between two tries."""


@contextmanager
def claim(directory: Path, role: str = "peer", patience: float = 0.0) -> Iterator[None]:
    """Hold a directory for this process until the end of the block, or of the process however it ends.

    Args:
        directory: made if need be.
        role: a peer and its trainer worker are two processes with one directory; each has its own role.
        patience: seconds to wait for a holder that is about to die.

    Raises:
        StateError: another process (or block) holds it; the message has its pid.
    """
    path = directory / f"{role}.claim"
    with explained(path):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with explained(path):
            _take(descriptor, directory, time.monotonic() + patience)
        yield
    finally:
        os.close(descriptor)


def is_claimed(directory: Path) -> bool:
    """Whether a peer runs from this directory now; nothing is made there.

    Raises:
        StateError: it cannot be told.
    """
    path = directory / "peer.claim"
    if not path.exists():  # no peer has ever run there
        return False
    if not os.access(path, os.R_OK | os.W_OK):
        raise StateError(f"{path}: cannot be opened: is it another user's?")
    try:
        with claim(directory):
            return False
    except StateError:
        return True


def _take(descriptor: int, directory: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() < deadline:
                time.sleep(CLAIM_POLL)
                continue
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
            raise StateError(
                f"{directory}: in use by pid {holder}; stop it or choose another local.state_dir"
            ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
