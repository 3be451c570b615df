"""The list of images, cut into parts that an added or a removed image changes only where it stands.

The list is never held as a whole: it streams from the sources into one small file per part that is not scanned yet.
"""

from __future__ import annotations

import heapq
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from rsprune.config import SourceConfig
from rsprune.files import is_whole, write_table
from rsprune.reading import open_sources
from rsprune.resume import images_of
from rsprune.run import Run
from rsprune.sources.base import Item

LISTING = pa.schema(
    {
        "id": pa.string(), "uri": pa.string(), "source": pa.int16(),
        "x": pa.int32(), "y": pa.int32(), "w": pa.int32(), "h": pa.int32(),
        "member": pa.string(), "stamp": pa.string(),
    }
)  # fmt: skip

Listed = tuple[int, Item]  # number of the source, and what it listed


@dataclass(frozen=True)
class Listing:
    """Names of the parts that the images make, and how many images there are."""

    names: tuple[str, ...]
    images: int


def list_parts(run: Run, configs: Sequence[SourceConfig], size: int) -> Listing:
    """Lists the sources into parts of about `size` images."""
    listed = [zip(itertools.repeat(i), source.items()) for i, source in enumerate(open_sources(configs))]
    return write_parts(run, cut(heapq.merge(*listed, key=lambda pair: pair[1].id), size))


def write_parts(run: Run, parts: Iterable[Sequence[Listed]], *, again: bool = False) -> Listing:
    """Writes what each part has to `listing_path`, but not of those that have been scanned, unless `again`."""
    scanned = set() if again else _scanned(run)
    names: list[str] = []
    images = 0
    for k, part in enumerate(parts):
        rows = [(i.id, i.uri, source, *(i.window or (None,) * 4), i.member, i.stamp) for source, i in part]
        names.append(f"part-{k:06d}-{xxhash.xxh3_64_hexdigest(repr(rows).encode())}")
        images += len(rows)
        if images_of(names[-1]) not in scanned and not is_whole(path := listing_path(run.path, names[-1])):
            path.parent.mkdir(parents=True, exist_ok=True)
            columns = zip(*rows, strict=True)
            arrays = [pa.array(c, field.type) for c, field in zip(columns, LISTING, strict=True)]
            write_table(path, pa.table(arrays, schema=LISTING))
    return Listing(tuple(names), images)


def _scanned(run: Run) -> set[str]:
    marker = run.marker("scan")
    failed = marker.failed if marker else ()
    return {images_of(f.stem) for f in run.parts("scan") if f.stem not in failed and is_whole(f)}


def cut(items: Iterable[Listed], size: int) -> Iterator[list[Listed]]:
    """Lists of `size` / 2 to `size` * 3 / 2 items, which are sorted by id.

    A list ends with the item whose id has the smallest hash of those that it may end with. So all lists but one or two
    stay as they are when an item comes or goes, on any machine and wherever the data lie.
    """
    least, most = (size + 1) // 2, size + size // 2
    waiting: list[Listed] = []
    hashes: list[int] = []
    for item in items:
        if len(waiting) == most:
            end = least + int(np.argmin(np.array(hashes[least - 1 :], np.uint64)))
            yield waiting[:end]
            del waiting[:end], hashes[:end]
        waiting.append(item)
        hashes.append(xxhash.xxh3_64_intdigest(item[1].id.encode()))
    if waiting:
        yield waiting


def listing_path(folder: Path, name: str) -> Path:
    """Where the rows of a part lie between being listed and being scanned."""
    return folder / ".stages" / "listing" / f"{name}.parquet"


def forget_listing(run: Run) -> None:
    """Removes what `list_parts` wrote; the manifest has it all."""
    shutil.rmtree(run.path / ".stages" / "listing", ignore_errors=True)
