"""A bucket beside the swarm: what outlives its peer, what is not believed, and what never stops a fetch."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("obstore")

from elastic.errors import ConfigError, FetchError, NetworkError
from elastic.exchange.bucket import exchange as bucket_module
from elastic.exchange.bucket import uploads
from elastic.exchange.bucket.exchange import BucketExchange
from elastic.exchange.bucket.reader import MAX_RUN, next_run
from elastic.exchange.bucket.store import Bucket, BucketConfig, surplus
from elastic.exchange.memory import MemoryExchange, MemoryNetwork
from elastic.messages import Digest, PeerCard, PeerStage, RoundIndex, digest_of
from elastic.registry import resolve
from elastic.sections import PluginChoice
from elastic.wire.signing import Identity
from elastic.wire.tree import CHUNK_BYTES, Table

RUN = "buckets"
SECRETS = {"access_key_file": "AKIDVERYSECRET", "secret_key_file": "veryverysecret"}


class Peers:
    """Peers of one run, each with a folder as its bucket."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.network, self.made = folder, MemoryNetwork(), list[Any]()

    async def join(self, **settings: Any) -> BucketExchange:
        url = self.path(len(self.made)).as_uri()
        defaults = {"url": url, "public_url": url, "allow_private": True, "withhold_seconds": 0}
        config = BucketConfig(**(defaults | settings))
        exchange = BucketExchange(self.network.join(Identity.generate().peer, RUN), Bucket(config), config)
        self.made.append(exchange)
        await exchange.announce(
            PeerCard(
                peer=exchange.peer, run=RUN, shared=digest_of(b"s"), stage=PeerStage.READY, round=RoundIndex(1),
                addresses=tuple(exchange.addresses),
            )
        )  # fmt: skip
        return exchange

    def path(self, number: int) -> Path:
        return self.folder / f"bucket {number}"


@pytest.fixture
async def peers(tmp_path: Path) -> Any:
    made = Peers(tmp_path)
    yield made
    for exchange in made.made:
        await exchange.close()


def a_blob(chunks: int = 5) -> bytes:
    return np.random.default_rng(chunks).bytes(chunks * CHUNK_BYTES - 1000)


async def uploaded(exchange: BucketExchange, blob: bytes) -> Digest:
    digest = await exchange.provide(blob)
    await asyncio.wait_for(exchange._uploads._queue.join(), 10)
    return digest


async def test_what_a_dead_peer_put_into_its_bucket_is_fetched(peers: Peers) -> None:
    # given a peer that dies after its upload, and one that has seen its card
    origin, reader = await peers.join(), await peers.join()
    await reader.cards()
    blob = a_blob(MAX_RUN + 3)
    digest = await uploaded(origin, blob)
    peers.network.cut(origin.peer)
    peers.network.cards.clear()
    assert list(await reader.cards()) == []
    # then its payload is still to be had, and the reader does not put it into a bucket of its own
    assert await reader.fetch(digest, len(blob), [origin.peer]) == blob
    assert (await reader.traffic())[1] >= len(blob)
    await uploaded(reader, blob)
    assert list(peers.path(1).iterdir()) == []


async def test_the_uplink_carries_one_copy_however_many_read(peers: Peers) -> None:
    origin = await peers.join(withhold_seconds=10)
    readers = [await peers.join() for _ in range(4)]
    for reader in readers:
        await reader.cards()
    digest = await uploaded(origin, blob := a_blob())
    got = await asyncio.gather(*(reader.fetch(digest, len(blob), [origin.peer]) for reader in readers))
    assert set(got) == {blob}
    assert (await origin.traffic())[0] == len(blob) + len(Table.of(blob).hashes)


async def test_the_bucket_holds_the_blob_and_its_table(peers: Peers) -> None:
    origin, blob = await peers.join(), a_blob()
    digest = await uploaded(origin, blob)
    assert (peers.path(0) / digest).read_bytes() == blob
    assert (peers.path(0) / f"{digest}.table").read_bytes() == Table.of(blob).hashes
    # and what is there is not sent again
    sent = (await origin.traffic())[0]
    await uploaded(origin, blob)
    assert (await origin.traffic())[0] == sent


async def test_wrong_bytes_in_a_bucket_cost_their_chunk_and_the_peer_gives_the_rest(peers: Peers) -> None:
    # given a bucket with one wrong chunk
    origin, reader = await peers.join(), await peers.join()
    await reader.cards()
    blob = a_blob()
    digest = await uploaded(origin, blob)
    spoilt = bytearray(blob)
    spoilt[3 * CHUNK_BYTES] ^= 1
    (peers.path(0) / digest).write_bytes(spoilt)
    # then the right chunks before it are kept, and the others come from the peer
    before = (await origin.traffic())[0]
    assert await reader.fetch(digest, len(blob), [origin.peer]) == blob
    assert (await origin.traffic())[0] - before == len(blob) - 3 * CHUNK_BYTES
    # and if the peer is gone, the message says what the bucket did
    other = await peers.join()
    await other.cards()
    peers.network.cut(origin.peer)
    with pytest.raises(FetchError, match="gave wrong bytes for chunk 3"):
        await other.fetch(digest, len(blob), [origin.peer])


@pytest.mark.parametrize("table", [None, b"", bytes(5 * 32)], ids=["missing", "empty", "wrong"])
async def test_without_a_right_table_the_peer_is_asked(peers: Peers, table: bytes | None) -> None:
    origin, reader = await peers.join(), await peers.join()
    await reader.cards()
    digest = await uploaded(origin, blob := a_blob())
    place = peers.path(0) / f"{digest}.table"
    place.unlink() if table is None else place.write_bytes(table)
    assert await reader.fetch(digest, len(blob), [origin.peer]) == blob


async def test_a_silent_bucket_does_not_stop_a_fetch(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "PATIENCE_SECONDS", 0.2)
    origin, reader = await peers.join(), await peers.join()
    await reader.cards()
    digest = await uploaded(origin, blob := a_blob())

    def hang(_buckets: object, _digest: object, _size: object, progress: Any) -> None:
        progress.stop.wait(20)

    monkeypatch.setattr(reader._reader, "fetch", hang)
    assert await asyncio.wait_for(reader.fetch(digest, len(blob), [origin.peer]), 5) == blob


async def test_private_places_are_not_read_unless_told(peers: Peers) -> None:
    # given buckets in the reader's own network and on its own disk
    origin = await peers.join()
    reader = await peers.join(allow_private=False)
    digest = await uploaded(origin, blob := a_blob())
    card = next(card for card in await reader.cards() if card.peer == origin.peer)
    addresses = (*card.addresses, "http://127.0.0.1:9/run")
    await origin.announce(card.model_copy(update={"addresses": addresses}))
    await reader.cards()
    peers.network.cut(origin.peer)
    # then neither is read
    with pytest.raises(FetchError, match=r"127\.0\.0\.1 is in a private network"):
        await reader.fetch(digest, len(blob), [origin.peer])


async def test_a_failing_upload_delays_nobody_and_is_counted(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(uploads, "RETRY_SECONDS", 0.01)
    origin, reader = await peers.join(), await peers.join()
    await reader.cards()
    tried: list[Digest] = []

    async def fail(digest: Digest, _blob: bytes) -> int:
        tried.append(digest)
        raise NetworkError("the disk is full")

    monkeypatch.setattr(origin._uploads._bucket, "put", fail)
    digest = await uploaded(origin, blob := a_blob())
    assert (origin._uploads.done, origin._uploads.failed) == (0, 1)
    assert tried == [digest] * uploads.TRIES
    assert "not in the bucket" in caplog.text
    assert await reader.fetch(digest, len(blob), [origin.peer]) == blob


async def test_of_too_many_that_wait_the_oldest_gives_way(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, gate = await peers.join(), asyncio.Event()

    async def wait(_digest: Digest, _blob: bytes) -> int:
        await gate.wait()
        return 0

    monkeypatch.setattr(origin._uploads._bucket, "put", wait)
    for number in range(uploads.MAX_QUEUED + 3):
        await origin.provide(b"%d" % number)
    assert origin._uploads.failed >= 2
    gate.set()


async def test_a_blob_on_its_way_into_the_bucket_is_withheld_for_a_while(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an upload that never ends
    origin, reader = await peers.join(withhold_seconds=0.5), await peers.join()
    await reader.cards()
    monkeypatch.setattr(origin._uploads._bucket, "put", lambda *_: asyncio.Event().wait())
    monkeypatch.setattr(bucket_module, "_DRAIN_SECONDS", 0.1)
    digest = await origin.provide(blob := a_blob())
    # then peers get nothing of it at first, and we do
    with pytest.raises(FetchError, match="does not have it"):
        await reader.fetch(digest, len(blob), [origin.peer])
    assert await origin.fetch(digest, len(blob), []) == blob
    await asyncio.sleep(0.6)
    assert await reader.fetch(digest, len(blob), [origin.peer]) == blob
    await origin.close()


async def test_the_oldest_are_removed_from_the_bucket(peers: Peers) -> None:
    origin = await peers.join(keep_gb=2.5 * CHUNK_BYTES / 1e9)
    (peers.path(0) / "notes.txt").write_bytes(bytes(10 * CHUNK_BYTES))
    digests = []
    for number in range(4):
        digests.append(await uploaded(origin, bytes([number]) * CHUNK_BYTES))
        await asyncio.sleep(0.01)
    kept = {name for digest in digests[2:] for name in (digest, f"{digest}.table")}
    assert {path.name for path in peers.path(0).iterdir()} == kept | {"notes.txt"}


def test_the_surplus_is_the_oldest_beyond_the_bound() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    digests = [str(number) * 64 for number in range(3)]
    found = [(name, 50, now + timedelta(hours=at)) for at, d in enumerate(digests) for name in (d, f"{d}.table")]
    assert surplus(found, 300) == []
    assert set(surplus(found, 299)) == {digests[0], f"{digests[0]}.table"}
    assert set(surplus(found, 1)) == {name for name, _, _ in found} - {digests[2], f"{digests[2]}.table"}
    assert surplus([("other", 10**12, now)], 1) == []


def test_runs_are_of_missing_chunks_that_follow_each_other() -> None:
    assert next_run(np.array([True, False, False, True, False])) == range(1, 3)
    assert next_run(np.ones(3, np.bool_)) == range(0)
    assert next_run(np.zeros(200, np.bool_)) == range(MAX_RUN)


def s3_settings(folder: Path, **changed: Any) -> dict[str, Any]:
    for key, secret in SECRETS.items():
        (folder / key).write_text(secret + "\n")
    keys = {key: str(folder / key) for key in SECRETS}
    return {"url": "s3://bucket/run", "endpoint": "http://127.0.0.1:9", "region": "auto"} | keys | changed


async def test_secrets_are_in_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    config = BucketConfig(**s3_settings(tmp_path))
    bucket = Bucket(config)
    with pytest.raises(NetworkError) as caught:
        await bucket.put(Digest("0" * 64), b"blob")
    told = bucket._told(OSError(f"InvalidAccessKeyId {SECRETS['access_key_file']} {SECRETS['secret_key_file']}"))
    assert told == "InvalidAccessKeyId … …"
    for text in (str(caught.value), caplog.text, repr(config)):
        assert not any(secret in text for secret in SECRETS.values())


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve("exchange", PluginChoice.model_validate({"name": "bucket", **settings}))
    return str(caught.value)


def test_wrong_settings_are_refused_and_no_secret_is_repeated(tmp_path: Path) -> None:
    assert "url" in refused()
    assert "s3://bucket/folder" in refused(url="http://host/x")
    assert "neither a password" in refused(url="s3://key:secret@bucket/x")
    assert "needs access_key_file" in refused(url="s3://bucket/x")
    assert "needs the service's endpoint" in refused(**s3_settings(tmp_path, endpoint=None))
    assert "public_url is" in refused(url="file:///x", public_url="https://host/?a=b")
    assert "endpoint is" in refused(**s3_settings(tmp_path, endpoint="host:9000"))
    assert "no such file" in refused(**s3_settings(tmp_path, secret_key_file="/nowhere/at/all"))
    pasted = "wJalrXUtnFEMI/K7MDENG/bPxRfiCY"
    message = refused(**s3_settings(tmp_path, secret_key_file=pasted))
    assert "secret_key_file: write the absolute path" in message
    assert pasted not in message


def test_a_secret_may_come_from_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BucketConfig(**s3_settings(tmp_path, secret_key_file="ELASTIC_TEST_KEY"))
    with pytest.raises(ConfigError, match="no such environment variable"):
        Bucket(config)
    monkeypatch.setenv("ELASTIC_TEST_KEY", "from the environment")
    assert Bucket(config)._secrets["secret_key_file"] == "from the environment"


async def test_no_variable_of_amazon_changes_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given variables that obstore would read
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token of somebody else")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        bucket = Bucket(BucketConfig(**s3_settings(tmp_path, endpoint=f"http://127.0.0.1:{port}")))
        assert not await bucket._has("nothing")
    # then the request goes where the run file says, signed with its keys alone
    assert requests[0].startswith(b"HEAD /bucket/run/nothing ")
    assert SECRETS["access_key_file"].encode() in requests[0]
    assert b"security-token" not in requests[0]


async def test_the_address_of_the_bucket_comes_last(peers: Peers) -> None:
    exchange = await peers.join()
    assert isinstance(exchange._inner, MemoryExchange)
    assert exchange.addresses == [f"/memory/{exchange.peer}", peers.path(0).as_uri()]
    assert (await peers.join(public_url=None)).addresses == [f"/memory/{peers.made[-1].peer}"]
