"""Reading what a stranger's URL names: bounded in size and time, never redirected, never from our own network.

A URL stands on a peer's card, so whoever writes it chooses where we connect. The address is looked up once, judged, and
then connected to, so that a name cannot mean one machine when it is judged and another one when it is read.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import url2pathname

from elastic.exchange.blobs.streams import shut
from elastic.exchange.limits import Limits

Read = Callable[[int], bytes]
"""The next so many bytes, exactly; EOFError if there are fewer, OSError if they do not come."""

MAX_URL = 256
"""Characters; a card has room for no more."""
_MISSING = (403, 404, 410)
"""S3 answers 403 for what is not there if the reader may not list."""
_READ_BYTES = 256 * 1024
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_bucket(address: str, private: bool = False) -> bool:
    """Whether an entry of a card names a place to read from; `private`: files of this machine too."""
    try:
        parts = urlsplit(address)
        named = bool(parts.hostname) or (parts.scheme == "file" and parts.path.startswith("/"))
        plain = not (parts.query or parts.fragment or parts.username or parts.password) and parts.port != 0
    except ValueError:
        return False
    clean = len(address) <= MAX_URL and address.isascii() and address.isprintable() and " " not in address
    return clean and named and plain and parts.scheme in ("http", "https", *(["file"] if private else []))


@contextmanager
def reading(url: str, start: int, length: int, private: bool, limits: Limits) -> Iterator[Read]:
    """Read part of what a URL names.

    Args:
        start: first byte wanted, and
        length: how many.
        private: also from this machine's files and from addresses of private networks.

    Raises:
        FileNotFoundError: there is nothing of that name.
        PermissionError: it lies where a stranger may not send us.
        EOFError, OSError: anything else; also while reading.
    """
    if not is_bucket(url, private):
        raise PermissionError(f"{url:.{MAX_URL}} is not read from")
    parts = urlsplit(url)
    if parts.scheme == "file":
        with open(url2pathname(parts.path), "rb") as file:
            file.seek(start)
            yield _exactly(file, limits)
        return
    plain = _connected(parts, private, limits.open_seconds)
    patience = limits.open_seconds + limits.grace_seconds + length / limits.min_bytes_per_second
    sockets = [plain]
    # Time-outs bound each wait; this bounds the whole, also of headers that come byte by byte.
    watch = threading.Timer(patience, lambda: shut(sockets[-1]))
    watch.daemon = True
    watch.start()
    try:
        plain.settimeout(limits.idle_seconds)
        yield _exactly(_answer(parts, sockets, start, length), limits)
    except HTTPException as error:
        raise OSError(f"not HTTP as we know it: {type(error).__name__}") from error
    finally:
        watch.cancel()
        sockets[-1].close()


def _connected(parts: SplitResult, private: bool, seconds: float) -> socket.socket:
    assert parts.hostname is not None, "is_bucket has looked"
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = [info[4][0] for info in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)]
    allowed = [address for address in found if private or is_public(str(address))]
    if not allowed:
        raise PermissionError(f"{parts.hostname} is in a private network")
    problem = OSError(f"{parts.hostname} has no address")
    for address in allowed[:2]:
        try:
            return socket.create_connection((str(address), port), seconds)
        except OSError as error:
            problem = error
    raise problem


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where it wraps another one."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        inner = (
            ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        )
        ip = inner or ip
    return bool(ip.is_global and not ip.is_multicast)


def _answer(parts: SplitResult, sockets: list[socket.socket], start: int, length: int) -> Any:
    """Ask for the range; the response stands at its body."""
    assert parts.hostname is not None, "is_bucket has looked"
    secure = parts.scheme == "https"
    connection = (HTTPSConnection if secure else HTTPConnection)(parts.hostname, parts.port)
    if secure:
        sockets.append(ssl.create_default_context().wrap_socket(sockets[0], server_hostname=parts.hostname))
    connection.sock = sockets[-1]
    connection.auto_open = 0  # it connects nowhere by itself
    connection.request("GET", parts.path, headers={"Range": f"bytes={start}-{start + length - 1}"})
    response = connection.getresponse()
    if response.status in _MISSING:
        raise FileNotFoundError(f"status {response.status}")
    # 200 is from a server that knows no ranges, which a redirect (3xx) never is.
    if response.status != 206 and (response.status, start) != (200, 0):
        raise OSError(f"status {response.status}")
    return response


def _exactly(source: Any, limits: Limits) -> Read:
    begun, received = time.monotonic(), 0

    def read(count: int) -> bytes:
        nonlocal received
        data = bytearray()
        while len(data) < count:  # grows as bytes arrive
            piece = source.read1(min(count - len(data), _READ_BYTES))
            if not piece:
                raise EOFError(f"ended after {len(data)} of {count} bytes")
            data += piece
            received += len(piece)
            seconds = time.monotonic() - begun
            if seconds > limits.grace_seconds and received < seconds * limits.min_bytes_per_second:
                raise TimeoutError(f"sent {received} bytes in {seconds:.0f} s: too slow")
        return bytes(data)

    return read
