"""Files of ours that are whole or not there, and what to say when a disk refuses.

A file is written under a temporary name and renamed. What dies halfway leaves a temporary, which the next start sweeps;
a lock on it tells that someone is still at it.
"""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from elastic import trace
from elastic.errors import state_error
from elastic.wire.files import write_at

TEMPORARY = ".tmp"


class Temporary:
    """A file that is being written, perhaps by several processes: this one made it, the others are told its path.

    While this object lives no sweep takes the file, and when this process dies any may. As no two have the same name,
    a writer that outlives its group never writes into a later one's.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Make it beside `path`, all of its space reserved: a full disk is found now, and not when half is written.

        Raises:
            OSError: it cannot be made, or there is no space.
        """
        self.path, self._descriptor = _made(path)
        try:
            if size:
                os.posix_fallocate(self._descriptor, 0, size)
        except OSError:
            self.discard()
            raise
        except BaseException:
            self.close()
            raise

    def write(self, data: bytes) -> None:
        """Put all of its contents there.

        Raises:
            OSError: they cannot be written.
        """
        write_at(self._descriptor, data, 0)

    def sync(self) -> None:
        """Wait until its contents are on the disk.

        Raises:
            OSError: they cannot be.
        """
        os.fsync(self._descriptor)

    def adopt(self, path: Path) -> None:
        """Give it its name, in place of what had it before.

        Raises:
            OSError: it cannot be renamed.
        """
        os.replace(self.path, path)
        self.close()

    def discard(self) -> None:
        """Remove it: on a full disk the space is needed."""
        with suppress(OSError):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        """Let go of it: what has no name by now is for a sweep."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file by these contents, whole or not at all; on disk when this returns.

    Raises:
        StateError: it could not be written; what was there before still is, or, if only the very last sync
            failed, the new contents are.
    """
    begin = time.perf_counter()
    with explained(path):
        _write(path, data, sync=True)
        sync_directory(path.parent)
    trace.tally(disk_s=time.perf_counter() - begin, disk_bytes=len(data))


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file by these contents, whole or not at all, whoever is killed; but a power failure may garble it.

    Raises:
        StateError: it could not be written; what was there before still is.
    """
    begin = time.perf_counter()
    with explained(path):
        _write(path, data, sync=False)
    trace.tally(disk_s=time.perf_counter() - begin, disk_bytes=len(data))


def read_if_there(path: Path) -> bytes | None:
    """Contents of a file; None if there is none.

    Raises:
        StateError: it cannot be read.
    """
    with explained(path):
        return path.read_bytes() if path.exists() else None


def sync_file(path: Path) -> None:
    """Make the contents of a file durable, whoever wrote them.

    Raises:
        StateError: they cannot be.
    """
    with explained(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Make renames and new files in it durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(directory: Path) -> None:
    """Remove temporaries that nobody is writing any more."""
    for path in directory.glob(f"*{TEMPORARY}"):
        with (
            suppress(FileNotFoundError, BlockingIOError),
            path.open("r+b") as file,
        ):  # NFS locks only what may be written
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What the disk refuses in this block is a StateError about that file."""
    try:
        yield
    except OSError as error:
        raise state_error(path, error) from error


def _write(path: Path, data: bytes, sync: bool) -> None:
    temporary = Temporary(path, len(data))
    try:
        temporary.write(data)
        if sync:
            temporary.sync()
        temporary.adopt(path)
    except OSError:
        temporary.discard()
        raise
    finally:
        temporary.close()


def _made(path: Path) -> tuple[Path, int]:
    while True:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # a sweep came between those two lines
