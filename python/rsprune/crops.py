"""Windows of scenes as files of their own, with the pixel values of the scene."""

from __future__ import annotations

import io
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from rsprune.sources.bands import Selection
from rsprune.sources.base import Window
from rsprune.sources.codecs import PlainScene, Scene, decoding, open_scene


class Crops:
    """Cuts windows; keeps the last scene open, as windows of one scene come together."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._scene: Scene | None = None

    def suffix(self, path: str) -> str:
        """Extension of the crops of a scene. Raises `UnreadableImage`."""
        return ".png" if isinstance(self._open(path), PlainScene) else ".tif"

    def read(self, path: str, window: Window) -> bytes:
        """A window as PNG or GeoTIFF. Raises `UnreadableImage`."""
        scene = self._open(path)
        if isinstance(scene, PlainScene):
            return _png(scene, window)
        with decoding("cannot be read"):
            return _geotiff(path, window)

    def close(self) -> None:
        if self._scene is not None:
            self._scene.close()
        self._path = self._scene = None

    def _open(self, path: str) -> Scene:
        if path != self._path:
            self.close()
            self._scene = open_scene(path)
            self._path = path
        return self._scene


def _png(scene: PlainScene, window: Window) -> bytes:
    from PIL import Image

    image = scene.read(window, Selection())
    pixels = image.pixels
    if image.valid is not None and pixels.dtype == np.uint8:
        pixels = np.dstack([pixels, image.valid.astype(np.uint8) * 255])
    png = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(png, "PNG")
    return png.getvalue()


def _geotiff(path: str, window: Window) -> bytes:
    import rasterio
    from rasterio.enums import ColorInterp, MaskFlags
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    part = rasterio.windows.Window(*window)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        stack.enter_context(rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True))
        # GDAL takes names in UTF-8 only.
        file: Any = path if path.isprintable() else stack.enter_context(Path(path).open("rb"))
        scene = stack.enter_context(rasterio.open(file))
        profile = {
            "driver": "GTiff", "compress": "deflate", "width": window.w, "height": window.h,
            "count": scene.count, "dtype": scene.dtypes[0], "nodata": scene.nodata, "crs": scene.crs,
        }  # fmt: skip
        if not scene.transform.is_identity:
            profile["transform"] = scene.window_transform(part)
        flags = scene.mask_flag_enums[0]
        memory = stack.enter_context(MemoryFile())
        with memory.open(**profile) as crop:
            crop.colorinterp = scene.colorinterp
            if scene.colorinterp[0] == ColorInterp.palette:
                crop.write_colormap(1, scene.colormap(1))
            crop.write(scene.read(window=part))
            if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
                crop.write_mask(scene.read_masks(1, window=part))
            crop.descriptions, crop.scales, crop.offsets = scene.descriptions, scene.scales, scene.offsets
            crop.update_tags(**scene.tags())
        return memory.read()
