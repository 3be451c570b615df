"""Kept images as Parquet with the images inside, also laid out as a data set for Hugging Face `datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rsprune.errors import UnreadableImage
from rsprune.export.folder import Folder
from rsprune.export.names import file_name
from rsprune.export.samples import Sample, samples, write_shards
from rsprune.reading import Reader, item_of

_ROW_GROUP = 100  # images; readers decode a group at once
_TEXTS = {"caption": ("txt", "caption"), "json": ("json",), "cls": ("cls",)}  # sidecars by column
_FEATURES: dict[str, Any] = {
    "id": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
    "rank": {"dtype": "int64", "_type": "Value"},
    "cluster": {"dtype": "int32", "_type": "Value"},
    "scene": {"dtype": "string", "_type": "Value"},
    "npy": {"dtype": "binary", "_type": "Value"},
    **{column: {"dtype": "string", "_type": "Value"} for column in _TEXTS},
}
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "rank": pa.int64(),
        "cluster": pa.int32(),
        "scene": pa.string(),
        "npy": pa.binary(),
        **{column: pa.string() for column in _TEXTS},
    },
    {"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---
# Kept images

{count} images of {total}, chosen by rsprune. `rank` 0 is the best; `scene` and `cluster` say what an image was taken
for. The licence is that of the images, which rsprune does not know: add it here before this is published.
"""


def write_tables(
    kept: pa.Table, reader: Reader, folder: Folder, shard_bytes: int, *, huggingface: bool, total: int
) -> dict[str, str]:
    """Writes Parquet files of about `shard_bytes`; reasons by id of what could not be read.

    As a data set they lie in ``data``, with a card beside them; `total` is how many images were chosen from.
    """
    failed: dict[str, str] = {}
    name = ("data/train-{:05d}.parquet" if huggingface else "kept-{:05d}.parquet").format
    found = _with_text(samples(kept, reader, failed), failed)
    shards = write_shards(found, folder, name, _write, shard_bytes)
    files = [file for file, _ in shards]
    if huggingface:
        card = _CARD.format(count=f"{sum(len(ids) for _, ids in shards):,}", total=f"{total:,}")
        folder.begin(["README.md"])
        folder.place("README.md", lambda target: target.write_text(card, "utf-8"))
        files.append("README.md")
    if not failed:
        folder.finish(files)
    return failed


def _with_text(found: Iterator[Sample], failed: dict[str, str]) -> Iterator[Sample]:
    """Those whose sidecars fit the columns; adds reasons to `failed` by id."""
    for sample in found:
        try:
            _texts(sample)
        except UnreadableImage as error:
            failed[sample.row["id"]] = str(error)
        else:
            yield sample


def _texts(sample: Sample) -> dict[str, str | None]:
    texts: dict[str, str | None] = {}
    for column, extensions in _TEXTS.items():
        data = next((sample.files[e] for e in extensions if e in sample.files), None)
        try:
            texts[column] = None if data is None else data.decode()
        except UnicodeDecodeError:
            raise UnreadableImage(
                f"has a .{column} beside it that is not UTF-8 text: mend it, or export with --format webdataset"
            ) from None
    return texts


def record(sample: Sample) -> dict[str, Any]:
    """A row of `SCHEMA`. Raises `UnreadableImage` where a sidecar is not text."""
    extension, data = next(iter(sample.files.items()))
    image = {"bytes": data, "path": file_name(item_of(sample.row), extension)}
    about = {name: sample.row[name] for name in ("id", "rank", "cluster", "scene")}
    return {**about, "image": image, "npy": sample.files.get("npy"), **_texts(sample)}


def _write(target: Path, found: Iterator[Sample]) -> None:
    with pq.ParquetWriter(target, SCHEMA, compression="zstd") as writer:
        group: list[dict[str, Any]] = []
        for sample in found:
            group.append(record(sample))
            if len(group) == _ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, SCHEMA))
