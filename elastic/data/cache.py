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
        self._rest: deque[Any] = deque(index.shards)
        self._threads: list[threading.Thread] = []
        self._closed = False
        folder.mkdir(parents=True, exist_ok=True)

    def want(self, shards: list[Any]) -> None:
        """These will be needed, in this order; what was wanted before is not any longer."""
        with self._more:
            self._wanted = deque(shards)
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
                    return self._index.open(path, shard)
                except ValueError as error:
                    logger.warning("%s; it was whole before, and is fetched again", error)
                    path.unlink(missing_ok=True)
        raise FetchError(f"{self._folder}: {shard.name} does not stay whole there")

    def bring(self, shard: Any) -> Path:
        """Its file, which is here when this returns; see `open`."""
        final = self._folder / f"{shard.sha256}{SUFFIX}"
        try:
            with _locked(final.with_suffix(".part"), final) as part:
                if part is not None:
                    self._fetch(shard, part, final)
            with suppress(FileNotFoundError):
                os.utime(final)
        except OSError as error:
            space = error.errno in (ENOSPC, EDQUOT)
            hint = "; make room there, or set local.data.cache to another disk" if space else ""
            raise StateError(f"{self._folder}: {error.strerror}{hint}") from error
        self._make_room(final.name)
        return final

    def close(self) -> None:
        """Fetch nothing any longer; what is under way ends by itself."""
        with self._more:
            self._closed = True
            self._more.notify_all()

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            try:
                self.bring(shard)
            except ElasticError as error:  # who needs the shard tries again, and hears of it
                logger.warning("fetching ahead: %s", error)

    def _next(self) -> Any:
        """What is to be fetched; None: nothing ever again."""
        with self._more:
            while not self._closed:
                queue = self._wanted or self._rest
                if queue:
                    shard = queue.popleft()
                    if (self._folder / f"{shard.sha256}{SUFFIX}").exists():
                        continue
                    if queue is self._wanted or self._held() + self._index.size_of(shard) <= self._room:
                        return shard
                    self._rest.clear()
                else:
                    self._more.wait()
        return None

    def _fetch(self, shard: Any, part: IO[bytes], final: Path) -> None:
        for again in range(TRIES):
            try:
                self._download(shard, part)
                break
            except FetchError as error:
                if again + 1 == TRIES or self._closed:
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
            needed = {keep, *(f"{shard.sha256}{SUFFIX}" for shard in self._wanted)}
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
            if final.exists():
                part.unlink(missing_ok=True)
                break
            if part.exists() and os.fstat(file.fileno()).st_ino == part.stat().st_ino:
                yield file
                return
    yield None
