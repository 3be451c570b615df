"""Object stores and web servers by fsspec: listing, byte ranges, and what to do when they do not answer."""

from __future__ import annotations

import asyncio
import errno
import random
import re
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit

from rsprune.errors import ConfigError, StoreError, UnreadableImage
from rsprune.sources.blobs import HEAD, Blob, LocalFile, check_bytes

T = TypeVar("T")

PAUSES = (0.5, 1.0, 2.0)  # seconds before the second, third and fourth attempt; each up to half as long again
_EXTRA = "pip install 'rsprune[cloud]'"
_SECRETS = re.compile(r"signature|credential|password|secret|token|^sig$|^key$|api_?key|access_?key", re.I)
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
_TRANSIENT = (TimeoutError, asyncio.TimeoutError, ConnectionError)
_TRANSIENT_ERRNO = {
    errno.EBUSY,
    errno.EIO,
    errno.EAGAIN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ETIMEDOUT,
}
# Of aiohttp, botocore and urllib3, by name, as none of them need be there.
_TRANSIENT_NAMES = {
    "ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError", "ServerTimeoutError", "ClientOSError",
    "ConnectionClosedError", "ConnectTimeoutError", "EndpointConnectionError", "IncompleteReadError",
    "ReadTimeoutError", "ResponseStreamingError", "HTTPClientError", "ProtocolError", "FSTimeoutError",
}  # fmt: skip
_sleep = time.sleep


class Entry(NamedTuple):
    """What lies directly in a folder of a store; `stamp` changes when its bytes do."""

    name: str
    is_folder: bool
    stamp: str


class StoredFile:
    """An object as `Blob`. Raises `UnreadableImage` where there is none, `StoreError` where nothing answers."""

    path = None

    def __init__(self, url: str):
        self._url, self._fs = url, filesystem(url)
        info = _ask(url, lambda: self._fs.info(url))
        if info.get("type") == "directory":
            raise UnreadableImage("is a folder")
        if info.get("size") is None:
            raise UnreadableImage("is on a server that does not say how large it is")
        self.size = int(info["size"])
        self.stamp = stamp_of(info)
        self._head: bytes | None = None

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        end = self.size if length is None else min(start + length, self.size)
        if end <= start:
            return b""
        if self._head is None and start == 0 and end <= HEAD:
            self._head = self._range(0, min(HEAD, self.size))
        if self._head and end <= len(self._head):
            return self._head[start:end]
        return self._range(start, end)

    def _range(self, start: int, end: int) -> bytes:
        check_bytes(end - start)

        def read() -> bytes:
            data = self._fs.cat_file(self._url, start=start, end=end)
            if len(data) > end - start:  # a server that knows no ranges gives everything
                data = data[start:end]
            if len(data) < end - start:
                raise ConnectionError(f"gave {len(data)} of {end - start} bytes")
            return data

        return _ask(self._url, read)


def blob_at(path: str) -> Blob:
    """A whole file, or an object where `path` is a URL. Raises `UnreadableImage`, `OSError`, `StoreError`."""
    return StoredFile(path) if is_url(path) else LocalFile(path)


def is_url(path: str) -> bool:
    """Whether `path` names something that fsspec opens, as ``SCHEME://REST``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def check_url(url: str) -> str:
    """`url`, where it may be written down.

    Raises:
        ConfigError: it names a secret, or several stores inside each other.
    """
    if "::" in url:
        raise ConfigError(
            f"{_without_secrets(url)} chains stores with '::', which is not supported: name one URL"
        )
    parts = urlsplit(url)
    if "@" in parts.netloc or any(
        _SECRETS.search(key) for key, _ in parse_qsl(parts.query, keep_blank_values=True)
    ):
        raise ConfigError(
            f"{_without_secrets(url)} was given with a password or a signature, which a run folder would keep: "
            "give credentials in the environment (AWS_ACCESS_KEY_ID and so on)"
        )
    return url


def local_path(url: str) -> str | None:
    """The path behind a ``file://`` URL, None for any other."""
    scheme, _, rest = url.partition("://")
    return rest if scheme.lower() in ("file", "local") else None


@lru_cache(maxsize=64)
def filesystem(url: str) -> Any:
    """The fsspec file system of a URL; credentials come from the environment. Raises `ConfigError`."""
    return _filesystem(url.partition("://")[0].lower())


@lru_cache(maxsize=16)
def _filesystem(scheme: str) -> Any:
    try:
        import fsspec
    except ImportError:
        raise ConfigError(f"{scheme}:// needs fsspec: {_EXTRA}") from None
    try:
        # Listings are large, asked for once, and must not be those of an hour ago.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// cannot be read ({error}): {_EXTRA}, or the package it names"
        ) from None
    except ValueError:
        raise ConfigError(
            f"no store is known as {scheme}:// (fsspec knows s3, gs, http, memory and others)"
        ) from None


def entries(url: str) -> list[Entry]:
    """What lies directly in the folder `url`, without hidden names; at most once each. Raises `UnreadableImage`."""
    fs = filesystem(url)
    root = fs._strip_protocol(url).rstrip("/")
    found = {}
    for info in _ask(url, lambda: fs.ls(url, detail=True)):
        name = str(info["name"]).rstrip("/")
        below = name[len(root) + 1 :]
        # A store gives the folder itself as an empty object, and a server what its page links to.
        if not name.startswith(root + "/") or not below or "/" in below or below.startswith("."):
            continue
        found[below] = Entry(below, info["type"] == "directory", stamp_of(info))
    return list(found.values())


def info(url: str) -> dict[str, Any]:
    """What a store knows of `url`. Raises `UnreadableImage`."""
    fs = filesystem(url)
    return _ask(url, lambda: fs.info(url))


def glob(url: str) -> Iterator[tuple[str, str]]:
    """URLs that match a pattern, sorted, each with its stamp. Raises `UnreadableImage`."""
    fs = filesystem(url)
    for name, found in sorted(_ask(url, lambda: fs.glob(url, detail=True)).items()):
        if found["type"] != "directory":
            yield fs.unstrip_protocol(name), stamp_of(found)


def stamp_of(info: dict[str, Any]) -> str:
    """What changes when the bytes of an object do: its size, and its hash or time."""
    lower = {key.lower(): value for key, value in info.items()}
    keys = (
        "etag",
        "md5hash",
        "content-md5",
        "mtime",
        "lastmodified",
        "last_modified",
        "last-modified",
        "updated",
        "created",
    )
    known = next((lower[key] for key in keys if lower.get(key)), "")
    return f"{info.get('size') or 0}-{known}".replace('"', "")


def _ask(url: str, action: Callable[[], T]) -> T:
    """What `action` gives, asked again where a store was busy or a connection broke.

    Raises:
        UnreadableImage: there is no such object, or it may not be read.
        ConfigError: there are no credentials.
        StoreError: nothing but transient errors.
    """
    for attempt in range(len(PAUSES) + 1):
        try:
            return action()
        except (UnreadableImage, ConfigError, MemoryError):
            raise
        except Exception as error:  # every store has its own
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
                raise ConfigError(
                    f"no credentials for {_without_secrets(url)}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                    "FSSPEC_S3_ANON=true for what is public"
                ) from None
            why = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, FileNotFoundError):
                raise UnreadableImage("cannot be read: there is no such object") from error
            if not _is_transient(error):
                raise UnreadableImage(f"cannot be read: {why}") from error
            if attempt == len(PAUSES):
                raise StoreError(
                    f"{_without_secrets(url)} could not be read in {attempt + 1} attempts ({why}): "
                    "run the same command again once the store answers"
                ) from error
            # Workers that were turned away together must not come back together.
            _sleep(PAUSES[attempt] * (1 + random.random() / 2))
    raise AssertionError("unreachable")


def _is_transient(error: BaseException) -> bool:
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return status >= 500 or status in (408, 425, 429)
    if isinstance(error, _PERMANENT):
        return False
    if isinstance(error, _TRANSIENT) or type(error).__name__ in _TRANSIENT_NAMES:
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return True
    return error.__cause__ is not None and _is_transient(error.__cause__)


def _without_secrets(url: str) -> str:
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
