"""Durable files of one peer: contents are written first, then the small `state.json` that names them.

    <directory>/state.json     StateMeta: which files below are the state
    <directory>/files/…        anchors, residuals, payloads; each written once under its name
    <directory>/<role>.claim   lock of the process that has a directory in use (`claim`)

Every write goes to a temporary file, which is synced, renamed, and whose directory is synced: after a crash
at any point `state.json` is the old one or the new one, and all files it names are whole. Source: the crash
rules of POSIX rename and fsync as in "All File Systems Are Not Created Equal" (OSDI 2014).
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from elastic import trace
from elastic.errors import MalformedError, StateError, state_error
from elastic.reports import StateMeta

logger = logging.getLogger(__name__)

STATE_FOLDER = "state"
"""Its name in a peer's state directory."""
ANCHOR_PREFIX = "anchor"
"""Files whose names begin so are anchors: the newest ones outlive their round, for joiners that fetch them.
"""
CLAIM_POLL = 0.05
"""Seconds between two tries."""
_TEMPORARY = ".tmp"


class StateStore:
    """The state of one trainer in one directory. One process writes; others may read."""

    def __init__(self, directory: Path, keep_anchors: int = 2) -> None:
        """Make the directory if need be, and sweep what a crash left half written.

        Raises:
            StateError: it cannot be made or read.
        """
        self.directory = directory
        self._keep_anchors = keep_anchors
        self._files = directory / "files"
        self._meta = directory / "state.json"
        with _explained(directory):
            self._files.mkdir(parents=True, exist_ok=True)
            for path in (*directory.glob(f"*{_TEMPORARY}"), *self._files.glob(f"*{_TEMPORARY}")):
                _sweep(path)

    def load(self) -> StateMeta | None:
        """The state committed last; None if there never was one.

        Raises:
            StateError: `state.json` or a file it names cannot be read.
        """
        if not self._meta.exists():
            return None
        try:
            with _explained(self._meta):
                meta = StateMeta.from_bytes(self._meta.read_bytes())
        except MalformedError as error:
            raise StateError(f"{self._meta}: is damaged: {error}; {_remedy(self.directory)}") from error
        self._require_files(meta)
        return meta

    def read_file(self, name: str) -> bytes:
        """Contents of a file.

        Raises:
            StateError: it cannot be read.
        """
        with _explained(self._path(name)):
            return self._path(name).read_bytes()

    def write_file(self, name: str, data: bytes) -> str:
        """Write a file that a later `commit` will refer to; on disk when this returns. Returns its path.

        Args:
            name: e.g. "anchor-12.bin". Under a name that the committed state refers to only the same bytes
                can be written again, which changes nothing.
            data: contents.

        Raises:
            StateError: no space, no permission, or the name is taken; the committed state is untouched.
        """
        path = self._path(name)
        committed = self.load()
        if committed is not None and name in committed.files():
            if self.read_file(name) != data:
                raise StateError(f"{path}: belongs to the committed state; choose a new name, then commit")
            return str(path)
        write_durably(path, data)
        return str(path)

    def create(self, name: str, size: int) -> str:
        path = self._files / (name + _TEMPORARY)
        with _explained(path), path.open("wb") as file:
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
        return str(path)

    def adopt(self, temporary: str, name: str) -> str:
        os.replace(temporary, self._path(name))
        return str(self._path(name))

    def commit(self, meta: StateMeta) -> None:
        """Make these files the state, on disk when this returns; drop those no longer needed.

        A file written for a later commit would be dropped too: write, commit, write, commit.

        Raises:
            StateError: a file is missing, or `state.json` cannot be written; the old state stays.
        """
        self._require_files(meta)
        write_durably(self._meta, meta.canonical())
        try:
            self._prune(meta.files())
        except OSError as error:
            logger.warning("old files stay for now: %s", state_error(self._files, error))

    def path_of(self, name: str) -> str:
        """Where a file of that name lies."""
        return str(self._path(name))

    def _path(self, name: str) -> Path:
        assert name == Path(name).name, f"{name} is not a plain file name"
        return self._files / name

    def _prune(self, needed: frozenset[str]) -> None:
        files = [path for path in self._files.iterdir() if not path.name.endswith(_TEMPORARY)]
        anchors = [path for path in files if path.name.startswith(ANCHOR_PREFIX)]
        newest = sorted(anchors, key=_age, reverse=True)[: self._keep_anchors]
        for path in set(files) - set(newest):
            if path.name not in needed:
                path.unlink(missing_ok=True)

    def _require_files(self, meta: StateMeta) -> None:
        for name in sorted(meta.files()):
            if not self._path(name).is_file():
                raise StateError(f"{self._path(name)}: is not there; {_remedy(self.directory)}")


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
    with _explained(path):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with _explained(path):
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


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file by these contents, whole or not at all; on disk when this returns.

    Raises:
        StateError: it could not be written; what was there before still is, or, if only the very last sync
            failed, the new contents are.
    """
    temporary, begin = path.with_name(path.name + _TEMPORARY), time.perf_counter()
    with _explained(path):
        try:
            _write_synced(temporary, data)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()  # on a full disk the space is needed
            raise
        sync_directory(path.parent)
    trace.tally(disk_s=time.perf_counter() - begin, disk_bytes=len(data))


def read_if_there(path: Path) -> bytes | None:
    """Contents of a file; None if there is none.

    Raises:
        StateError: it cannot be read.
    """
    with _explained(path):
        return path.read_bytes() if path.exists() else None


def sync_directory(directory: Path) -> None:
    """Make renames and new files in it durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise state_error(path, error) from error


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # so that a sweep in another process leaves it alone
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sweep(path: Path) -> None:
    with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


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


def _remedy(directory: Path) -> str:
    return f"remove {directory} to fetch the state from the swarm again"


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name
