"""Kept images with their bytes, one after another, cut into shards of a given size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rsprune.crops import crop, crop_suffix
from rsprune.errors import UnreadableImage
from rsprune.export.folder import Folder
from rsprune.export.names import path_parts
from rsprune.reading import Reader, item_of

_BATCH = 1024  # rows held as Python objects


@dataclass(frozen=True)
class Sample:
    """A kept image: its `row`, and its `files` by extension, the image first."""

    row: Mapping[str, Any]
    files: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(map(len, self.files.values()))


def samples(kept: pa.Table, reader: Reader, failed: dict[str, str]) -> Iterator[Sample]:
    """Images in the order that they lie in, which their sources read fastest; adds reasons to `failed` by id."""
    # Members of a table are row numbers, those of a shard byte offsets: both sort as the number they begin with.
    # Those of a plug-in's source may be anything, and stay as they are listed.
    digits = pc.extract_regex(kept["member"].cast(pa.string()), r"^(?P<at>\d{1,18})")
    table = kept.append_column("_at", pc.struct_field(digits, "at").cast(pa.int64()))
    order = pc.sort_indices(table, [(n, "ascending") for n in ("uri", "_at", "y", "x", "id")])
    for start in range(0, len(order), _BATCH):
        for row in kept.take(order[start : start + _BATCH]).to_pylist():
            try:
                item = item_of(row)
                path_parts(item)
                files = reader.originals(row) if item.window is None else {crop_suffix(item)[1:]: crop(item)}
            except UnreadableImage as error:
                failed[row["id"]] = str(error)
            else:
                yield Sample(row, files)


def write_shards(
    found: Iterator[Sample],
    folder: Folder,
    name: Callable[[int], str],
    write: Callable[[Path, Iterator[Sample]], None],
    shard_bytes: int,
) -> list[tuple[str, list[str]]]:
    """Writes samples to files of about `shard_bytes`; the names of the files and the ids in each."""
    shards: list[tuple[str, list[str]]] = []
    following = next(found, None)
    while following is not None:
        ids: list[str] = []

        def part() -> Iterator[Sample]:
            nonlocal following
            size = 0
            while following is not None and (not ids or size + following.size <= shard_bytes):  # noqa: B023
                size += following.size
                ids.append(following.row["id"])  # noqa: B023
                yield following
                following = next(found, None)

        file = name(len(shards))
        folder.begin([file])
        folder.place(file, lambda target: write(target, part()))
        shards.append((file, ids))
    return shards
