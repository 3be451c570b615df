"""Kept images as files: copies of the original ones with their sidecars, or links to them."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsprune.crops import crop
from rsprune.errors import UnreadableImage
from rsprune.export.folder import Folder
from rsprune.export.names import names
from rsprune.reading import Reader, item_of, place
from rsprune.sources import ids, store
from rsprune.sources.blobs import HEAD, LocalFile
from rsprune.sources.originals import beside, extension_of
from rsprune.sources.sidecars import stem_of


@dataclass(frozen=True)
class _File:
    """What a file of the export is made from: a file here or in a store, or what lies inside one.

    Attributes:
        source: path or URL.
        id: of the image that it belongs to.
        row: of the manifest; None for a sidecar.
        extension: of the image or sidecar inside `source` that is wanted; empty for `source` itself.
    """

    source: str
    id: str
    row: Mapping[str, Any] | None = None
    extension: str = ""


def write_files(
    rows: Sequence[Mapping[str, Any]], reader: Reader, folder: Folder, *, link: bool
) -> dict[str, str]:
    """Puts every file at the path that its id names; reasons by id of those that could not be read."""
    failed: dict[str, str] = {}
    files = _plan(rows, reader, failed)
    folder.begin(files)
    for name, file in files.items():
        try:
            folder.place(name, _writer(file, reader, link))
        except UnreadableImage as error:
            failed.setdefault(
                file.id, str(error) if file.row else f"has beside it {Path(name).name}, which {error}"
            )
    if not failed:  # else what an earlier export has of an image that is gone now may be the last copy
        folder.finish(files)
    return failed


def _plan(rows: Sequence[Mapping[str, Any]], reader: Reader, failed: dict[str, str]) -> dict[str, _File]:
    """Files to write by their path in the export, those of one scene together; adds to `failed` by id."""
    files: dict[str, _File] = {}
    # Sorted, so that of two ids that ask for one name always the same one gets it.
    for row in sorted(rows, key=lambda r: (*place(r), r["id"])):
        source, item, id = ids.decode(row["uri"]), item_of(row), row["id"]
        try:
            if item.window is not None:
                files[next(n for n in names(item) if n not in files)] = _File(source, id, row)
            elif row["member"] is None and (own := _extension(source) or _kind(source)):
                ending = "" if id.lower().endswith(own.lower()) else own
                name = next(n for n in names(item, ending) if n not in files)
                files[name] = _File(source, id, row)
                for sidecar, extension in beside(source):
                    files.setdefault(f"{name[: -len(own)]}.{extension}", _File(sidecar, id))
            else:
                first, *others = reader.originals(row)
                ending = "" if id.lower().endswith(f".{first.lower()}") else f".{first}"
                name = next(n for n in names(item, ending) if n not in files)
                files[name] = _File(source, id, row, first)
                for extension in others:
                    files.setdefault(f"{name[: -len(first)]}{extension}", _File(source, id, row, extension))
        except UnreadableImage as error:
            failed[id] = str(error)
    return files


def _extension(source: str) -> str:
    """The extension with its dot that a path or URL ends in; "" where only the content says what it is."""
    name = source.rpartition("/")[2]
    return name[len(stem_of(name)) :]


def _kind(source: str) -> str:
    """The extension with its dot that a file of this machine should have; "" for what lies elsewhere."""
    if store.is_url(source) or not Path(source).is_file():
        return ""
    return "." + extension_of(LocalFile(source).read(0, HEAD))


def _writer(file: _File, reader: Reader, link: bool) -> Callable[[Path], object]:
    """Writes one file of the export. Raises `UnreadableImage` where its source is not there any more."""
    if (data := _content(file, reader)) is not None:
        return lambda target: target.write_bytes(data)
    try:
        status = Path(file.source).stat()
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage("is not a regular file any more")
    if link:
        return lambda target: target.symlink_to(Path(file.source).absolute())

    def copy(target: Path) -> None:
        with contextlib.ExitStack() as stack:
            try:
                original = stack.enter_context(Path(file.source).open("rb"))
            except OSError as error:
                raise UnreadableImage(f"cannot be read: {error.strerror}") from None
            shutil.copyfileobj(original, stack.enter_context(target.open("xb")), 1 << 20)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    return copy


def _content(file: _File, reader: Reader) -> bytes | None:
    """Bytes of a file of the export, None where they are those of a file of this machine."""
    if file.row is not None and file.row["w"] is not None:
        return crop(item_of(file.row))
    if file.row is not None and file.extension:
        return reader.originals(file.row)[file.extension]
    return store.blob_at(file.source).read() if store.is_url(file.source) else None
