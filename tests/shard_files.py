"""Small tar shards, Parquet files and what is wrong with wrong ones."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from image_files import encoded, texture


def png(seed: int = 0, size: int = 24) -> bytes:
    return encoded(texture(size, size, seed=seed))


def write_shard(path: Path, members: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> Path:
    """A tar file of those members, in that order; names may come again."""
    with tarfile.open(path, "w") as shard:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is a link, a device or a folder."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def add(path: Path, *members: tarfile.TarInfo) -> None:
    """Puts members without content after those of a shard."""
    with tarfile.open(path, "a") as shard:
        for member in members:
            shard.addfile(member)


def write_table(file: Path, rows_per_group: int = 2, /, **columns) -> Path:
    """A Parquet file; `image` may be a list of (bytes, path)."""
    if isinstance(columns.get("image"), list) and isinstance(columns["image"][0], tuple):
        both = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        columns["image"] = pa.array([{"bytes": b, "path": p} for b, p in columns["image"]], both)
    pq.write_table(pa.table(columns), file, row_group_size=rows_per_group)
    return file
