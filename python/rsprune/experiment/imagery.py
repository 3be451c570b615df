"""The pictures that tiles are cut from, and what is known of the ground in them without any network."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsprune import demo
from rsprune.errors import ConfigError
from rsprune.experiment.config import BUILT_IN
from rsprune.radiometry import Radiometry

LAND_MASK = "lsmask_5min_l.bin"  # beside Blue Marble: 4320 x 2160, 1 is land, begins in the south


@dataclass(frozen=True)
class Picture:
    """Pixels uint8 [H, W, 3]; `water` bool [H, W], or None where nobody knows."""

    name: str
    pixels: np.ndarray
    water: np.ndarray | None = None
    bands: dict[str, np.ndarray] | None = None  # of Sentinel-2, for its land cover


def open_picture(path: str) -> Picture:
    """A built-in picture by name, or an 8-bit RGB file. Raises `ConfigError`."""
    if path == "bluemarble":
        return _bluemarble()
    if path == "sentinel2":
        return _sentinel2()
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return Picture(Path(path).stem, np.asarray(picture.convert("RGB")))
    except OSError as e:
        reason = e.strerror or "is no picture that can be read"
        raise ConfigError(
            f"cannot read the scene {path}: {reason}; give {', '.join(BUILT_IN)} or a file"
        ) from None


def tile_scenes(picture: Picture, ys: np.ndarray, xs: np.ndarray, side: int) -> np.ndarray | None:
    """Scene (text) [N] of the tiles with their upper left corners at (ys, xs); None where nothing is known.

    From the land mask, colours and spectral indices: neither the encoder that selects nor the network that
    measures has a part in it.
    """
    if picture.bands is not None:
        return np.array([_land_cover(picture.bands, y, x, side) for y, x in zip(ys, xs, strict=True)])
    if picture.water is None:
        return None
    tiles = ((slice(y, y + side), slice(x, x + side)) for y, x in zip(ys, xs, strict=True))
    return np.array([_marble_scene(picture.pixels[at], picture.water[at].mean()) for at in tiles])


def _bluemarble() -> Picture:
    from PIL import Image

    path = demo.BLUE_MARBLE.verified()
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    mask = np.frombuffer(gzip.decompress((path.parent / LAND_MASK).read_bytes()), np.uint8)
    mask = mask.reshape(2160, 4320)[::-1]
    h, w = pixels.shape[:2]
    rows, columns = np.arange(h) * len(mask) // h, np.arange(w) * mask.shape[1] // w
    return Picture("bluemarble", pixels, water=mask[np.ix_(rows, columns)] != 1)


def _sentinel2() -> Picture:
    import rasterio

    bands = {}
    for name, asset in demo.SENTINEL2.items():
        with rasterio.open(asset.verified(), driver="GTiff") as scene:
            bands[name] = scene.read(1)
    rgb = np.stack([bands[name] for name in ("B04", "B03", "B02")], axis=-1)
    rows, columns = (
        np.minimum(np.arange(n) // 2, m - 1) for n, m in zip(rgb.shape[:2], bands["B11"].shape, strict=True)
    )
    bands["B11"] = bands["B11"][np.ix_(rows, columns)]  # 20 m
    return Picture("sentinel2", Radiometry(demo.SENTINEL2_SCALE).bins(rgb), bands=bands)


def _land_cover(bands: dict[str, np.ndarray], y: int, x: int, side: int) -> str:
    # The rules are for tiles of one size: shares do not change when pixels are repeated.
    rows = y + np.arange(demo.TILE) * side // demo.TILE
    columns = x + np.arange(demo.TILE) * side // demo.TILE
    cut = (bands[name][np.ix_(rows, columns)] for name in ("B03", "B04", "B08", "B11"))
    return f"{demo.label_tiles(*cut)[0, 0]}-10m"


def _marble_scene(tile: np.ndarray, water: float) -> str:
    red, green, blue = (tile[..., c].astype(np.float32) for c in range(3))
    white = np.mean(tile.min(axis=2) > 180)
    sand = np.mean((red > 120) & (red > green) & (green > blue + 15))
    leaf = np.mean((green >= red) & (green > blue) & (red < 110))
    if white > 0.5:
        return "ice-7km"
    if water > 0.98:
        return "sea-7km"
    if water > 0.25:
        return "coast-7km"
    return ("desert" if sand > 0.5 else "forest" if leaf > 0.5 else "steppe") + "-7km"
