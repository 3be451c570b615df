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


BLOCK = 16  # pixels; not the entropy's patch, so that the threshold on autocorrelation holds for every patch


def texture(
    images: np.ndarray,  # [N, H, W, C]
    valid: np.ndarray | None = None,  # [N, H, W]
) -> tuple[np.ndarray, np.ndarray]:
    """Autocorrelation and sharpness of each image: float64 `[N]` each.

    Both compare differences of neighbouring pixels, which leave the contrast of the scene out: over a coast,
    neighbouring pixels stay correlated however strong the noise is, while the differences of white noise are not.

    The squares of 2 x 2 pixels a b / c d of a block of `BLOCK` pixels have as autocorrelation the sum of
    (b - a)(d - c) + (c - a)(d - b) over half the sum of the squares of the four differences. It lies in -1..1, and
    is 1 where the block is constant. The image has the mean over bands and over blocks of which at least half is
    valid, 1 without any: with pooled sums one odd pixel would speak for an image of calm sea.

    Sharpness is the mean square of the 4-neighbour Laplacian over that of the gradient, mean over bands; 0 for
    constant bands and for images less than 3 pixels wide or high.
    """
    n, h, w, c = images.shape
    valid = np.ones((n, h, w), bool) if valid is None else np.asarray(valid).astype(bool)
    autocorrelation, sharpness = np.ones(n), np.zeros(n)
    if min(h, w) < 2:
        return autocorrelation, sharpness
    for i in range(n):
        m = valid[i]
        v = np.where(m[..., None], images[i], 0).astype(np.float64)
        across, down = np.diff(v, axis=1), np.diff(v, axis=0)
        whole = m[:-1, :-1] & m[:-1, 1:] & m[1:, :-1] & m[1:, 1:]
        blocks = []
        for y, x in np.ndindex(-(-h // BLOCK), -(-w // BLOCK)):
            block = np.s_[y * BLOCK : (y + 1) * BLOCK, x * BLOCK : (x + 1) * BLOCK]
            if m[block].mean() < 0.5:
                continue
            # The last row and column of a block have no square of their own.
            rows, columns = np.s_[y * BLOCK : (y + 1) * BLOCK - 1], np.s_[x * BLOCK : (x + 1) * BLOCK - 1]
            inside = whole[rows, columns]
            top, bottom = across[:-1][rows, columns][inside], across[1:][rows, columns][inside]
            left, right = down[:, :-1][rows, columns][inside], down[:, 1:][rows, columns][inside]
            product = (top * bottom + left * right).sum(axis=0)
            energy = (top**2 + bottom**2 + left**2 + right**2).sum(axis=0) / 2
            blocks.append(np.divide(product, energy, out=np.ones(c), where=energy > 0).mean())
        if blocks:
            autocorrelation[i] = np.mean(blocks)
        if min(h, w) > 2:
            laplacian = np.diff(across, axis=1)[1:-1] + np.diff(down, axis=0)[:, 1:-1]
            inner = m[1:-1, 1:-1] & m[:-2, 1:-1] & m[2:, 1:-1] & m[1:-1, :-2] & m[1:-1, 2:]
            parts = (laplacian, inner), (across, m[:, 1:] & m[:, :-1]), (down, m[1:] & m[:-1])
            curve, *slopes = (np.square(d[ok]).sum(axis=0) / max(ok.sum(), 1) for d, ok in parts)
            slope = sum(slopes)
            sharpness[i] = np.divide(curve, slope, out=np.zeros(c), where=slope > 0).mean()
    return autocorrelation, sharpness


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
