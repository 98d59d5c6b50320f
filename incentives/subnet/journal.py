"""Intentions and receipts on disk, so that whoever is killed in between settles it afterwards."""

import os
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from elastic.errors import MalformedError, StateError
from incentives.subnet.receipts import Intention, Receipt

INTENTION, RECEIPTS = "intention.json", "receipts.jsonl"
MAX_BYTES = 4 * 2**20
"""The receipts begin a new file at this size and keep one old one: about a year of weights each tempo."""


class Alarm(NamedTuple):
    """Something that a person should look at."""

    level: Literal["warning", "error"]
    text: str


class Journal:
    """One intention at most is open; receipts are one JSON line each. All is on the disk when a method returns."""

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        """
        Raises:
            StateError: the directory cannot be written, or an intention in it cannot be read.
        """
        self._dir, self._max_bytes = directory, max_bytes
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.open = self._load_intention()
            kept = self.receipts()
        except OSError as error:
            raise StateError(f"{directory}: the journal of the chain cannot be read: {error.strerror}") from error
        self.last = kept[-1] if kept else None
        first = kept[0].intention if kept else self.open
        self.landed = max((each.time for each in kept if each.brought_weights), default=None)
        """Unix seconds at which weights were last seen to have landed; None: none did, as far as is remembered."""
        self.began = first.birth if first is not None else None
        """The block at which the first thing that is remembered was sent; None: nothing ever was."""

    def begin(self, intention: Intention) -> None:
        """Before it is sent.

        Raises:
            StateError: another one is open, or the disk does not take it: do not send it.
        """
        if self.open is not None:
            raise StateError("an extrinsic is on its way already; settle it first")
        temporary = self._dir / f"{INTENTION}.new"
        try:
            with temporary.open("wb") as file:
                file.write(intention.canonical())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._dir / INTENTION)
            self._sync_directory()
        except OSError as error:
            raise StateError(f"{temporary}: not written: {error.strerror}") from error
        self.open = intention

    def close(self, receipt: Receipt) -> None:
        """The open intention is settled.

        Raises:
            StateError: the disk does not take it; the intention stays open and is settled again.
        """
        try:
            self._rotate()
            with (self._dir / RECEIPTS).open("a+b") as file:
                file.write(self._after_a_torn_line(file) + receipt.canonical() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            (self._dir / INTENTION).unlink(missing_ok=True)
            self._sync_directory()
        except OSError as error:
            raise StateError(f"{self._dir}: a receipt was not written: {error.strerror}") from error
        self.open, self.last = None, receipt
        self.landed = receipt.time if receipt.brought_weights else self.landed

    def receipts(self) -> list[Receipt]:
        """All that are kept, oldest first; lines torn by a crash are left out."""
        kept = []
        for path in (self._dir / f"{RECEIPTS}.old", self._dir / RECEIPTS):
            for line in path.read_bytes().splitlines() if path.exists() else ():
                try:
                    kept.append(Receipt.from_bytes(line))
                except MalformedError:
                    continue
        return kept

    def _load_intention(self) -> Intention | None:
        path = self._dir / INTENTION
        if not path.exists():
            return None
        try:
            return Intention.from_bytes(path.read_bytes())
        except MalformedError as error:
            raise StateError(
                f"{path}: damaged ({error}); an extrinsic may be on its way: wait 16 blocks, then delete the file"
            ) from error

    @staticmethod
    def _after_a_torn_line(file: BinaryIO) -> bytes:
        """What to write first, so that half a line that a crash left spoils only itself."""
        if file.seek(0, os.SEEK_END) == 0:
            return b""
        file.seek(-1, os.SEEK_END)
        return b"" if file.read(1) == b"\n" else b"\n"

    def _rotate(self) -> None:
        path = self._dir / RECEIPTS
        if path.exists() and path.stat().st_size >= self._max_bytes:
            path.replace(self._dir / f"{RECEIPTS}.old")

    def _sync_directory(self) -> None:
        descriptor = os.open(self._dir, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def overdue(block: int, last_update: int, tempo: int, began: int = 0) -> Alarm | None:
    """Whether weights have not moved for so long that dividends are at risk: silence costs them without a word.

    Args:
        block: now.
        last_update: block of the last weights of our hotkey.
        tempo: blocks between two epochs.
        began: the block since which weights could be expected of this peer.
    """
    since = max(last_update, began)
    silent = block - since
    if silent <= tempo:
        return None
    when = f"{since}, when this peer began" if began > last_update else str(since)
    text = f"no weights on the chain since block {when}: more than"
    if silent > 2 * tempo:
        return Alarm("error", f"{text} two tempos of {tempo} blocks")
    return Alarm("warning", f"{text} a tempo of {tempo} blocks")
