"""Our own bucket, written through `obstore`: blobs under their digests, tables beside them, the oldest removed."""

from __future__ import annotations

import asyncio
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store
from pydantic import BaseModel, ConfigDict, Field, model_validator

from elastic.errors import ConfigError, NetworkError
from elastic.exchange.bucket.public import is_bucket
from elastic.exchange.bucket.reader import TABLE_SUFFIX
from elastic.messages import Digest
from elastic.wire.tree import Table

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_OURS = re.compile(rf"([0-9a-f]{{64}})({re.escape(TABLE_SUFFIX)})?")
_MIN_BYTES_PER_SECOND = 20_000.0
_START_SECONDS = 30.0
_GB = 1_000_000_000


class BucketConfig(BaseModel):
    """Where the bucket is, who may write to it, and who reads it how."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)

    url: str
    """Where this peer puts its blobs: "s3://bucket/folder", or "file:///folder" for a shared disk."""
    endpoint: str | None = None
    """Of an S3-compatible service, "https://…"; none: Amazon's, in `region`."""
    region: str = "auto"
    """Region of the bucket."""
    access_key_file: str | None = None
    """Absolute path of a file with the access key id, or the NAME of an environment variable."""
    secret_key_file: str | None = None
    """Likewise, with the secret key."""
    public_url: str | None = None
    """Where others read the same folder without credentials; announced to them. None: nobody else reads it."""
    keep_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """The oldest blobs are removed beyond this."""
    withhold_seconds: Annotated[float, Field(ge=0, le=600)] = 10.0
    """A blob on its way into the bucket is given to no peer for so long, at most: the uplink carries one copy."""
    allow_private: bool = False
    """Read also from private addresses and file:// URLs that others announce: for tests and shared disks only."""

    @property
    def keys(self) -> dict[str, str]:
        """Which of the two keys is to be found where."""
        names = {"access_key_file": self.access_key_file, "secret_key_file": self.secret_key_file}
        return {key: name for key, name in names.items() if name is not None}

    @model_validator(mode="after")
    def _goes_together(self) -> BucketConfig:
        where = _split(self.url)
        local = where.scheme == "file" and not where.netloc and where.path.startswith("/")
        if not local and not (where.scheme == "s3" and where.netloc):
            raise ValueError('url is "s3://bucket/folder" or "file:///folder"')
        if not local and not (self.access_key_file and self.secret_key_file):
            raise ValueError("an s3:// url needs access_key_file and secret_key_file")
        if not local and self.endpoint is None and self.region == "auto":
            raise ValueError("an s3:// url needs the service's endpoint, or, at Amazon, the bucket's region")
        # Here and not per field, whose error would repeat the value: it may be the secret itself.
        for key, name in self.keys.items():
            if not _VARIABLE.fullmatch(name) and not _path(name).is_absolute():
                raise ValueError(f"{key}: write the absolute path of a file, or the NAME of an environment variable")
            if not _VARIABLE.fullmatch(name) and not _path(name).is_file():
                raise ValueError(f"{key}: there is no such file")
        if self.endpoint is not None and not is_bucket(self.endpoint):
            raise ValueError('endpoint is "https://host" or "http://host:port"')
        if self.public_url is not None and not is_bucket(self.public_url, private=True):
            raise ValueError('public_url is "https://host/folder", without "?" and at most 256 characters')
        return self


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("url holds neither a password nor options")
    return parts


def _path(value: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError:  # ~ of a user that is not here
        return Path(value)


class Bucket:
    """This peer's bucket.

    Raises:
        ConfigError: a key cannot be read, or the service's settings are wrong.
    """

    def __init__(self, config: BucketConfig) -> None:
        self._secrets = {key: _secret(key, name) for key, name in config.keys.items()}
        self._keep_bytes = int(config.keep_gb * _GB)
        try:
            self._store = self._open(config)
        except (BaseError, OSError, ValueError) as error:
            raise ConfigError(f"local.exchange: the bucket cannot be opened: {self._told(error)}") from None

    def _open(self, config: BucketConfig) -> Any:
        where = urlsplit(config.url)
        if where.scheme == "file":
            return LocalStore(url2pathname(where.path), mkdir=True)
        keys = {
            "access_key_id": self._secrets["access_key_file"],
            "secret_access_key": self._secrets["secret_key_file"],
            "expires_at": None,
        }
        # Everything is said, and the keys by a function: what is not said is looked for in AWS_… variables.
        return S3Store(
            where.netloc,
            prefix=where.path.strip("/") or None,
            endpoint=config.endpoint or f"https://s3.{config.region}.amazonaws.com",
            region=config.region,
            skip_signature=False,
            virtual_hosted_style_request=False,
            credential_provider=lambda: keys,
            client_options={"allow_http": (config.endpoint or "").startswith("http://"), "timeout": "300s"},
            retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=_START_SECONDS)},
        )

    async def put(self, digest: Digest, blob: bytes) -> int:
        """Write a blob, then its table; gives how many bytes were sent, 0 if they were there.

        Raises:
            NetworkError: it did not work, or took too long.
        """
        try:
            async with asyncio.timeout(_START_SECONDS + len(blob) / _MIN_BYTES_PER_SECOND):
                if await self._has(digest + TABLE_SUFFIX):
                    return 0
                hashes = (await asyncio.to_thread(Table.of, blob)).hashes
                await obstore.put_async(self._store, digest, blob)
                await obstore.put_async(self._store, digest + TABLE_SUFFIX, hashes)
                return len(blob) + len(hashes)
        except (BaseError, OSError, ValueError) as error:
            raise NetworkError(self._told(error)) from None

    async def make_room(self) -> None:
        """Remove our oldest blobs beyond the bound.

        Raises:
            NetworkError: it did not work, or took too long.
        """
        try:
            async with asyncio.timeout(_START_SECONDS):
                found = [each async for batch in obstore.list(self._store) for each in batch]
                listed = [(each["path"], each["size"], each["last_modified"]) for each in found]
                if names := surplus(listed, self._keep_bytes):
                    await obstore.delete_async(self._store, names)
        except (BaseError, OSError, ValueError) as error:
            raise NetworkError(self._told(error)) from None

    async def _has(self, name: str) -> bool:
        try:
            await obstore.head_async(self._store, name)
        except FileNotFoundError:
            return False
        return True

    def _told(self, error: Exception) -> str:
        """One line for the log, without what is secret."""
        line = (str(error) or type(error).__name__).splitlines()[0]
        for secret in self._secrets.values():
            line = line.replace(secret, "…")
        return line[:300]


def _secret(key: str, name: str) -> str:
    """What a file or a variable holds; an error does not repeat the name, lest somebody wrote the secret there."""
    try:
        value = os.environ[name] if _VARIABLE.fullmatch(name) else _path(name).read_text(encoding="utf-8")
    except KeyError:
        raise ConfigError(f"local.exchange.{key}: there is no such environment variable where the peer runs") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"local.exchange.{key}: the file cannot be read: {type(error).__name__}") from None
    if not value.strip():
        raise ConfigError(f"local.exchange.{key}: it is empty")
    return value.strip()


def surplus(found: Iterable[tuple[str, int, datetime]], keep_bytes: int) -> list[str]:
    """Names to remove so that the newest blobs are kept up to the bound, one at least; what is not ours is left.

    Args:
        found: name, bytes and time of every object.
    """
    blobs: dict[str, list[tuple[str, int, datetime]]] = defaultdict(list)
    for each in found:
        if ours := _OURS.fullmatch(each[0]):
            blobs[ours[1]].append(each)
    newest = sorted(blobs.values(), key=lambda objects: max(modified for _, _, modified in objects), reverse=True)
    names, held = [], 0
    for at, objects in enumerate(newest):
        held += sum(size for _, size, _ in objects)
        if at and held > keep_bytes:
            names += [name for name, _, _ in objects]
    return names
