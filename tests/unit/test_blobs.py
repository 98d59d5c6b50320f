"""The blobs a peer serves, across its lives."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from elastic.config import RoundConfig
from elastic.exchange.blobs.partial import Partial
from elastic.exchange.blobs.store import Blob, BlobStore
from elastic.exchange.dht.identity_validator import MAX_RECORD_BYTES
from elastic.exchange.limits import Limits, Uplink
from elastic.messages import NO_DIGEST, Counted, Digest, Manifest, PeerId, RoundIndex
from elastic.wire.signing import Identity
from elastic.wire.tree import CHUNK_BYTES, Table, blob_digest


def test_what_was_provided_is_served_by_the_next_life(tmp_path: Path) -> None:
    # given a store that was left, with a file that a crash spoilt and one that it left half written
    digest = BlobStore(tmp_path).add(b"payload")
    spoilt = tmp_path / blob_digest(b"other")
    spoilt.write_bytes(b"othe")
    (tmp_path / f"{digest}.{'0' * 16}.tmp").write_bytes(b"pay")
    # when the peer starts again
    store = BlobStore(tmp_path)
    # then it has the payload, does not vouch for the spoilt one, and the half is gone
    assert store.read(digest) == b"payload"
    assert store.read(blob_digest(b"other")) is None
    assert not list(tmp_path.glob("*.tmp"))


def test_room_is_made_for_what_is_new_from_what_is_old(tmp_path: Path) -> None:
    # given a store with room for two
    store = BlobStore(tmp_path, max_bytes=8)
    digests = [store.add(bytes([number]) * 4) for number in range(3)]
    # then the oldest is gone, in this life and the next
    assert [store.read(digest) is not None for digest in digests] == [False, True, True]
    assert BlobStore(tmp_path, max_bytes=8).read(digests[0]) is None


def test_the_largest_manifest_fits_into_a_record() -> None:
    # given as many peers as a run file allows, and the longest names and numbers
    peers = sorted(Identity.generate().peer for _ in range(RoundConfig.model_fields["max_peers"].default))
    identity = Identity.generate()
    counted = tuple(
        Counted(peer=PeerId(peer), payload=blob_digest(peer.encode()), size_bytes=2**53, share=1 / 3 / len(peers))
        for peer in peers
    )
    manifest = Manifest(
        run="r" * 64, round=RoundIndex(2**40), previous=NO_DIGEST, anchor=NO_DIGEST, counted=counted,
        roster=tuple(peers), proposer=identity.peer,
    )  # fmt: skip
    # then the signed manifest, and the DHT's signature around it, fit
    assert len(identity.sign(manifest).canonical()) < MAX_RECORD_BYTES - 512


BLOB = np.random.default_rng(0).bytes(4 * CHUNK_BYTES - 5)
TABLE = Table.of(BLOB)


def chunk(index: int) -> bytes:
    return BLOB[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_has_come_of_a_blob_is_kept_and_served(tmp_path: Path, on_disk: bool) -> None:
    # given a store in the middle of a fetch
    store = BlobStore(tmp_path if on_disk else None)
    with store.partials.receiving(TABLE) as partial:
        assert partial.add(3, chunk(3))
        assert partial.add(1, chunk(1))
        assert not partial.add(0, chunk(1))
        # then it offers just these chunks
        offer = store.offer(TABLE.digest)
        assert offer is not None
        assert offer.holds.tolist() == [False, True, False, True]
        assert (offer.read(1), offer.read(3)) == (chunk(1), chunk(3))
        assert store.read(TABLE.digest) is None
    # and the next fetch goes on from there, to the end
    with store.partials.receiving(TABLE) as partial:
        assert partial.holds.tolist() == [False, True, False, True]
        assert all(partial.add(index, chunk(index)) for index in (0, 2))
        assert partial.data() == BLOB


def test_an_unfinished_file_is_believed_only_where_it_is_right(tmp_path: Path) -> None:
    # given a life that got three chunks, and a crash that spoilt one and lost the end
    with BlobStore(tmp_path).partials.receiving(TABLE) as partial:
        for index in (0, 1, 2):
            partial.add(index, chunk(index))
    path = tmp_path / f"{TABLE.digest}.partial"
    torn = bytearray(path.read_bytes()[:-1])
    torn[CHUNK_BYTES + 7] ^= 1
    path.write_bytes(torn)
    # then the next life takes the one that is right, and serves nothing before it has looked
    store = BlobStore(tmp_path)
    assert store.offer(TABLE.digest) is None
    with store.partials.receiving(TABLE) as partial:
        assert partial.holds.tolist() == [True, False, False, False]


@pytest.mark.parametrize("on_disk", [False, True])
def test_blobs_have_room_in_memory_or_on_disk_as_the_limits_say(tmp_path: Path, on_disk: bool) -> None:
    # given limits of which one applies
    limits = Limits(disk_bytes=8, memory_bytes=12) if on_disk else Limits(disk_bytes=12, memory_bytes=8)
    store = BlobStore(tmp_path if on_disk else None, limits=limits)
    # when more comes than there is room for
    digests = [store.add(bytes([number]) * 4) for number in range(5)]
    # then the two that came last are left, and nothing of the others
    assert [store.read(digest) is not None for digest in digests] == [False, False, False, True, True]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == (8 if on_disk else 0)


@pytest.mark.parametrize("on_disk", [False, True])
def test_unfinished_blobs_make_room_for_newer_ones_but_not_while_they_are_fetched(
    tmp_path: Path, on_disk: bool
) -> None:
    # given room for one chunk, and two fetches
    tables = [Table.of(bytes([number]) * CHUNK_BYTES * 2) for number in range(2)]
    small, large = CHUNK_BYTES, 10 * CHUNK_BYTES
    limits = Limits(
        partial_disk_bytes=small if on_disk else large, partial_memory_bytes=large if on_disk else small
    )  # fmt: skip
    store = BlobStore(tmp_path if on_disk else None, limits=limits)
    with store.partials.receiving(tables[0]) as old:
        with store.partials.receiving(tables[1]) as new:
            old.add(0, bytes([0]) * CHUNK_BYTES)
            new.add(0, bytes([1]) * CHUNK_BYTES)
        # then the one that goes on is kept
        assert store.partials.get(tables[0].digest) is old
        assert store.partials.get(tables[1].digest) is None
        files = [f"{tables[0].digest}.partial"] if on_disk else []
        assert [path.name for path in tmp_path.iterdir()] == files


def test_unfinished_blobs_that_nobody_wanted_for_a_day_are_removed(tmp_path: Path) -> None:
    old, young = tmp_path / f"{'0' * 64}.partial", tmp_path / f"{'1' * 64}.partial"
    for path in (old, young):
        path.write_bytes(b"?")
    os.utime(old, (0, 0))
    BlobStore(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [young.name]


def test_a_blob_that_is_whole_is_not_kept_twice(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with store.partials.receiving(TABLE) as partial:
        partial.add(0, chunk(0))
    store.add(BLOB)
    assert [path.name for path in tmp_path.iterdir()] == [TABLE.digest]
    offer = store.offer(TABLE.digest)
    assert offer is not None
    assert offer.holds.all()
    assert offer.read(3) == chunk(3)


class Slow:
    """A step that takes until `on` is set."""

    def __init__(self) -> None:
        self.begun, self.on, self.times = threading.Event(), threading.Event(), 0

    def step(self) -> None:
        self.times += 1
        self.begun.set()
        assert self.on.wait(20)


def test_while_a_large_file_is_hashed_everything_else_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given an anchor whose table two strangers have asked for, and that takes long to compute
    (tmp_path / "state").write_bytes(BLOB)
    (tmp_path / "small").write_bytes(b"small")
    store, slow, upstream = BlobStore(), Slow(), Blob.table

    def table(blob: Blob) -> Table:
        if blob.size == TABLE.size:
            slow.step()
        return upstream(blob)

    monkeypatch.setattr(Blob, "table", table)
    store.add_file(TABLE.digest, tmp_path / "state")
    store.add_file(blob_digest(b"small"), tmp_path / "small")
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(store.offer, TABLE.digest) for _ in range(2)]
        assert slow.begun.wait(20)
        # when we publish our payload, and somebody asks for that and for another file
        try:
            published = threads.submit(store.add, b"payload").result(20)
            served = [threads.submit(store.offer, each).result(20) for each in (published, blob_digest(b"small"))]
        finally:
            slow.on.set()
        # then nobody has waited, and the anchor is hashed once
        assert all(offer is not None for offer in served)
        assert all(each.result(20) is not None for each in asked)
    assert slow.times == 1


def test_a_wrong_file_is_hashed_once_however_many_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a file that is not what its digest says, and two who ask for it
    (tmp_path / "state").write_bytes(BLOB[:-1])
    store, slow, upstream, asking = BlobStore(), Slow(), Blob.table, threading.Barrier(2)
    get = store.get
    found: list[Blob | None] = []

    def table(blob: Blob) -> Table:
        slow.step()
        return upstream(blob)

    def both_find_it(digest: Digest) -> Blob | None:
        found.append(get(digest))
        if len(found) <= 2:
            asking.wait(20)
        return found[-1]

    monkeypatch.setattr(Blob, "table", table)
    store.add_file(TABLE.digest, tmp_path / "state")
    monkeypatch.setattr(store, "get", both_find_it)
    slow.on.set()
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(store.offer, [TABLE.digest] * 2, timeout=20)) == [None, None]
    assert slow.times == 1


def test_while_an_unfinished_file_is_looked_through_others_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a large file that an earlier life left, and a fetch that looks which chunks are right
    with BlobStore(tmp_path).partials.receiving(TABLE) as partial:
        partial.add(0, chunk(0))
    store, slow, upstream = BlobStore(tmp_path), Slow(), Partial._read

    def read(partial: Partial, path: Path, index: int) -> bytes:
        slow.step()
        return upstream(partial, path, index)

    def fetch() -> list[bool]:
        with store.partials.receiving(TABLE) as partial:
            return list(map(bool, partial.holds))

    monkeypatch.setattr(Partial, "_read", read)
    with ThreadPoolExecutor(2) as threads:
        fetched = threads.submit(fetch)
        assert slow.begun.wait(20)
        # when another blob is complete, and this one is asked for or given up
        try:
            threads.submit(store.partials.drop, blob_digest(b"other")).result(20)
            threads.submit(store.partials.drop, TABLE.digest).result(20)
            assert threads.submit(store.partials.get, TABLE.digest).result(20) is None
        finally:
            slow.on.set()
        # then nothing has waited, and what is right is there
        assert fetched.result(20) == [True, False, False, False]


def test_a_file_that_becomes_shorter_is_no_longer_served(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(BLOB)
    store = BlobStore()
    store.add_file(TABLE.digest, tmp_path / "state")
    offer = store.offer(TABLE.digest)
    assert offer is not None
    (tmp_path / "state").write_bytes(BLOB[:100])
    with pytest.raises(OSError, match="shorter"):
        offer.read(0)
    assert store.offer(TABLE.digest) is None


def test_the_uplink_lets_chunks_leave_one_after_the_other() -> None:
    # given an uplink of 100 bytes per second
    uplink = Uplink(100.0)
    # then each waits until those before it have left
    assert [uplink.reserve(50, now) for now in (0.0, 0.0, 0.25)] == [0.0, 0.5, 0.75]
    assert uplink.queue(1.0) == 0.5
    # and nothing is saved up
    assert uplink.queue(10.0) == 0.0
    assert [uplink.reserve(50, 10.0) for _ in range(2)] == [0.0, 0.5]


def test_without_a_limit_nothing_waits() -> None:
    uplink = Uplink(0.0)
    assert [uplink.reserve(10**9, 0.0) for _ in range(3)] == [0.0] * 3
