"""What an image is called in an export: a path that its id names, and that stays inside the folder."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import PurePosixPath

from rsprune.crops import crop_suffix
from rsprune.errors import UnreadableImage
from rsprune.sources import ids
from rsprune.sources.base import Item


def path_parts(item: Item) -> list[str]:
    """Parts of the path that an item's id names, without its window. Raises `UnreadableImage`."""
    parts = ids.parse(item.id)[0].split("/") if item.window else item.id.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise UnreadableImage("has an id that would leave the folder")
    return parts


def names(item: Item, extension: str = "") -> Iterator[str]:
    """Endless paths in the export that an item may have, the wanted one first.

    Args:
        item: the image.
        extension: of its file with the dot, where the id lacks it.

    Raises:
        UnreadableImage: its id would leave the folder, or its scene cannot be opened.
    """
    parts = path_parts(item)
    path = "/".join(parts)
    ending = extension if item.window is None else "_{}_{}_{}_{}".format(*item.window) + crop_suffix(item)
    readable = "/".join(_readable(part) for part in parts)
    if item.window is not None:
        yield str(PurePosixPath(readable).with_suffix("")) + ending
    yield readable + ending
    yield path + ending
    yield ids.encode(path) + ending
    if not ending:
        ending = PurePosixPath(path).suffix
        path = path.removesuffix(ending)
    for number in count(2):
        yield f"{path}%23{number}{ending}"


def key(item: Item) -> str:
    """The key of an item in a shard: its id, with the dots that would end a key as %2E. Raises `UnreadableImage`."""
    path_parts(item)
    folder, slash, base = item.id.rpartition("/")
    return folder + slash + base.replace(".", "%2E")


def file_name(item: Item, extension: str) -> str:
    """A name without folders for the file of an item. Raises `UnreadableImage`."""
    *_, base = path_parts(item)
    if item.window is not None:
        return str(PurePosixPath(base).with_suffix("")) + "_{}_{}_{}_{}.".format(*item.window) + extension
    return base if base.lower().endswith(f".{extension.lower()}") else f"{base}.{extension}"


def _readable(part: str) -> str:
    """The file name as it was, or as it is encoded in the id where it is not fit for a path."""
    name = ids.decode(part)
    unfit = name in ("", ".", "..") or "/" in name or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name)
    return part if unfit else name
