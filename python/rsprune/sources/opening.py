"""From what a manifest says of an image, its uri and member, to its bytes."""

from __future__ import annotations

import atexit
import os
import re
import threading
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

from rsprune.errors import UnreadableImage
from rsprune.sources import ids, parquet, tar
from rsprune.sources.base import Item
from rsprune.sources.blobs import Blob, InMemory, LocalFile, Part
from rsprune.sources.codecs import Scene, decoding, open_scene
from rsprune.sources.origin import local_stamp
from rsprune.sources.store import blob_at, is_url


def open_item(item: Item, role: str | None = None) -> AbstractContextManager[Scene]:
    """The scene that `item` is, or lies in.

    With a `role` it stays open until another one takes that role, as windows of a scene come together.

    Raises:
        UnreadableImage: it is not an image that can be decoded.
    """
    if item.why_unusable is not None:
        raise UnreadableImage(item.why_unusable)
    check_unchanged(item)
    path = ids.decode(item.uri)
    if role is None:
        return closing(_open(path, item.member))
    with decoding("cannot be read"):
        status = None if is_url(path) else Path(path).stat()
    # A fork must not share a file position. What lies in a store is not asked again whether it changed.
    key = (os.getpid(), path, item.member, status and (status.st_mtime_ns, status.st_size))
    if role not in _last.opened or _last.opened[role][0] != key:
        last = _last.opened.pop(role, None)
        if last and last[0][0] == os.getpid():
            last[1].close()
        _last.opened[role] = key, _open(path, item.member)
    return nullcontext(_last.opened[role][1])


def check_unchanged(item: Item) -> None:
    """Raises `UnreadableImage` where another image may lie now at an item's place inside a shard or a table.

    What lies in a store is not asked again.
    """
    path = ids.decode(item.uri)
    if item.member is None or not item.stamp or is_url(path):
        return
    now, stamps = local_stamp(path), item.stamp.split()
    if now.endswith("0" * 9):  # copies that keep the time often keep whole seconds only
        stamps = [f"{stamp[:-9]}{'0' * 9}" for stamp in stamps]
    if now not in stamps:
        raise UnreadableImage(
            "lies in a file that was changed since it was listed, so its place may be another image's: run again "
            "(or copy files with their times, as cp -p and rsync -t do)"
        )


def blob_of(path: str, member: str | None) -> Blob:
    """The bytes of an image by its decoded uri and its member. Raises `UnreadableImage`."""
    with decoding("cannot be read"):
        if member is None:
            return blob_at(path)
        if re.fullmatch(r"\d{1,18}", member):
            return InMemory(parquet.cell(path, int(member)))
        offset, length = tar.extent(member)
        return Part(blob_at(path), offset, length) if is_url(path) else LocalFile(path, offset, length)


class _Last(threading.local):
    """The scene whose windows are being read, and its mask: per thread, as a GDAL dataset belongs to one."""

    def __init__(self) -> None:
        self.opened: dict[str, tuple[tuple[Any, ...], Scene]] = {}


_last = _Last()


@atexit.register
def _close_last() -> None:
    # GDAL cannot close what it reads through Python once Python is being taken down.
    for (pid, *_), scene in _last.opened.values():
        if pid == os.getpid():
            scene.close()
    _last.opened.clear()


def _open(path: str, member: str | None) -> Scene:
    try:
        if member is None and not is_url(path):
            return open_scene(path)
        return open_scene(blob_of(path, member))
    except UnreadableImage:
        if member is None and not is_url(path) and Path(path).is_dir():
            raise UnreadableImage(_why_not_listed(path)) from None
        raise


def _why_not_listed(path: str) -> str:
    with decoding("cannot be listed"):
        os.scandir(path).close()
    if Path(path).is_symlink():
        return (
            "is a link to a folder that it lies in, or one of too many inside each other; it was not followed"
        )
    return "is a folder that could not be listed; scan again"
