"""Kept windows as a list of scenes and windows, with their footprints for a geographic information system."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rsprune.errors import ConfigError
from rsprune.export.folder import Folder
from rsprune.files import write_table

TABLE, FOOTPRINTS = "kept.parquet", "footprints.geojson"
_WGS84 = "OGC:CRS84"  # longitude and latitude in degrees, as GeoJSON and GeoParquet expect them
_ABOUT = ("id", "uri", "rank", "cluster", "scene", "gsd", "timestamp")


def write_footprints(kept: pa.Table, folder: Folder) -> None:
    """Writes ``kept.parquet`` (GeoParquet) and ``footprints.geojson``, best image first.

    Raises:
        ConfigError: an image has no coordinates, or no file of its own that a list can name.
    """
    without = kept.filter(pc.or_(kept["crs"].is_null(), kept["left"].is_null()))
    if len(without):
        raise ConfigError(
            f"{len(without):,} of {len(kept):,} kept images have no coordinates (first: {without['id'][0]}): "
            "export them with --format list"
        )
    shapes = _shapes(kept)
    corners = np.concatenate([np.asarray(ring) for shape in shapes for ring in _rings(shape)])
    geometry = {
        "encoding": "WKB",
        "geometry_types": sorted({shape["type"] for shape in shapes}),
        "bbox": [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()],
    }
    about = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    table = kept.drop_columns(["source", "stamp", "status", "error"])
    table = table.append_column("geometry", pa.array([_wkb(shape) for shape in shapes], pa.binary()))
    folder.begin([TABLE, FOOTPRINTS])
    write_table(folder.path / TABLE, table.replace_schema_metadata({"geo": json.dumps(about)}))

    def write(target: Path) -> None:
        with target.open("w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "name": "kept", "features": [\n')
            file.writelines(_features(kept, shapes))
            file.write("\n]}\n")

    folder.place(FOOTPRINTS, write)
    folder.finish([TABLE, FOOTPRINTS])


def _features(kept: pa.Table, shapes: list[dict[str, Any]]) -> Iterator[str]:
    for i, (row, shape) in enumerate(zip(kept.select(_ABOUT).to_pylist(), shapes, strict=True)):
        feature = {"type": "Feature", "properties": row, "geometry": shape}
        yield (",\n" if i else "") + json.dumps(feature, ensure_ascii=False, allow_nan=False)


def _shapes(kept: pa.Table) -> list[dict[str, Any]]:
    """GeoJSON geometry of every image in degrees, cut where it crosses the antimeridian."""
    from rasterio.errors import RasterioError
    from rasterio.warp import transform, transform_geom

    shapes: list[dict[str, Any]] = [{}] * len(kept)
    bounds = np.column_stack([kept[n].to_numpy() for n in ("left", "bottom", "right", "top")])
    names = np.array(kept["crs"].to_pylist(), dtype=object)
    for crs in sorted(set(names)):
        rows = np.flatnonzero(names == crs)
        left, bottom, right, top = bounds[rows].T
        # Counter-clockwise, as GeoJSON wants the outer ring.
        x, y = np.stack([left, right, right, left, left]), np.stack([bottom, bottom, top, top, bottom])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lon, lat = transform(crs, _WGS84, x.ravel().tolist(), y.ravel().tolist())
        except RasterioError as error:
            raise ConfigError(f"coordinates in {crs} cannot be turned into degrees: {error}") from None
        lon, lat = np.reshape(lon, x.shape), np.reshape(lat, y.shape)
        for i, row in enumerate(rows):
            ring = np.round(np.column_stack([lon[:, i], lat[:, i]]), 9).tolist()
            shapes[row] = {"type": "Polygon", "coordinates": [ring]}
            if np.ptp(lon[:, i]) > 180:
                native = np.column_stack([x[:, i], y[:, i]]).tolist()
                shapes[row] = transform_geom(
                    crs, _WGS84, {"type": "Polygon", "coordinates": [native]}, antimeridian_cutting=True
                )
    return shapes


def _rings(shape: dict[str, Any]) -> list[Any]:
    polygons = [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]
    return [ring for polygon in polygons for ring in polygon]


def _wkb(shape: dict[str, Any]) -> bytes:
    """Well-known binary, little-endian, of a Polygon or a MultiPolygon."""
    if shape["type"] == "Polygon":
        rings = b"".join(
            struct.pack("<I", len(ring)) + np.asarray(ring, "<f8").tobytes() for ring in shape["coordinates"]
        )
        return struct.pack("<BII", 1, 3, len(shape["coordinates"])) + rings
    parts = [_wkb({"type": "Polygon", "coordinates": polygon}) for polygon in shape["coordinates"]]
    return struct.pack("<BII", 1, 6, len(parts)) + b"".join(parts)
