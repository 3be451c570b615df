"""The kept images for whatever trains on them: lists, files, shards or tables."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa

from rsprune.errors import ConfigError
from rsprune.export.files import write_files
from rsprune.export.folder import MARKER, Folder, writing
from rsprune.export.footprints import write_footprints
from rsprune.export.tables import write_tables
from rsprune.export.webdataset import write_webdataset
from rsprune.files import write_atomic, write_table
from rsprune.reading import COLUMNS, Reader
from rsprune.run import Run
from rsprune.sources import ids
from rsprune.sources.store import is_url

__all__ = ["FORMATS", "MARKER", "ExportResult", "Format", "export"]

Format = Literal["list", "copy", "symlink", "webdataset", "parquet", "huggingface", "geotiff-list"]
FORMATS = get_args(Format)
_LISTED = ["id", "uri", "rank", "cluster", "scene", "x", "y", "w", "h", "member"]
_FOOTPRINT = ["crs", "gsd", "timestamp", "left", "bottom", "right", "top"]


@dataclass(frozen=True)
class ExportResult:
    """Number of kept images and the folder that they were written to."""

    count: int
    path: Path


def export(
    run: Run, out: str | os.PathLike[str], format: Format = "list", *, shard_size: float = 500
) -> ExportResult:
    """Writes the kept images into folder `out`; the same call again gives the same files.

    ===============  ========================================================================================
    `list`           ``kept.txt`` and ``kept.parquet``, best first.
    `copy`           Every file, with its sidecars, at the path that its id names.
    `symlink`        Links instead of copies.
    `webdataset`     Tar shards with the original files and their sidecars, and a table of what lies where.
    `parquet`        Tables with the bytes of the images.
    `huggingface`    The same as a folder that `datasets.load_dataset` reads.
    `geotiff-list`   Scenes and windows with their footprints, as GeoParquet and GeoJSON.
    ===============  ========================================================================================

    A window becomes a lossless crop: a GeoTIFF with its coordinates or, where the scene is a JPEG, PNG or WebP file,
    a PNG. Files of an earlier export into `out` that are not wanted any more are removed. What was written can be
    read back as a source, with the same ids.

    Args:
        run: A run with a finished selection.
        out: Folder to write to; new, empty, or of an earlier export.
        format: What to write.
        shard_size: Most megabytes per shard or table; a larger image has one of its own.

    Raises:
        ConfigError: `out` holds other files, the images do not suit the format, or some images are not there any
            more (the others are exported all the same).
    """
    if format not in FORMATS:
        raise ConfigError(f"there is no export format {format!r}: give one of {', '.join(FORMATS)}")
    if not shard_size > 0:
        raise ConfigError(f"--shard-size is {shard_size:g}: give megabytes above 0")
    out = Path(out)
    kept = _kept(run, _FOOTPRINT if format == "geotiff-list" else [])
    inside = kept["w"].null_count < len(kept) or kept["member"].null_count < len(kept)
    if format == "symlink" and (inside or any(is_url(ids.decode(uri)) for uri in kept["uri"].to_pylist())):
        raise ConfigError(
            "windows of scenes, members of shards and tables and images in a store are no files to link to: "
            "export them with --format copy"
        )
    failed: dict[str, str] = {}
    with writing(out):
        folder = Folder(out)
        shard_bytes = int(shard_size * 1e6)
        if format == "list":
            _write_list(kept, folder)
        elif format == "geotiff-list":
            write_footprints(kept, folder)
        elif format in ("copy", "symlink"):
            failed = write_files(kept.to_pylist(), Reader(run), folder, link=format == "symlink")
        elif format == "webdataset":
            failed = write_webdataset(kept, Reader(run), folder, shard_bytes)
        else:
            total = len(run.table("select", ["rank"]))
            failed = write_tables(
                kept, Reader(run), folder, shard_bytes, huggingface=format == "huggingface", total=total
            )
    if failed:
        first = next(id for id in kept["id"].to_pylist() if id in failed)
        raise ConfigError(
            f"{len(failed):,} of {len(kept):,} kept images could not be exported to {out} "
            f"(first: {first} {failed[first]}), the others are there: mend them and export again"
        )
    return ExportResult(len(kept), out)


def _kept(run: Run, more: list[str]) -> pa.Table:
    """Kept images, best first: what was decided, where they lie, and `more` columns of the manifest."""
    decisions = run.table("select", ["id", "kept", "rank", "cluster", "scene"])
    kept = decisions["kept"]
    manifest = run.table("scan", [*COLUMNS, *more]).filter(kept)
    table = decisions.filter(kept).drop_columns("kept")
    if not manifest["id"].equals(table["id"]):
        raise ConfigError(f"{run.path} has decisions about other images: run 'rsprune select' again")
    for name in manifest.column_names[1:]:
        table = table.append_column(name, manifest[name])
    return table.sort_by("rank")


def _write_list(kept: pa.Table, folder: Folder) -> None:
    files = ["kept.txt", "kept.parquet"]
    folder.begin(files)
    text = "".join(f"{id}\n" for id in kept["id"].to_pylist()).encode()
    write_atomic(folder.path / "kept.txt", lambda f: f.write(text))
    write_table(folder.path / "kept.parquet", kept.select(_LISTED))
    folder.finish(files)
