"""Folders of images that are all different, on ground of their own, and features for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import collection


def images(root: Path, n: int, *, size: int = 64, dtype: type = np.uint8, bands: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for i in range(n):
        ramp = np.add.outer(np.arange(size), np.arange(size))[..., None] * (1 + i % 5)
        pixels = (ramp + rng.normal(0, 4, (8, 8, bands)).repeat(size // 8, 0).repeat(size // 8, 1)) % 256
        if dtype == np.uint8 and bands == 3:
            collection.save(root / f"{i:03d}.png", pixels.astype(np.uint8))
        else:
            tif(root / f"{i:03d}.tif", (pixels * (1 if dtype == np.uint8 else 16)).astype(dtype))
    return root


def tif(path: Path, pixels: np.ndarray) -> None:
    import rasterio
    from rasterio.transform import from_origin

    path.parent.mkdir(parents=True, exist_ok=True)
    h, w, c = pixels.shape
    profile = {
        "driver": "GTiff",
        "width": w,
        "height": h,
        "count": c,
        "dtype": pixels.dtype,
        "crs": "EPSG:32618",
    }
    east = 440000 + 10 * w * int(path.stem) if path.stem.isdigit() else 440000  # each on ground of its own
    with rasterio.open(path, "w", transform=from_origin(east, 4180000, 10, 10), **profile) as f:
        f.write(pixels.transpose(2, 0, 1))


def features(path: Path, n: int) -> Path:
    np.save(path, np.random.default_rng(1).normal(size=(n, 12)).astype(np.float32))
    return path
