"""What networks of others are given, images resized and normalised as their authors say, and what they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from rsprune.encoders import checked_image, rgb_bands

# Pillow's numbers.
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


@dataclass(frozen=True)
class Preprocessing:
    """From uint8 [H, W, C] to float32 [C, h, w]: the whole image resized, nothing cropped; (x / 255 - mean) / std.

    Attributes:
        size: height and width in pixels.
        mean: per band, in units of 0..1.
        std: per band, in units of 0..1.
        resample: Pillow's number of the filter; all of them average where an image becomes smaller.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = 2

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """float32 [C, h, w] of an image uint8 [H, W, C]; three bands are red, green and blue of it."""
        bands = len(self.mean)
        planes = checked_image(image)
        planes = planes[:, :, rgb_bands(image.shape[2])] if bands == 3 else planes
        if planes.shape[2] != bands:
            raise ValueError(f"images must have {bands} bands, got {planes.shape[2]}")
        height, width = self.size
        bands_of = (Image.fromarray(np.ascontiguousarray(planes[:, :, c])) for c in range(bands))
        resized = [np.asarray(band.resize((width, height), self.resample)) for band in bands_of]
        x = np.stack(resized).astype(np.float32) / np.float32(255)
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std


def side_lengths(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size that is given as one number or as two."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def padded(x: np.ndarray, group: int) -> np.ndarray:
    """`x` [n, ...] with zero rows added, so that every pass has `group` of them.

    Passes of one shape run the same kernels: the features of an image do not depend on its neighbours.
    """
    return np.concatenate([x, np.zeros((-len(x) % group, *x.shape[1:]), x.dtype)])


def pooled(output: Any) -> Any:
    """[n, D] of an output [n, D], of tokens [n, T, D] or of maps [n, D, h, w]: their mean; NumPy or torch."""
    if output.ndim == 3:
        return output.mean(axis=1)
    return output.mean(axis=(2, 3)) if output.ndim == 4 else output
