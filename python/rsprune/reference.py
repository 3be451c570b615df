"""The kernels in plain NumPy and float64: the definition of correct, not of fast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def patch_entropy(
    images: np.ndarray,  # [N, H, W] or [N, H, W, C]
    patch: int = 32,
    *,
    valid: np.ndarray | None = None,  # [N, H, W]
    scale: Sequence[float] | Sequence[Sequence[float]] | None = None,
) -> np.ndarray:
    """Entropy, in bits, of each patch: `-sum p log2 p`; float64 `[N, ceil(H / p), ceil(W / p)(, C)]`."""
    images = np.asarray(images)
    bands = images if images.ndim == 4 else images[..., None]
    n, height, width, channels = bands.shape
    if scale is not None:
        table = bin_table(scale_pairs(scale, channels), 8 * bands.dtype.itemsize)
        bands = table[np.arange(channels) % len(table), bands]
    valid = np.ones((n, height, width), bool) if valid is None else np.asarray(valid).astype(bool)
    out = np.full((n, -(-height // patch), -(-width // patch), channels), np.nan)
    for i, row, col, band in np.ndindex(*out.shape):
        window = np.s_[i, row * patch : (row + 1) * patch, col * patch : (col + 1) * patch]
        pixels = bands[(*window, band)][valid[window]]
        if pixels.size:
            p = np.bincount(pixels.ravel(), minlength=256) / pixels.size
            p = p[p > 0]
            out[i, row, col, band] = abs(np.sum(p * np.log2(p)))
    return out if images.ndim == 4 else out[..., 0]


def kmeans_assign(x: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Argmin over centres of the squared distance: int32 `[N]` (-1 for rows that are not finite), float64 `[N]`."""
    x, centers = np.asarray(x, np.float64), np.asarray(centers, np.float64)
    labels, distances = np.full(len(x), -1, np.int32), np.full(len(x), np.nan)
    usable = np.flatnonzero(np.isfinite(centers).all(axis=1))
    if usable.size:
        for i in np.flatnonzero(np.isfinite(x).all(axis=1)):
            d = np.square(x[i] - centers[usable]).sum(axis=1)
            labels[i], distances[i] = usable[d.argmin()], d.min()
    return labels, distances


def scale_pairs(
    scale: Sequence[float] | Sequence[Sequence[float]], bands: int
) -> tuple[tuple[float, float], ...]:
    """One `(lo, hi)` for all bands, or one for each, as a tuple of pairs.

    Raises:
        ValueError: Not one pair or `bands` pairs of finite numbers with lo < hi.
    """
    try:
        pairs = np.asarray(scale, np.float64)
    except (TypeError, ValueError):
        pairs = np.empty(0)
    pairs = pairs[None] if pairs.ndim == 1 else pairs
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) not in (1, bands):
        raise ValueError(f"scale must be one (lo, hi) or one for each of {bands} bands, got {scale!r}")
    if not (np.isfinite(pairs).all() and (pairs[:, 0] < pairs[:, 1]).all()):
        raise ValueError(f"scale must have finite lo < hi in every pair, got {scale!r}")
    return tuple((float(lo), float(hi)) for lo, hi in pairs)


def bin_table(pairs: tuple[tuple[float, float], ...], bits: int) -> np.ndarray:
    """Bin of every value of an unsigned `bits`-bit type: uint8 `[len(pairs), 2 ** bits]`."""
    lo, hi = np.array(pairs, np.float64)[:, :, None].transpose(1, 0, 2)
    value = np.arange(2**bits, dtype=np.float64)
    table = np.clip(np.floor((value - lo) / (hi - lo) * 256), 0, 255).astype(np.uint8)
    table.flags.writeable = False  # it may be shared by a cache
    return table
