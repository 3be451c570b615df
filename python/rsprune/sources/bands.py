"""Bands and validity: what every codec does with pixels once they are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rsprune.errors import UnreadableImage
from rsprune.sources.base import Image


@dataclass(frozen=True)
class Selection:
    """What a source's settings ask of each of its files."""

    bands: tuple[int, ...] | None = None  # 1-based; None takes all
    nodata: float | None = None  # a pixel is invalid where every selected band has this value
    mask_band: int | None = None  # 1-based; not among the bands of the image

    def indexes(self, available: int) -> tuple[int, ...]:
        """1-based bands to read out of `available`. Raises `UnreadableImage`."""
        if not self.bands and not self.mask_band:
            return tuple(range(1, available + 1))
        bands = self.bands or tuple(i for i in range(1, available + 1) if i != self.mask_band)
        last = max(*bands, self.mask_band or 0, 1)
        if last > available:
            raise UnreadableImage(f"has {_bands(available)}, but band {last} was asked for")
        if not bands:
            raise UnreadableImage("has no band beside its mask")
        return bands


def stored_dtype(dtype: str) -> str:
    """Dtype of `Image.pixels` for pixels that are `dtype` in the file. Raises `UnreadableImage`."""
    if dtype in ("uint8", "uint16"):
        return dtype
    if dtype.startswith("complex") or np.dtype(dtype).kind not in "iuf":
        raise UnreadableImage(f"has {dtype} pixels; only integer and real ones can be used")
    return "float32"


def as_image(pixels: np.ndarray, valid: np.ndarray | None, *markers: Sequence[float | None]) -> Image:
    """Pixels as they leave a source.

    Args:
        pixels: [H, W, C], any integer or real dtype.
        valid: [H, W] bool, or None.
        markers: each one value per band, or one for all; a pixel is invalid where all its bands have them.
            A marker with a None marks nothing.

    Returns:
        Image with uint8, uint16 or float32 pixels; values that are not finite become 0 and invalid.
    """
    masks = [] if valid is None else [valid]
    for marker in markers:
        if None not in marker:
            values = np.broadcast_to(np.array(marker), pixels.shape[-1:]).tolist()
            masks.append(np.any([_differs(pixels[..., c], value) for c, value in enumerate(values)], axis=0))
    pixels = np.ascontiguousarray(pixels)
    if pixels.dtype not in (np.uint8, np.uint16):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, hence invalid
            pixels = pixels.astype(np.float32)
        finite = np.isfinite(pixels)
        if not finite.all():
            pixels = np.where(finite, pixels, np.float32(0))
            masks.append(finite.all(axis=-1))
    valid = np.logical_and.reduce(masks) if masks else None
    return Image(pixels, None if valid is None or valid.all() else valid)


def harmonise(image: Image, bands: int) -> Image:
    """`image` with as many bands as its source has; one band is repeated.

    Raises:
        UnreadableImage: any other mismatch.
    """
    has = image.pixels.shape[-1]
    if has == bands:
        return image
    if has != 1:
        raise UnreadableImage(
            f"has {_bands(has)} where the source has {bands}; put it into a source of its own"
        )
    return Image(np.repeat(image.pixels, bands, axis=-1), image.valid)


def _differs(band: np.ndarray, value: float) -> np.ndarray:
    if np.isnan(value):
        return ~np.isnan(band) if band.dtype.kind == "f" else np.ones(band.shape, bool)
    if band.dtype.kind == "f":
        # Files give float32 nodata such as -3.4e38 with the digits of a double.
        with np.errstate(over="ignore"):
            return band != band.dtype.type(value)
    return band != (int(value) if float(value).is_integer() else value)


def _bands(count: int) -> str:
    return "1 band" if count == 1 else f"{count} bands"
