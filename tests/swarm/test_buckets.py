"""A bucket beside real Hivemind peers: on a real S3 server if there is one here, and as a folder."""

import asyncio
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("obstore")

from elastic.actors import swarm
from elastic.config import parse_config
from elastic.config_local import LocalData, NetworkConfig
from elastic.errors import FetchError, NetworkError
from elastic.exchange.bucket.exchange import BucketExchange
from elastic.exchange.bucket.store import Bucket, BucketConfig
from elastic.life import announced
from elastic.messages import PeerCard, PeerStage, RoundIndex, digest_of
from elastic.wire.signing import Identity
from elastic.wire.tree import CHUNK_BYTES, Table, blob_digest

SERVER = shutil.which("moto_server")
RUN = "s3"
EVERYONE_READS = {
    "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::bucket/*"
}  # fmt: skip


def put(url: str, body: bytes | None = None) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="PUT")
    urllib.request.urlopen(request, timeout=5).close()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of a server with a bucket called "bucket"."""
    if SERVER is None:
        pytest.skip("no S3 server: install moto[server]==5.2.5 where PATH finds it")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [SERVER, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            try:
                put(f"{url}/bucket")
                break
            except OSError:
                time.sleep(0.2)
        put(f"{url}/bucket?policy", json.dumps({"Version": "2012-10-17", "Statement": [EVERYONE_READS]}).encode())
        yield url
    finally:
        process.kill()
        process.wait()


def settings(s3: str, folder: Path, number: int = 0, **changed: Any) -> BucketConfig:
    for key in ("access_key_file", "secret_key_file"):
        (folder / key).write_text(f"the {key}\n")
    keys = {key: str(folder / key) for key in ("access_key_file", "secret_key_file")}
    where = {"url": f"s3://bucket/run/{number}", "endpoint": s3, "public_url": f"{s3}/bucket/run/{number}"}
    return BucketConfig(**(where | keys | {"region": "us-east-1", "allow_private": True} | changed))


async def join(s3: str, folder: Path, made: list[Any]) -> BucketExchange:
    path = folder / f"peer{len(made)}.key"
    identity = Identity.load_or_create(path)
    dialled = [each for each in made[0].addresses if each.startswith("/")] if made else []
    exchange = await BucketExchange.start(
        identity=identity, identity_path=path, run=RUN, settings=settings(s3, folder, len(made)),
        network=NetworkConfig(host="127.0.0.1", bootstrap=tuple(dialled)),
    )  # fmt: skip
    made.append(exchange)
    await exchange.announce(
        PeerCard(
            peer=exchange.peer, run=RUN, shared=digest_of(b"s"), stage=PeerStage.READY, round=RoundIndex(1),
            addresses=tuple(exchange.addresses),
        )
    )  # fmt: skip
    return exchange


async def test_the_payload_of_a_peer_that_died_is_fetched_from_its_bucket(s3: str, tmp_path: Path) -> None:
    made: list[Any] = []
    try:
        # given a peer whose upload is done, and another one that has seen its card
        entry, reader, origin = [await join(s3, tmp_path, made) for _ in range(3)]
        await reader.cards()
        blob = np.random.default_rng(0).bytes(30 * CHUNK_BYTES - 1000)
        digest = await origin.provide(blob)
        await asyncio.wait_for(origin._uploads._queue.join(), 60)
        # when it dies
        await origin.close()
        # then its payload is still to be had, and from the reader by who has seen no bucket
        assert await reader.fetch(digest, len(blob), [origin.peer]) == blob
        assert await entry._inner.fetch(digest, len(blob), [reader.peer]) == blob
    finally:
        for exchange in reversed(made):
            await exchange.close()


async def test_objects_are_put_listed_and_removed(s3: str, tmp_path: Path) -> None:
    bucket = Bucket(settings(s3, tmp_path, 9, keep_gb=15e6 / 1e9))
    blobs = [np.random.default_rng(number).bytes(12_000_000) for number in range(2)]
    for blob in blobs:
        table = Table.of(blob)
        assert await bucket.put(table.digest, blob) == len(blob) + len(table.hashes)
        assert await bucket.put(table.digest, blob) == 0
        await bucket.make_room()
        await asyncio.sleep(1.1)  # S3's clock counts seconds
    there = [await bucket._has(blob_digest(blob) + suffix) for blob in blobs for suffix in ("", ".table")]
    assert there == [False, False, True, True]


async def test_a_bucket_that_is_not_there_is_a_network_error(s3: str, tmp_path: Path) -> None:
    bucket = Bucket(settings(s3, tmp_path, url="s3://nowhere/run"))
    with pytest.raises(NetworkError) as caught:
        await bucket.put(blob_digest(b"blob"), b"blob")
    assert "the secret_key_file" not in str(caught.value)


async def test_the_network_actor_gives_the_exchange_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a run file that chooses a bucket
    monkeypatch.setattr(swarm, "log_to_file", lambda _config: None)
    url = (tmp_path / "bucket").as_uri()
    peer = Identity.load_or_create(tmp_path / "peer.key").peer
    exchange = {"name": "bucket", "url": url, "public_url": "https://bucket.example.org/run"}
    local = {"state_dir": str(tmp_path), "network": {"host": "127.0.0.1"}, "exchange": exchange}
    tree = {"shared": {"run": RUN, "agreement": {"validators": [peer]}}, "local": local}
    actor = swarm.Swarm(parse_config(tree, base=tmp_path))
    try:
        # then the bucket is announced beside where the peer listens, and what it provides is put there
        addresses = announced(await actor.start())
        assert addresses[-1] == "https://bucket.example.org/run"
        assert addresses[0].startswith("/ip4/127.0.0.1/")
        digest = await actor.call({}, "provide", b"payload")
    finally:
        await actor.stop()  # its spans too, of which this process would have no others
    assert (tmp_path / "bucket" / digest).read_bytes() == b"payload"


@pytest.mark.parametrize("keys", [True, False])
def test_tokens_are_read_from_a_bucket_with_keys_or_as_anyone_may(s3: str, tmp_path: Path, keys: bool) -> None:
    # given a bucket that anyone may read, and a file that is larger than what is asked for at once
    from elastic.data.bucket import CHUNK_BYTES as ASKED
    from elastic.data.bucket import open_s3

    data = bytes(range(256)) * (ASKED // 256) + b"the end"
    put(f"{s3}/bucket/web-{keys}/00000.tokens", data)
    local = LocalData(endpoint=s3)
    if keys:
        for name in ("access", "secret"):
            (tmp_path / name).write_text("some key\n")
        local = LocalData(endpoint=s3, access_key_file=tmp_path / "access", secret_key_file=tmp_path / "secret")
    # when
    place = open_s3(f"s3://bucket/web-{keys}", local)
    # then
    assert b"".join(place.chunks("00000.tokens", 100, len(data))) == data[100:]
    assert place.read("00000.tokens", len(data)) == data
    with pytest.raises(FetchError, match="and not 7"):
        list(place.chunks("00000.tokens", 0, 7))
    with pytest.raises(FetchError, match=f"s3://bucket/web-{keys}/nothing"):
        place.read("nothing", 10)
