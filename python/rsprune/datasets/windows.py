"""The kept windows of scenes as a sampler of torchgeo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyproj
import shapely
import torch
from torchgeo.datasets import GeoDataset
from torchgeo.samplers import GeoSampler

from rsprune.datasets.chosen import RunPath, chosen, open_run
from rsprune.errors import ConfigError
from rsprune.sources import ids

_EDGES = ("left", "bottom", "right", "top")


class KeptWindowSampler(GeoSampler):
    """Asks a `GeoDataset` for the kept windows of a run, best first.

    The data set may hold more than what was pruned, such as more bands, or labels of the same ground. A window is
    asked for at the time of the scene that it was cut from; where that is no file of the data set, of the entry that
    covers most of it. Windows of which less than half lies in the data set are left out.

    Args:
        dataset: What is sampled from.
        run: A run over images with coordinates, with a finished selection; or its folder.
        size: Side (pixels of the data set) of what is asked for around the middle of each window; None asks for the
            windows themselves, which are of different size where they come from several coordinate systems.
        shuffle: Another order in every epoch.
        generator: What `shuffle` draws from.

    Attributes:
        ids: Of the windows that are sampled, best first.

    Raises:
        ConfigError: The run is not finished, its images have no coordinates, or none lies in the data set.
    """

    def __init__(
        self,
        dataset: GeoDataset,
        run: RunPath,
        *,
        size: int | None = None,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        # The base class only settles a region, which is ours to choose, and takes other arguments in every version.
        if size is not None and size < 1:
            raise ConfigError(f"size is {size}: give at least 1 pixel")
        self.shuffle = shuffle
        self.generator = generator
        run = open_run(run)
        kept = chosen(run, columns=["crs", *_EDGES])
        if kept["crs"].null_count:
            raise ConfigError(f"{run.path} keeps images without coordinates: torchgeo has no use for them")
        bounds = _in_crs(
            np.column_stack([kept[e].to_numpy() for e in _EDGES]), kept["crs"].to_pylist(), dataset.crs
        )
        if size is not None:
            side = np.array(dataset.res) * size
            # Whole pixels from the corner of the window, so that no pixel has to be interpolated.
            away = (bounds[:, 2:] - bounds[:, :2] - side) / 2
            corner = bounds[:, :2] + np.round(away / dataset.res) * dataset.res
            bounds = np.hstack([corner, corner + side])
        paths = [ids.decode(uri) for uri in kept["uri"].to_pylist()]
        windows, entries = _entries(dataset.index, bounds, paths)
        if not len(windows):
            raise ConfigError(
                f"no kept window of {run.path} lies in the data set: give the scenes of the run"
            )
        self.ids: list[str] = kept["id"].take(windows).to_pylist()
        self._bounds = bounds[windows]
        self._times: pd.IntervalIndex = dataset.index.index[entries]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[slice, slice, slice]]:
        """Slices of x, y and time, as a `GeoDataset` is indexed."""
        order = (
            torch.randperm(len(self), generator=self.generator).tolist() if self.shuffle else range(len(self))
        )
        for i in order:
            left, bottom, right, top = self._bounds[i].tolist()
            time = self._times[i]
            yield slice(left, right), slice(bottom, top), slice(time.left, time.right)


def _in_crs(bounds: np.ndarray, names: list[str], crs: pyproj.CRS) -> np.ndarray:
    """The boxes [N, 4] around `bounds` [N, 4], each in the system of that name, in `crs`."""
    out = bounds.copy()
    of = np.array(names, dtype=object)
    for name in sorted(set(names)):
        own = pyproj.CRS.from_user_input(name)
        if own == crs:
            continue
        rows = np.flatnonzero(of == name)
        left, bottom, right, top = bounds[rows].T
        turned = pyproj.Transformer.from_crs(own, crs, always_xy=True).transform(
            np.stack([left, right, right, left]), np.stack([bottom, bottom, top, top])
        )
        x, y = (np.asarray(values) for values in turned)
        out[rows] = np.column_stack([x.min(0), y.min(0), x.max(0), y.max(0)])
    return out


def _entries(index: pd.DataFrame, bounds: np.ndarray, paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Windows that lie in the data set [M], and the row of its index [M] that each of them is taken from."""
    boxes = shapely.box(*bounds.T)
    shapes = index.geometry.to_numpy()
    window, entry = index.sindex.query(boxes, predicate="intersects")
    inside = shapely.area(shapely.intersection(boxes[window], shapes[entry])) / shapely.area(boxes[window])
    window, entry, inside = (a[inside > 0.5] for a in (window, entry, inside))
    # A combined data set has one column of files for each of its own.
    columns = [index[name].tolist() for name in index.columns if str(name).startswith("filepath")]
    files = [{str(Path(str(path)).absolute()) for path in row} for row in zip(*columns, strict=True)]
    same = np.array(
        [bool(files) and paths[w] in files[e] for w, e in zip(window, entry, strict=True)], dtype=bool
    )
    order = np.lexsort((entry, -inside, ~same, window))
    window, entry = window[order], entry[order]
    first = np.r_[True, window[1:] != window[:-1]] if len(window) else np.zeros(0, bool)
    return window[first], entry[first]
