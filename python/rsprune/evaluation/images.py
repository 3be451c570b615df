"""How near images are to the true ones, pixel by pixel: PSNR and SSIM, of N pairs at once."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

SIGMA = 1.5  # of SSIM's Gaussian window (Wang et al. 2004), which reaches 5 pixels to each side
REACH = 5
BATCH = 64  # images whose windows are held at once


def squared_error(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean squared difference [N] of uint8 or uint16 images [N, H, W, C], where the whole range is 1."""
    _check(images, truth)
    top = float(np.iinfo(truth.dtype).max)
    return np.array(
        [np.square((a.astype(np.float64) - b) / top).mean() for a, b in zip(images, truth, strict=True)]
    )


def psnr(squared: np.ndarray | float) -> np.ndarray:
    """Decibels below the range of values of a mean squared error; infinite for none."""
    with np.errstate(divide="ignore"):
        return -10 * np.log10(np.asarray(squared, np.float64))


def ssim(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity [N] of uint8 or uint16 images [N, H, W, C]; 1 for equal ones.

    Wang et al. 2004: windows that lie whole in the image, statistics of the population, mean over bands.

    Raises:
        ValueError: They differ in shape, or have fewer than 11 pixels a side.
    """
    _check(images, truth)
    if min(images.shape[1:3]) <= 2 * REACH:
        raise ValueError(f"SSIM needs {2 * REACH + 1} pixels a side, got {list(images.shape[1:3])}")
    parts = range(0, len(images), BATCH)
    return np.concatenate([_ssim(images[i : i + BATCH], truth[i : i + BATCH]) for i in parts])


def _ssim(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    top = float(np.iinfo(truth.dtype).max)
    x, y = images / top, truth / top

    def smooth(z: np.ndarray) -> np.ndarray:
        blurred = gaussian_filter(z, (0, SIGMA, SIGMA, 0), radius=(0, REACH, REACH, 0))
        return blurred[:, REACH:-REACH, REACH:-REACH]

    mx, my = smooth(x), smooth(y)
    vx, vy, both = smooth(x * x) - mx * mx, smooth(y * y) - my * my, smooth(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return found.mean((1, 2, 3))


def _check(images: np.ndarray, truth: np.ndarray) -> None:
    if images.shape != truth.shape or images.ndim != 4 or images.dtype != truth.dtype:
        raise ValueError(
            f"images must be like the true ones: {images.dtype} {list(images.shape)} "
            f"and {truth.dtype} {list(truth.shape)}"
        )
