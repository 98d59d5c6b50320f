"""Durable files: a crash between any two steps leaves the old state or the new one, and nothing else."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from elastic.contracts import StateStore as StateStoreContract
from elastic.errors import StateError
from elastic.messages import (
    NO_DIGEST,
    Counted,
    Digest,
    InnerReport,
    Manifest,
    PeerId,
    RoundIndex,
    digest_of,
)
from elastic.reports import PendingMeta, StateMeta
from elastic.state.chain import Chain
from elastic.state.claim import claim
from elastic.state.store import META_FILES, StateStore

PEER = PeerId("12D3KooW" + "A" * 44)


def write_state(store: StateStore, round_: int) -> StateMeta:
    """Write and commit an anchor, a residual and a payload of that round."""
    anchor = f"anchor of {round_}".encode()
    store.write_file(f"anchor-{round_}.bin", anchor)
    store.write_file(f"residual-{round_}.bin", b"residual" * round_)
    store.write_file(f"payload-{round_}.bin", b"payload")
    inner = InnerReport(steps=1, tokens=1, first_loss=1.0, last_loss=1.0, mean_loss=1.0, seconds=1.0)
    meta = StateMeta(
        round=RoundIndex(round_),
        anchor=digest_of(anchor),
        anchor_file=f"anchor-{round_}.bin",
        residual_file=f"residual-{round_}.bin",
        pending=PendingMeta(round=RoundIndex(round_), inner=inner, payload_file=f"payload-{round_}.bin"),
    )
    store.commit(meta)
    return meta


def names(directory: Path) -> set[str]:
    return {path.name for path in (directory / "files").iterdir()}


def test_what_was_committed_is_loaded(tmp_path: Path) -> None:
    store: StateStoreContract = StateStore(tmp_path)
    assert store.load() is None
    meta = write_state(StateStore(tmp_path), 1)
    assert StateStore(tmp_path).load() == meta
    assert store.read_file("anchor-1.bin") == b"anchor of 1"
    assert Path(store.path_of("anchor-1.bin")).read_bytes() == b"anchor of 1"


def test_written_but_not_committed_counts_for_nothing(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    meta = write_state(store, 1)
    store.write_file("anchor-2.bin", b"new")
    assert StateStore(tmp_path).load() == meta


def test_old_files_are_dropped_but_for_the_newest_anchors(tmp_path: Path) -> None:
    store = StateStore(tmp_path, keep_last=2)
    for round_ in range(1, 5):
        write_state(store, round_)
    store.flush()
    assert names(tmp_path) == {"anchor-3.bin", "anchor-4.bin", "residual-4.bin", "payload-4.bin"}


def test_a_committed_file_never_changes_under_its_name(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    write_state(store, 1)
    assert store.write_file("anchor-1.bin", b"anchor of 1") == store.path_of("anchor-1.bin")
    with pytest.raises(StateError, match="belongs to the committed state"):
        store.write_file("anchor-1.bin", b"other")


def test_a_commit_needs_its_files(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    meta = write_state(store, 1)
    with pytest.raises(StateError, match=r"anchor-9\.bin: is not there"):
        store.commit(meta.model_copy(update={"anchor_file": "anchor-9.bin"}))
    assert store.load() == meta


@pytest.mark.parametrize("damage", [b"", b"{", b'{"round": 1}', b"\0" * 100])
def test_a_damaged_state_says_what_to_do(tmp_path: Path, damage: bytes) -> None:
    store = StateStore(tmp_path)
    write_state(store, 1)
    store.flush()
    for name in META_FILES:
        (tmp_path / name).write_bytes(damage)
    with pytest.raises(StateError, match=r"damaged.*remove .* to fetch the state from the swarm"):
        StateStore(tmp_path).load()


def test_a_lost_file_says_what_to_do(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    write_state(store, 1)
    (tmp_path / "files" / "residual-1.bin").unlink()
    with pytest.raises(StateError, match=r"residual-1.bin: is not there; remove"):
        store.load()


class Crash(BaseException):
    """SIGKILL, as far as the code can tell: nothing catches it and nothing is cleaned up."""


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, error: Callable[[], BaseException]) -> None:
    """From the step-th call on, every system call of this thread that changes the disk fails."""
    done, here = 0, threading.current_thread()

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if threading.current_thread() is here:
                done += 1
                if done > step:
                    raise error()
            return call(*args, **kwargs)

        return run

    for name in ("posix_fallocate", "pwrite", "replace"):
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))


STEPS = 4 * 3
"""Four files, each: reserve space, write, rename."""


@pytest.mark.parametrize("step", range(STEPS + 1))
@pytest.mark.parametrize("error", [Crash, lambda: OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_at_any_step_leaves_the_old_state_or_the_new(
    tmp_path: Path, step: int, error: Callable[[], BaseException]
) -> None:
    store = StateStore(tmp_path)
    old = write_state(store, 1)
    store.flush()
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, step, error)
        if step < STEPS:
            with pytest.raises((Crash, StateError)):
                write_state(store, 2)
        else:
            write_state(store, 2)
    store.flush()
    loaded = StateStore(tmp_path).load()
    assert loaded is not None
    assert loaded.round == (1 if step < STEPS else 2)
    assert loaded == old or loaded.round == 2
    assert store.read_file(loaded.anchor_file) == f"anchor of {loaded.round}".encode()
    assert not [name for name in names(tmp_path) | set(os.listdir(tmp_path)) if name.endswith(".tmp")]
    assert write_state(StateStore(tmp_path), 2).round == 2


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EFBIG, "ulimit -f"), (errno.EACCES, "writable for this user")],
)
def test_errors_are_one_line_with_a_path_and_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    store = StateStore(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StateError, match=advice) as caught:
        store.write_file("anchor-1.bin", b"data")
    assert str(tmp_path / "files" / "anchor-1.bin") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == set()


def test_a_real_limit_on_file_sizes_leaves_the_old_state(tmp_path: Path) -> None:
    old = write_state(StateStore(tmp_path), 1)
    code = f"""
import resource
from pathlib import Path
from elastic.errors import StateError
from elastic.state.store import StateStore
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    StateStore(Path({str(tmp_path)!r})).write_file("anchor-2.bin", b"x" * 100_000)
except StateError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "anchor-2.bin: File too large; the limit on file sizes is too low" in done.stdout
    assert StateStore(tmp_path).load() == old
    assert names(tmp_path) == {"anchor-1.bin", "residual-1.bin", "payload-1.bin"}


def test_leftovers_are_swept_but_not_from_under_a_writer(tmp_path: Path) -> None:
    StateStore(tmp_path)
    leftover, busy = tmp_path / "files" / "a.bin.tmp", tmp_path / "files" / "b.bin.tmp"
    leftover.write_bytes(b"half")
    with busy.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        StateStore(tmp_path)
    assert not leftover.exists()
    assert busy.exists()


def test_a_directory_in_the_way_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StateError, match=r"choose another local\.state_dir"):
        StateStore(tmp_path / "state")


def test_a_directory_has_one_owner_per_role(tmp_path: Path) -> None:
    refused = pytest.raises(StateError, match=rf"in use by pid {os.getpid()}; stop it or")
    with claim(tmp_path), claim(tmp_path, "trainer"), refused, claim(tmp_path):
        pass
    with claim(tmp_path):
        pass


def test_a_killed_owner_leaves_no_lock(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from elastic.state.claim import claim
with claim(Path({str(tmp_path)!r})):
    sys.stdout.write("mine"); sys.stdout.flush()
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.read(4) == b"mine"
        with pytest.raises(StateError, match=f"in use by pid {owner.pid}"), claim(tmp_path):
            pass
        owner.send_signal(signal.SIGKILL)
    with claim(tmp_path):
        pass


def manifest(round_: int, previous: Manifest | None, anchor: bytes = b"anchor") -> Manifest:
    return Manifest(
        run="demo",
        round=RoundIndex(round_),
        previous=previous.digest() if previous else NO_DIGEST,
        anchor=digest_of(anchor),
        counted=(Counted(peer=PEER, payload=digest_of(b"p"), size_bytes=1, share=1.0),),
        roster=(PEER,),
        proposer=PEER,
        signature="0" * 128,
    )


def manifests(length: int) -> list[Manifest]:
    chain = [manifest(0, None)]
    while len(chain) < length:
        chain.append(manifest(len(chain), chain[-1]))
    return chain


def test_the_chain_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "chain.jsonl"
    chain = Chain(path)
    assert chain.head() is None
    for each in manifests(3):
        chain.append(each)
        chain.append(each)
    assert path.read_bytes().count(b"\n") == 3
    again = Chain(path)
    assert again.head() == chain.head() == manifests(3)[2]
    assert again.get(RoundIndex(1)) == manifests(3)[1]
    assert again.get(RoundIndex(7)) is None


def test_a_peer_may_jump_ahead_and_fill_in_later(tmp_path: Path) -> None:
    chain, all_ = Chain(tmp_path / "chain"), manifests(6)
    for round_ in (0, 1, 4, 5, 3):
        chain.append(all_[round_])
    assert Chain(tmp_path / "chain").head() == all_[5]
    with pytest.raises(StateError, match="does not continue"):
        chain.append(manifest(2, manifest(1, None)))
    assert chain.get(RoundIndex(2)) is None


def test_two_manifests_of_one_round_never_stand_side_by_side(tmp_path: Path) -> None:
    chain, other = Chain(tmp_path / "chain"), manifest(0, None, b"other anchor")
    chain.append(manifests(1)[0])
    with pytest.raises(StateError, match="two different manifests for round 0"):
        chain.append(other)
    with (tmp_path / "chain").open("ab") as file:
        file.write(other.canonical() + b"\n")
    with pytest.raises(StateError, match="two different manifests"):
        Chain(tmp_path / "chain")


@pytest.mark.parametrize("torn", [b"{", b"\0" * 50, b'{"run":"demo"}\n', manifests(3)[2].canonical()])
def test_a_torn_last_line_is_cut(tmp_path: Path, torn: bytes) -> None:
    path, all_ = tmp_path / "chain", manifests(3)
    path.write_bytes(b"".join(each.canonical() + b"\n" for each in all_[:2]) + torn)
    chain = Chain(path)
    assert chain.head() == all_[1]
    chain.append(all_[2])
    assert Chain(path).head() == all_[2]


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path, all_ = tmp_path / "chain", manifests(2)
    path.write_bytes(all_[0].canonical() + b"\ngarbage\n" + all_[1].canonical() + b"\n")
    with pytest.raises(StateError, match="is no manifest"):
        Chain(path)


def test_every_prefix_of_the_file_is_a_chain(tmp_path: Path) -> None:
    path, all_ = tmp_path / "chain", manifests(3)
    data = b"".join(each.canonical() + b"\n" for each in all_)
    for end in range(0, len(data) + 1, 7):
        path.write_bytes(data[:end])
        whole = data[:end].count(b"\n")
        assert Chain(path).head() == (all_[whole - 1] if whole else None)


def test_an_append_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, all_ = tmp_path / "chain", manifests(2)
    chain = Chain(path)
    chain.append(all_[0])
    with monkeypatch.context() as patch:

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("elastic.state.chain.os.fsync", full)
        with pytest.raises(StateError, match="free some space"):
            chain.append(all_[1])
    assert chain.head() == all_[0]
    chain.append(all_[1])
    assert path.read_bytes() == b"".join(each.canonical() + b"\n" for each in all_)
    assert Digest(chain.head().digest()) == all_[1].digest()  # type: ignore[union-attr]


def test_a_claim_is_waited_for_while_its_holder_dies(tmp_path: Path) -> None:
    # given a holder that lets go while we wait
    with ExitStack() as stack, ThreadPoolExecutor(1) as other:
        stack.enter_context(claim(tmp_path))
        with pytest.raises(StateError, match="in use"), claim(tmp_path):
            pass
        waits = ExitStack()
        taking = other.submit(lambda: waits.enter_context(claim(tmp_path, patience=60.0)))
        stack.close()
        # then the claim is ours
        taking.result()
        with pytest.raises(StateError, match="in use"), claim(tmp_path):
            pass
        waits.close()
