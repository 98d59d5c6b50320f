"""The digest of a blob: equal to its definition, and nothing of the blob can change without it."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic.wire import tree
from elastic.wire.tree import CHUNK_BYTES, Table, blob_digest

SIZES = st.sampled_from([0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 17])


def blob(size: int, seed: int = 0) -> bytes:
    return sha256(str(seed).encode()).digest() * (size // 32) + bytes(range(size % 32))


def reference(data: bytes) -> str:
    """The definition, byte by byte."""
    chunks, rest = [], data
    while rest:
        chunks.append(rest[: 256 * 1024])
        rest = rest[256 * 1024 :]
    table = b"".join(sha256(chunk).digest() for chunk in chunks)
    return sha256(b"elastic blob 1\0" + len(data).to_bytes(8, "big") + table).hexdigest()


@settings(deadline=None, max_examples=20)
@given(SIZES, st.integers(0, 3))
def test_the_digest_is_what_it_is_defined_to_be(size: int, seed: int) -> None:
    data = blob(size, seed)
    assert blob_digest(data) == blob_digest(memoryview(data)) == blob_digest(bytearray(data)) == reference(data)
    assert len(Table.of(data)) == len(Table.of(data).hashes) // 32


def test_the_digest_does_not_change_between_versions() -> None:
    assert blob_digest(b"") == "a4ab19a09d8cd867e0322bf81537e5cf72c03678d7ce50460cf79f1dac8f0169"
    assert blob_digest(b"abc") == "43ee7f7fc4523b6439c257b32279931d5cadf958be439ea3fcdc21f2078a6199"


@pytest.mark.parametrize("size", [0, 5, CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
def test_a_file_has_the_table_of_its_bytes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "blob"
    path.write_bytes(blob(size))
    assert Table.of_file(path) == Table.of(blob(size))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2), st.data())
def test_one_wrong_bit_in_a_chunk_is_found_there(index: int, data: st.DataObject) -> None:
    # given a blob of three chunks, and one bit of one of them
    whole = blob(2 * CHUNK_BYTES + 1000)
    table = Table.of(whole)
    chunk = bytearray(whole[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    assert table.fits(index, chunk)
    place = data.draw(st.integers(0, len(chunk) * 8 - 1))
    # when it is flipped
    chunk[place // 8] ^= 1 << place % 8
    # then the chunk no longer fits
    assert not table.fits(index, chunk)


@settings(deadline=None)
@given(st.integers(0, 3 * 32 * 8 - 1))
def test_one_wrong_bit_in_a_table_is_found(place: int) -> None:
    table = Table.of(blob(2 * CHUNK_BYTES + 1000))
    hashes = bytearray(table.hashes)
    hashes[place // 8] ^= 1 << place % 8
    assert Table(table.size, bytes(hashes)).digest != table.digest


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_another_size_is_found(size: int) -> None:
    table = Table.of(blob(2 * CHUNK_BYTES + 1000))
    assert (Table(size, table.hashes).digest == table.digest) == (size == table.size)


def test_a_chunk_in_anothers_place_or_of_another_length_does_not_fit() -> None:
    whole = blob(2 * CHUNK_BYTES + 1000, seed=1)
    table = Table.of(whole)
    first, last = whole[:CHUNK_BYTES], whole[2 * CHUNK_BYTES :]
    assert table.fits(2, last)
    assert not table.fits(0, last)
    assert not table.fits(2, first)
    assert not table.fits(2, last[:-1])
    assert not table.fits(3, b"")
    assert not table.fits(0, b"")


def test_the_table_of_a_blob_is_not_the_blobs_digest() -> None:
    # given a blob whose bytes are the table of another
    inner = Table.of(blob(CHUNK_BYTES + 1))
    # then neither stands for the other
    assert blob_digest(inner.hashes) != inner.digest


def test_chunks_add_up_to_the_blob() -> None:
    for size in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 10**9):
        assert sum(tree.chunk_size(size, index) for index in range(tree.num_chunks(size))) == size


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 4, 5, 11])
@pytest.mark.parametrize("rest", [0, 1, CHUNK_BYTES - 1])
def test_threads_and_processes_find_what_one_would(tmp_path: Path, chunks: int, rest: int) -> None:
    # given
    data, path = blob(chunks * CHUNK_BYTES + rest), tmp_path / "blob"
    path.write_bytes(data)
    # then in memory, from a file, and from parts of it, it is the table of the definition
    expected = b"".join(
        sha256(data[start : start + CHUNK_BYTES]).digest() for start in range(0, len(data), CHUNK_BYTES)
    )
    assert Table.of(data) == Table.of_file(path) == Table(len(data), expected)
    assert Table.of(data).digest == reference(data)
    for parts in (1, 2, 3, 8):
        taken = [tree.part_of(len(data), part, parts) for part in range(parts)]
        assert Table.joined(len(data), [tree.chunk_hashes(path, *each) for each in taken]) == Table.of(data)


def test_a_file_that_shrinks_is_not_hashed_as_if_it_had_not(tmp_path: Path) -> None:
    # given a file that is shorter than whoever shares it out believes
    path = tmp_path / "blob"
    path.write_bytes(blob(CHUNK_BYTES))
    # when / then
    with pytest.raises(OSError, match="shorter than it should be"):
        tree.chunk_hashes(path, 0, 2)
