"""Small healthy image files of every kind, and how to read them back."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from rsprune.config import SourceConfig
from rsprune.errors import UnreadableImage
from rsprune.sources import ids, open_source
from rsprune.sources.base import Image


def texture(height: int = 40, width: int = 48, bands: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth random pixels [H, W, C] uint8, unlike in every band."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(np.cumsum(rng.normal(size=(height, width, bands)), axis=0), axis=1)
    low, high = walk.min(axis=(0, 1)), walk.max(axis=(0, 1))
    return np.uint8(255 * (walk - low) / np.maximum(high - low, 1e-9))


def encoded(pixels: np.ndarray, kind: str = "png", **options) -> bytes:
    """`pixels` [H, W] or [H, W, C] uint8 as a file of that kind."""
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write_png(path: Path | bytes, pixels: np.ndarray | None = None) -> None:
    """A healthy PNG; `path` may be bytes, for names that are not text."""
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(encoded(texture() if pixels is None else pixels))


def source_of(path, **settings):
    return open_source(SourceConfig(path=os.fspath(path), **settings))


def only(path, **settings) -> Image:
    source = source_of(path, **settings)
    (item,) = source.items()
    header, image = source.header(item), source.read(item)
    assert image.pixels.shape == (header.height, header.width, header.bands)
    assert image.pixels.dtype == header.dtype
    assert image.pixels.flags.c_contiguous
    assert header.bytes == Path(ids.decode(item.uri)).stat().st_size
    return image


def refusal(path, **settings) -> str:
    """Why the only item below `path` cannot be read; header or read, whichever says so first."""
    source = source_of(path, **settings)
    (item,) = source.items()
    with pytest.raises(UnreadableImage) as caught:  # noqa: PT012
        source.header(item)
        source.read(item)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_tiff(path, pixels, *, mask=None, colorinterp=None, driver="GTiff", **profile):
    """pixels [H, W, C] as a TIFF."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    height, width, count = pixels.shape
    shape = {"height": height, "width": width, "count": count, "dtype": pixels.dtype.name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver=driver, **shape, **profile) as file:
            file.write(np.moveaxis(pixels, -1, 0))
            if mask is not None:
                file.write_mask(mask)
            if colorinterp:
                file.colorinterp = colorinterp
