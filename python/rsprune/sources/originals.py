"""The files that an image was given as, byte for byte."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources import ids, parquet, store, tar
from rsprune.sources.base import Item
from rsprune.sources.blobs import HEAD
from rsprune.sources.codecs import decoding, kind_of
from rsprune.sources.opening import check_unchanged
from rsprune.sources.sidecars import sidecars, stem_of

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WebP": "webp", "GTiff": "tif", "JP2OpenJPEG": "jp2"}


def originals(item: Item) -> dict[str, bytes]:
    """Files that an item consists of, by extension without the dot: the image first, then its sidecars.

    Raises:
        UnreadableImage: they cannot be read.
        ConfigError: the item is a window of a scene, which has no file of its own.
    """
    if item.window:
        raise ConfigError(f"{item.id} is a window of a scene and has no file of its own: export it as a crop")
    if item.why_unusable is not None:
        raise UnreadableImage(item.why_unusable)
    path = ids.decode(item.uri)
    check_unchanged(item)
    with decoding("cannot be read"):
        if item.member is None:
            return _files(path)
        if re.fullmatch(r"\d{1,18}", item.member):
            row = int(item.member)
            return parquet.originals(path, row, extension_of(parquet.cell(path, row)))
        return tar.originals(store.blob_at(path), item.member)


def beside(path: str) -> list[tuple[str, str]]:
    """Sidecars of the image file at `path`, or at a URL: where each lies, and its extension."""
    folder, slash, name = path.rpartition("/")
    return [
        (folder + slash + found, extension)
        for found, extension in sidecars(name, _names(folder, _changed(folder)))
    ]


def _files(path: str) -> dict[str, bytes]:
    name = path.rpartition("/")[2]
    data = store.blob_at(path).read()
    stem = stem_of(name)
    files = {name[len(stem) + 1 :] or extension_of(data): data}
    for found, extension in beside(path):
        files.setdefault(extension, store.blob_at(found).read())
    return files


def extension_of(data: bytes) -> str:
    """The extension, without a dot, of a file that begins with `data`; "bin" where it is no image."""
    try:
        return _EXTENSIONS[kind_of(data[:HEAD])]
    except UnreadableImage:
        return "bin"


def _changed(folder: str) -> int:
    if store.is_url(folder):
        return 0
    try:
        return Path(folder or "/").stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=1)
def _names(folder: str, changed: int) -> list[str]:
    """Sorted names in a folder; kept, as images of one folder come together."""
    try:
        if store.is_url(folder):
            return sorted(entry.name for entry in store.entries(folder) if not entry.is_folder)
        return sorted(entry.name for entry in Path(folder or "/").iterdir())
    except (OSError, UnreadableImage):
        return []
