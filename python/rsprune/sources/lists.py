"""Text lists, shards and tables: collections whose images are named or held by files of another kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources import ids, parquet, tar
from rsprune.sources.base import Item
from rsprune.sources.blobs import buffered
from rsprune.sources.codecs import decoding
from rsprune.sources.ordered import in_order
from rsprune.sources.origin import Origin
from rsprune.sources.store import blob_at, is_url

_LONGEST = 2**16  # bytes of a line


class Listed(NamedTuple):
    """A file that holds or names images: its path or URL, what it is called in ids, its stamp."""

    path: str
    name: str
    stamp: str


class _Files(ABC):
    """Images in the order of their ids, whatever the order of the files that hold them."""

    def __init__(self, files: Sequence[Listed], name: str):
        self._files, self._name = files, name

    def items(self) -> Iterator[Item]:
        """Items sorted by id. Raises `ConfigError` where there are none."""
        found = False
        for item in in_order(item for file in self._files for item in self._index(file)):
            found = True
            yield item
        if not found:
            raise ConfigError(f"no image in {self._name!r}: {self._wanted}")

    def stamp(self, path: str) -> str:
        """What changes with the bytes of the file at `path`."""
        return Origin("/").stamp(path)

    _wanted = ""

    @abstractmethod
    def _index(self, file: Listed) -> Iterator[Item]:
        """Items of one of the files, in any order."""


class Shards(_Files):
    """WebDataset tar shards; ids are the keys of their members."""

    _wanted = (
        "its members should be KEY.jpg, KEY.png, KEY.tif or KEY.webp, with KEY.txt and others beside them"
    )

    def _index(self, file: Listed) -> Iterator[Item]:
        try:
            with decoding("cannot be read"):
                blob = blob_at(file.path)
        except UnreadableImage as error:
            yield Item.unusable(file.name, ids.encode(file.path), str(error), file.stamp)
            return
        yield from tar.index(ids.encode(file.path), blob, file.name, file.stamp)


class Tables(_Files):
    """Parquet files with an image, or the path of one, in each row."""

    _wanted = "it has no row"

    def _index(self, file: Listed) -> Iterator[Item]:
        origin = Origin(file.path.rpartition("/")[0] or "/")
        yield from parquet.index(ids.encode(file.path), file.name, file.stamp, origin)


class TextList(_Files):
    """A text file with a path, a URL or an id per line, relative to its own folder; ``#`` begins a comment."""

    _wanted = "give a path or a URL per line"

    def _index(self, file: Listed) -> Iterator[Item]:
        origin = Origin(file.path.rpartition("/")[0] or "/")
        uri = ids.encode(file.path)
        for number, line in enumerate(_lines(file.path), 1):
            numbered = f"{file.name}%23{number:09d}"
            if len(line) > _LONGEST:
                yield Item.unusable(numbered, uri, f"is a line of more than {_LONGEST} bytes", file.stamp)
                continue
            path, window = ids.parse(line)
            id = origin.id_of(path)
            name = numbered if id is None else id if window is None else ids.window_id(id, window)
            try:
                if window and not (window.w and window.h):
                    raise UnreadableImage(f"has an impossible window {list(window)}")
                target = origin.resolve(path)
            except UnreadableImage as error:
                yield Item.unusable(name, uri, str(error), file.stamp)
                continue
            stamp = origin.stamp(target) or (file.stamp if is_url(target) else "")
            yield Item(name, ids.encode(target), window, None, stamp)


def _lines(path: str) -> Iterator[str]:
    """Lines that say something, as text from which their bytes can be had again. Raises `ConfigError`."""
    try:
        with decoding("cannot be read"):
            file, raw = buffered(blob_at(path))
    except UnreadableImage as error:
        raise ConfigError(f"the list {path} {error}") from None
    first = True
    while line := file.readline(_LONGEST + 2):
        whole = line.endswith(b"\n") or len(line) < _LONGEST + 2
        while not whole and (rest := file.readline(_LONGEST)):  # the rest of a line that is too long
            whole = rest.endswith(b"\n")
        text = (
            line.removeprefix(b"\xef\xbb\xbf" if first else b"")
            .rstrip(b"\r\n")
            .decode("utf-8", "surrogateescape")
        )
        first = False
        if text.strip() and not text.startswith("#"):
            yield text
    if raw.error:
        if isinstance(raw.error, UnreadableImage):
            raise ConfigError(f"the list {path} {raw.error}") from None
        raise raw.error


def list_name(path: str) -> str:
    """What a file is called in ids."""
    return ids.encode(path.rstrip("/").rpartition("/")[2] or Path(path).name)
