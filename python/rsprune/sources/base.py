"""What every source speaks: items in, headers and pixels out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class Window(NamedTuple):
    """Part of a larger scene, in pixels from its upper left corner."""

    x: int
    y: int
    w: int
    h: int


@dataclass(frozen=True)
class Item:
    """One image to be: a stable id (`rsprune.sources.ids`), where it lies, and which part of it."""

    id: str
    uri: str
    window: Window | None = None


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
    """A collection. Items come sorted by id; `header` and `read` raise `UnreadableImage`."""

    def items(self) -> Iterator[Item]: ...

    def header(self, item: Item) -> Header: ...

    def read(self, item: Item) -> Image: ...
