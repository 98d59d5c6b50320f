"""Sockets that killed processes left in /tmp: nobody answers on them any more, and nobody else removes them."""

import os
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

OURS = "elastic-bulk-"
"""Prefix of our socket directories in the temporary folder."""
YOUNG_SECONDS = 60.0
"""A younger socket may belong to a process that is just about to listen on it."""
HIVEMIND = Path("/tmp")


def sweep() -> None:
    """Remove dead sockets of this user: ours, and those of Hivemind's daemons."""
    for path in HIVEMIND.glob("hivemind-*.sock"):
        if _dead(path):
            path.unlink(missing_ok=True)
    for folder in Path(tempfile.gettempdir()).glob(f"{OURS}*"):
        if _dead(folder / "bulk.sock"):
            shutil.rmtree(folder, ignore_errors=True)


def _dead(path: Path) -> bool:
    """Whether it is a socket of this user on which nobody listens."""
    with suppress(OSError):
        status = path.stat()
        if status.st_uid != os.getuid() or time.time() - status.st_mtime < YOUNG_SECONDS:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            try:
                client.connect(str(path))  # where a stream socket lives this is of the wrong kind: nobody is disturbed
            except ConnectionRefusedError:
                return True
    return False
