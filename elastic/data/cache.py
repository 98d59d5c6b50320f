"""Shards that lie elsewhere, and come here before they are needed: whole and verified, or not at all.

A file is called by the digest of its tokens, so sources and peers may share a folder. What is under way has a name of
its own and is locked; after an interruption it goes on where it was. The files that were not used for longest make
room for others.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import IO, Any

from elastic.data.places import MIN_BYTES_PER_SECOND, START_SECONDS, Place
from elastic.errors import ElasticError, FetchError, StateError

logger = logging.getLogger(__name__)

TRIES = 4
"""After which a shard is given up for now."""
PAUSE_SECONDS = 1.0
"""Before the second try; twice as much before each further one."""
SUFFIX = ".tokens"


class Cache:
    """The shards of one source.

    Threads fetch what `want` names, in that order, and then the rest for as long as there is room.
    """

    def __init__(  # noqa: PLR0913 (where from, where to, how much, and the two times)
        self,
        index: Any,
        place: Place,
        folder: Path,
        room: int,
        fetchers: int,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is fetched yet.

        Args:
            index: of the source.
            place: where its shards lie.
            folder: where they go; made if it is not there.
            room: bytes that all shards in the folder may have.
            fetchers: threads.
            sleep: waits some seconds.
            clock: gives seconds.
        """
        self._index, self._place, self._folder, self._room = index, place, folder, room
        self._fetchers, self._sleep, self._clock = fetchers, sleep, clock
        self._more = threading.Condition()
        self._wanted: deque[Any] = deque()
        self._unused: dict[str, Any] = {}
        """Of what is wanted, what was not opened yet: it is not to make room for anything."""
        self._rest: deque[Any] = deque(index.shards)
        self._threads: list[threading.Thread] = []
        folder.mkdir(parents=True, exist_ok=True)

    def want(self, shards: list[Any]) -> None:
        """These will be needed, in this order; what was wanted before is not any longer."""
        with self._more:
            self._wanted, self._unused = deque(shards), {shard.sha256: shard for shard in shards}
            if not self._threads:
                self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._fetchers)]
                for thread in self._threads:
                    thread.start()
            self._more.notify_all()

    def open(self, shard: Any) -> Any:
        """Its tokens, mapped; fetched now if they are not here yet.

        Raises:
            FetchError: they do not come, or are other ones there.
            StateError: no space, or no permission.
        """
        for _ in range(TRIES):
            path = self.bring(shard)
            with suppress(FileNotFoundError):  # another process made room
                try:
                    tokens = self._index.open(path, shard)
                    with self._more:
                        self._unused.pop(shard.sha256, None)
                        self._more.notify_all()
                    return tokens
                except ValueError as error:
                    logger.warning("%s; it was whole before, and is fetched again", error)
                    path.unlink(missing_ok=True)
        raise FetchError(f"{self._folder}: {shard.name} does not stay whole there")

    def bring(self, shard: Any) -> Path:
        """Its file, which is here when this returns; see `open`."""
        final = self._folder / f"{shard.sha256}{SUFFIX}"
        for tries_left in reversed(range(TRIES)):
            try:
                with _locked(final.with_suffix(".part"), final) as part:
                    if part is not None:
                        self._fetch(shard, part, final)
                with suppress(FileNotFoundError):
                    os.utime(final)
                break
            except OSError as error:
                if isinstance(error, FileNotFoundError) and tries_left:
                    continue  # somebody removed what was under way
                space = error.errno in (ENOSPC, EDQUOT)
                hint = "; make room there, or set local.data.cache to another disk" if space else ""
                raise StateError(f"{self._folder}: {error.strerror}{hint}") from error
        self._make_room(final.name)
        return final

    def _work(self) -> None:
        while True:
            try:
                self.bring(self._next())
            except ElasticError as error:  # who needs the shard tries again, and hears of it
                logger.warning("fetching ahead: %s", error)

    def _next(self) -> Any:
        """What is to be fetched, as soon as there is something for which there is room."""
        with self._more:
            while True:
                queue = self._wanted or self._rest
                while queue and (self._folder / f"{queue[0].sha256}{SUFFIX}").exists():
                    queue.popleft()
                if queue:
                    taken = self._ahead() if queue is self._wanted else self._held()
                    if not taken or taken + self._index.size_of(queue[0]) <= self._room:
                        return queue.popleft()
                    if queue is self._rest:
                        queue.clear()
                        continue
                elif queue is self._wanted and self._rest:
                    continue
                self._more.wait()

    def _ahead(self) -> int:
        """Bytes of what was fetched ahead, or is under way, and was not opened yet."""
        waiting = {shard.sha256 for shard in self._wanted}
        return sum(self._index.size_of(shard) for name, shard in self._unused.items() if name not in waiting)

    def _fetch(self, shard: Any, part: IO[bytes], final: Path) -> None:
        for again in range(TRIES):
            try:
                self._download(shard, part)
                break
            except FetchError as error:
                if again + 1 == TRIES:
                    raise
                logger.warning("%s; trying again", error)
                self._sleep(PAUSE_SECONDS * 2**again)
        Path(part.name).replace(final)

    def _download(self, shard: Any, part: IO[bytes]) -> None:
        size, here = self._index.size_of(shard), part.seek(0, os.SEEK_END)
        if here > size:
            part.truncate(0)
            here = 0
        if here < size:
            until = self._clock() + START_SECONDS + (size - here) / MIN_BYTES_PER_SECOND
            try:
                for data in self._place.chunks(shard.name, here, size):
                    part.write(data)
                    if self._clock() > until:
                        raise FetchError(f"{shard.name} comes too slowly")
            finally:
                part.flush()
        os.fsync(part.fileno())
        try:
            self._index.open(Path(part.name), shard)
        except ValueError as error:
            part.truncate(0)
            raise FetchError(f"{shard.name} is not what the index says: {error}") from error

    def _held(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _files(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, file) of all shards here."""
        found = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process makes room, too
                continue
            found.append((stat.st_mtime, stat.st_size, path))
        return found

    def _make_room(self, keep: str) -> None:
        """Remove what was not used for longest. Who has a file mapped keeps it until then."""
        with self._more:
            needed = {keep, *(f"{name}{SUFFIX}" for name in self._unused)}
        files = sorted(self._files())
        over = sum(size for _, size, _ in files) - self._room
        for _, size, path in files:
            if over > 0 and path.name not in needed:
                path.unlink(missing_ok=True)
                over -= size


@contextmanager
def _locked(part: Path, final: Path) -> Iterator[IO[bytes] | None]:
    """The file under way, which nobody else writes to meanwhile; None: the final one is there."""
    while not final.exists():
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            ours = _is(file, part)
            if final.exists():
                if ours:  # or else somebody began anew, because the final one had to make room meanwhile
                    part.unlink(missing_ok=True)
                break
            if ours:
                yield file
                return
    yield None


def _is(file: IO[bytes], path: Path) -> bool:
    """Whether that is the name of this open file."""
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
