"""The guards around Hivemind's faults: each of these fails on plain hivemind 1.1.12."""

import asyncio
import dataclasses
import time
from typing import Any

import base58
import pytest
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.validation import DHTRecord
from hivemind.p2p.p2p_daemon_bindings.control import ControlClient, DaemonConnector
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError
from hivemind.proto import p2pd_pb2
from hivemind.utils import timed_storage
from hypothesis import given
from hypothesis import strategies as st

from elastic.exchange.dht.guards import guard
from elastic.exchange.dht.identity_validator import MAX_TTL_SECONDS, MAX_VALUE_BYTES, IdentityValidator
from elastic.wire.signing import Identity

guard()

BYTES = st.binary(max_size=200)


def client_of(limit: int = 4096) -> Any:
    """A control client with no daemon behind it."""
    return ControlClient(DaemonConnector(), _initialized_with_create=True, persistent_conn_max_msg_size=limit)


def test_guarding_twice_changes_nothing() -> None:
    store, call = timed_storage.TimedStorage.store, ControlClient.call_unary_handler
    guard()
    assert (timed_storage.TimedStorage.store, ControlClient.call_unary_handler) == (store, call)


def test_a_rejected_store_does_not_evict_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a value that is kept until 100
    now = 0.0
    monkeypatch.setattr(timed_storage, "get_dht_time", lambda: now)
    storage = timed_storage.TimedStorage()
    assert storage.store("key", "new", 100.0)
    # When an older one, until 50, is stored and rejected
    assert not storage.store("key", "old", 50.0)
    # Then the first is still there at 60, and gone at 101
    now = 60.0
    assert storage.get("key").value == "new"
    now = 101.0
    assert storage.get("key") is None


def test_a_stored_value_is_still_replaced_by_a_newer_one() -> None:
    storage = timed_storage.TimedStorage()
    assert storage.store("key", "old", time.time() + 50)
    assert storage.store("key", "new", time.time() + 100)
    assert storage.get("key").value == "new"


async def test_an_oversized_response_is_answered_with_an_error() -> None:
    client = client_of(limit=4096)

    async def large(_data: bytes, _peer: Any) -> bytes:
        return bytes(8192)

    adding = asyncio.create_task(client.add_unary_handler("p", large))
    await client._pending_messages.get()
    next(iter(client._pending_calls.values())).set_result(None)
    await adding
    call = next(iter(client._pending_calls))
    client._handler_tasks[call] = None
    request = p2pd_pb2.CallUnaryRequest(peer=b"\x00\x01a", proto="p", data=b"")
    await client._handle_persistent_request(call, request)
    answer = client._pending_messages.get_nowait()
    assert b"larger than the message limit" in answer.unaryResponse.error


async def answered(client: Any, body: bytes) -> bytes:
    """What p2pd would get when a handler answers with that; the answers of before still wait for it."""
    adding = asyncio.create_task(client.add_unary_handler("p", lambda _data, _peer: asyncio.sleep(0, body)))
    call, future = None, None
    while future is None:
        await asyncio.sleep(0)
        call, future = next(iter(client._pending_calls.items()), (None, None))
    future.set_result(None)
    await adding
    client._handler_tasks[call] = None
    await client._handle_persistent_request(call, p2pd_pb2.CallUnaryRequest(peer=b"\x00\x01a", proto="p", data=b""))
    del client.unary_handlers["p"]
    client._pending_calls.clear()
    return bytes(client._pending_messages._queue[-1].unaryResponse.error)


async def test_large_responses_do_not_pile_up() -> None:
    # given a node that is asked for large answers faster than they leave
    client = client_of(limit=4 * 1024 * 1024)
    large, small = bytes(100_000), b"small"
    errors = [await answered(client, large) for _ in range(100)]
    # then few wait, the others are told so, and small ones are answered
    waiting = sum(message.ByteSize() for message in client._pending_messages._queue)
    assert waiting < 17 * len(large)
    assert b"too many large responses" in errors[-1]
    assert await answered(client, small) == b""


async def test_calls_fail_when_the_local_daemon_is_lost() -> None:
    # Given a call that waits for p2pd
    client = client_of()
    peer = type("Peer", (), {"to_bytes": lambda self: b"peer"})()
    waiting = asyncio.create_task(client.call_unary_handler(peer, "p", b"data"))
    await client._pending_messages.get()
    # When the connection to it ends
    reader = asyncio.StreamReader()
    reader.feed_eof()
    await client._read_from_persistent_conn(reader)
    # Then the call fails, and so does every later one
    with pytest.raises(P2PDaemonError, match="lost"):
        await waiting
    with pytest.raises(P2PDaemonError, match="lost"):
        await client.call_unary_handler(peer, "p", b"data")


def record_of(identity: Identity, validator: IdentityValidator, **changes: Any) -> DHTRecord:

    subkey = DHTProtocol.serializer.dumps(base58.b58decode(identity.peer))
    unsigned = DHTRecord(**({"key": b"k", "subkey": subkey, "value": b"v", "expiration_time": 50.0} | changes))
    return DHTRecord(unsigned.key, unsigned.subkey, validator.sign_value(unsigned), unsigned.expiration_time)


def test_the_validator_accepts_what_it_signed_and_nothing_else() -> None:

    identity, other = Identity.generate(), Identity.generate()
    validator = IdentityValidator(identity, now=lambda: 0.0)
    stranger = IdentityValidator(other, now=lambda: 0.0)
    good = record_of(identity, validator)
    assert stranger.validate(good)
    assert validator.validate(good)  # that it held is remembered, and means nothing for any other
    assert stranger.strip_value(good) == b"v"
    forged = record_of(identity, stranger)
    bad = [
        forged,
        dataclasses.replace(good, key=b"another"),
        dataclasses.replace(good, expiration_time=51.0),
        dataclasses.replace(good, value=b"w" + good.value[1:]),
        dataclasses.replace(good, subkey=record_of(other, stranger).subkey),
        dataclasses.replace(good, subkey=DHTProtocol.IS_REGULAR_VALUE),
        dataclasses.replace(good, subkey=DHTProtocol.IS_DICTIONARY),
        record_of(identity, validator, value=bytes(MAX_VALUE_BYTES)),
        record_of(identity, validator, expiration_time=MAX_TTL_SECONDS + 1),
        record_of(identity, validator, expiration_time=float("nan")),
        record_of(identity, validator, expiration_time=float("inf")),
    ]
    assert [validator.validate(record) for record in bad] == [False] * len(bad)


@given(key=BYTES, subkey=BYTES, value=BYTES, at=st.floats())
def test_the_validator_refuses_garbage_without_raising(key: bytes, subkey: bytes, value: bytes, at: float) -> None:
    validator = IdentityValidator(Identity.generate())
    assert validator.validate(DHTRecord(key, subkey, value, at)) is False
