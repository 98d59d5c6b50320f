"""Where prepared tokens may lie beside this machine's disks: behind HTTP. What S3 speaks is in `bucket.py`.

Sizes are compared before a byte is read; what was read is judged by its digest, elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Protocol
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from elastic.errors import ConfigError, FetchError

READ_BYTES = 2**18
TIMEOUT_SECONDS = 30.0
"""Without a byte, after which a connection is given up."""
START_SECONDS = 30.0
MIN_BYTES_PER_SECOND = 50_000.0
"""What is slower, after these seconds, is given up, too."""
_OPENER = build_opener(ProxyHandler({}))
"""Without the proxies that the environment names: the run file says where tokens lie."""


class Place(Protocol):
    """A folder that is not on this machine."""

    def read(self, name: str, at_most: int) -> bytes:
        """A small file.

        Raises:
            FetchError: it is not there, is larger, or does not come.
        """
        ...

    def chunks(self, name: str, start: int, size: int) -> Iterator[bytes]:
        """A file of `size` bytes from its byte `start` on, piece by piece, and never more.

        Raises:
            FetchError: it is not there, has another size, or does not come.
        """
        ...


class Http:
    """A folder behind a web server that takes ranges, or does not."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Of the folder; `clock` gives seconds.

        Raises:
            ConfigError: it is none.
        """
        parts = urlsplit(url)
        if "@" in parts.netloc:  # it would be in messages and logs
            raise ConfigError('local.data.sources: "https://…" has no "@" in it: no user and no password go there')
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f'"{url:.200}" is not "https://host/folder", without "?" and "#"')
        self._url, self._clock = url.rstrip("/"), clock

    def read(self, name: str, at_most: int) -> bytes:
        data, begin = bytearray(), self._clock()
        with self._get(name, {}) as response:
            while more := response.read1(min(READ_BYTES, at_most + 1 - len(data))):
                data += more
                if len(data) > at_most:
                    raise FetchError(f"{self._url}/{name}: more than {at_most} bytes")
                if self._clock() - begin > START_SECONDS + len(data) / MIN_BYTES_PER_SECOND:
                    raise FetchError(f"{self._url}/{name} comes too slowly")
        return bytes(data)

    def chunks(self, name: str, start: int, size: int) -> Iterator[bytes]:
        where, wanted = f"{self._url}/{name}", size - start
        with self._get(name, {"Range": f"bytes={start}-{size - 1}"}) as response:
            ranged = response.status == 206
            told = response.headers.get("Content-Range" if ranged else "Content-Length", "")
            expected = f"bytes {start}-{size - 1}/{size}" if ranged else str(size)
            if told != expected:
                raise FetchError(f'{where}: expected "{expected}", the server says "{told:.100}"')
            skip = 0 if ranged else start
            while skip or wanted:
                data = response.read1(min(READ_BYTES, skip or wanted))  # what is there: others look at the time
                if not data:
                    raise FetchError(f"{where}: ended {wanted} bytes early")
                if skip:
                    skip -= len(data)
                else:
                    wanted -= len(data)
                    yield data

    @contextmanager
    def _get(self, name: str, headers: dict[str, str]) -> Iterator[HTTPResponse]:
        where = f"{self._url}/{name}"
        try:
            with _OPENER.open(Request(where, headers=headers), timeout=TIMEOUT_SECONDS) as response:
                yield response
        except HTTPError as error:
            raise FetchError(f"{where}: {error.code} {error.reason}") from error
        except (OSError, HTTPException) as error:
            raise FetchError(f"{where}: {getattr(error, 'reason', None) or error!r:.200}") from error


def place_of(url: str) -> Place:
    """Who speaks what a URL begins with, but for S3.

    Raises:
        ConfigError: nobody.
    """
    return Http(url)
