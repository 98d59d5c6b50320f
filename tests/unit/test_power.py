"""Files in parts, what a power failure leaves of them, and which anchors stay."""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from elastic.errors import StateError
from elastic.messages import InnerReport, RoundIndex
from elastic.reports import PendingMeta, StateMeta, file_name, fits
from elastic.state import store as store_module
from elastic.state.background import Background
from elastic.state.store import META_FILES, StateStore
from elastic.wire.dense import StateLayout, encode_state
from elastic.wire.tree import Table, blob_digest

INNER = InnerReport(steps=1, tokens=1, first_loss=1.0, last_loss=1.0, mean_loss=1.0, seconds=1.0)
REAL = {name: getattr(os, name) for name in ("fsync", "replace", "pwrite", "posix_fallocate", "unlink")}


def contents(kind: str, round_: int) -> bytes:
    return f"{kind} of {round_} ".encode() * 50


def name_of(kind: str, round_: int) -> str:
    return file_name(kind, RoundIndex(round_), blob_digest(contents(kind, round_)))


def begin_round(store: StateStore, round_: int) -> StateMeta:
    """Commit its anchor."""
    name, before = name_of("anchor", round_), name_of("residual", round_ - 1)
    store.write_file(name, contents("anchor", round_))
    anchor = blob_digest(contents("anchor", round_))
    kept = before if Path(store.path_of(before)).exists() else None
    meta = StateMeta(round=RoundIndex(round_), anchor=anchor, anchor_file=name, residual_file=kept)
    store.commit(meta)
    return meta


def contribute(store: StateStore, meta: StateMeta) -> StateMeta:
    """Commit its residual and payload."""
    made = {kind: name_of(kind, meta.round) for kind in ("residual", "payload")}
    for kind, name in made.items():
        store.write_file(name, contents(kind, meta.round))
    pending = PendingMeta(round=meta.round, inner=INNER, payload_file=made["payload"])
    meta = meta.model_copy(update={"residual_file": made["residual"], "pending": pending})
    store.commit(meta)
    return meta


def is_whole(store: StateStore, meta: StateMeta) -> bool:
    """As whoever takes it up finds by its digests."""
    return all(fits(name, blob_digest(store.read_file(name))) for name in meta.files())


def files_in(directory: Path) -> dict[str, Path]:
    return {path.name: path for path in directory.iterdir() if path.is_file()}


class Disk:
    """What outlives a power failure: contents that were synced, and names in a directory that was.

    At every system call that changes `root`, the failure happens, in a copy of its own.
    """

    def __init__(self, root: Path, copies: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.copies, self.committed = root, copies, list[StateMeta]()
        self.failures: list[tuple[Path, int]] = []
        """Copies, and how many states had been committed by then."""
        patch.setitem(REAL, "fsync", lambda descriptor: None)  # nobody needs this disk after all
        self._synced: dict[Path, bytes] = {}
        self._named: dict[Path, dict[str, bytes | None]] = {}
        self._lock = threading.Lock()
        for name in REAL:
            patch.setattr(os, name, self._watched(name))

    def _watched(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with self._lock:
                self._fail("nothing but names", lambda path: self._synced.get(path), b"")
                self._fail("names and sizes", lambda path: self._synced.get(path), b"\0")
                self._fail(
                    "small files",
                    lambda path: path.read_bytes() if path.suffix == ".json" else self._synced.get(path),
                    b"\0",
                )
                self._fail("what was synced", None, b"")
                done = REAL[name](*args)
                if name == "fsync":
                    self._note_sync(Path(os.readlink(f"/proc/self/fd/{args[0]}")))
                if name == "replace":
                    self._synced[Path(args[1])] = self._synced.pop(Path(args[0]), None)
                return done

        return call

    def _note_sync(self, path: Path) -> None:
        if path.is_dir():
            self._named[path] = {name: self._synced.get(each) for name, each in files_in(path).items()}
        elif path.exists():  # it may have been replaced since it was opened
            self._synced[path] = path.read_bytes()

    def _fail(self, mode: str, outlives: Callable[[Path], bytes | None] | None, lost: bytes) -> None:
        """Make a copy as the disk is after a failure.

        Args:
            mode: for people.
            outlives: contents of a file; None if they are lost. Without it names have to be synced, too.
            lost: every byte of what is lost; empty: the file is.
        """
        copy = self.copies / f"{len(self.failures):04d} {mode}"
        for folder in (self.root, self.root / "files"):
            there = copy / folder.relative_to(self.root)
            there.mkdir(parents=True)
            now = files_in(folder)
            left = {name: outlives(path) for name, path in now.items()} if outlives else self._named.get(folder, {})
            for name, content in left.items():
                size = now[name].stat().st_size if name in now else 1
                (there / name).write_bytes(lost * size if content is None else content)
        self.failures.append((copy, len(self.committed)))


def test_a_power_failure_costs_a_round_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a trainer of some rounds, whose power fails at every system call of any thread
    store = StateStore(tmp_path / "state")
    with monkeypatch.context() as patch:
        disk = Disk(tmp_path / "state", tmp_path / "copies", patch)
        for round_ in range(3):
            meta = begin_round(store, round_)
            disk.committed.append(meta)
            disk.committed.append(contribute(store, meta))
        store.flush()
    assert len(disk.failures) > 200
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    fell_back = 0
    for number, (copy, count) in enumerate(disk.failures):
        # when it comes back
        again = StateStore(copy)
        taken = next((meta for meta in again.candidates() if is_whole(again, meta)), None) if count else None
        if taken is None:
            assert count == 0, f"{copy}: {disk.committed[count - 1].round} was committed, and nothing is left"
            continue
        # then it has a state that was committed, or was about to be, of the last round at the latest
        assert taken in disk.committed
        assert taken.round >= disk.committed[count - 1].round - 1
        fell_back += taken != again.load()
        if number % 7:
            continue
        # and goes on from there, under names that garbled files may have
        again.restore(taken)
        contribute(again, begin_round(again, taken.round))
        again.flush()
        next_ = contribute(again, begin_round(again, taken.round + 1))
        assert StateStore(copy).load() == next_ and is_whole(again, next_)
    assert fell_back > 0, "digests never mattered"


def test_sigkill_at_any_system_call_costs_what_was_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a trainer whose directory is looked at between any two system calls
    store, root, lock = StateStore(tmp_path / "state"), tmp_path / "state", threading.Lock()
    committed: list[StateMeta] = []
    copies: list[tuple[Path, int]] = []

    def watched(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with lock:
                copies.append((tmp_path / f"copy{len(copies)}", len(committed)))
                shutil.copytree(root, copies[-1][0])
                return REAL[name](*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(store_module.Background, "want", lambda self, item: None)  # it unlinks while we copy
        patch.setattr(store, "_wait_for_the_round_before", lambda meta: None)
        for name in REAL:
            patch.setattr(os, name, watched(name))
        for round_ in range(3):
            meta = begin_round(store, round_)
            committed.append(meta)
            committed.append(contribute(store, meta))
    # when it is started again
    for copy, count in copies:
        again = StateStore(copy)
        found = again.load()
        # then it has the last state, or the one that was being committed
        assert found in committed[max(0, count - 1) : count + 1] or (found is None and count == 0)
        assert found is None or is_whole(again, found)


def test_a_commit_does_not_wait_for_the_disk_and_the_newest_goes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a disk that takes its time over the second state
    store, slow, entered = StateStore(tmp_path, keep_last=2), threading.Event(), threading.Event()
    first = begin_round(store, 1)
    store.flush()
    synced: list[StateMeta] = []
    sync = store._sync

    def slowly(meta: StateMeta) -> None:
        entered.set()
        slow.wait(30)
        sync(meta)
        synced.append(meta)

    monkeypatch.setattr(store._background, "_do", slowly)
    # when three more are committed meanwhile
    second = contribute(store, first)
    assert entered.wait(30)
    third = first.model_copy(update={"residual_file": second.residual_file})
    store.commit(third)
    fourth = contribute(store, first)
    # then the newest is the state, and what the others name is still there
    assert store.load() == fourth and synced == []
    assert all(Path(store.path_of(name)).exists() for name in first.files() | second.files())
    # and when the disk is done, the third was passed over
    slow.set()
    store.flush()
    assert synced == [second, fourth]
    assert StateMeta.from_bytes((tmp_path / "state.safe.json").read_bytes()).round == fourth.round


def test_what_the_disk_refuses_is_said_at_the_next_commit_and_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    store = StateStore(tmp_path)
    first = begin_round(store, 1)
    store.flush()

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        second = contribute(store, first)
        # when / then
        with pytest.raises(StateError, match=r"Input/output error; that disk is failing; choose another"):
            store.flush()
    with pytest.raises(StateError, match="that disk is failing"):
        begin_round(store, 2)
    assert store.load() == second
    assert StateStore(tmp_path).candidates() == [second, first]


def test_a_round_is_not_begun_before_the_last_one_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a life that was killed before anything of its last round was on the disk
    store = StateStore(tmp_path)
    begin_round(store, 1)
    store.flush()
    monkeypatch.setattr(Background, "want", lambda self, item: None)
    second = begin_round(store, 2)
    monkeypatch.undo()
    again = StateStore(tmp_path)
    assert again.candidates()[0] == second
    seen: list[RoundIndex] = []
    sync = again._sync
    monkeypatch.setattr(again._background, "_do", lambda meta: (seen.append(meta.round), sync(meta)))
    # when the next life goes on
    begin_round(again, 3)
    again.flush()
    # then it waited for that round first
    assert seen == [2, 3]


@pytest.mark.parametrize("damage", ["state.json", "size", "gone"])
def test_a_state_that_is_not_whole_is_passed_over(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    # given a newer state beside the safe one
    store = StateStore(tmp_path)
    first = begin_round(store, 1)
    store.flush()
    second = contribute(store, first)
    store.flush()
    (tmp_path / "state.safe.json").write_bytes(first.canonical())
    residual = Path(store.path_of(str(second.residual_file)))
    # when something of the newer one is lost
    if damage == "state.json":
        (tmp_path / "state.json").write_bytes(b"\0" * 100)
    elif damage == "size":
        residual.write_bytes(residual.read_bytes()[:-1])
    else:
        residual.unlink()
    # then the safe one is taken, and the log says why
    assert StateStore(tmp_path).load() == first
    assert "there is round 1, known to be on the disk" in caplog.text


def test_a_safe_state_that_is_damaged_is_made_anew(tmp_path: Path) -> None:
    # given a safe state one of whose files is lost, beside a newer one that is whole
    store = StateStore(tmp_path)
    first = contribute(store, begin_round(store, 1))
    second = begin_round(store, 2)
    store.flush()
    (tmp_path / "state.safe.json").write_bytes(first.canonical())
    assert not Path(store.path_of(name_of("payload", 1))).exists()
    # when
    again = StateStore(tmp_path)
    assert again.candidates() == [second]
    third = contribute(again, second)
    # then what it commits is safe when it returns
    assert StateMeta.from_bytes((tmp_path / "state.safe.json").read_bytes()).files() == third.files()
    assert StateStore(tmp_path).candidates() == [third]


# --- files in parts --------------------------------------------------------------------------------------------------


STATE = {name: torch.full((size,), float(size)) for name, size in (("a", 3), ("b", 500), ("c", 0), ("d", 70_000))}
LAYOUT = StateLayout.of(STATE)


def test_a_file_made_by_several_is_committed_like_any_other(tmp_path: Path) -> None:
    # given a temporary whose path others were told
    store = StateStore(tmp_path)
    temporary = store.create("anchor", LAYOUT.size)
    assert Path(temporary).stat().st_size == LAYOUT.size
    LAYOUT.write(temporary, {name: STATE[name] for name in ("d", "a")})
    # when another worker starts late, and sweeps
    StateStore(tmp_path)
    LAYOUT.write(temporary, {name: STATE[name] for name in ("b", "c")})
    digest = Table.of_file(temporary).digest
    name = file_name("anchor", RoundIndex(1), digest)
    path = store.adopt(temporary, name)
    store.commit(StateMeta(round=RoundIndex(1), anchor=digest, anchor_file=name))
    # then
    assert Path(path).read_bytes() == encode_state(STATE) and digest == blob_digest(encode_state(STATE))
    again = StateStore(tmp_path).load()
    assert again is not None and again.anchor == digest
    assert not Path(temporary).exists()


def test_a_writer_of_a_dead_group_never_writes_into_a_new_groups_file(tmp_path: Path) -> None:
    # given a temporary that its maker died over
    old = StateStore(tmp_path)
    temporary = old.create("anchor", LAYOUT.size)
    old._temporaries[temporary].close()
    # when the next life begins, and a worker of the old one is late
    new = StateStore(tmp_path)
    other = new.create("anchor", LAYOUT.size)
    # then
    assert other != temporary
    with pytest.raises(FileNotFoundError):
        LAYOUT.write(temporary, STATE)


def test_a_temporary_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.discard(store.create("anchor", 1000))
    assert list((tmp_path / "files").iterdir()) == []


def test_a_committed_file_is_not_replaced_by_another_in_parts(tmp_path: Path) -> None:
    # given
    store = StateStore(tmp_path)
    meta = begin_round(store, 1)
    same, other = (store.create("anchor", len(contents("anchor", 1))) for _ in range(2))
    Path(same).write_bytes(contents("anchor", 1))
    # when / then
    assert store.adopt(same, meta.anchor_file) == store.path_of(meta.anchor_file)
    with pytest.raises(StateError, match="belongs to the committed state"):
        store.adopt(other, meta.anchor_file)
    store.flush()
    assert set(files_in(tmp_path / "files")) == {meta.anchor_file}
    assert is_whole(store, meta)


def test_a_full_disk_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    store = StateStore(tmp_path)
    meta = begin_round(store, 1)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(os, "pwrite", lambda *_: pytest.fail("something was written"))
    # when / then
    with pytest.raises(StateError, match=r"anchor: No space left on device; free some space .*local\.checkpoints"):
        store.create("anchor", 10**6)
    with pytest.raises(StateError, match="No space left"):
        store.write_file("payload-1.bin", b"x")
    assert set(files_in(tmp_path / "files")) == {meta.anchor_file}


# --- which anchors stay ----------------------------------------------------------------------------------------------


@pytest.fixture
def many_rounds(tmp_path: Path) -> Callable[..., Iterator[int]]:
    def run(**keep: int) -> Iterator[int]:
        store = StateStore(tmp_path, **keep)
        for round_ in range(13):
            contribute(store, begin_round(store, round_))
        store.flush()
        names = files_in(tmp_path / "files")
        assert {name for name in names if not name.startswith("anchor")} == {
            name_of("residual", 12),
            name_of("payload", 12),
        }
        return (int(name.split("-")[1]) for name in sorted(names) if name.startswith("anchor"))

    return run


@pytest.mark.parametrize(
    ("keep", "rounds"),
    [
        ({"keep_last": 2}, [11, 12]),
        ({"keep_last": 4}, [9, 10, 11, 12]),
        ({"keep_last": 2, "keep_every": 5}, [5, 10, 11, 12]),
        ({"keep_last": 2, "keep_every": 100}, [11, 12]),
        ({"keep_last": 3, "keep_every": 1}, list(range(1, 13))),
    ],
)
def test_the_newest_anchors_stay_and_every_nth_for_good(
    many_rounds: Callable[..., Iterator[int]], keep: dict[str, int], rounds: list[int]
) -> None:
    assert list(many_rounds(**keep)) == rounds


def test_both_metas_are_there_when_a_peer_has_left(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    meta = begin_round(store, 1)
    store.flush()
    assert len({(tmp_path / name).read_bytes() for name in META_FILES}) == 1
    assert store.candidates() == [meta]
