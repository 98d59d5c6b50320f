"""Blocking sockets to the local p2pd: its control messages, and exact reads with bounded sizes."""

from __future__ import annotations

import logging
import socket
import time
from typing import Any

from hivemind.proto import p2pd_pb2

logger = logging.getLogger(__name__)

_MAX_CONTROL_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024


def ask_daemon(control_path: str, request: Any, seconds: float) -> socket.socket:
    """Send p2pd a control request; the socket that it was sent on."""
    return open_stream(control_path, request, seconds)[0]


def open_stream(control_path: str, request: Any, seconds: float) -> tuple[socket.socket, Any]:
    """The same for a request of a stream, which that socket becomes; and p2pd's answer."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(control_path)
        body = request.SerializeToString()
        connection.sendall(_varint(len(body)) + body)
        response = p2pd_pb2.Response()
        response.ParseFromString(read_delimited(connection))
        if response.type == p2pd_pb2.Response.ERROR:
            raise ConnectionError(response.error.msg)
    except BaseException:
        connection.close()
        raise
    return connection, response


def _varint(number: int) -> bytes:
    head = bytearray()
    while number > 0x7F:
        head.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*head, number])


def read_delimited(connection: socket.socket) -> bytes:
    length = shift = 0
    while True:
        byte = read_exactly(connection, 1)[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if length > _MAX_CONTROL_BYTES:
            raise OSError(f"a control message of {length} bytes")
        if not byte & 0x80:
            return read_exactly(connection, length)


def read_exactly(
    connection: socket.socket, count: int, grace_seconds: float = float("inf"), min_bytes_per_second: float = 0.0
) -> bytes:
    """Read that many bytes; a socket's own timeout bounds each wait, the rate the whole.

    Raises:
        EOFError: the stream ended before.
        TimeoutError: nothing came for long, or after `grace_seconds` too little.
    """
    data, received, start = bytearray(min(count, _READ_BYTES)), 0, time.monotonic()
    while received < count:
        if received == len(data):  # grows as bytes arrive: a length costs no memory
            data += bytes(min(len(data), count - len(data)))
        with memoryview(data) as view, view[received:] as free:
            read = connection.recv_into(free)
        if not read:
            raise EOFError(f"the stream ended after {received} of {count} bytes")
        received += read
        elapsed = time.monotonic() - start
        if elapsed > grace_seconds and received < elapsed * min_bytes_per_second:
            raise TimeoutError(f"sent {received} bytes in {elapsed:.0f} s: too slow")
    return bytes(data)


def shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        logger.debug("a bulk socket was closed already")
