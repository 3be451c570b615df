"""TIFF, BigTIFF and JPEG 2000 files by rasterio: windowed reads, masks, coordinates."""

from __future__ import annotations

import math
import warnings
from contextlib import ExitStack
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import rasterio
from rasterio import windows
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import transform

from rsprune.errors import UnreadableImage
from rsprune.sources.bands import Selection, as_image, stored_dtype
from rsprune.sources.base import Header, Image, Window
from rsprune.sources.codecs import MAX_PIXELS, check_size, check_window, decoding

_MAX_VALUES = 4 * MAX_PIXELS  # pixels times bands decoded at once
_METRES_PER_DEGREE = 111_320.0  # of latitude
_TIME_TAGS = ("ACQUISITIONDATETIME", "ACQUISITION_DATETIME", "TIFFTAG_DATETIME")  # the first found counts


class RasterScene:
    """A file that is read window by window.

    An alpha band is a mask, not a band, unless the bands to read name it: GDAL marks the fourth band of 8-bit
    files as alpha unless told otherwise, and in remote sensing that band is often the near infrared.
    """

    def __init__(self, path: str, size: int, driver: str):
        self._size = size
        with ExitStack() as files, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            # "TRUE" keeps GDAL from listing the folder at every open; it still finds masks beside the file.
            files.enter_context(rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"))
            if any("\ud800" <= c <= "\udfff" for c in path):  # GDAL takes names in UTF-8 only
                path = files.enter_context(Path(path).open("rb"))
            self._dataset = dataset = files.enter_context(rasterio.open(path, driver=driver))
            self._dtype = stored_dtype(_common(dataset.dtypes))
            self._transform = dataset.transform  # asked for here because rasterio warns again at every access
            alpha = [i for i, c in enumerate(dataset.colorinterp, 1) if c == ColorInterp.alpha]
            self._alpha = alpha[-1] if alpha and len(alpha) < dataset.count else None
            self._crs = dataset.crs or None
            self._close = files.pop_all().close

    def header(self, window: Window | None, selection: Selection) -> Header:
        width, height = self._dataset.width, self._dataset.height
        if window:
            check_window(window, width, height)
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
        width, height = self._dataset.width, self._dataset.height
        if window:
            check_window(window, width, height)
        x, y, w, h = window or (0, 0, width, height)
        check_size(w, h)
        indexes = self._indexes(selection)
        if w * h * len(indexes) > _MAX_VALUES:
            raise UnreadableImage(
                f"has {len(indexes)} bands of {w} x {h} pixels, more than are decoded at once"
            )
        part = windows.Window(x, y, w, h)
        with decoding("is not complete or damaged"):
            try:
                pixels = self._dataset.read(indexes, window=part)
                valid = self._valid(part, selection, indexes)
            except RasterioError as error:
                # "Read failed. See previous exception" says nothing; its cause names the block.
                raise UnreadableImage(f"is truncated or damaged: {error.__cause__ or error}") from error
            nodata = [self._dataset.nodatavals[i - 1] for i in indexes]
            return as_image(np.moveaxis(pixels, 0, -1), valid, nodata, [selection.nodata])

    def close(self) -> None:
        self._close()

    def _indexes(self, selection: Selection) -> tuple[int, ...]:
        indexes = selection.indexes(self._dataset.count)
        return indexes if selection.bands else tuple(i for i in indexes if i != self._alpha)

    def _valid(
        self, part: windows.Window, selection: Selection, indexes: tuple[int, ...]
    ) -> np.ndarray | None:
        if self._alpha:
            if self._alpha in indexes or self._alpha == selection.mask_band:
                return None
            return self._dataset.read(self._alpha, window=part) > 0
        if MaskFlags.per_dataset in self._dataset.mask_flag_enums[0]:
            return self._dataset.read_masks(1, window=part) > 0
        return None

    @cached_property
    def _crs_name(self) -> str:
        return self._crs.to_string()

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
        tags = {**self._dataset.tags(), **self._dataset.tags(ns="IMAGERY")}
        found = next((tags[name] for name in _TIME_TAGS if tags.get(name)), None)
        if found is None:
            return None
        try:
            return datetime.strptime(found, "%Y:%m:%d %H:%M:%S").isoformat()
        except ValueError:
            return found


def _common(dtypes: tuple[str, ...]) -> str:
    return dtypes[0] if len(set(dtypes)) == 1 else np.result_type(*dtypes).name
