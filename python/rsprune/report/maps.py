"""The two maps of the report: embeddings in two dimensions, and where on the earth images were kept."""

from __future__ import annotations

import importlib.util
import json
import math
from importlib.resources import files
from typing import Any

import numpy as np

from rsprune.columns import Columns
from rsprune.report.examples import draw

POINTS = 2000  # images in the map of the embeddings
UMAP_FROM = 50  # images; fewer have no neighbourhoods to speak of
CELLS = 64  # along the longer side of an area of the earth
AREAS_SHOWN = 12


def projection(columns: Columns, seed: int) -> dict[str, Any] | None:
    """Rows of a sample of the embedded images, and their coordinates [M, 2] by each method there is."""
    from sklearn.decomposition import PCA

    rows = draw(np.flatnonzero(columns.cluster >= 0), POINTS, seed, 2)
    x = columns.embeddings(rows)
    if len(x) < 3 or x.shape[1] < 2 or not np.ptp(x, axis=0).any():  # a single point is no map
        return None
    fitted = PCA(2, svd_solver="covariance_eigh").fit(x)
    methods = {"PCA": fitted.transform(x)}
    if has_umap() and len(x) >= UMAP_FROM:
        import umap

        methods["UMAP"] = umap.UMAP(random_state=seed % 2**32, n_jobs=1, metric="cosine").fit_transform(x)
    explained = float(fitted.explained_variance_ratio_.sum())
    return {"rows": rows, "methods": methods, "explained": explained}


def has_umap() -> bool:
    found = importlib.util.find_spec("umap")
    return found is not None and found.origin is not None  # no mere folder of that name


def land() -> list[np.ndarray]:
    """Coarse outlines of the continents: rings of longitude and latitude, degrees [n, 2]."""
    text = files("rsprune").joinpath("templates/land.json").read_text("utf-8")
    return [np.array(ring, float) for ring in json.loads(text)]


def density(columns: Columns) -> dict[str, Any] | None:
    """Where images and kept images lie; None where none has coordinates.

    Images whose degrees touch form an area. Each of the largest areas gets a grid of its own, as a collection
    is often a few scenes far apart.

    Returns:
        `located` (images with coordinates), `n_areas`, and `areas`, largest first: each with `images` and
        `kept` int64 [rows, columns] from south to north, edges `lon` and `lat` in degrees, `bounds` (south,
        north, west, east) and `aspect` (degrees of longitude to one of latitude of the same length).
    """
    from scipy.ndimage import label

    lat, lon = (columns.read("scan", name) for name in ("centre_lat", "centre_lon"))
    has = np.isfinite(lat) & np.isfinite(lon) & (np.abs(lat) <= 90)
    if not has.any():
        return None
    lat, lon, kept = lat[has], (lon[has] + 180) % 360 - 180, columns.kept[has]
    degree = np.clip(lat + 90, 0, 179).astype(int), np.clip(lon + 180, 0, 359).astype(int)
    occupied = np.zeros((180, 360), bool)
    occupied[degree] = True
    numbers, n = label(occupied, np.ones((3, 3)))
    area = numbers[degree]
    sizes = np.bincount(area, minlength=n + 1)
    largest = sorted(range(1, n + 1), key=lambda k: (-sizes[k], k))[:AREAS_SHOWN]
    areas = [_grid(lat[area == k], lon[area == k], kept[area == k]) for k in largest]
    return {"areas": areas, "n_areas": n, "located": int(has.sum())}


def _grid(lat: np.ndarray, lon: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    south, north, west, east = (float(v) for v in (lat.min(), lat.max(), lon.min(), lon.max()))
    # So that a cell is about as high as it is wide, in kilometres.
    narrower = math.cos(math.radians(min(abs(south + north) / 2, 80)))
    high, wide = north - south, (east - west) * narrower
    apart = _spacing(high, wide, len(lat))
    # A whole number of images fits into a cell, and the edges run between them: were they to run through the
    # centres of a regular grid of images, chance would decide to which side each counts.
    side = apart * max(2, math.ceil((max(high, wide) / apart + 1) / CELLS))
    edges = [
        (low - apart / 2 + side * np.arange(math.ceil((span + 0.75 * apart) / side) + 1)) / scale
        for low, span, scale in ((south, high, 1), (west * narrower, wide, narrower))
    ]
    counts = [np.histogram2d(lat[m], lon[m], bins=edges)[0].astype(int) for m in (slice(None), kept)]
    return {
        "images": counts[0], "kept": counts[1], "lat": edges[0], "lon": edges[1],
        "aspect": 1 / narrower, "bounds": (south, north, west, east),
    }  # fmt: skip


def _spacing(high: float, wide: float, n: int) -> float:
    """Distance in degrees of neighbours, were `n` images laid out evenly on a box of that size."""
    if high == wide == 0:
        return 1e-3
    if n == 1:
        return max(high, wide)
    # (high / d + 1) (wide / d + 1) = n, solved for d
    return (high + wide + math.sqrt((high + wide) ** 2 + 4 * (n - 1) * high * wide)) / (2 * (n - 1))
