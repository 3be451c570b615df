"""Kept images as WebDataset shards: the original files, byte for byte, with their sidecars."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from rsprune.export.folder import Folder
from rsprune.export.names import key
from rsprune.export.samples import Sample, samples, write_shards
from rsprune.files import write_table
from rsprune.reading import Reader, item_of

INDEX = "kept.parquet"


def write_webdataset(kept: pa.Table, reader: Reader, folder: Folder, shard_bytes: int) -> dict[str, str]:
    """Writes ``kept-000000.tar`` and so on, and a table of what lies where; reasons by id of what could not be read."""
    failed: dict[str, str] = {}
    shards = write_shards(
        samples(kept, reader, failed), folder, "kept-{:06d}.tar".format, _write, shard_bytes
    )
    ids = [id for _, mine in shards for id in mine]
    names = [name for name, mine in shards for _ in mine]
    place = pa.table({"id": pa.array(ids, pa.string()), "shard": pa.array(names, pa.string())})
    columns = kept.select(["id", "rank", "cluster", "scene"])
    index = columns.join(place, "id", join_type="inner").sort_by("rank")
    folder.begin([INDEX])
    write_table(folder.path / INDEX, index)
    if not failed:
        folder.finish([INDEX, *(name for name, _ in shards)])
    return failed


def _write(target: Path, found: Iterator[Sample]) -> None:
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for sample in found:
            # Members of one key lie beside each other; without times and owners the same images give the same bytes.
            stem = key(item_of(sample.row))
            for extension, data in sample.files.items():
                member = tarfile.TarInfo(f"{stem}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
