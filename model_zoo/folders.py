"""Folders that are there in full or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderError(ValueError):
    """A folder is not what it should be; the message says what is wrong, and where."""


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """Gives a folder to fill, which becomes `out` at the end of the block, in one step, with all its files on disk.

    It is filled beside `out` under a name of its own, `.NAME.part`. If the block raises, that is removed; what a crash
    left of it, the next one removes.

    Raises:
        FolderError: `out` is a file, or a folder that is not empty, or another process is writing it.
        OSError: it cannot be written.
    """
    out = out.absolute()
    _check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    part.mkdir(exist_ok=True)
    lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(lock, out)
        try:
            _empty(part)
            yield part
            for path in (*part.iterdir(), part):
                _sync(path)
            _check_free(out)
            part.rename(out)  # over an empty folder, too, and over nothing else
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        _sync(out.parent)
    finally:
        os.close(lock)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A folder into which no other process that asks writes meanwhile.

    Raises:
        FolderError: another one does.
        OSError: it is not there.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(lock, folder)
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FolderError(f"{folder}: another process is writing it") from error


def _check_free(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise FolderError(f"{out}: is not empty: choose another folder, or remove it first")
    if out.exists() and not out.is_dir():
        raise FolderError(f"{out}: is a file: choose another name")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
