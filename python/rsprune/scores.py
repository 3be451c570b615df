"""From pixels to scores: how much an image holds, and the guards against what only looks like content."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from xxhash import xxh3_128

from rsprune import _C
from rsprune.radiometry import Radiometry
from rsprune.reference import BLOCK as BLOCK
from rsprune.sources.base import Image

SCORES = (
    "entropy",  # bits; mean over bands and valid patches
    "entropy_p10",  # bits; 10th percentile over valid patches of the mean over bands
    "flat_fraction",  # share of valid patches whose mean over bands is below 1 bit
    "nodata_fraction",  # share of pixels that are not valid
    "saturated_fraction",  # share of valid pixels with every band in its lowest or highest bin
    # These two, with their reasons, are defined by `rsprune.reference.texture`.
    "autocorrelation",  # of parallel neighbouring differences; mean over bands and valid blocks
    "sharpness",  # mean square of the 4-neighbour Laplacian over that of the gradient; 0 for constant bands
)
FLAT_BITS = 1.0
_CHUNK = 2**18  # values that wait for each other: enough to hide the cost of calls, few enough for the cache


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
    return score_stream(zip(images, radiometry, strict=True), patch)


def score_stream(images: Iterable[tuple[Image, Radiometry]], patch: int = 32) -> list[dict[str, float]]:
    """As `score_batch`; every image is taken, measured while it is in the cache, and let go before the next."""
    waiting: dict[tuple[Any, ...], tuple[list[int], list[Image], Radiometry]] = {}
    measured: dict[tuple[int, ...], list[_Measured]] = defaultdict(list)
    n = 0
    for image, r in images:
        shape = image.pixels.shape
        key = shape, image.pixels.dtype, image.valid is None, id(r)
        stack = waiting.get(key)
        if stack is None:
            stack = waiting[key] = [], [], r
        stack[0].append(n)
        stack[1].append(image)
        del image
        if (len(stack[0]) + 1) * math.prod(shape) > _CHUNK:
            measured[shape].append(_measure(*waiting.pop(key), patch))
        del stack
        n += 1
    for (shape, *_), stack in waiting.items():
        measured[shape].append(_measure(*stack, patch))
    result: list[dict[str, float]] = [{}] * n
    for (height, width, _), stacks in measured.items():
        rows, columns = _columns(stacks, _patch_sizes((height, width), patch))
        values = zip(*(columns[name].tolist() for name in SCORES), strict=True)
        for row, scores in zip(rows, values, strict=True):
            result[row] = dict(zip(SCORES, scores, strict=True))
    return result


def content_hash(image: Image) -> str:
    """xxh3_128 of shape, dtype, pixels and mask, in hex; equal for images whose decoded content is equal."""
    state = xxh3_128(_form(image.pixels.shape, image.pixels.dtype))
    state.update(np.ascontiguousarray(image.pixels).data)
    if image.valid is not None and not image.valid.all():
        state.update(np.packbits(image.valid).data)
    return state.hexdigest()


@lru_cache(maxsize=64)
def _form(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    return f"{shape} {dtype.name} ".encode()


class _Measured(NamedTuple):
    """What the kernels say of a stack of images."""

    rows: list[int]
    bits: np.ndarray  # float32 [N, patches, patches, C]
    counts: np.ndarray | None  # valid pixels [N, patches, patches]; None if all are
    valid: np.ndarray | None  # pixels, int64 [N]; None if all are
    saturated: np.ndarray  # pixels, int64 [N]
    autocorrelation: np.ndarray  # float32 [N]
    sharpness: np.ndarray  # float32 [N]


def _measure(rows: list[int], images: list[Image], radiometry: Radiometry, patch: int) -> _Measured:
    pixels = images[0].pixels[None] if len(images) == 1 else np.stack([image.pixels for image in images])
    pixels = np.ascontiguousarray(pixels)
    bins = np.ascontiguousarray(radiometry.bins(pixels))
    n, height, width, bands = pixels.shape
    valid = counts = None
    n_valid: np.ndarray | None = None
    if images[0].valid is not None:
        valid = np.stack([image.valid for image in images if image.valid is not None])
        counts = _patch_sums(valid, patch)
        n_valid = valid.sum(axis=(1, 2))
    bits = np.empty((n, -(-height // patch), -(-width // patch), bands), np.float32)
    autocorrelation, sharpness, saturated = (
        np.empty(n, np.float32),
        np.empty(n, np.float32),
        np.empty(n, np.int64),
    )
    _C.patch_entropy(bins, valid, None, bits, patch)
    _C.texture(pixels, valid, autocorrelation, sharpness)
    _C.saturated(bins, valid, saturated)
    return _Measured(rows, bits, counts, n_valid, saturated, autocorrelation, sharpness)


def _columns(stacks: Sequence[_Measured], sizes: np.ndarray) -> tuple[list[int], dict[str, np.ndarray]]:
    """Numbers of the images, and their scores; `sizes` are the pixels of each patch."""
    rows = [row for stack in stacks for row in stack.rows]
    # In float64 and for each image alone: a batch must not change a score.
    bits = np.concatenate([stack.bits for stack in stacks]).mean(axis=-1, dtype=np.float64)
    used, valid = np.ones(bits.shape, bool), np.full(len(rows), sizes.sum())
    first = 0
    for stack in stacks:
        last = first + len(stack.rows)
        if stack.counts is not None:
            used[first:last], valid[first:last] = stack.counts * 2 >= sizes, stack.valid
        first = last
    mean, p10, flat = _entropy_statistics(bits, used)
    saturated, autocorrelation, sharpness = (
        np.concatenate(parts) for parts in zip(*(stack[4:] for stack in stacks), strict=True)
    )
    return rows, {
        "entropy": mean,
        "entropy_p10": p10,
        "flat_fraction": flat,
        "nodata_fraction": 1 - valid / max(sizes.sum(), 1),
        "saturated_fraction": saturated / np.maximum(valid, 1),
        "autocorrelation": autocorrelation,
        "sharpness": sharpness,
    }


def _entropy_statistics(bits: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean, 10th percentile and flat share of the `used` patch entropies [N, patches, patches], each [N]."""
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


def _patch_sums(valid: np.ndarray, patch: int) -> np.ndarray:
    """Valid pixels of every patch of masks [N, H, W], as int64 [N, ceil(H/p), ceil(W/p)]."""
    rows = np.add.reduceat(valid, np.arange(0, valid.shape[1], patch), axis=1, dtype=np.int64)
    return np.add.reduceat(rows, np.arange(0, valid.shape[2], patch), axis=2)


def _patch_sizes(shape: tuple[int, int], patch: int) -> np.ndarray:
    """Pixels of every patch of an image [H, W], as [ceil(H/p), ceil(W/p)]."""
    rows, columns = (np.minimum(patch, size - np.arange(0, size, patch)) for size in shape)
    return np.multiply.outer(rows, columns)
