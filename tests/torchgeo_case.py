"""A data set of torchgeo over scenes; a stand-in for the package where it is not installed.

torchgeo brings torchvision, whose wheels fit no CPU build of torch. The stand-in has what `KeptWindowSampler` touches: a
`GeoSampler` to derive from, and a data set with `index` (geometries and file paths by time interval), `crs` and `res`
that is asked with three slices, as torchgeo 0.8 to 0.10 have them.
"""

from __future__ import annotations

import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import geopandas
import pandas as pd
import pyproj
import rasterio
import rasterio.merge
import shapely
import torch
from torch.utils.data import Dataset, Sampler

REAL = importlib.util.find_spec("torchgeo") is not None


class _GeoDataset(Dataset):
    pass


class _GeoSampler(Sampler, ABC):
    def __init__(self, dataset: Any, roi: Any = None, toi: Any = None) -> None:
        raise AssertionError("is for samplers that choose a region")

    @abstractmethod
    def __iter__(self): ...


class _Rasters(_GeoDataset):
    def __init__(self, paths: Sequence[Path], crs: Any = None) -> None:
        shapes, times = [], []
        for path in paths:
            with rasterio.open(path) as scene:
                self.res = scene.res
                crs = crs or scene.crs.to_wkt()
                box = geopandas.GeoSeries([shapely.box(*scene.bounds)], crs=scene.crs.to_wkt()).to_crs(crs)
                shapes.append(box.iloc[0])
            times.append(span(path))
        index = pd.IntervalIndex.from_tuples(times, closed="both", name="datetime")
        data = {"filepath": [str(p) for p in paths]}
        self.index = geopandas.GeoDataFrame(data, index=index, geometry=shapes, crs=crs)

    @property
    def crs(self) -> pyproj.CRS:
        return self.index.crs

    def __getitem__(self, query: tuple[slice, slice, slice]) -> dict[str, Any]:
        x, y, t = query
        index = self.index.iloc[self.index.index.overlaps(pd.Interval(t.start, t.stop))]
        index = index.cx[x.start : x.stop, y.start : y.stop]
        bounds = x.start, y.start, x.stop, y.stop
        pixels, _ = rasterio.merge.merge(list(index.filepath), bounds, self.res)
        return {"image": torch.from_numpy(pixels).float()}


def span(path: Path) -> tuple[pd.Timestamp, pd.Timestamp]:
    """The day that a scene such as ``a_20240131.tif`` names."""
    day = pd.Timestamp(path.stem.partition("_")[2])
    return day, day + pd.Timedelta("23:59:59")


def rasters(paths: Sequence[Path], crs: Any = None) -> Any:
    """A data set over scenes whose names end in their day."""
    if not REAL:
        return _Rasters(paths, crs)
    from torchgeo.datasets import RasterDataset

    class Scenes(RasterDataset):
        filename_regex = r".*_(?P<date>\d{8})\.tif"

    return Scenes([str(p) for p in paths], crs=crs and pyproj.CRS.from_user_input(crs))


@contextmanager
def installed() -> Iterator[None]:
    """Has the stand-in where torchgeo is not installed; afterwards it is gone, so that no other test takes it for real."""
    if REAL:
        yield
        return
    modules = {name: ModuleType(name) for name in ("torchgeo", "torchgeo.datasets", "torchgeo.samplers")}
    modules["torchgeo.datasets"].GeoDataset = _GeoDataset
    modules["torchgeo.samplers"].GeoSampler = _GeoSampler
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
