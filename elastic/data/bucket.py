"""A folder of prepared tokens in an S3 bucket, read through `obstore`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from elastic.config_local import LocalData
from elastic.errors import ConfigError, FetchError

CHUNK_BYTES = 2**23


class Bucket:
    """A `Place`, whatever store it is in."""

    def __init__(self, store: Any, where: str) -> None:
        """`where` is for messages."""
        self._store, self._where = store, where

    def read(self, name: str, at_most: int) -> bytes:
        size = self._size(name)
        if size > at_most:
            raise FetchError(f"{self._where}/{name}: {size} bytes are more than {at_most}")
        return b"".join(self.chunks(name, 0, size))

    def chunks(self, name: str, start: int, size: int) -> Iterator[bytes]:
        if (found := self._size(name)) != size:
            raise FetchError(f"{self._where}/{name}: {found} bytes, and not {size}")
        for at in range(start, size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, size - at)
            try:
                data = bytes(obstore.get_range(self._store, name, start=at, length=length))
            except (BaseError, OSError, ValueError) as error:
                raise FetchError(self._told(name, error)) from error
            if len(data) != length:
                raise FetchError(f"{self._where}/{name}: ended early")
            yield data

    def _size(self, name: str) -> int:
        try:
            # Not `head`: some services let anyone read, and nobody but the owner ask.
            return int(obstore.get(self._store, name, options={"range": (0, 1)}).meta["size"])
        except (BaseError, OSError, ValueError) as error:
            raise FetchError(self._told(name, error)) from error

    def _told(self, name: str, error: Exception) -> str:
        return f"{self._where}/{name}: {(str(error) or type(error).__name__).splitlines()[0]:.200}"


def open_s3(url: str, local: LocalData) -> Bucket:
    """The folder behind "s3://bucket/folder".

    Raises:
        ConfigError: it has another form, or a key cannot be read.
    """
    where = urlsplit(url)
    if not where.netloc or "@" in where.netloc or where.query or where.fragment:
        shown = f'"{url:.200}"' if "@" not in url else 'what has a "@" in it'  # perhaps a password
        raise ConfigError(f'local.data.sources: {shown} is not "s3://bucket/folder"')
    options: dict[str, Any] = {"skip_signature": True}
    if local.access_key_file and local.secret_key_file:
        keys = {
            "access_key_id": _secret(local.access_key_file),
            "secret_access_key": _secret(local.secret_key_file),
            "expires_at": None,
        }
        options = {"skip_signature": False, "credential_provider": lambda: keys}
    try:
        # Everything is said: what is not is looked for in AWS_… variables.
        store = S3Store(
            where.netloc,
            prefix=where.path.strip("/") or None,
            endpoint=local.endpoint or f"https://s3.{local.region}.amazonaws.com",
            region=local.region,
            virtual_hosted_style_request=False,
            client_options={"allow_http": local.endpoint.startswith("http://"), "timeout": "300s"},
            retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=30)},
            **options,
        )
    except (BaseError, OSError, ValueError) as error:
        raise ConfigError(f"local.data: {url} cannot be opened: {str(error).splitlines()[0]:.200}") from None
    return Bucket(store, url.rstrip("/"))


def _secret(path: Path) -> str:
    try:
        value = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"local.data: the key file {path} cannot be read: {type(error).__name__}") from None
    if not value:
        raise ConfigError(f"local.data: the key file {path} is empty")
    return value
