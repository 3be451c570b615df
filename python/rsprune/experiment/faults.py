"""The dirty pool: faults of known kind and number, planted into natural tiles."""

from __future__ import annotations

import io

import numpy as np

from rsprune.experiment.config import FaultConfig


def plant(
    tiles: np.ndarray, scenes: np.ndarray | None, faults: FaultConfig, *, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles uint8 [M, H, W, C] with faults, the fault (text) of each, "" for none, and its row in `tiles`.

    First tiles are taken away from all scenes but the most common one; then each fault takes tiles of its own,
    which are changed; copies are added, and are changed a little.

    Args:
        tiles: uint8 [N, H, W, C].
        scenes: text [N]; without it there is no imbalance to make.
        faults: Their rates, as shares of what is left of the tiles.
        seed: Of everything random.
    """
    rng = np.random.default_rng(seed)
    rows = np.arange(len(tiles))
    if faults.imbalance and scenes is not None:
        names, counts = np.unique(scenes, return_counts=True)
        common = scenes == names[counts.argmax()]
        rows = np.flatnonzero(common | (rng.random(len(tiles)) >= faults.imbalance))
    out, kind = tiles[rows].copy(), np.full(len(rows), "", "<U16")
    order, start = rng.permutation(len(rows)), 0
    for name, damage in DAMAGES.items():
        count = round(getattr(faults, name) * len(rows))
        for i in order[start : start + count]:
            out[i], kind[i] = damage(out[i], rng), name
        start += count
    sound = order[start:]
    copied = round(faults.near_duplicates * len(rows) / faults.copies)
    origin = np.repeat(rng.choice(sound, min(copied, len(sound)), replace=False), faults.copies)
    copies = np.stack([_copy(out[i], rng) for i in origin]) if len(origin) else out[:0]
    added = np.full(len(origin), "near_duplicates", "<U16")
    return np.concatenate([out, copies]), np.concatenate([kind, added]), rows[[*range(len(rows)), *origin]]


def _nodata(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A black border at a random angle."""
    angle, share = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.9)
    y, x = np.mgrid[: tile.shape[0], : tile.shape[1]]
    along = x * np.cos(angle) + y * np.sin(angle)
    return tile * (along > np.quantile(along, share))[..., None].astype(np.uint8)


def _noise(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _clipped(tile + rng.normal(0, rng.uniform(15, 60), tile.shape))


def _jpeg(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _compressed(tile, int(rng.integers(5, 16)))


def _copy(tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another brightness, a trace of noise, or a good JPEG."""
    kind = rng.integers(3)
    if kind == 2:
        return _compressed(tile, 92)
    return _clipped(tile + (rng.integers(-4, 5) if kind else rng.normal(0, 1.5, tile.shape)))


DAMAGES = {"nodata": _nodata, "noise": _noise, "jpeg": _jpeg}


def _clipped(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _compressed(tile: np.ndarray, quality: int) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
