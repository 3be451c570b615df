"""Time slices of a Zarr or NetCDF cube as images: its variables over [time, y, x], by name, are the bands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray

from rsprune.config import SourceConfig
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources import ids
from rsprune.sources.bands import Selection, as_image, stored_dtype
from rsprune.sources.base import Header, Image, Item, Window


class CubeSource:
    """``cube:PATH`` or ``cube:URL``; ids are the labels of the first dimension, such as ``time/2020-06-01``."""

    def __init__(self, config: SourceConfig, *, prefix: str = ""):
        self.path, self.prefix = config.path.partition(":")[2], ids.encode(prefix)
        self.selection, self.tile, self.stride = (
            Selection(config.bands),
            config.tile,
            config.stride or config.tile,
        )
        self.nodata = config.nodata
        try:
            kind = {"engine": "zarr"} if self.path.rstrip("/").endswith(".zarr") else {}
            cube = xarray.open_dataset(self.path, decode_times=True, mask_and_scale=False, **kind)
        except (OSError, ValueError, ImportError) as e:
            raise ConfigError(f"{self.path} is no cube that xarray opens ({e})") from None
        found = {v.dims for v in cube.data_vars.values() if v.ndim == 3}
        if len(found) != 1:
            raise ConfigError(
                f"{self.path} has no variables over one [time, y, x]: it has {sorted(map(str, found))}"
            )
        self.over, self.y, self.x = found.pop()
        names = sorted(n for n, v in cube.data_vars.items() if v.ndim == 3)  # Zarr keeps no order
        self.bands = [cube[name] for name in names]
        self.labels = [str(v).removesuffix(".000000000") for v in cube[self.over].values]
        self.dtype = stored_dtype(np.result_type(*(v.dtype for v in self.bands)).name)

    def items(self) -> Iterator[Item]:
        height, width = self.bands[0].shape[1:]
        w, h = min(self.tile or width, width), min(self.tile or height, height)
        uri, stamp = ids.encode(self.path), self._stamp()
        for name, step in sorted(
            (ids.encode(f"{self.over}/{label}"), i) for i, label in enumerate(self.labels)
        ):
            if not self.tile:
                yield Item(self.prefix + name, uri, None, str(step), stamp)
                continue
            windows = (
                Window(x, y, w, h)
                for x in range(0, width - w + 1, self.stride)
                for y in range(0, height - h + 1, self.stride)
            )
            for id, window in sorted(
                (ids.window_id(self.prefix + name, window), window) for window in windows
            ):
                yield Item(id, uri, window, str(step), stamp)

    def header(self, item: Item) -> Header:
        height, width = self.bands[0].shape[1:]
        _, _, w, h = item.window or (0, 0, width, height)
        count = len(self.selection.indexes(len(self.bands)))
        return Header(w, h, count, self.dtype, 0, timestamp=self.labels[int(item.member)])

    def read(self, item: Item) -> Image:
        chosen = [self.bands[i - 1] for i in self.selection.indexes(len(self.bands))]
        x, y, w, h = item.window or (0, 0, *reversed(chosen[0].shape[1:]))
        part = {self.over: int(item.member), self.y: slice(y, y + h), self.x: slice(x, x + w)}
        try:
            pixels = np.stack([band.isel(part).values for band in chosen], axis=-1)
        except (OSError, ValueError, RuntimeError) as e:  # a chunk that is damaged or gone
            raise UnreadableImage(f"cannot be read: {' '.join(str(e).split())}") from e
        markers = [band.attrs.get("_FillValue") for band in chosen]
        return as_image(pixels.astype(self.dtype, copy=False), None, markers, [self.nodata])

    def _stamp(self) -> str:
        path = Path(self.path)
        return f"{path.stat().st_size}-{path.stat().st_mtime_ns}" if path.exists() else ""
