"""Small guards around measured faults of hivemind 1.1.12; each has a test that fails without it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from hivemind.dht import node
from hivemind.p2p.p2p_daemon_bindings.control import ControlClient
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError
from hivemind.utils import timed_storage

from elastic.exchange.dht.protocol import GuardedProtocol

_ENVELOPE_BYTES = 1024
"""Room for the protobuf around a response."""
_LARGE_BYTES = 64 * 1024
_MAX_WAITING = 16
"""Large responses that wait until p2pd takes them."""
_LOST = "the connection to the local p2pd is lost"


def guard() -> None:
    """Apply all guards, once per process however often it is called."""
    if hasattr(ControlClient, "elastic_guarded"):
        return
    ControlClient.elastic_guarded = True
    node.DHTProtocol = GuardedProtocol
    _keep_stored_values_alive()
    _bound_responses()
    _fail_calls_when_daemon_is_lost()


def _keep_stored_values_alive() -> None:
    # A store that is *rejected* for its earlier expiration pushes that expiration onto the heap first, which
    # evicts the value that was kept: anyone could make others' records expire by replaying their older ones.
    upstream = timed_storage.TimedStorage.store

    @functools.wraps(upstream)
    def store(self: Any, key: Any, value: Any, expiration_time: float) -> bool:
        kept = self.data.get(key)
        if kept is not None and kept.expiration_time >= max(expiration_time, timed_storage.get_dht_time()):
            return False
        return bool(upstream(self, key, value, expiration_time))

    timed_storage.TimedStorage.store = store


def _bound_responses() -> None:
    # A response above the message limit crashes the task that would send it, and the caller waits for ever. And there
    # is no end of responses that are ready to be sent: small requests for large ones would take all memory.
    upstream = ControlClient.add_unary_handler

    @functools.wraps(upstream)
    async def add_unary_handler(self: Any, proto: str, handler: Any, balanced: bool = False) -> None:
        async def bounded(data: bytes, remote_id: Any) -> bytes:
            response: bytes = await handler(data, remote_id)
            if len(response) > self.persistent_conn_max_msg_size - _ENVELOPE_BYTES:
                raise P2PDaemonError("the response is larger than the message limit")
            if len(response) > _LARGE_BYTES and self._pending_messages.qsize() >= _MAX_WAITING:
                raise P2PDaemonError("too many large responses are waiting")
            return response

        await upstream(self, proto, bounded, balanced)

    ControlClient.add_unary_handler = add_unary_handler


def _fail_calls_when_daemon_is_lost() -> None:
    # When the local p2pd dies, pending calls wait for ever and so do all later ones.
    upstream_read = ControlClient._read_from_persistent_conn

    @functools.wraps(upstream_read)
    async def read(self: Any, reader: asyncio.StreamReader) -> None:
        try:
            await upstream_read(self, reader)
        finally:
            self.elastic_lost = True
            for call in self._pending_calls.values():
                if not call.done():
                    call.set_exception(P2PDaemonError(_LOST))

    ControlClient._read_from_persistent_conn = read
    for name in ("call_unary_handler", "add_unary_handler", "remove_unary_handler"):
        setattr(ControlClient, name, _unless_lost(getattr(ControlClient, name)))


def _unless_lost(upstream: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(upstream)
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "elastic_lost", False):
            raise P2PDaemonError(_LOST)
        return await upstream(self, *args, **kwargs)

    return call
