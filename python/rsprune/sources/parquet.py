"""Parquet tables with a row per image: its bytes in a cell, or the path of its file."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources import ids
from rsprune.sources.base import Item, Window
from rsprune.sources.blobs import MAX_BYTES, buffered
from rsprune.sources.codecs import decoding
from rsprune.sources.ordered import has_repeats
from rsprune.sources.origin import Origin
from rsprune.sources.store import blob_at, is_url

IDS = ("id", "__key__")
BYTES = (
    "image",
    "bytes",
    "image_bytes",
    "img",
    "data",
    "content",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "tif",
    "tiff",
)
PATHS = ("uri", "path", "file_name", "filename", "file", "filepath", "image_path", "image", "url")
_CAPTIONS = ("caption", "text")
_SIDECARS = ("txt", "json", "npy", "cls", "xml", "aux.xml", "prj")
_ROWS = 32  # decoded at once
_LISTED = 4096  # rows of ids at once
_KEPT = 2**28  # bytes of decoded rows that are kept, as the next image often lies beside this one
_SCHEMA = "give a column 'image' with the bytes of image files (or a struct of bytes and path), or 'path'"


@dataclass(frozen=True)
class Layout:
    """Which columns say what; `struct` where bytes and path are fields of one column."""

    id: str | None
    bytes: str | None
    path: str | None
    struct: bool
    windows: bool
    member: bool
    sidecars: tuple[tuple[str, str], ...]  # extension and column


class Table:
    """An opened Parquet file. Raises `UnreadableImage`, `OSError`; `ConfigError` where it has no images."""

    def __init__(self, path: str):
        import pyarrow.parquet as pq

        self._blob = blob_at(path)
        file, self._raw = buffered(self._blob)
        with self._reading():
            self.layout = _layout(pq.ParquetFile(file).schema_arrow, path)
            # As a dictionary a value that a million rows repeat is held once; a small file can claim just that.
            leaf = f"{self.layout.bytes}.bytes" if self.layout.struct else self.layout.bytes
            self.file = pq.ParquetFile(file, read_dictionary=[leaf] if leaf else None)
        self.rows = self.file.metadata.num_rows
        # Of images in cells the rows are not counted when they are listed; what has no bytes is no image.
        if self.rows < 0 or (self.layout.bytes and self.rows > self._blob.size):
            raise UnreadableImage(f"claims {self.rows} rows in {self._blob.size} bytes")
        self._group: _Group | None = None

    def column(self, *columns: str) -> Iterator[dict[str, Any]]:
        """Rows of those columns from the first to the last. Raises `UnreadableImage`."""
        count = 0
        with self._reading():
            for batch in self.file.iter_batches(_LISTED, columns=list(columns)):
                count += len(batch)
                if count > self.rows:
                    break
                yield from batch.to_pylist()
        if count != self.rows:
            raise UnreadableImage(f"is a Parquet file with {count} rows that claims {self.rows}")

    def row(self, row: int) -> dict[str, Any]:
        """Image and sidecars of a row. Raises `UnreadableImage`."""
        group, self._group = self._group, None  # not used again where it fails
        with self._reading():
            if group is None or row not in group.span:
                group = self._group_of(row)
            values = group.row(row)
        self._group = group
        return values

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Says what is wrong with the file, or why it could not be read at all."""
        try:
            with decoding("is in a Parquet file that is damaged"):
                yield
        except UnreadableImage:
            if self._raw.error:
                raise self._raw.error from None
            raise

    def _group_of(self, row: int) -> _Group:
        start = 0
        for number in range(self.file.metadata.num_row_groups):
            rows = self.file.metadata.row_group(number).num_rows
            if start <= row < start + rows:
                return _Group(self.file, number, range(start, start + rows), self.layout)
            start += rows
        raise UnreadableImage(f"is row {row} of a Parquet file with {start} rows: scan again")


class _Group:
    """A row group, decoded from its start as far as it was asked for; the last rows are kept."""

    def __init__(self, file: Any, number: int, span: range, layout: Layout):
        self._file, self._number, self.span, self._layout = file, number, span, layout
        self._restart()

    def _restart(self) -> None:
        columns = [self._layout.bytes, *(column for _, column in self._layout.sidecars)]
        # One thread and no read-ahead, so that no more than a batch is in memory.
        self._batches = self._file.iter_batches(
            _ROWS, row_groups=[self._number], columns=columns, use_threads=False
        )
        self._kept: list[tuple[int, Any]] = []
        self._next, self._bytes = self.span.start, 0

    def row(self, row: int) -> dict[str, Any]:
        if row < (self._kept[0][0] if self._kept else self._next):
            self._restart()
        while row >= self._next:
            batch = next(self._batches, None)
            if batch is None:
                raise UnreadableImage(f"is row {row} of a Parquet file that ends before it")
            if batch.nbytes > MAX_BYTES:
                raise UnreadableImage(
                    f"is in a Parquet file where {len(batch)} rows have {batch.nbytes} bytes"
                )
            self._kept.append((self._next, batch))
            self._next += len(batch)
            self._bytes += batch.nbytes
            while self._bytes > _KEPT and len(self._kept) > 1:
                self._bytes -= self._kept.pop(0)[1].nbytes
        start, batch = next(k for k in reversed(self._kept) if k[0] <= row)
        return {name: batch.column(name)[row - start].as_py() for name in batch.schema.names}


class _Open(threading.local):
    """The table that was read last."""

    key: tuple[Any, ...] | None = None
    table: Table | None = None


_open = _Open()


def cell(path: str, row: int) -> bytes:
    """The bytes of the image in a row of the Parquet file at `path`. Raises `UnreadableImage`."""
    return _image(_table(path), row)[0]


def originals(path: str, row: int, extension: str) -> dict[str, bytes]:
    """Image and sidecars of a row by extension; that of the image where no path names one. Raises `UnreadableImage`."""
    table = _table(path)
    data, name = _image(table, row)
    stem, dot, named = (name or "").rpartition("/")[2].rpartition(".")
    values = table.row(row)
    files = {named if stem and dot and named.isalnum() else extension: data}
    for extension, column in table.layout.sidecars:
        value = values[column]
        if value is not None:
            files.setdefault(extension, value if isinstance(value, bytes) else str(value).encode())
    return files


def _table(path: str) -> Table:
    status = None if is_url(path) else Path(path).stat()
    key = (os.getpid(), path, status and (status.st_mtime_ns, status.st_size))
    if _open.table is None or _open.key != key:
        _open.key = _open.table = None
        _open.table = Table(path)
        _open.key = key
    return _open.table


def _image(table: Table, row: int) -> tuple[bytes, str | None]:
    """Bytes of a row's image and the path it once had."""
    layout = table.layout
    if layout.bytes is None:
        raise UnreadableImage("is a row of a Parquet file that has no images any more: scan again")
    value = table.row(row)[layout.bytes]
    name = None
    if layout.struct and value is not None:
        name, value = value.get(layout.path or "path"), value["bytes"]
    if value is None:
        raise UnreadableImage("is an empty cell")
    return value, name


def index(uri: str, name: str, stamp: str, origin: Origin) -> Iterator[Item]:
    """Items of one Parquet file, in the order of its rows, their ids not yet told apart.

    Ids are those of a column `id` or `__key__`, else the paths that images once had where they differ (with the window
    where rows have one), else the name of the file with the number of the row.

    Args:
        uri: of the file.
        name: id of the file, for what is wrong with it as a whole and for rows without a name.
        stamp: of the file.
        origin: what paths in it are relative to, and which of them may be followed.

    Raises:
        ConfigError: it has no column with images.
    """
    path = ids.decode(uri)
    try:
        table = Table(path)
        yield from _items(table, uri, name, stamp, origin)
    except (UnreadableImage, OSError) as error:
        yield Item.unusable(name, uri, str(error), stamp)


def _items(table: Table, uri: str, name: str, stamp: str, origin: Origin) -> Iterator[Item]:
    layout = table.layout
    # Such a leaf is read alone: with the bytes beside it the whole file would be.
    leaf = f"{layout.bytes}.{layout.path}" if layout.struct else layout.path
    columns = [c for c in (layout.id, leaf if layout.path else None) if c]
    if layout.windows and not layout.bytes:
        columns += [*"xywh"]
    if layout.member and not layout.bytes:
        columns.append("member")

    def path_of(row: dict[str, Any]) -> str | None:
        if not layout.path:
            return None
        holder = (row[layout.bytes] or {}) if layout.struct and layout.bytes else row
        return holder.get(layout.path)

    width = len(str(max(table.rows - 1, 0)))
    paths_name = layout.id is None and bool(layout.path)
    if paths_name and leaf and layout.bytes:
        paths_name = not has_repeats(path_of(row) or "" for row in table.column(leaf))
    rows = table.column(*columns) if columns else ({} for _ in range(table.rows))
    for number, row in enumerate(rows):
        numbered = ids.encode(f"{ids.decode(name)}#{number:0{width}d}")
        path = path_of(row)
        if layout.id:
            id = None if row[layout.id] is None else ids.accept(str(row[layout.id]))
        else:
            id = origin.id_of(path) if paths_name and path else None
        numbers_name = id is None or ids.leaves_root(id)
        id = numbered if id is None or numbers_name else id
        if layout.bytes:
            yield Item(id, uri, None, str(number), stamp)
            continue
        item = _pointed(id, row, path, uri, stamp, origin)
        if item.window and not layout.id and not numbers_name:  # one path has many windows
            item = replace(item, id=ids.window_id(id, item.window))
        yield item


def _pointed(id: str, row: dict[str, Any], path: Any, uri: str, stamp: str, origin: Origin) -> Item:
    """The item of a row that names the file of its image."""
    try:
        if not isinstance(path, str) or not path:
            raise UnreadableImage("has no path")
        target = ids.encode(origin.resolve(path))
        numbers = [row.get(n) for n in "xywh"]
        window = None
        if None not in numbers:
            x, y, w, h = (n if isinstance(n, int) and 0 <= n < 2**31 else -1 for n in numbers)
            if min(x, y) < 0 or min(w, h) < 1:
                raise UnreadableImage(f"has an impossible window {numbers}")
            window = Window(x, y, w, h)
        return Item(
            id, target, window, row.get("member"), f"{stamp} {origin.stamp(ids.decode(target))}".strip()
        )
    except UnreadableImage as error:
        return Item.unusable(id, uri, str(error), stamp)


def _layout(schema: Any, path: str) -> Layout:
    import pyarrow as pa

    def is_bytes(type: Any) -> bool:
        return pa.types.is_binary(type) or pa.types.is_large_binary(type)

    def is_text(type: Any) -> bool:
        return pa.types.is_string(type) or pa.types.is_large_string(type)

    types = {field.name: field.type for field in schema}
    named = next(
        (n for n in IDS if n in types and (is_text(types[n]) or pa.types.is_integer(types[n]))), None
    )
    sidecars = tuple((n, n) for n in _SIDECARS if n in types and (is_bytes(types[n]) or is_text(types[n])))
    caption = next((n for n in _CAPTIONS if n in types and is_text(types[n])), None)
    if caption:
        sidecars += (("caption" if "txt" in types else "txt", caption),)
    structs = [
        n for n, type in types.items()
        if pa.types.is_struct(type) and any(f.name == "bytes" and is_bytes(f.type) for f in type)
    ]  # fmt: skip
    if structs:
        column = "image" if "image" in structs else structs[0]
        inner = next((f.name for f in types[column] if f.name == "path" and is_text(f.type)), None)
        return Layout(named, column, inner, True, False, False, sidecars)
    if column := next((n for n in BYTES if n in types and is_bytes(types[n])), None):
        return Layout(named, column, None, False, False, False, sidecars)
    if column := next((n for n in PATHS if n in types and is_text(types[n])), None):
        windows = all(n in types and pa.types.is_integer(types[n]) for n in "xywh")
        member = "member" in types and is_text(types["member"])
        return Layout(named, None, column, False, windows, member, ())
    columns = ", ".join(list(types)[:8]) or "none"
    raise ConfigError(f"{path} has no column with images (its columns: {columns}): {_SCHEMA}")
