"""TIFF, BigTIFF and JPEG 2000 files by rasterio: windowed reads, masks, coordinates."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from functools import cached_property
from io import BufferedReader
from typing import TypeVar
from uuid import uuid4

import numpy as np
import rasterio
from rasterio import windows
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import transform

from rsprune.errors import UnreadableImage
from rsprune.sources.bands import Selection, as_image, stored_dtype
from rsprune.sources.base import Header, Image, Window
from rsprune.sources.blobs import Blob, BlobFile, buffered
from rsprune.sources.codecs import MAX_PIXELS, check_size, check_window, decoding

_MAX_VALUES = 4 * MAX_PIXELS  # pixels times bands decoded at once
_MAX_BLOCK = 2**28  # bytes; GDAL decodes whole blocks
_CACHE = 2**28  # bytes of decoded blocks per process, where GDAL would take a twentieth of the machine
_METRES_PER_DEGREE = 111_320.0  # of latitude
_TIME_TAGS = ("ACQUISITIONDATETIME", "ACQUISITION_DATETIME", "TIFFTAG_DATETIME")  # the first found counts

T = TypeVar("T")


class _Environment(threading.local):
    """GDAL's settings of this thread, for as long as any scene is open; scenes are closed in any order."""

    def __init__(self) -> None:
        self._scenes = 0

    def __enter__(self) -> None:
        if not self._scenes:
            # "TRUE" keeps GDAL from listing the folder at every open; it still finds masks beside the file.
            # One thread, as parts have one each, and as what goes wrong in another one is printed.
            self._env = rasterio.Env(
                GDAL_DISABLE_READDIR_ON_OPEN="TRUE", GDAL_CACHEMAX=_CACHE, GDAL_NUM_THREADS="1"
            )
            self._env.__enter__()
        self._scenes += 1

    def __exit__(self, *error: object) -> None:
        self._scenes -= 1
        if not self._scenes:
            self._env.__exit__(*error)


_environment = _Environment()


class RasterScene:
    """A file that is read window by window.

    An alpha band is a mask, not a band, unless the bands to read name it: GDAL marks the fourth band of 8-bit
    files as alpha unless told otherwise, and in remote sensing that band is often the near infrared.

    Attributes:
        dataset: as rasterio opened it.
    """

    def __init__(self, blob: Blob, driver: str):
        self._size = blob.size
        self._file: BlobFile | None = None
        with ExitStack() as files, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            files.enter_context(_environment)
            self.dataset = dataset = files.enter_context(self._open(blob, driver))
            self._dtype = stored_dtype(_common(dataset.dtypes))
            self._transform = dataset.transform  # asked for here because rasterio warns again at every access
            alpha = [i for i, c in enumerate(dataset.colorinterp, 1) if c == ColorInterp.alpha]
            self._alpha = alpha[-1] if alpha and len(alpha) < dataset.count else None
            self._crs = dataset.crs or None
            self._close = files.pop_all().close

    def _open(self, blob: Blob, driver: str) -> rasterio.DatasetReader:
        if blob.path and not any(
            "\ud800" <= c <= "\udfff" for c in blob.path
        ):  # GDAL takes names in UTF-8 only
            return rasterio.open(blob.path, driver=driver)
        # Blocks are asked for as they are needed, so that a window of a large scene costs no more than itself.
        name = f"{uuid4().hex}.tif"
        file, self._file = buffered(blob)

        def opener(path: str, mode: str = "rb") -> BufferedReader:
            if path != name:  # what may lie beside a file
                raise FileNotFoundError(path)
            return file

        return self._passing_errors(lambda: rasterio.open(name, driver=driver, opener=opener))

    def _passing_errors(self, action: Callable[[], T]) -> T:
        """What `action` gives; GDAL hides why bytes that do not lie in a file of their own cannot be read."""
        try:
            return action()
        except RasterioError:
            if not (self._file and self._file.error):
                raise
            error, self._file.error = (
                self._file.error,
                None,
            )  # the scene may stay open until a store answers again
            raise error from None

    def header(self, window: Window | None, selection: Selection) -> Header:
        width, height = self.dataset.width, self.dataset.height
        if window:
            check_window(window, width, height)
        self._check_blocks(window)
        x, y, w, h = window or (0, 0, width, height)
        lat, lon = self._lat_lon(x + w / 2, y + h / 2)
        left, bottom, right, top = self._bounds(x, y, w, h)
        return Header(
            width=w,
            height=h,
            bands=len(self._indexes(selection)),
            dtype=self._dtype,
            bytes=self._size,
            crs=self._crs and self._crs_name,
            gsd=self._gsd(lat),
            centre_lat=lat,
            centre_lon=lon,
            timestamp=self._timestamp,
            left=left,
            bottom=bottom,
            right=right,
            top=top,
        )

    def read(self, window: Window | None, selection: Selection) -> Image:
        width, height = self.dataset.width, self.dataset.height
        if window:
            check_window(window, width, height)
        x, y, w, h = window or (0, 0, width, height)
        check_size(w, h)
        indexes = self._indexes(selection)
        if w * h * len(indexes) > _MAX_VALUES:
            raise UnreadableImage(
                f"has {len(indexes)} bands of {w} x {h} pixels, more than are decoded at once"
            )
        self._check_blocks(window)
        part = windows.Window(x, y, w, h)
        with decoding("is not complete or damaged"):
            try:
                pixels = self._passing_errors(lambda: self.dataset.read(indexes, window=part))
                valid = self._passing_errors(lambda: self._valid(part, selection, indexes))
            except RasterioError as error:
                # "Read failed. See previous exception" says nothing; its cause names the block.
                raise UnreadableImage(f"is truncated or damaged: {error.__cause__ or error}") from error
            nodata = [self.dataset.nodatavals[i - 1] for i in indexes]
            return as_image(np.moveaxis(pixels, 0, -1), valid, nodata, [selection.nodata])

    def close(self) -> None:
        self._close()

    def _check_blocks(self, window: Window | None) -> None:
        """Refuses blocks that would fill memory for little of them. Raises `UnreadableImage`."""
        height, width = max(self.dataset.block_shapes, key=math.prod)
        # One block holds all bands, unless these are stored one after another.
        bands = self.dataset.count if self.dataset.interleaving == Interleaving.pixel else 1
        size = height * width * bands * max(np.dtype(d).itemsize for d in self.dataset.dtypes)
        if size > (_MAX_BLOCK if window else 4 * _MAX_BLOCK):
            raise UnreadableImage(
                f"is stored in blocks of {width} x {height} pixels ({size >> 20} MB), too large to be decoded at once: "
                "tile it with gdal_translate -co TILED=YES -co COMPRESS=DEFLATE -co BIGTIFF=IF_SAFER IN.tif OUT.tif"
            )

    def _indexes(self, selection: Selection) -> tuple[int, ...]:
        indexes = selection.indexes(self.dataset.count)
        return indexes if selection.bands else tuple(i for i in indexes if i != self._alpha)

    def _valid(
        self, part: windows.Window, selection: Selection, indexes: tuple[int, ...]
    ) -> np.ndarray | None:
        if self._alpha:
            if self._alpha in indexes or self._alpha == selection.mask_band:
                return None
            return self.dataset.read(self._alpha, window=part) > 0
        if MaskFlags.per_dataset in self.dataset.mask_flag_enums[0]:
            return self.dataset.read_masks(1, window=part) > 0
        return None

    @cached_property
    def _crs_name(self) -> str:
        return str(self._crs.to_string()) if self._crs else ""

    def _lat_lon(self, x: float, y: float) -> tuple[float | None, float | None]:
        if not self._crs or self._transform.is_identity:
            return None, None
        t = self._transform
        east, north = t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f
        if self._crs_name != "EPSG:4326":
            try:
                (east,), (north,) = transform(self._crs, CRS.from_epsg(4326), [east], [north])
            except Exception:  # local grids have no place on Earth; GDAL's own errors share no public class
                return None, None
        return (north, east) if math.isfinite(north) and math.isfinite(east) else (None, None)

    def _bounds(self, x: int, y: int, w: int, h: int) -> tuple[float, ...] | tuple[None, ...]:
        # A local grid has a name that grids elsewhere have as well, so its coordinates say nothing.
        on_earth = self._crs and (self._crs.is_projected or self._crs.is_geographic)
        if not on_earth or self._transform.is_identity:
            return (None,) * 4
        t, corners = self._transform, [(x, y), (x + w, y), (x, y + h), (x + w, y + h)]
        east = [t.a * i + t.b * j + t.c for i, j in corners]
        north = [t.d * i + t.e * j + t.f for i, j in corners]
        return min(east), min(north), max(east), max(north)

    def _gsd(self, lat: float | None) -> float | None:
        if not self._crs or self._transform.is_identity:
            return None
        pixel = math.sqrt(abs(self._transform.determinant))
        if self._crs.is_projected:
            return pixel * self._crs.linear_units_factor[1]
        if self._crs.is_geographic and lat is not None:
            return pixel * _METRES_PER_DEGREE * math.sqrt(math.cos(math.radians(lat)))
        return None

    @cached_property
    def _timestamp(self) -> str | None:
        tags = {**self.dataset.tags(), **self.dataset.tags(ns="IMAGERY")}
        found = next((tags[name] for name in _TIME_TAGS if tags.get(name)), None)
        if found is None:
            return None
        try:
            return datetime.strptime(found, "%Y:%m:%d %H:%M:%S").isoformat()
        except ValueError:
            return found


def _common(dtypes: tuple[str, ...]) -> str:
    return dtypes[0] if len(set(dtypes)) == 1 else np.result_type(*dtypes).name
