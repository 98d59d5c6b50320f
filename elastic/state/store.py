"""The files of one peer's trainer: contents are written first, then the small `state.json` that names them.

    <directory>/state.json       StateMeta: which files below are the state
    <directory>/state.safe.json  StateMeta: the newest state that is known to be on the disk
    <directory>/files/…          anchors, residuals, payloads; each written once under its name
    <directory>/<role>.claim     lock of the process that has a directory in use (`state.claim`)

Every file is written under a temporary name and renamed, so whatever process is killed wherever, `state.json` is the
old one or the new one, and all files it names are whole: what the kernel has taken outlives a process. It does not
outlive a power failure until it is synced, which takes as long as the disk does. That happens beside training: first
the files, then `state.json`, then `state.safe.json` says so. A new round is committed only when one of the last round
is that safe: a power failure costs a round at most. Source: the crash rules of POSIX rename and fsync as in "All File
Systems Are Not Created Equal" (OSDI 2014).
"""

import filecmp
import logging
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from elastic.errors import MalformedError, StateError, state_error
from elastic.messages import RoundIndex
from elastic.reports import StateMeta
from elastic.state.background import Background
from elastic.state.files import (
    TEMPORARY,
    Temporary,
    explained,
    read_if_there,
    sweep,
    sync_directory,
    sync_file,
    write_durably,
    write_whole,
)

logger = logging.getLogger(__name__)

STATE_FOLDER = "state"
"""Its name in a peer's state directory."""
META_FILES = ("state.json", "state.safe.json")
"""In it, the newer one first."""
ANCHOR_PREFIX = "anchor"
"""Files whose names begin so are anchors: some outlive their round."""
_ANCHOR = re.compile(ANCHOR_PREFIX + r"-(\d+)\b.*\.bin")


class StateStore:
    """The state of one trainer in one directory. One process commits; others may read, and write what it has created.

    A reader in another process sees a state that is whole, or FileNotFoundError as StateError if it is too slow.
    """

    def __init__(self, directory: Path, keep_last: int = 2, keep_every: int = 0) -> None:
        """Make the directory if need be, and sweep what a crash left half written.

        Args:
            directory: of this trainer alone.
            keep_last: so many of the newest anchors stay, for joiners that fetch them.
            keep_every: anchors of rounds that this divides stay for good; 0: none do.

        Raises:
            StateError: it cannot be made or read.
        """
        self.directory = directory
        self._keep_last, self._keep_every = keep_last, keep_every
        self._files = directory / "files"
        self._meta, self._safe = (directory / name for name in META_FILES)
        self._temporaries: dict[str, Temporary] = {}
        self._lock = threading.Lock()
        """Of `_garbage`, and of everything that files are named or unlinked by."""
        self._garbage: set[str] = set()
        self._current: StateMeta | None = None
        """What this process committed last."""
        self._background = Background(self._sync)
        with explained(directory):
            self._files.mkdir(parents=True, exist_ok=True)
            for folder in (directory, self._files):
                sweep(folder)
        self._synced = self._whole_or_warn(self._safe)

    # --- reading -------------------------------------------------------------------------------------------------

    def load(self) -> StateMeta | None:
        """The newest state whose files are there, in the sizes they should have; None if there never was one.

        Raises:
            StateError: see `candidates`.
        """
        return next(iter(self.candidates()), None)

    def candidates(self) -> list[StateMeta]:
        """The newest state, and behind it the newest that was known to be on the disk, if that is another.

        After a power failure the files of the first may have the right sizes and the wrong bytes. Whoever reads them
        knows their digests, and takes the first state that fits (`restore`).

        Raises:
            StateError: there is a state, and of none are all files there in their sizes.
        """
        return candidates_in(self.directory)

    def read_file(self, name: str) -> bytes:
        """Contents of a file.

        Raises:
            StateError: it cannot be read.
        """
        with explained(self._path(name)):
            return self._path(name).read_bytes()

    def path_of(self, name: str) -> str:
        """Where a file of that name lies."""
        return str(self._path(name))

    # --- writing -------------------------------------------------------------------------------------------------

    def write_file(self, name: str, data: bytes) -> str:
        """Write a file that a later `commit` will refer to. Returns its path.

        Args:
            name: e.g. "payload-12.bin". Under a name that the committed state refers to only the same bytes
                can be written again, which changes nothing.
            data: contents.

        Raises:
            StateError: no space, no permission, or the name is taken; the committed state is untouched.
        """
        path = self._path(name)
        if not self._is_there(name, lambda: self.read_file(name) == data):
            write_whole(path, data)
        return str(path)

    def create(self, name: str, size: int) -> str:
        """A temporary file for several processes to write into, with its space reserved. Returns its path.

        It counts for nothing until `adopt`; what is not adopted is to be given to `discard`, or is swept at the next
        start. No two temporaries have the same path.

        Args:
            name: a hint for people; the file gets its name when its contents are known.
            size: its bytes.

        Raises:
            StateError: no space, or no permission.
        """
        with explained(self._path(name)):
            temporary = Temporary(self._path(name), size)
        self._temporaries[str(temporary.path)] = temporary
        return str(temporary.path)

    def adopt(self, temporary: str, name: str) -> str:
        """Give a temporary, which all have written, the name that a later `commit` refers to. Returns its path.

        Raises:
            StateError: it cannot be renamed, or a committed file of other contents has that name. It is discarded.
        """
        path, made = self._path(name), self._temporaries.pop(temporary)
        try:
            with explained(path):
                if not self._is_there(name, lambda: filecmp.cmp(made.path, path, shallow=False)):
                    made.adopt(path)
            return str(path)
        finally:
            made.discard()

    def discard(self, temporary: str) -> None:
        """Remove a temporary that is not to be adopted."""
        self._temporaries.pop(temporary).discard()

    def commit(self, meta: StateMeta) -> None:
        """Make these files the state: whoever is killed from here on finds them. Drop those no longer needed.

        A file written for a later commit would be dropped too: write, commit, write, commit. Waits if nothing of the
        round before is on the disk yet.

        Raises:
            StateError: a file is missing, `state.json` cannot be written, or the disk refused what an earlier commit
                had left to it; the old state stays.
        """
        sizes = self._sizes(meta)
        self._background.check()
        if self._synced is None:
            self._sync(meta)  # the first: there would be nothing to fall back to
        else:
            self._wait_for_the_round_before(meta)
        write_whole(self._meta, _with_sizes(meta, sizes))
        self._current = meta
        self._background.want(meta)
        self._drop(needed=meta.files())

    def restore(self, meta: StateMeta) -> None:
        """Take one of the `candidates` for the state: the newer one had files of other contents than it should.

        Raises:
            StateError: `state.json` cannot be written.
        """
        if meta != _bare(self._whole_or_warn(self._meta)):
            logger.warning(
                "%s: its files are not what they should be, as after a power failure; going on from round %s as it was "
                "known to be on the disk", self._meta, meta.round,
            )  # fmt: skip
            write_durably(self._meta, _with_sizes(meta, self._sizes(meta)))
        self._current = meta

    def flush(self) -> None:
        """Wait until what was committed is on the disk.

        Raises:
            StateError: the disk refused it.
        """
        self._background.wait()

    # --- details -------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        assert name == Path(name).name, f"{name} is not a plain file name"
        return self._files / name

    def _sizes(self, meta: StateMeta) -> dict[str, int]:
        return {name: _size(self.directory, self._path(name)) for name in sorted(meta.files())}

    def _whole_or_warn(self, path: Path) -> StateMeta | None:
        try:
            return _whole(path)
        except StateError as error:
            logger.warning("%s", error)
            return None

    def _committed(self) -> StateMeta | None:
        self._current = self._current or self.load()
        return self._current

    def _taken(self) -> frozenset[str]:
        """Names whose contents must stay."""
        metas = (self._committed(), *self._background.held(), self._synced)
        return frozenset().union(*(meta.files() for meta in metas if meta))

    def _is_there(self, name: str, same: Callable[[], bool]) -> bool:
        """Whether a state has that file, which then has to be the same; from now on it is no garbage."""
        with self._lock:
            self._garbage.discard(name)
        if name not in self._taken():
            return False
        if not same():
            raise StateError(f"{self._path(name)}: belongs to the committed state; choose a new name, then commit")
        return True

    def _wait_for_the_round_before(self, meta: StateMeta) -> None:
        before = self._committed()
        if before is None or before.round == meta.round or self._is_safe(before.round):
            return
        if not self._background.held():  # another process committed it, and was killed
            self._background.want(before)
        self._background.wait(lambda: self._is_safe(before.round))

    def _is_safe(self, round_: RoundIndex) -> bool:
        return self._synced is not None and self._synced.round == round_

    def _sync(self, meta: StateMeta) -> None:
        """Put a state on the disk, then the word that it is there; in the background."""
        known = self._synced.files() if self._synced else frozenset()
        for name in sorted(meta.files() - known):
            sync_file(self._path(name))
        with explained(self._files):
            sync_directory(self._files)
            if self._meta.exists():
                sync_file(self._meta)  # this state's or a later one's: never older than the safe one
            sync_directory(self.directory)
        write_durably(self._safe, _with_sizes(meta, self._sizes(meta)))
        self._synced = meta
        self._drop()

    def _garbage_but(self, needed: Iterable[str]) -> set[str]:
        """Files that neither this state nor the policy needs."""
        names = {path.name: path for path in self._files.iterdir() if path.suffix != TEMPORARY}
        anchors = sorted((path for name, path in names.items() if name.startswith(ANCHOR_PREFIX)), key=_age)
        kept = {path.name for path in anchors[max(0, len(anchors) - self._keep_last) :]}
        return {name for name in names if not self._kept_for_good(name)} - kept - set(needed)

    def _kept_for_good(self, name: str) -> bool:
        if not self._keep_every or not (found := _ANCHOR.fullmatch(name)):
            return False
        return int(found[1]) > 0 and int(found[1]) % self._keep_every == 0

    def _drop(self, needed: frozenset[str] | None = None) -> None:
        """Unlink garbage but for what a state on its way to the disk, or there, still needs.

        Args:
            needed: files of a new state; what else is there becomes garbage.
        """
        try:
            with self._lock:
                if needed is not None:
                    self._garbage = self._garbage_but(needed)
                metas = [*self._background.held(), *([self._synced] if self._synced else [])]
                for name in self._garbage.difference(*(meta.files() for meta in metas)):
                    self._path(name).unlink(missing_ok=True)
                    self._garbage.discard(name)
        except OSError as error:
            logger.warning("old files stay for now: %s", state_error(self._files, error))


def candidates_in(directory: Path) -> list[StateMeta]:
    """States that a store's directory holds, the newest first, without a store: see `StateStore.candidates`.

    Raises:
        StateError: there is a state, and of none are all files there in their sizes.
    """
    found: list[StateMeta] = []
    wrong: list[StateError] = []
    for path in (directory / name for name in META_FILES):
        try:
            meta = _whole(path)
        except StateError as error:
            wrong.append(error)
            continue
        if (bare := _bare(meta)) is not None and bare not in found:
            found.append(bare)
    if wrong and not found:
        raise wrong[0]
    if wrong and found:
        logger.warning("%s; there is round %s, known to be on the disk", wrong[0], found[0].round)
    return found


def _bare(meta: StateMeta | None) -> StateMeta | None:
    """As it was committed."""
    return meta and meta.model_copy(update={"sizes": {}})


def _with_sizes(meta: StateMeta, sizes: dict[str, int]) -> bytes:
    return meta.model_copy(update={"sizes": sizes}).canonical()


def _whole(path: Path) -> StateMeta | None:
    """The state that this file names, if there is one.

    Raises:
        StateError: it cannot be read, or a file is not there or has another size.
    """
    data, directory = read_if_there(path), path.parent
    if data is None:
        return None
    try:
        meta = StateMeta.from_bytes(data)
    except MalformedError as error:
        raise StateError(f"{path}: is damaged: {error}; {_remedy(directory)}") from error
    for name in sorted(meta.files()):
        size = _size(directory, directory / "files" / name)
        if size != (expected := meta.sizes.get(name, size)):
            raise StateError(f"{directory / 'files' / name}: has {size} bytes, not {expected}; {_remedy(directory)}")
    return meta


def _size(directory: Path, path: Path) -> int:
    with explained(path):
        if not path.is_file():
            raise StateError(f"{path}: is not there; {_remedy(directory)}")
        return path.stat().st_size


def _remedy(directory: Path) -> str:
    return f"remove {directory} to fetch the state from the swarm again"


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name
