"""From pixels to scores: how much an image holds, and the guards against what only looks like content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rsprune.radiometry import Radiometry
from rsprune.sources.base import Image

SCORES = (
    "entropy",  # bits; mean over bands and valid patches
    "entropy_p10",  # bits; 10th percentile over valid patches of the mean over bands
    "flat_fraction",  # share of valid patches whose mean over bands is below 1 bit
    "nodata_fraction",  # share of pixels that are not valid
    "saturated_fraction",  # share of valid pixels with every band in its lowest or highest bin
    "autocorrelation",  # of neighbouring pixels less their patch mean; mean over bands and valid patches
    "sharpness",  # variance of the 4-neighbour Laplacian over variance; 0 for constant bands
)
FLAT_BITS = 1.0
_CHUNK = 2**18  # values scored at once; the float32 temporaries stay in the cache


def score(image: Image, radiometry: Radiometry, patch: int = 32) -> dict[str, float]:
    """Scores of one image, by name; see `score_batch`."""
    return score_batch([image], [radiometry], patch)[0]


def score_batch(
    images: Sequence[Image], radiometry: Sequence[Radiometry], patch: int = 32
) -> list[dict[str, float]]:
    """Scores of every image, by name.

    A patch is valid if at least half of its pixels are. Scores are finite: an image without a valid pixel has
    the scores of a constant one (no entropy, all flat, autocorrelation 1) and `nodata_fraction` 1.

    Args:
        images: pixels [H, W, C] and masks; images of one shape are scored together.
        radiometry: of the image's source, one per image.
        patch: size of a patch in pixels.
    """
    groups = defaultdict(list)
    for i, (image, r) in enumerate(zip(images, radiometry, strict=True)):
        groups[image.pixels.shape, image.pixels.dtype, image.valid is None, r].append(i)
    result: list[dict[str, float]] = [{}] * len(images)
    for (shape, _, all_valid, r), members in groups.items():
        step = max(1, _CHUNK // max(1, int(np.prod(shape))))
        for start in range(0, len(members), step):
            part = members[start : start + step]
            pixels = np.stack([images[i].pixels for i in part])
            valid = None if all_valid else np.stack([images[i].valid for i in part])
            columns = _score_stack(pixels, valid, r, patch)
            for row, i in enumerate(part):
                result[i] = {name: float(columns[name][row]) for name in SCORES}
    return result


def content_hash(image: Image) -> str:
    """xxh3_128 of shape, dtype, pixels and mask, in hex; equal for images whose decoded content is equal."""
    from xxhash import xxh3_128

    state = xxh3_128(f"{image.pixels.shape} {image.pixels.dtype.name} ".encode())
    state.update(np.ascontiguousarray(image.pixels).data)
    if image.valid is not None and not image.valid.all():
        state.update(np.packbits(image.valid).data)
    return state.hexdigest()


def _score_stack(
    pixels: np.ndarray, valid: np.ndarray | None, radiometry: Radiometry, patch: int
) -> dict[str, np.ndarray]:
    """Scores of pixels [N, H, W, C] with valid [N, H, W] or None; each [N]."""
    bins = radiometry.bins(pixels)
    values = pixels.astype(np.float32)
    if valid is not None:
        # A nodata value such as -3.4e38 would swallow every difference.
        np.copyto(values, 0, where=~valid[..., None])
    used = _valid_patches(pixels.shape, valid, patch)
    entropy, p10, flat = _entropy_statistics(bins, valid, used, patch)
    autocorrelation, variance = _residual_statistics(values, valid, used, patch)
    return {
        "entropy": entropy,
        "entropy_p10": p10,
        "flat_fraction": flat,
        "nodata_fraction": np.zeros(len(pixels)) if valid is None else 1 - valid.mean(axis=(1, 2)),
        "saturated_fraction": _saturated_fraction(bins, valid),
        "autocorrelation": autocorrelation,
        "sharpness": _sharpness(values, valid, variance),
    }


def _valid_patches(shape: tuple[int, ...], valid: np.ndarray | None, patch: int) -> np.ndarray:
    """Patches of which at least half of the pixels are valid, [N, ceil(H/p), ceil(W/p)] bool."""
    sizes = _patch_sizes(shape[1:3], patch)
    if valid is None:
        return np.ones((shape[0], *sizes.shape[:2]), bool)
    return (_patch_sums(valid[..., None], patch) * 2 >= sizes)[..., 0]


def _entropy_statistics(
    bins: np.ndarray, valid: np.ndarray | None, used: np.ndarray, patch: int
) -> tuple[np.ndarray, ...]:
    """Mean, 10th percentile and flat share of the patch entropies, each [N]."""
    from rsprune.ops import patch_entropy

    bits = patch_entropy(bins, patch, valid=valid).mean(axis=-1, dtype=np.float64)  # [N, patches, patches]
    bits, used = bits.reshape(len(bits), -1), used.reshape(len(bits), -1)
    count = used.sum(axis=1)
    some = np.maximum(count, 1)
    mean = np.where(used, bits, 0).sum(axis=1) / some
    flat = (used & (bits < FLAT_BITS)).sum(axis=1) / some
    bits = np.sort(np.where(used, bits, np.inf), axis=1)  # the used ones come first
    at = 0.1 * (some - 1)
    low, high = (bits[np.arange(len(bits)), i.astype(int)] for i in (np.floor(at), np.ceil(at)))
    p10 = np.where(count, low, 0) * (1 - at % 1) + np.where(count, high, 0) * (at % 1)
    return mean, p10, np.where(count, flat, 1)


def _saturated_fraction(bins: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Share of valid pixels with every band in bin 0 or 255, [N]."""
    ends = bins + np.uint8(1) <= 1  # 255 wraps around to 0
    saturated = np.logical_and.reduce([ends[..., c] for c in range(ends.shape[-1])])
    if valid is None:
        return saturated.mean(axis=(1, 2))
    return (saturated & valid).sum(axis=(1, 2)) / np.maximum(valid.sum(axis=(1, 2)), 1)


def _residual_statistics(
    values: np.ndarray, valid: np.ndarray | None, used: np.ndarray, patch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Autocorrelation [N] of neighbours inside patches, and the variance of the image [N, C].

    Of one patch and band: sum r_i r_j / sum (r_i^2 + r_j^2) / 2 over pairs of valid neighbours, with r the
    value less the patch mean; so it lies in -1..1, and is 1 where the patch is constant. The image has the
    mean over bands and valid patches: with pooled sums one odd pixel would speak for an image of calm sea.
    """
    sums = _patch_sums(values, patch).astype(np.float64)
    if valid is None:
        sizes = np.broadcast_to(_patch_sizes(values.shape[1:3], patch), sums.shape)
    else:
        sizes = np.broadcast_to(_patch_sums(valid[..., None], patch), sums.shape)
    means = sums / np.maximum(sizes, 1)
    row = np.arange(values.shape[1]) // patch
    residual = values - means.astype(np.float32).repeat(patch, axis=2)[:, row, : values.shape[2]]
    if valid is not None:
        residual *= valid[..., None]
    square = residual * residual
    product, energy = np.zeros(sums.shape), np.zeros(sums.shape)
    pairs = np.empty_like(residual)
    for axis in (1, 2):
        before = (slice(None),) * axis
        first, second = (*before, slice(-1)), (*before, slice(1, None))
        last, across = (*before, slice(-1, None)), (*before, slice(patch - 1, None, patch))
        np.multiply(residual[first], residual[second], out=pairs[first])
        pairs[last] = pairs[across] = 0
        product += _patch_sums(pairs, patch)
        np.add(square[first], square[second], out=pairs[first])
        if valid is not None:
            pairs[first] *= (valid[first] & valid[second])[..., None]
        pairs[last] = pairs[across] = 0
        energy += _patch_sums(pairs, patch) / 2
    correlation = np.divide(product, energy, out=np.ones(sums.shape), where=energy > 0).mean(axis=-1)
    correlation = np.where(used, correlation, 0).sum(axis=(1, 2))
    n_used = used.sum(axis=(1, 2))

    count = np.maximum(sizes.sum(axis=(1, 2)), 1)
    mean = sums.sum(axis=(1, 2)) / count
    between = (sizes * (means - mean[:, None, None]) ** 2).sum(axis=(1, 2))
    variance = (_patch_sums(square, patch).sum(axis=(1, 2), dtype=np.float64) + between) / count
    return np.where(n_used, correlation / np.maximum(n_used, 1), 1), variance


def _sharpness(values: np.ndarray, valid: np.ndarray | None, variance: np.ndarray) -> np.ndarray:
    """Variance of the Laplacian, where all its pixels are valid, over `variance` [N, C]; mean over bands."""
    if min(values.shape[1:3]) < 3:
        return np.zeros(len(values))
    centre = np.s_[:, 1:-1, 1:-1]
    around = np.s_[:, :-2, 1:-1], np.s_[:, 2:, 1:-1], np.s_[:, 1:-1, :-2], np.s_[:, 1:-1, 2:]
    laplacian = values[centre] * np.float32(-4)
    for neighbour in around:
        laplacian += values[neighbour]
    if valid is None:
        count = laplacian.shape[1] * laplacian.shape[2]
    else:
        inner = np.logical_and.reduce([valid[part] for part in (centre, *around)])
        laplacian *= inner[..., None]
        count = np.maximum(inner.sum(axis=(1, 2)), 1)[:, None]
    mean = _image_sums(laplacian) / count
    spread = np.maximum(_image_sums(np.square(laplacian, out=laplacian)) / count - mean**2, 0)
    return np.divide(spread, variance, out=np.zeros_like(variance), where=variance > 0).mean(axis=1)


def _image_sums(values: np.ndarray) -> np.ndarray:
    """[N, H, W, C] -> [N, C] float64."""
    # Rows first: they are contiguous, so this runs at memory speed whatever C is.
    return values.sum(axis=1, dtype=np.float32).sum(axis=1, dtype=np.float64)


def _patch_sums(values: np.ndarray, patch: int) -> np.ndarray:
    """[N, H, W, C] -> [N, ceil(H/p), ceil(W/p), C] float32."""
    n, h, w, c = values.shape
    if h % patch:
        rows = np.add.reduceat(values, np.arange(0, h, patch), axis=1, dtype=np.float32)
    else:  # the same sums, four times as fast
        rows = values.reshape(n, h // patch, patch, w * c).sum(axis=2, dtype=np.float32).reshape(n, -1, w, c)
    return np.add.reduceat(rows, np.arange(0, w, patch), axis=2)


def _patch_sizes(shape: tuple[int, ...], patch: int) -> np.ndarray:
    """Pixels of every patch of an image [H, W], as [ceil(H/p), ceil(W/p), 1]."""
    rows, columns = (np.minimum(patch, size - np.arange(0, size, patch)) for size in shape)
    return np.multiply.outer(rows, columns)[..., None]
