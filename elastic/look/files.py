"""Files that their peers go on writing: where they lie, and what was added since the last look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from elastic.config import load_config
from elastic.errors import ConfigError, MalformedError
from elastic.folders import by_run, last_active, peers_in, stat
from elastic.messages import Manifest
from elastic.reports import EVIDENCE_FILE, ROUNDS_FILE, STATUS_FILE, PeerStatus, RoundEvidence, RoundReport
from elastic.state.chain import CHAIN_FILE

MOST_BYTES = 64 * 2**20
"""Of a file's end that are read at once; what lies before is left out."""
LINE_BYTES = 2**20
"""A longer line is none of ours."""
SIGNS = (STATUS_FILE, ROUNDS_FILE, CHAIN_FILE, EVIDENCE_FILE)
"""One of these makes a folder a peer's."""
RECORDS: tuple[tuple[str, type[Manifest | RoundReport | RoundEvidence]], ...] = (
    (CHAIN_FILE, Manifest), (ROUNDS_FILE, RoundReport), (EVIDENCE_FILE, RoundEvidence),
)  # fmt: skip
"""Files with a record per line."""


class Growing:
    """A file of lines that grows, and is put aside under another name when it has grown too large."""

    def __init__(self, path: Path, old: Path | None = None) -> None:
        self._path, self._old = path, old
        self._file = 0
        """Which one was read last (its inode), and"""
        self._read = 0
        """how far: the end of the last whole line."""
        self.skipped = 0
        """Bytes that were left out because there was too much."""

    def lines(self) -> Iterator[bytes]:
        """Whole lines that were not given before; none if there is no such file. A torn end is left for later."""
        now = stat(self._path)
        if now is None:
            return
        if now.st_ino != self._file or now.st_size < self._read:
            yield from self._rest_of_old()
            self._file, self._read = now.st_ino, 0
        yield from self._lines_of(self._path, now.st_size)

    def _rest_of_old(self) -> Iterator[bytes]:
        """The end of the file that was put aside meanwhile; all of it, if this is the first look."""
        old = stat(self._old) if self._old is not None else None
        if self._old is None or old is None:
            return
        if self._file in (0, old.st_ino):
            yield from self._lines_of(self._old, old.st_size)

    def _lines_of(self, path: Path, size: int) -> Iterator[bytes]:
        start = max(self._read, size - MOST_BYTES)
        try:
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(size - start)
        except OSError:
            return  # it went away meanwhile; the next look tells
        begin = 0
        if start > self._read:
            begin = data.find(b"\n") + 1
            self.skipped += start + begin - self._read
        end = data.rfind(b"\n") + 1
        self._read = max(self._read, start + end)
        yield from (line for line in data[begin:end].splitlines() if 0 < len(line) <= LINE_BYTES)


@dataclass(frozen=True, slots=True)
class Found:
    """Whose folders are looked at."""

    run: str
    folders: tuple[Path, ...]
    """State directories of peers of that run."""
    run_file: Path | None = None
    """The run file, if that was given."""


def find(where: Path, same: Found | None = None) -> Found:
    """Folders of the peers whose run was last active: a run file's, a peer's own, or those in one folder or two.

    Args:
        where: to look.
        same: rather this run, also if another one was active since; None: any.

    Raises:
        ConfigError: there are none, or nothing in them can be read.
    """
    run_file = where if where.is_file() or where.suffix == ".toml" else None
    folder = load_config(where).local.state_dir if run_file is not None else where
    folders = peers_in(folder, SIGNS)
    if not folders:
        raise ConfigError(f"{folder}: no peer has run here; `elastic quickstart` or `elastic join` starts one")
    runs = {run: those for run, those in by_run(folders, _run_of).items() if run[1]}
    if not runs:
        raise ConfigError(f"{folder}: nothing there can be read; it is damaged, or written by another version")
    before = (same.folders[0].parent, same.run) if same is not None else None
    chosen = before if before in runs else last_active(runs, SIGNS)
    return Found(chosen[1], tuple(runs[chosen]), run_file)


def read_status(folder: Path) -> PeerStatus | None:
    """A peer's last status; None: there is none that can be read."""
    with suppress(OSError, MalformedError):
        return PeerStatus.from_bytes((folder / STATUS_FILE).read_bytes())
    return None


def _run_of(folder: Path) -> str:
    """The run of a peer's folder, as its status or the first record there says: two runs may have their peers side by
    side. Empty: nothing can be read."""
    status = read_status(folder)
    if status is not None:
        return status.run
    for name, kind in RECORDS:
        for line in Growing(folder / name).lines():
            with suppress(MalformedError):
                return kind.from_bytes(line).run
    return ""
