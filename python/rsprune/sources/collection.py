"""What all collections of image files have in common: windows, masks, the way from an item to its pixels."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Protocol

from rsprune.config import SourceConfig
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources import ids, opening, originals
from rsprune.sources.bands import Selection
from rsprune.sources.base import Header, Image, Item, Window
from rsprune.sources.codecs import Scene, decoding
from rsprune.sources.masks import Mask, parse
from rsprune.sources.store import is_url

_MASK = Selection((1,))


class Files(Protocol):
    """Image files of one kind of collection."""

    def items(self) -> Iterator[Item]:
        """Files sorted by id, one after another. Raises `ConfigError` where there are none."""
        ...

    def stamp(self, path: str) -> str:
        """What changes with the bytes of the file that lies beside the one listed last, "" where unknown."""
        ...


class Collection:
    """Image files, each taken whole or cut into windows, with the mask that belongs to it."""

    def __init__(self, config: SourceConfig, files: Files, *, prefix: str = ""):
        self._files, self._prefix = files, ids.encode(prefix)
        self._tile, self._stride = config.tile or 0, config.stride or config.tile or 1
        self._mask = parse(config.mask) if config.mask else None
        self._selection = Selection(config.bands, config.nodata, self._mask.band if self._mask else None)
        if (
            self._mask
            and self._mask.file
            and not is_url(self._mask.file)
            and not Path(self._mask.file).is_file()
        ):
            raise ConfigError(f"there is no mask {self._mask.file}: give a file, a band or a _SUFFIX")

    def items(self) -> Iterator[Item]:
        """Items sorted by id, listed one after another. Raises `ConfigError` where there is no image."""
        found = self._with_masks(self._mask) if self._mask else self._files.items()
        first = next(found, None)  # here, so that what is wrong is said here
        if first is None:
            raise ConfigError("no image beside the masks")
        items: Iterator[Item] = chain([first], found)
        if self._prefix:
            items = (replace(item, id=self._prefix + item.id) for item in items)
        return self._all_windows(items) if self._tile else items

    def header(self, item: Item) -> Header:
        """What is known of an image without decoding it. Raises `UnreadableImage`."""
        with opening.open_item(item, item.window and "scene") as scene, decoding("cannot be read"):
            header = scene.header(item.window, self._selection)
            if self._mask and not self._mask.band:
                with self._mask_of(self._mask, item, scene):
                    pass
            return header

    def read(self, item: Item) -> Image:
        """Pixels and mask. Raises `UnreadableImage`."""
        with opening.open_item(item, item.window and "scene") as scene, decoding("cannot be read"):
            image = scene.read(item.window, self._selection)
            if not self._mask:
                return image
            if self._mask.band:
                numbers = scene.read(item.window, Selection((self._mask.band,)))
            else:
                with self._mask_of(self._mask, item, scene) as mask:
                    numbers = mask.read(item.window, _MASK)
            return self._mask.apply(image, numbers)

    def originals(self, item: Item) -> dict[str, bytes]:
        """The image's file and its sidecars by extension. Raises `UnreadableImage`, `ConfigError`."""
        return originals.originals(item)

    @contextmanager
    def _mask_of(self, declared: Mask, item: Item, scene: Scene) -> Iterator[Scene]:
        """The file with the mask of `item`, which has the size of `scene`. Raises `UnreadableImage`."""
        path = declared.path(ids.decode(item.uri))
        if item.member is not None and not declared.file:
            raise ConfigError(
                f"--mask {declared.suffix} names a file beside each image, which those in shards and tables do not "
                "have: give a band, or one file for all"
            )
        try:
            with opening.open_item(Item(item.id, ids.encode(path)), item.window and "mask") as mask:
                image, header = scene.header(None, self._selection), mask.header(None, _MASK)
                if (header.width, header.height) != (image.width, image.height):
                    raise UnreadableImage(
                        f"has {header.width} x {header.height} pixels "
                        f"where the image has {image.width} x {image.height}: resample it"
                    )
                yield mask
        except UnreadableImage as error:
            raise UnreadableImage(f"has a mask {ids.encode(path)} that {error}") from error

    def _with_masks(self, mask: Mask) -> Iterator[Item]:
        """Files that are no masks, their stamps with those of their masks."""
        for item in self._files.items():
            path = ids.decode(item.uri)
            if item.member is None and mask.is_mask(path):
                continue
            beside = "" if mask.band else self._files.stamp(mask.path(path))
            yield replace(item, stamp=f"{item.stamp} {beside}") if beside else item

    def _all_windows(self, files: Iterator[Item]) -> Iterator[Item]:
        # Names sort as their windows do, unless one name starts with another and goes on with what sorts before "#":
        # "a.tif" is before "a.tif b.tif", but "a.tif#0" is after "a.tif b.tif#0". So such files are merged.
        group: list[Item] = []
        for item in files:
            first = group[0].id if group else ""
            if group and not (item.id.startswith(first) and item.id[len(first)] <= "#"):
                yield from self._merged(group)
                group = []
            group.append(item)
        yield from self._merged(group)

    def _merged(self, group: list[Item]) -> Iterator[Item]:
        if len(group) == 1:
            return self._windows(group[0])
        return heapq.merge(*map(self._windows, group), key=lambda item: item.id)

    def _windows(self, file: Item) -> Iterator[Item]:
        """Windows in the order of their ids; none is kept, as a scene can have a million of them."""
        if file.window:
            yield file  # a list can name windows itself
            return
        try:
            header = self.header(file)
            w, h = min(self._tile, header.width), min(self._tile, header.height)
            self.header(replace(file, window=Window(0, 0, w, h)))
        except UnreadableImage as error:
            yield Item.unusable(file.id, file.uri, str(error), file.stamp)
            return

        def starts(size: int, side: int) -> list[int]:
            return sorted(range(0, size - side + 1, self._stride), key="{},".format)

        for x in starts(header.width, w):
            for y in starts(header.height, h):
                window = Window(x, y, w, h)
                yield replace(file, id=ids.window_id(file.id, window), window=window)
