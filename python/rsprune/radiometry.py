"""From stored values to 256 bins: declared once per source, or estimated over a sample of all of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rsprune.errors import ConfigError
from rsprune.reference import bin_table
from rsprune.sources.base import Image

PERCENTILES = (0.5, 99.5)  # a few dead or glinting pixels must not set the scale
SAMPLES_PER_IMAGE = 4096  # pixels; so that one large scene does not outvote a thousand tiles


@dataclass(frozen=True)
class Radiometry:
    """The [lo, hi) that map to bins 0..255, one pair per band or one for all; the value of empty pixels."""

    scale: tuple[tuple[float, float], ...]
    nodata: float | None = None

    @classmethod
    def declare(
        cls, dtype: str, scale: Sequence[tuple[float, float]] | None = None, nodata: float | None = None
    ) -> Radiometry | None:
        """The declared scale, the identity for uint8 without one, None where it has to be estimated."""
        if scale:
            return cls(tuple((float(lo), float(hi)) for lo, hi in scale), nodata)
        return cls(((0.0, 256.0),), nodata) if dtype == "uint8" else None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Radiometry:
        """What `to_json` gave; other keys are left alone."""
        return cls(tuple((lo, hi) for lo, hi in record["scale"]), record["nodata"])

    def to_json(self) -> dict[str, Any]:
        """Scale and nodata as JSON has them."""
        return {"scale": [list(pair) for pair in self.scale], "nodata": self.nodata}

    def is_identity(self, dtype: np.dtype) -> bool:
        """Whether pixels of that dtype are their own bins."""
        return dtype == np.uint8 and set(self.scale) == {(0.0, 256.0)}

    def pairs(self, bands: int) -> tuple[tuple[float, float], ...]:
        """One [lo, hi) per band. Raises `ConfigError` where the scale is for another number of bands."""
        if len(self.scale) == 1:
            return self.scale * bands
        if len(self.scale) != bands:
            raise ConfigError(
                f"scale has {len(self.scale)} pairs for images with {bands} bands: give one, or one per band"
            )
        return self.scale

    def to_uint8(self, image: Image) -> np.ndarray:
        """Bins [H, W, C] uint8: floor((value - lo) / (hi - lo) * 256), clipped to 0..255."""
        return self.bins(image.pixels)

    def bins(self, pixels: np.ndarray, *, bits: int = 8) -> np.ndarray:
        """As `to_uint8`, for pixels [..., C]; with 16 `bits` uint16 out of 65,536 bins."""
        if bits == 16:
            lo, hi = np.array(self.pairs(pixels.shape[-1])).T
            return np.clip((pixels - lo) / (hi - lo) * 65536, 0, 65535).astype(np.uint16)
        if self.is_identity(pixels.dtype):
            return pixels
        pairs = self.pairs(pixels.shape[-1])
        if pixels.dtype in (np.uint8, np.uint16):
            table = _table(pairs, 8 * pixels.dtype.itemsize)
            return np.stack([table[c][pixels[..., c]] for c in range(len(pairs))], axis=-1)
        lo, hi = np.array(pairs).T
        bins = (pixels - lo) / (hi - lo) * 256
        return np.clip(bins, 0, 255, out=bins).astype(np.uint8)


@lru_cache(maxsize=8)
def _table(pairs: tuple[tuple[float, float], ...], bits: int) -> np.ndarray:
    return bin_table(pairs, bits)


def estimate(images: Iterable[Image], *, nodata: float | None = None) -> Radiometry:
    """Percentiles 0.5 and 99.5 of every band over the valid pixels of `images`.

    Raises:
        ConfigError: there is no image.
    """
    samples, bands = [], None
    for image in images:
        bands = image.pixels.shape[-1]
        pixels = image.pixels.reshape(-1, bands) if image.valid is None else image.pixels[image.valid]
        samples.append(pixels[:: max(1, -(-len(pixels) // SAMPLES_PER_IMAGE))].astype(np.float32))
    if bands is None:
        raise ConfigError(
            "no image of the source can be read, so its range of values is unknown: give --scale"
        )
    pixels = np.concatenate(samples)
    if not len(pixels):  # nothing but nodata: any scale does
        return Radiometry(((0.0, 1.0),) * bands, nodata)
    lo, hi = np.percentile(pixels.astype(np.float64), PERCENTILES, axis=0)
    hi = np.where(hi > lo, hi, lo + np.maximum(1.0, np.abs(lo) * 1e-6))
    return Radiometry(tuple(zip(lo.tolist(), hi.tolist(), strict=True)), nodata)
