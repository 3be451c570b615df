"""Windows of scenes as files of their own, with the pixel values of the scene."""

from __future__ import annotations

import io
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from rsprune.sources.bands import Selection
from rsprune.sources.base import Item, Window
from rsprune.sources.codecs import PlainScene, decoding
from rsprune.sources.opening import open_item

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


def crop_suffix(item: Item) -> str:
    """Extension of the crops of the scene that `item` lies in. Raises `UnreadableImage`."""
    with open_item(item, "scene") as scene:
        return ".png" if isinstance(scene, PlainScene) else ".tif"


def crop(item: Item) -> bytes:
    """The window of `item` as PNG or GeoTIFF. Raises `UnreadableImage`."""
    with open_item(item, "scene") as scene, decoding("cannot be read"):
        assert item.window is not None, "a whole file is copied, not cut"
        if isinstance(scene, PlainScene):
            return _png(scene, item.window)
        raster: Any = scene  # a `RasterScene`, whose module needs rasterio
        return _geotiff(raster.dataset, item.window)


def _png(scene: PlainScene, window: Window) -> bytes:
    from PIL import Image

    image = scene.read(window, Selection())
    pixels = image.pixels
    if image.valid is not None and pixels.dtype == np.uint8:
        pixels = np.dstack([pixels, image.valid.astype(np.uint8) * 255])
    png = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(png, "PNG")
    return png.getvalue()


def _geotiff(scene: DatasetReader, window: Window) -> bytes:
    import rasterio
    from rasterio.enums import ColorInterp, MaskFlags
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    part = rasterio.windows.Window(*window)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        stack.enter_context(rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True))
        profile = {
            "driver": "GTiff", "compress": "deflate", "width": window.w, "height": window.h,
            "count": scene.count, "dtype": scene.dtypes[0], "nodata": scene.nodata, "crs": scene.crs,
        }  # fmt: skip
        if not scene.transform.is_identity:
            profile["transform"] = scene.window_transform(part)
        flags = scene.mask_flag_enums[0]
        memory = stack.enter_context(MemoryFile())
        with memory.open(**profile) as cut:
            cut.colorinterp = scene.colorinterp
            if scene.colorinterp[0] == ColorInterp.palette:
                cut.write_colormap(1, scene.colormap(1))
            cut.write(scene.read(window=part))
            if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
                cut.write_mask(scene.read_masks(1, window=part))
            cut.descriptions, cut.scales, cut.offsets = scene.descriptions, scene.scales, scene.offsets
            cut.update_tags(**scene.tags())
        return memory.read()
