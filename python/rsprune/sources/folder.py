"""A folder of image files, or a single one, each taken whole or cut into windows."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from stat import S_ISDIR

from rsprune.config import SourceConfig
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources import ids
from rsprune.sources.bands import Selection
from rsprune.sources.base import Header, Image, Item, Window
from rsprune.sources.codecs import Scene, decoding, open_scene
from rsprune.sources.masks import parse

# What is listed; how it is read is decided by content.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".jp2")
_MASK = Selection((1,))
_MAX_LINKS = 8  # links inside each other: two links in each of 30 linked folders are a billion paths


class FolderSource:
    """Images below a folder, in the order of their ids; hidden files and folders are left out.

    Links are followed, but never to a folder that they lie in. Such loops, folders that cannot be listed and
    broken links become items that raise `UnreadableImage`, so that nothing is left out without a word.
    """

    def __init__(self, config: SourceConfig, *, prefix: str = ""):
        self._root = os.path.abspath(config.path)  # noqa: PTH100
        self._name = config.path
        try:
            self._is_folder = S_ISDIR(Path(self._root).stat().st_mode)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot read {config.path!r}: {why}; give a folder or an image file") from None
        self._tile, self._stride = config.tile, config.stride or config.tile
        self._mask = parse(config.mask) if config.mask else None
        self._selection = Selection(config.bands, config.nodata, self._mask.band if self._mask else None)
        if self._mask and self._mask.file and not Path(self._mask.file).is_file():
            raise ConfigError(f"there is no mask {self._mask.file}: give a file, a band or a _SUFFIX")
        self._prefix = ids.encode(prefix)

    def items(self) -> Iterator[Item]:
        """Items sorted by id. Raises `ConfigError` where there is no image."""
        if self._is_folder:
            root_uri = ids.encode(self._root).rstrip("/")
            files = [(self._prefix + name, f"{root_uri}/{name}") for name in _listing(self._root)]
            if self._mask:
                files = [f for f in files if not self._mask.is_mask(ids.decode(f[1]))]
            if not files:
                raise ConfigError(f"no image below {self._name!r}: looked for {' '.join(EXTENSIONS)}")
        else:
            files = [(self._prefix + ids.encode(Path(self._root).name), ids.encode(self._root))]
        files.sort()
        if not self._tile:
            return (Item(id, uri) for id, uri in files)
        return self._all_windows(files)

    def header(self, item: Item) -> Header:
        """What is known of an image without decoding it. Raises `UnreadableImage`."""
        with _scene(item) as scene, decoding("cannot be read"):
            header = scene.header(item.window, self._selection)
            if self._mask and not self._mask.band:
                with self._mask_of(item, scene):
                    pass
            return header

    def read(self, item: Item) -> Image:
        """Pixels and mask. Raises `UnreadableImage`."""
        with _scene(item) as scene, decoding("cannot be read"):
            image = scene.read(item.window, self._selection)
            if not self._mask:
                return image
            if self._mask.band:
                numbers = scene.read(item.window, Selection((self._mask.band,)))
            else:
                with self._mask_of(item, scene) as mask:
                    numbers = mask.read(item.window, _MASK)
            return self._mask.apply(image, numbers)

    @contextmanager
    def _mask_of(self, item: Item, scene: Scene) -> Iterator[Scene]:
        """The file with the mask of `item`, which has the size of `scene`. Raises `UnreadableImage`."""
        path = self._mask.path(ids.decode(item.uri))
        try:
            with _opened(path, item.window and "mask") as mask:
                image, header = scene.header(None, self._selection), mask.header(None, _MASK)
                if (header.width, header.height) != (image.width, image.height):
                    raise UnreadableImage(
                        f"has {header.width} x {header.height} pixels "
                        f"where the image has {image.width} x {image.height}: resample it"
                    )
                yield mask
        except UnreadableImage as error:
            raise UnreadableImage(f"has a mask {path} that {error}") from error

    def _all_windows(self, files: Sequence[tuple[str, str]]) -> Iterator[Item]:
        # Names sort as their windows do, unless one name starts with another: "a.tif" is before
        # "a.tif b.tif", but "a.tif#0" is after "a.tif b.tif#0". So such files are sorted together.
        group: list[Item] = []
        first = None
        for path_id, uri in files:
            if first is None or not path_id.startswith(first):
                yield from sorted(group, key=lambda item: item.id)
                group, first = [], path_id
            group += self._windows(path_id, uri)
        yield from sorted(group, key=lambda item: item.id)

    def _windows(self, path_id: str, uri: str) -> list[Item]:
        try:
            header = self.header(Item(path_id, uri))
        except UnreadableImage:
            return [Item(path_id, uri)]  # says why when its header is asked for
        w, h = min(self._tile, header.width), min(self._tile, header.height)
        cut = (
            Window(x, y, w, h)
            for y in range(0, header.height - h + 1, self._stride)
            for x in range(0, header.width - w + 1, self._stride)
        )
        return [Item(ids.window_id(path_id, window), uri, window) for window in cut]


class _Last(threading.local):
    """The scene whose windows are being read, and its mask: per thread, as a GDAL dataset belongs to one."""

    def __init__(self) -> None:
        self.opened: dict[str, tuple[tuple, Scene]] = {}


_last = _Last()


def _scene(item: Item) -> AbstractContextManager[Scene]:
    return _opened(ids.decode(item.uri), item.window and "scene")


def _opened(path: str, role: str | None) -> AbstractContextManager[Scene]:
    """The file at `path`; with a role it stays open until another file takes that role."""
    if role is None:
        return closing(_open(path))
    with decoding("cannot be read"):
        status = Path(path).stat()
    key = (os.getpid(), path, status.st_mtime_ns, status.st_size)  # a fork must not share a file position
    if role not in _last.opened or _last.opened[role][0] != key:
        last_key, last = _last.opened.pop(role, (None, None))
        if last_key and last_key[0] == os.getpid():
            last.close()
        _last.opened[role] = key, _open(path)
    return nullcontext(_last.opened[role][1])


def _open(path: str) -> Scene:
    try:
        return open_scene(path)
    except UnreadableImage:
        if Path(path).is_dir():
            raise UnreadableImage(_why_not_listed(path)) from None
        raise


def _why_not_listed(path: str) -> str:
    with decoding("cannot be listed"):
        os.scandir(path).close()
    if Path(path).is_symlink():
        return (
            "is a link to a folder that it lies in, or one of too many inside each other; it was not followed"
        )
    return "is a folder that could not be listed; scan again"


def _listing(root: str) -> list[str]:
    """Encoded paths below `root` of all that should be images, and of the folders that cannot be listed."""
    found: list[str] = []
    # Folders still to list: path below the root, the folders it lies in, how many of them are links.
    todo: list[tuple[str, tuple[tuple[int, int], ...], int]] = [("", (_identity(root),), 0)]
    while todo:
        below, parents, links = todo.pop()
        try:
            with os.scandir(f"{root}/{below}") as entries:
                listed = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            if not below:
                raise ConfigError(f"cannot list {root!r}: {error.strerror}") from None
            found.append(ids.encode(below.rstrip("/")))
            continue
        for entry in listed:
            name = below + entry.name
            try:
                is_folder, is_link = entry.is_dir(), entry.is_symlink()
                me = _identity(entry.path) if is_folder else None
            except OSError:  # links to each other
                found.append(ids.encode(name))
                continue
            if not is_folder:
                if entry.name.lower().endswith(EXTENSIONS):
                    found.append(ids.encode(name))
            elif is_link and (me in parents or links == _MAX_LINKS):
                found.append(ids.encode(name))
            else:
                todo.append((name + "/", (*parents, me), links + is_link))
    return found


def _identity(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_dev, status.st_ino
