"""Bytes of one image file, wherever they lie: a file, part of one, an object in a store, a cell of a table."""

from __future__ import annotations

import io
import os
import stat
from typing import TYPE_CHECKING, Protocol

from rsprune.errors import RspruneError, UnreadableImage

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

HEAD = 2**18  # bytes read first; they hold the header of nearly every JPEG, and most tiles whole
MAX_BYTES = 2**30  # taken into memory at once; a file can be larger only where it is read by windows
_BUFFER = 2**18  # bytes asked for at once where a decoder asks for less


class Blob(Protocol):
    """`size` in bytes; `path` where it is a whole file of this machine, which a decoder can open itself."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def path(self) -> str | None:
        """Of the file, if that is all the blob is; decoders open it themselves."""
        ...

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """Raises `UnreadableImage` or `OSError`; `StoreError` where a store does not answer."""
        ...


class LocalFile:
    """A file of this machine, or `length` bytes of it from `offset` on. Raises `UnreadableImage`, `OSError`."""

    def __init__(self, path: str, offset: int = 0, length: int | None = None):
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage("is not a regular file")
            self.size = status.st_size if length is None else length
            if offset + self.size > status.st_size:
                raise UnreadableImage(
                    f"ends at byte {offset + self.size} of a file that has {status.st_size}: it was cut"
                )
            file.seek(offset)
            self._head = file.read(min(self.size, HEAD))
        self.path = path if length is None else None
        self._path, self._offset = path, offset

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        end = self.size if length is None else min(start + length, self.size)
        if end <= len(self._head):
            return self._head[start:end]
        check_bytes(end - start)
        with open(self._path, "rb", buffering=0) as file:  # noqa: PTH123
            file.seek(self._offset + start)
            return file.read(end - start)


class InMemory:
    """Bytes that are there already."""

    path: str | None = None

    def __init__(self, data: bytes):
        self._data, self.size = data, len(data)

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        return self._data[start : None if length is None else start + length]


class Part:
    """`length` bytes of another blob from `offset` on. Raises `UnreadableImage`."""

    path: str | None = None

    def __init__(self, whole: Blob, offset: int, length: int):
        if offset + length > whole.size:
            raise UnreadableImage(f"ends at byte {offset + length} of {whole.size}: it was cut")
        self._whole, self._offset, self.size = whole, offset, length

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        end = self.size if length is None else min(start + length, self.size)
        return self._whole.read(self._offset + start, max(0, end - start))


class BlobFile(io.RawIOBase):
    """A blob as a file to read and seek in.

    A decoder written in C cannot pass on what goes wrong here. So that ends the file for it, and is kept as `error`
    for whoever called the decoder.
    """

    def __init__(self, blob: Blob):
        self._blob, self._at = blob, 0
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(
            0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._blob.size}[whence]
        )
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        wanted = max(0, min(len(view), self._blob.size - self._at))
        if not wanted or self.error:
            return 0
        try:
            data = self._blob.read(self._at, wanted)
        except (UnreadableImage, RspruneError, OSError) as error:
            self.error = error
            return 0
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def buffered(blob: Blob, ahead: int = _BUFFER) -> tuple[io.BufferedReader, BlobFile]:
    """The blob as a file that asks for `ahead` bytes at once, and below it the one that keeps the error."""
    raw = BlobFile(blob)
    return io.BufferedReader(raw, ahead), raw


def check_bytes(size: int) -> None:
    """Refuses to take more than `MAX_BYTES` into memory. Raises `UnreadableImage`."""
    if size > MAX_BYTES:
        raise UnreadableImage(
            f"has {size} bytes, more than the {MAX_BYTES} that are taken into memory at once"
        )


def _without_waiting(path: str, flags: int) -> int:
    # Opening a named pipe would wait for a writer.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
