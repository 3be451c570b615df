"""The kept images for whatever trains on them: a list, copies of the original files, or links to them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa

from rsprune.crops import Crops
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.run import Run, write_atomic, write_json, write_table
from rsprune.sources import ids
from rsprune.sources.base import Window

MARKER = ".rsprune-export.json"
SIDECARS = (".txt", ".json", ".caption", ".aux.xml", ".xml", ".tfw", ".pgw", ".jgw", ".prj")
MANIFEST = ("id", "uri", "x", "y", "w", "h")


@dataclass(frozen=True)
class ExportResult:
    """Number of kept images and the folder that they were written to."""

    count: int
    path: Path


@dataclass(frozen=True)
class _File:
    """What a file of the export is made from; `id` is None for a sidecar."""

    source: str
    id: str | None = None
    window: Window | None = None


def export(
    run: Run, out: str | os.PathLike[str], format: Literal["list", "copy", "symlink"] = "list"
) -> ExportResult:
    """Writes the kept images into folder `out`; the same call again gives the same files.

    `list` writes ``kept.txt`` and ``kept.parquet``. `copy` and `symlink` put every file, with its
    sidecars, at the path that its id names. A window becomes a lossless crop: a GeoTIFF with its
    coordinates or, where the scene is a JPEG, PNG or WebP file, a PNG. Files of an earlier export into
    `out` that are not wanted any more are removed.

    Raises:
        ConfigError: `out` holds other files, windows were to be linked, or some images are not there any
            more (the others are exported all the same).
    """
    out = Path(out)
    kept = _kept(run)
    rows = kept.select(MANIFEST).to_pylist()
    if format == "symlink" and any(row["w"] is not None for row in rows):
        raise ConfigError("windows of scenes are no files to link to: export them with --format copy")
    with _writing(out), closing(Crops()) as crops:
        folder = _Folder(out)
        if format == "list":
            folder.begin(["kept.txt", "kept.parquet"])
            text = "".join(f"{row['id']}\n" for row in rows).encode()
            write_atomic(out / "kept.txt", lambda f: f.write(text))
            write_table(out / "kept.parquet", kept)
            folder.finish(["kept.txt", "kept.parquet"])
            return ExportResult(len(rows), out)
        failed: dict[str, str] = {}
        files = _plan(rows, crops, failed)
        folder.begin(files)
        for name, file in files.items():
            try:
                folder.place(name, _writer(file, format, crops))
            except UnreadableImage as error:
                if file.id is not None:
                    failed[file.id] = str(error)
        if not failed:  # else what an earlier export has of an image that is gone now may be the last copy
            folder.finish(files)
    if failed:
        first = next(row["id"] for row in rows if row["id"] in failed)
        raise ConfigError(
            f"{len(failed):,} of {len(rows):,} kept images could not be exported to {out} "
            f"(first: {first} {failed[first]}), the others are there: mend them and export again"
        )
    return ExportResult(len(rows), out)


def _kept(run: Run) -> pa.Table:
    """Kept images, best first: id, uri, rank, cluster, scene and window (x, y, w, h)."""
    decisions = run.table("select", ["id", "kept", "rank", "cluster", "scene"])
    kept = decisions["kept"]
    manifest = run.table("scan", list(MANIFEST)).filter(kept)
    table = decisions.filter(kept)
    if not manifest["id"].equals(table["id"]):
        raise ConfigError(f"{run.path} has decisions about other images: run 'rsprune select' again")
    columns = [table["id"], manifest["uri"], table["rank"], table["cluster"], table["scene"]]
    names = ["id", "uri", "rank", "cluster", "scene"]
    windows = [manifest[n] for n in "xywh"]
    return pa.table([*columns, *windows], names=[*names, *"xywh"]).sort_by("rank")


# Names ----------------------------------------------------------------------------------------------------


def _plan(rows: Sequence[Mapping[str, Any]], crops: Crops, failed: dict[str, str]) -> dict[str, _File]:
    """Files to write by their path in the export, those of one scene together; adds to `failed` by id."""
    files: dict[str, _File] = {}
    # Sorted, so that of two ids that ask for one name always the same one gets it.
    for row in sorted(rows, key=lambda r: (r["uri"], r["y"] or 0, r["x"] or 0, r["id"])):
        source = ids.decode(row["uri"])
        window = None if row["w"] is None else Window(row["x"], row["y"], row["w"], row["h"])
        try:
            name = next(n for n in _names(row["id"], source, window, crops) if n not in files)
        except UnreadableImage as error:
            failed[row["id"]] = str(error)
            continue
        files[name] = _File(source, row["id"], window)
        if window is None:
            for sidecar, sidecar_name in _sidecars(source, name):
                files.setdefault(sidecar_name, _File(sidecar))
    return files


def _names(id: str, source: str, window: Window | None, crops: Crops) -> Iterator[str]:
    """Endless paths in the export that an id may have, the wanted one first. Raises `UnreadableImage`."""
    path = id if window is None else id.rpartition("#")[0]
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise UnreadableImage("has an id that would leave the folder")
    ending = "" if window is None else "_{}_{}_{}_{}".format(*window) + crops.suffix(source)
    readable = "/".join(_readable(part) for part in parts)
    if window is not None:
        yield str(PurePosixPath(readable).with_suffix("")) + ending
    yield readable + ending
    while True:
        yield path + ending
        path = ids.encode(path)


def _readable(part: str) -> str:
    """The file name as it was, or as it is encoded in the id where it is not fit for a path."""
    name = ids.decode(part)
    unfit = name in ("", ".", "..") or "/" in name or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name)
    return part if unfit else name


def _sidecars(source: str, name: str) -> Iterator[tuple[str, str]]:
    """Sidecar files of an image, and their paths in the export beside `name`."""
    path = Path(source)
    present = _listing(str(path.parent))
    for old, new in ((path.stem, str(PurePosixPath(name).with_suffix(""))), (path.name, name)):
        for extension in SIDECARS:
            for found in present.get((old + extension).lower(), ()):
                if found.startswith(old):
                    yield str(path.parent / found), new + found[len(old) :]


@lru_cache(maxsize=1)
def _listing(folder: str) -> dict[str, list[str]]:
    """Names of possible sidecars by their lower-case form, as they come in both cases."""
    names: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):
        for path in sorted(Path(folder).iterdir()):
            if path.name.lower().endswith(SIDECARS):
                names.setdefault(path.name.lower(), []).append(path.name)
    return names


# Contents -------------------------------------------------------------------------------------------------


def _writer(file: _File, format: str, crops: Crops) -> Callable[[Path], None]:
    """Writes one file of the export. Raises `UnreadableImage` where its source is not there any more."""
    if file.window is not None:
        data = crops.read(file.source, file.window)

        def write(target: Path) -> None:
            target.write_bytes(data)

        return write
    try:
        status = Path(file.source).stat()
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage("is not a regular file any more")
    if format == "symlink":
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


# The folder -----------------------------------------------------------------------------------------------


class _Folder:
    """A folder that only ever holds one export; a marker in it lists the files."""

    def __init__(self, path: Path):
        self.path = path
        self._before: list[str] = []
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file, not a folder: choose another one with -o")
        path.mkdir(parents=True, exist_ok=True)
        marker = path / MARKER
        if marker.is_file() and not marker.is_symlink():
            try:
                self._before = [str(name) for name in json.loads(marker.read_text("utf-8"))["files"]]
            except (ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"{marker} is damaged: choose another folder with -o, or delete this one"
                ) from None
        elif any(path.iterdir()):
            raise ConfigError(
                f"{path} holds files that no export wrote: choose an empty or a new folder with -o"
            )

    def begin(self, names: Any) -> None:
        """Notes what may be written, so that an export that is interrupted can be repeated."""
        self._note({*self._before, *names})

    def finish(self, names: Any) -> None:
        """Removes files of an earlier export that are not among `names`."""
        names = set(names)
        for name in sorted(set(self._before) - names):
            parts = PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts or not parts:
                continue
            if all(not p.is_symlink() and p.is_dir() for p in self._parents(name)):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    (self.path / name).unlink()
                with contextlib.suppress(OSError):  # not empty
                    for parent in reversed(self._parents(name)):
                        parent.rmdir()
        self._note(names)

    def place(self, name: str, write: Callable[[Path], None]) -> None:
        """Writes a file that is either complete or not there; an earlier file or link is replaced."""
        folder = self.path
        for folder in self._parents(name):
            if folder.is_symlink():
                raise ConfigError(f"{folder} is a link, and exports do not follow links: delete it")
            folder.mkdir(exist_ok=True)
        temporary = (
            folder / f".rsprune-{os.getpid()}.tmp"
        )  # short: the name itself may be as long as names can be
        temporary.unlink(missing_ok=True)
        try:
            write(temporary)
            temporary.replace(self.path / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _parents(self, name: str) -> list[Path]:
        """Folders between the export's own and the file, outermost first."""
        return [self.path / parent for parent in reversed(PurePosixPath(name).parents)][1:]

    def _note(self, names: set[str]) -> None:
        write_json(self.path / MARKER, {"written_by": "rsprune export", "files": sorted(names)})


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Says where, when the file system refuses something."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror or error}") from error
    finally:
        _listing.cache_clear()
