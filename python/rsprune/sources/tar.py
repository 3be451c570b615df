"""WebDataset shards: images and what belongs to them as members of tar files, read where they lie."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from rsprune.errors import UnreadableImage
from rsprune.sources import ids
from rsprune.sources.base import Item
from rsprune.sources.blobs import Blob, InMemory, buffered, check_bytes

_AHEAD = 2**22  # bytes asked for at once while a shard is indexed: several members, where these are small
_MAX_HEADER = 2**20  # bytes of a member's name and attributes; a header can claim any number
_END = bytes(512)
_FORMATS = ("jpg", "jpeg", "png", "tif", "tiff", "webp", "jp2")


def extent(member: str) -> tuple[int, int]:
    """Offset and length of an image in its shard, from `Item.member`. Raises `UnreadableImage`."""
    return _numbers(member)[:2]


def index(uri: str, blob: Blob, name: str, stamp: str) -> Iterator[Item]:
    """Items of one shard in the order that they lie in it, their ids not yet told apart.

    A shard that is broken, or has members that are not files, has further items that say so.

    Args:
        uri: of the shard.
        blob: the shard itself.
        name: id for what is wrong with the shard as a whole.
        stamp: of the shard.
    """
    sample: list[tarfile.TarInfo] = []
    try:
        for found in _members(blob):
            if sample and _key(found.name)[0] != _key(sample[0].name)[0]:
                yield from _item(sample, uri, stamp)
                sample = []
            sample.append(found)
        if sample:
            yield from _item(sample, uri, stamp)
    except UnreadableImage as error:
        if sample:
            yield from _item(sample, uri, stamp)
        yield Item.unusable(name, uri, f"is not a complete tar file: {error}", stamp)


def originals(blob: Blob, member: str) -> dict[str, bytes]:
    """Files of the sample that an image belongs to, by extension, the image first. Raises `UnreadableImage`."""
    offset, _, start, length = _numbers(member)
    check_bytes(length)
    data = blob.read(start, length)
    data += bytes(-len(data) % 512)
    files: dict[str, bytes] = {}
    for found in _members(InMemory(data), whole=False):
        if not found.isreg():
            continue
        _, extension = _key(found.name)
        content = data[found.offset_data : found.offset_data + found.size]
        if start + found.offset_data == offset:
            files = {extension: content, **{k: v for k, v in files.items() if k != extension}}
        else:
            files.setdefault(extension, content)
    return files


def _members(blob: Blob, *, whole: bool = True) -> Iterator[tarfile.TarInfo]:
    """Headers one after another.

    Raises:
        UnreadableImage: the shard is cut, or its headers make no sense.
    """
    if blob.size == 0:
        raise UnreadableImage("it is empty (0 bytes)")
    file, raw = buffered(blob, _AHEAD)
    headers: Any = _Headers(file)  # all that tarfile asks of a file
    try:
        with tarfile.open(fileobj=headers, mode="r:") as shard:
            while (found := shard.next()) is not None:
                vars(shard)["members"] = []  # else every header stays in memory
                if found.offset_data + max(found.size, 0) > blob.size:
                    raise UnreadableImage(f"its member {found.name!r} ends after the file")
                yield found
            if whole:
                file.seek(shard.offset)
                if file.read(512) != _END:
                    raise UnreadableImage(f"what follows byte {shard.offset} is no member")
    except (tarfile.TarError, ValueError, OSError, EOFError, RecursionError, OverflowError) as error:
        if raw.error:
            raise raw.error from None
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error
    if raw.error:
        raise raw.error


class _Headers:
    """A shard as the module tarfile may see it: forward, and never much of it at once.

    A header can claim a name of any length or a member of negative size, for which tarfile would take all memory or
    go round for ever.
    """

    def __init__(self, file: io.BufferedReader):
        self._file, self._furthest = file, 0

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise UnreadableImage(f"a header claims to have {size} bytes")
        data = self._file.read(size)
        self._furthest = max(self._furthest, self._file.tell())
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if offset < self._furthest - 1 or whence != io.SEEK_SET:
            raise UnreadableImage("a header points backwards")
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


def _item(sample: list[tarfile.TarInfo], uri: str, stamp: str) -> Iterator[Item]:
    """The item that members of one key are; none where they hold no image."""
    key, _ = _key(sample[0].name)
    if not key.rpartition("/")[2]:
        return  # hidden: the name begins with a dot
    images = [m for m in sample if not m.isdir() and _key(m.name)[1].lower().rpartition(".")[2] in _FORMATS]
    plain = [m for m in images if "." not in _key(m.name)[1]]
    images = plain if len(plain) == 1 else images
    if not images:
        return
    id = ids.accept(key)
    image, why = images[0], ""
    if ids.leaves_root(id) or ".." in key.split("/"):
        id, why = (
            ids.encode(image.name).replace("..", "%2E%2E").strip("/") or "?",
            "has a name that leads out of its shard",
        )
    elif image.issym() or image.islnk():
        why = "is a link in its shard; links are not followed"
    elif not image.isreg() or image.issparse():
        why = "is not a regular file in its shard"
    elif len(images) > 1:
        named = ", ".join(ids.encode(m.name) for m in images[:4])
        why = f"has {len(images)} images in its shard ({named}): give each a key of its own"
    if why:
        yield Item.unusable(id, uri, why, stamp)
        return
    start, end = sample[0].offset, max(m.offset_data + max(m.size, 0) for m in sample if m.isreg())
    yield Item(id, uri, None, f"{image.offset_data}+{image.size} {start}+{end - start}", stamp)


def _key(name: str) -> tuple[str, str]:
    """Key and extension of a member: split at the first dot of the base name."""
    while name.startswith("./"):
        name = name[2:]
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension


def _numbers(member: str) -> tuple[int, int, int, int]:
    found = re.fullmatch(r"(\d{1,18})\+(\d{1,18}) (\d{1,18})\+(\d{1,18})", member)
    if not found:
        raise UnreadableImage(f"lies at {member!r}, which says nothing to this version: scan again")
    offset, head, start, length = map(int, found.groups())
    return offset, head, start, length
