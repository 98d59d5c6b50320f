import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import made, serving, tokens_of

from elastic.data.cache import TRIES, Cache, _locked
from elastic.data.places import Http, Place
from elastic.errors import ConfigError, FetchError, StateError
from model_zoo.prepared import INDEX, Index, Row

ROOM = 10**9


def cache(index: Index, place: Place, folder: Path, room: int = ROOM, **more: Any) -> Cache:
    return Cache(index, place, folder, room, fetchers=2, sleep=lambda seconds: None, **more)


def row(index: Index, cache: Cache) -> Row:
    return Row(index, cache.open, cache.want)


class Scripted:
    """A place with a shard's bytes whose answers are scripted."""

    def __init__(self, folder: Path, *answers: Callable[[bytes, int], Iterator[bytes]]) -> None:
        self.folder, self.answers, self.starts = folder, list(answers), []  # type: ignore[var-annotated]

    def read(self, name: str, at_most: int) -> bytes:
        raise NotImplementedError

    def chunks(self, name: str, start: int, size: int) -> Iterator[bytes]:
        self.starts.append(start)
        data = (self.folder / name).read_bytes()
        return self.answers.pop(0)(data, start) if self.answers else iter([data[start:]])


def breaking(after: int) -> Callable[[bytes, int], Iterator[bytes]]:
    """So many bytes, and then nothing."""

    def answer(data: bytes, start: int) -> Iterator[bytes]:
        yield data[start : start + after]
        raise FetchError("cut off")

    return answer


def test_tokens_come_through_http_as_they_are(tmp_path: Path) -> None:
    # given
    index = made(tmp_path / "web")
    with serving(tmp_path / "web") as (url, asked):
        fetched = cache(index, Http(url), tmp_path / "cache")
        # when two places are looked at, and once again by another process
        found = row(index, fetched)[np.array([3, 4002])]
        again = row(index, cache(index, Http(url), tmp_path / "cache"))[np.array([3])]
    # then only their shards came, once
    assert found.tolist() == tokens_of(tmp_path / "web", index)[[3, 4002]].tolist() and again == found[:1]
    assert len(asked) == 2 and len(list((tmp_path / "cache").iterdir())) == 2


def test_what_a_round_needs_comes_first_and_then_the_rest(tmp_path: Path) -> None:
    # given one fetcher
    index = made(tmp_path / "web")
    with serving(tmp_path / "web") as (url, asked):
        fetched = Cache(index, Http(url), tmp_path / "cache", ROOM, fetchers=1)
        # when
        row(index, fetched).expect(np.array([3500, 1200]), 10)
        while len(list((tmp_path / "cache").glob("*.tokens"))) < len(index.shards):
            fetched._threads[0].join(0.01)
    # then
    shards = [request.split()[0] for request in asked]
    assert shards[:2] == [index.shards[3].name, index.shards[1].name]
    assert sorted(shards) == [shard.name for shard in index.shards]


def test_a_broken_download_goes_on_where_it_was(tmp_path: Path) -> None:
    # given
    index = made(tmp_path / "web")
    place = Scripted(tmp_path / "web", breaking(100), breaking(50))
    # when
    fetched = cache(index, place, tmp_path / "cache")
    found = fetched.open(index.shards[0])
    # then
    assert place.starts == [0, 100, 150]
    assert found.tolist() == tokens_of(tmp_path / "web", index)[: len(found)].tolist()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".tokens"]


def test_a_download_goes_on_after_a_restart(tmp_path: Path) -> None:
    # given one that was given up
    index = made(tmp_path / "web")
    with pytest.raises(FetchError, match="cut off"):
        cache(index, Scripted(tmp_path / "web", *[breaking(10)] * TRIES), tmp_path / "cache").open(index.shards[0])
    assert not list((tmp_path / "cache").glob("*.tokens"))
    # when
    with serving(tmp_path / "web") as (url, asked):
        cache(index, Http(url), tmp_path / "cache").open(index.shards[0])
    # then
    assert asked[0].startswith(f"{index.shards[0].name} bytes={10 * TRIES}-")


@pytest.mark.parametrize("flip", [0, 70, -1])
def test_wrong_bytes_are_never_used(tmp_path: Path, flip: int) -> None:
    # given a place that gives other bytes of the right number
    index = made(tmp_path / "web")
    path = tmp_path / "web" / index.shards[0].name
    data = bytearray(path.read_bytes())
    data[flip] ^= 1
    path.write_bytes(data)
    # when
    with serving(tmp_path / "web") as (url, asked), pytest.raises(FetchError, match="is not what the index says"):
        row(index, cache(index, Http(url), tmp_path / "cache"))[np.array([3])]
    # then each try began anew, and nothing was kept
    assert [each.split("=")[1].split("-")[0] for each in asked] == ["0"] * TRIES
    assert not list((tmp_path / "cache").glob("*.tokens"))


def test_a_shard_that_is_right_at_the_second_try_is_taken(tmp_path: Path) -> None:
    index = made(tmp_path / "web")
    place = Scripted(tmp_path / "web", lambda data, start: iter([bytes(len(data))]))

    found = cache(index, place, tmp_path / "cache").open(index.shards[0])

    assert place.starts == [0, 0] and found[0] == ord("a")


def test_a_cached_shard_that_was_damaged_is_fetched_again(tmp_path: Path) -> None:
    # given
    index = made(tmp_path / "web")
    place = Scripted(tmp_path / "web")
    path = cache(index, place, tmp_path / "cache").bring(index.shards[0])
    path.write_bytes(path.read_bytes()[:-1])
    # when
    found = cache(index, place, tmp_path / "cache").open(index.shards[0])
    # then
    assert len(found) == index.shards[0].tokens and place.starts == [0, 0]


def answers(status: int, headers: dict[str, str], body: bytes = b"") -> Callable[[BaseHTTPRequestHandler], bool]:
    def answer(request: BaseHTTPRequestHandler) -> bool:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)
        return True

    return answer


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (200, {"Content-Length": str(2**50)}, "the server says"),
        (206, {"Content-Range": f"bytes 0-9/{2**50}"}, "the server says"),
        (206, {"Content-Length": "5"}, "the server says"),
        (404, {"Content-Length": "0"}, "404"),
        (503, {"Content-Length": "0"}, "503"),
    ],
)
def test_other_sizes_and_refusals_are_errors_before_a_byte_is_read(
    tmp_path: Path, status: int, headers: dict[str, str], message: str
) -> None:
    index = made(tmp_path / "web")
    with serving(tmp_path, answers(status, headers)) as (url, _), pytest.raises(FetchError, match=message):
        cache(index, Http(url), tmp_path / "cache").open(index.shards[0])
    assert not list((tmp_path / "cache").glob("*.tokens"))


def test_a_body_that_ends_early_or_goes_on_for_ever_is_bounded(tmp_path: Path) -> None:
    index = made(tmp_path / "web")
    size = index.size_of(index.shards[0])
    short = answers(206, {"Content-Range": f"bytes 0-{size - 1}/{size}"}, bytes(10))
    long = answers(206, {"Content-Range": f"bytes 0-{size - 1}/{size}"}, bytes(size + 10_000))

    with serving(tmp_path, short) as (url, _), pytest.raises(FetchError, match="bytes early"):
        list(Http(url).chunks(index.shards[0].name, 0, size))
    with serving(tmp_path, long) as (url, _):
        assert len(b"".join(Http(url).chunks(index.shards[0].name, 0, size))) == size


def test_a_server_that_sends_single_bytes_does_not_hold_a_download(tmp_path: Path) -> None:
    # given one that sends a byte and then waits, and a clock of whole minutes
    index = made(tmp_path / "web")
    shard, go_on = index.shards[0], threading.Event()
    size = index.size_of(shard)

    def drip(request: BaseHTTPRequestHandler) -> bool:
        answers(206 if "Range" in request.headers else 200, {"Content-Range": f"bytes 0-{size - 1}/{size}"})(request)
        request.wfile.write(b"x")
        return go_on.wait(60)

    clock = itertools.count(0.0, 60.0).__next__
    with serving(tmp_path, drip) as (url, _):
        try:
            # when / then
            assert next(Http(url).chunks(shard.name, 0, size)) == b"x"
            with pytest.raises(FetchError, match="comes too slowly"):
                cache(index, Http(url), tmp_path / "cache", clock=clock)._download(shard, BytesIO())
            with pytest.raises(FetchError, match="comes too slowly"):
                Http(url, clock).read(INDEX, 100)
        finally:
            go_on.set()


def test_a_server_without_ranges_will_do(tmp_path: Path) -> None:
    # given
    index = made(tmp_path / "web")
    data = (tmp_path / "web" / index.shards[0].name).read_bytes()
    whole = answers(200, {"Content-Length": str(len(data))}, data)
    # when
    with serving(tmp_path, whole) as (url, _):
        found = b"".join(Http(url).chunks(index.shards[0].name, 100, len(data)))
    # then
    assert found == data[100:]


def test_an_index_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(bytes(101))

    with serving(tmp_path) as (url, _):
        with pytest.raises(FetchError, match="more than 100 bytes"):
            Http(url).read(INDEX, 100)
        assert Http(url).read(INDEX, 101) == bytes(101)


@pytest.mark.parametrize("url", ["ftp://host/x", "https:///x", "https://host/x?token=1", "http://host#x"])
def test_what_is_no_folder_behind_http_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is not"):
        Http(url)


def test_the_environment_does_not_say_where_tokens_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / INDEX).write_bytes(b"index")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with serving(tmp_path) as (url, _):
        assert Http(url).read(INDEX, 100) == b"index"


def test_nobody_there_is_a_fetch_error() -> None:
    with serving(Path()) as (url, _):
        pass
    with pytest.raises(FetchError, match="refused"):
        Http(url).read(INDEX, 100)


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    # given room for two shards
    index = made(tmp_path / "web", shard_tokens=600)
    sizes = [index.size_of(shard) for shard in index.shards]
    fetched = cache(index, Scripted(tmp_path / "web"), tmp_path / "cache", room=sizes[0] * 2 + 50)
    # when
    tokens = row(index, fetched)[np.arange(len(tokens_of(tmp_path / "web", index)))]
    # then nothing was wrong meanwhile
    held = [path.name[:64] for path in (tmp_path / "cache").glob("*.tokens")]
    assert len(index.shards) > 3
    assert sorted(held) == sorted(shard.sha256 for shard in index.shards[-len(held) :]) and 1 <= len(held) <= 2
    assert tokens.tolist() == tokens_of(tmp_path / "web", index).tolist()


def test_what_a_round_needs_comes_once_even_if_there_is_no_room_for_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a round of eight shards, room for three, and a fetcher that has come as far as it can
    index = made(tmp_path / "web", shard_tokens=500)
    needed = list(index.shards[:8])
    place, folder = Scripted(tmp_path / "web"), tmp_path / "cache"
    room = sum(index.size_of(shard) for shard in needed[:3])
    fetched = Cache(index, place, folder, room, fetchers=1)
    idle, wait = threading.Event(), fetched._more.wait
    monkeypatch.setattr(fetched._more, "wait", lambda: idle.set() or wait())
    fetched.want(needed)
    assert idle.wait(60)
    # when
    for shard in needed:
        fetched.open(shard)
    # then
    assert len(needed) == 8 and len(place.starts) == 8


def test_what_another_began_anew_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a file under way that becomes whole while we wait, and then makes room and is begun anew while we look at it
    part, final = tmp_path / "x.part", tmp_path / "x.tokens"
    plain = Path.exists

    def exists(path: Path) -> bool:
        there = plain(path)
        if path == final and there:
            final.unlink()
            part.write_bytes(b"another's")
        return there

    monkeypatch.setattr(Path, "exists", exists)
    monkeypatch.setattr("elastic.data.cache.fcntl.flock", lambda file, how: part.replace(final))
    # when
    with _locked(part, final) as file:
        # then
        assert file is None and part.read_bytes() == b"another's"


def test_what_is_removed_under_way_is_fetched_again(tmp_path: Path) -> None:
    # given somebody who removes what is under way
    index = made(tmp_path / "web")

    def removed(data: bytes, start: int) -> Iterator[bytes]:
        yield data[start:]
        next((tmp_path / "cache").glob("*.part")).unlink()

    place = Scripted(tmp_path / "web", removed)
    # when
    found = cache(index, place, tmp_path / "cache").open(index.shards[0])
    # then
    assert len(found) == index.shards[0].tokens and place.starts == [0, 0]


def test_two_that_want_one_shard_fetch_it_once(tmp_path: Path) -> None:
    # given the first to come waits for the second to be there
    index = made(tmp_path / "web")
    begun, go_on = threading.Event(), threading.Event()

    def slowly(data: bytes, start: int) -> Iterator[bytes]:
        begun.set()
        assert go_on.wait(60)
        yield data[start:]

    place = Scripted(tmp_path / "web", slowly)
    caches = [cache(index, place, tmp_path / "cache") for _ in range(2)]
    found: list[Path] = []
    threads = [threading.Thread(target=lambda each=each: found.append(each.bring(index.shards[0]))) for each in caches]
    # when
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    # then
    assert len(set(found)) == 1 and place.starts == [0]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".tokens"]


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = made(tmp_path / "web")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("elastic.data.cache.os.fsync", full)
    with pytest.raises(StateError, match="No space left on device; make room there"):
        cache(index, Scripted(tmp_path / "web"), tmp_path / "cache").open(index.shards[0])
    assert not list((tmp_path / "cache").glob("*.tokens"))


def test_tokens_come_out_of_a_bucket(tmp_path: Path) -> None:
    # given
    store = pytest.importorskip("obstore.store")
    from elastic.data.bucket import Bucket

    index = made(tmp_path / "web")
    memory = store.MemoryStore()
    for path in (tmp_path / "web").iterdir():
        memory.put(path.name, path.read_bytes())
    bucket = Bucket(memory, "s3://bucket/web")
    # when
    found = row(index, cache(index, bucket, tmp_path / "cache"))[np.arange(2000)]
    # then
    assert found.tolist() == tokens_of(tmp_path / "web", index)[:2000].tolist()
    assert bucket.read(INDEX, 10**6) == index.canonical()
    assert b"".join(bucket.chunks(INDEX, 10, len(index.canonical()))) == index.canonical()[10:]
    with pytest.raises(FetchError, match=r"s3://bucket/web/index\.json: .* bytes are more than 10"):
        bucket.read(INDEX, 10)
    with pytest.raises(FetchError, match="bytes, and not 7"):
        list(bucket.chunks(INDEX, 0, 7))
    with pytest.raises(FetchError, match="nothing"):
        bucket.read("nothing", 10)


def test_a_missing_place_is_a_fetch_error_and_not_wrong_tokens(tmp_path: Path) -> None:
    index = made(tmp_path / "web")
    with serving(tmp_path / "web") as (url, _):
        fetched = row(index, cache(index, Http(url), tmp_path / "cache"))
        fetched[np.array([0])]
        shutil.rmtree(tmp_path / "web")
        with pytest.raises(FetchError, match="404"):
            fetched[np.array([0, 4000])]
