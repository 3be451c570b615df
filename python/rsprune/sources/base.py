"""What every source speaks: items in, headers and pixels out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from rsprune.errors import UnreadableImage


class Window(NamedTuple):
    """Part of a larger scene, in pixels from its upper left corner."""

    x: int
    y: int
    w: int
    h: int


@dataclass(frozen=True)
class Item:
    """One image to be: a stable id (`rsprune.sources.ids`), where it lies, and which part of it.

    `member` says where inside the file at `uri` the image lies, in words that only its source understands; None for a
    whole file. `stamp` is another text once the bytes have changed (those of a mask beside them as well), "" where
    that is not known.
    """

    id: str
    uri: str
    window: Window | None = None
    member: str | None = None
    stamp: str = ""

    @classmethod
    def unusable(cls, id: str, uri: str, reason: str, stamp: str = "") -> Item:
        """What cannot be read, and why; it is recorded instead of left out."""
        line = " ".join(reason.encode("utf-8", "backslashreplace").decode().split())  # names may be any bytes
        return cls(id, uri, None, "!" + line, stamp)

    @property
    def why_unusable(self) -> str | None:
        """The reason given to `unusable`."""
        return self.member[1:] if self.member and self.member[0] == "!" else None


@dataclass(frozen=True)
class Header:
    """What is known of an image without decoding it, for the window where there is one.

    `bands` and `dtype` are what `Source.read` gives; `bytes` is the size of the file.
    """

    width: int
    height: int
    bands: int
    dtype: str
    bytes: int
    crs: str | None = None
    gsd: float | None = None  # metres per pixel
    centre_lat: float | None = None
    centre_lon: float | None = None
    timestamp: str | None = None
    left: float | None = None  # footprint in the units of `crs`
    bottom: float | None = None
    right: float | None = None
    top: float | None = None


@dataclass(frozen=True)
class Image:
    """Decoded `pixels` [H, W, C] uint8, uint16 or finite float32; `valid` [H, W] bool, None if all are."""

    pixels: np.ndarray
    valid: np.ndarray | None = None


class Source(Protocol):
    """A collection. Items come sorted by id, one after another; the rest raises `UnreadableImage`."""

    def items(self) -> Iterator[Item]:
        """What there is, sorted by id; opens no image."""
        ...

    def header(self, item: Item) -> Header:
        """What is known of an item without decoding it. Raises `UnreadableImage`."""
        ...

    def read(self, item: Item) -> Image:
        """The pixels of an item. Raises `UnreadableImage`."""
        ...

    def originals(self, item: Item) -> dict[str, bytes]:
        """Files that an item consists of, by extension without the dot: the image first, then its sidecars.

        Raises:
            UnreadableImage: they cannot be read.
            ConfigError: the item is a window of a scene, which has no file of its own.
        """
        raise UnreadableImage("comes from a source that gives no original files")
