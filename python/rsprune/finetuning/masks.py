"""Layouts: maps of class numbers, found by the names of the images that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from rsprune.config import SourceConfig
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.finetuning.given import stem
from rsprune.locations import absolute
from rsprune.reading import COLUMNS, Reader, item_of, rows
from rsprune.run import Run
from rsprune.sources import open_source
from rsprune.sources.base import Item, Window
from rsprune.sources.ids import parse

SCENES = 4  # whole scenes that are kept in memory: windows come scene by scene
SceneSize = Callable[[str], tuple[int, int]]  # height and width of the scene of a window's id


class Layouts:
    """Masks of one band, in any source that is trained on; the mask of ``a/b.tif`` is ``a/b`` of any extension.

    A window of a scene has its part of the scene's mask, of which the nearest pixels are taken where it has another
    resolution.

    Raises:
        ConfigError: There is nothing at `path`, or two masks have the same name.
    """

    def __init__(self, path: str):
        self.path, self._source = path, open_source(SourceConfig(path=absolute(path)))
        self._items: dict[str, Item] = {}
        for item in self._source.items():
            if (name := stem(item.id)) in self._items:
                raise ConfigError(f"{path} has several masks of the name {name!r}: leave one of each name")
            self._items[name] = item
        self._whole = lru_cache(maxsize=SCENES)(self._read)

    def stack(
        self, ids: Sequence[str], size: tuple[int, int], *, scene_size: SceneSize, resize: bool = False
    ) -> np.ndarray:
        """Masks [N, H, W] uint8 of images [H, W] with these ids.

        Args:
            ids: Of the images, in their order.
            size: Height and width of the images.
            scene_size: Of the scene that an id names.
            resize: The images are the largest squares in the middle of theirs, scaled; so are masks.

        Raises:
            ConfigError: A mask is missing, cannot be read, or has another size than its image.
        """
        missing = [id for id in ids if stem(parse(id)[0]) not in self._items]
        if missing:
            raise ConfigError(
                f"{len(missing):,} of {len(ids):,} images have no mask in {self.path}, such as {missing[0]!r}: "
                "a mask has the path and the name of its image, or of the scene that it is cut from"
            )
        found = np.empty((len(ids), *size), np.uint8)
        for row, id in enumerate(ids):
            scene, window = parse(id)
            mask = self._whole(stem(scene))
            if window is not None:
                mask = cut(mask, window, scene_size(id))
            if resize:
                mask = squared(mask, size[0])
            if mask.shape != size:
                raise ConfigError(
                    f"the mask of {id!r} has {mask.shape[1]} x {mask.shape[0]} pixels where the image has "
                    f"{size[1]} x {size[0]}: give masks of the size of their images"
                )
            found[row] = mask
        return found

    def _read(self, name: str) -> np.ndarray:
        item = self._items[name]
        try:
            pixels = self._source.read(item).pixels
        except UnreadableImage as error:
            raise ConfigError(f"the mask {item.id!r} in {self.path} {error}: mend it") from None
        if pixels.shape[2] != 1 or pixels.dtype.kind != "u":
            kind = f"{pixels.shape[2]} bands of {pixels.dtype.name}"
            raise ConfigError(
                f"the mask {item.id!r} in {self.path} has {kind}: give one band of class numbers from 0 on"
            )
        if pixels.max() > 255:
            raise ConfigError(
                f"the mask {item.id!r} has class {pixels.max()}: 255 is the highest that can be"
            )
        return pixels[..., 0].astype(np.uint8)


def cut(mask: np.ndarray, window: Window, scene: tuple[int, int]) -> np.ndarray:
    """The window [h, w] of a scene of that height and width, out of a mask [H, W] of all of it."""
    ys, xs = (
        np.minimum(((start + np.arange(length) + 0.5) * have / whole).astype(np.int64), have - 1)
        for start, length, have, whole in zip(
            (window.y, window.x), (window.h, window.w), mask.shape, scene, strict=True
        )
    )
    return mask[ys[:, None], xs]


def squared(mask: np.ndarray, side: int) -> np.ndarray:
    """The largest square in the middle of a mask [H, W], as `pool.resized` takes it, by nearest pixels."""
    short = min(mask.shape)
    top, left = ((size - short) // 2 for size in mask.shape)
    return cut(mask[top : top + short, left : left + short], Window(0, 0, side, side), (side, side))


def scene_sizes(data: str) -> SceneSize:
    """Sizes of the scenes that a run folder has windows of."""
    known: dict[str, tuple[int, int]] = {}

    def read() -> None:
        run = Run.open(Path(data))
        reader = Reader(run)
        for row in rows(run.table("scan", COLUMNS)):
            scene = parse(row["id"])[0]
            if row["status"] == "ok" and scene not in known:
                header = reader.sources[row["source"]].header(replace(item_of(row), window=None))
                known[scene] = (header.height, header.width)

    def size(id: str) -> tuple[int, int]:
        if not known:
            read()
        return known[parse(id)[0]]

    return size
