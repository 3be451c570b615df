"""Image files below a folder of this machine or a store, or a single one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR

from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources import ids, store
from rsprune.sources.base import Item
from rsprune.sources.origin import local_stamp

# What is listed; how it is read is decided by content.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".jp2")
_FOR_GOOD = (errno.EACCES, errno.EPERM, errno.ELOOP)  # no permission, links to each other
_MAX_LINKS = 8  # links inside each other: two links in each of 30 linked folders are a billion paths


class Folder:
    """Files below a folder, or a single one, in the order of their ids; hidden files and folders are left out.

    Links are followed, but never to a folder that they lie in. Such loops, folders that cannot be listed and
    broken links become items that raise `UnreadableImage`, so that nothing is left out without a word. Of one folder
    at a time the names are held.
    """

    def __init__(self, path: str, extensions: tuple[str, ...] = EXTENSIONS):
        self._root, self._name, self._extensions = os.path.abspath(path), path, extensions  # noqa: PTH100
        try:
            self._is_folder = S_ISDIR(Path(self._root).stat().st_mode)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot read {path!r}: {why}; give a folder or an image file") from None

    def items(self) -> Iterator[Item]:
        """Items sorted by id. Raises `ConfigError` where there is no file."""
        if not self._is_folder:
            name, uri = ids.encode(Path(self._root).name), ids.encode(self._root)
            yield Item(name, uri, stamp=local_stamp(self._root))
            return
        uri = ids.encode(self._root).rstrip("/")
        found = False
        for name in _walk(self._root, self._extensions):
            found = True
            yield Item(name, f"{uri}/{name}", stamp=local_stamp(f"{self._root}/{ids.decode(name)}"))
        if not found:
            raise ConfigError(f"no image below {self._name!r}: looked for {' '.join(self._extensions)}")

    def stamp(self, path: str) -> str:
        """What changes with the bytes of the file at `path`."""
        return local_stamp(path)


class StoredFolder:
    """Objects below the URL of a folder, or a single one, in the order of their ids; hidden ones are left out."""

    def __init__(self, url: str, extensions: tuple[str, ...] = EXTENSIONS):
        self._url, self._extensions = url.rstrip("/"), extensions
        self._folder, self._stamps = "", dict[str, str]()  # what was listed last
        self._asked = "", ""  # what was asked for last, which may be one mask for all, and its stamp

    def items(self) -> Iterator[Item]:
        """Items sorted by id. Raises `ConfigError` where there is no object, `StoreError`."""
        try:
            info = store.info(self._url)
        except UnreadableImage as error:
            raise ConfigError(f"{self._url} {error}; give a folder or an image") from None
        if info["type"] != "directory" and not self._lists_itself():
            yield Item(
                ids.encode(self._url.rpartition("/")[2]), ids.encode(self._url), stamp=store.stamp_of(info)
            )
            return
        uri = ids.encode(self._url)
        found = False
        for name, stamp in self._walk(""):
            found = True
            yield Item(name, f"{uri}/{name}", stamp=stamp)
        if not found:
            raise ConfigError(f"no image below {self._url!r}: looked for {' '.join(self._extensions)}")

    def stamp(self, path: str) -> str:
        """What changes with the bytes of a file, "" where there is none; asks only of those outside the last folder."""
        if not store.is_url(path):
            return local_stamp(path)
        if path.rpartition("/")[0] == self._folder:
            return self._stamps.get(path, "")
        if self._asked[0] != path:
            try:
                self._asked = path, store.stamp_of(store.info(path))
            except UnreadableImage:
                self._asked = path, ""
        return self._asked[1]

    def _lists_itself(self) -> bool:
        # A web server has pages where others have folders.
        scheme = self._url.partition("://")[0].lower()
        return scheme in ("http", "https") and not self._url.lower().endswith(self._extensions)

    def _walk(self, below: str) -> Iterator[tuple[str, str]]:
        try:
            listed = store.entries(f"{self._url}/{below}")
        except UnreadableImage as error:
            raise ConfigError(f"cannot list {self._url}/{below}: {error}") from None
        url = f"{self._url}/{below}"
        stamps = {url + entry.name: entry.stamp for entry in listed if not entry.is_folder}
        for entry in sorted(listed, key=lambda e: ids.encode(e.name) + "/" * e.is_folder):
            if entry.is_folder:
                yield from self._walk(f"{below}{entry.name}/")
            elif entry.name.lower().endswith(self._extensions):
                self._folder, self._stamps = url.rstrip("/"), stamps
                yield ids.encode(below + entry.name), entry.stamp


def _walk(root: str, extensions: tuple[str, ...]) -> Iterator[str]:
    """Encoded paths below `root` of all that should be images, and of the folders that cannot be listed, sorted.

    Names of one folder sort as the paths below them do once those of folders end in "/".
    """

    def listed(below: str, parents: tuple[tuple[int, int], ...], links: int) -> list[str]:
        names = []
        with os.scandir(f"{root}/{below}") as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry, parents, links):
                    names.append(ids.encode(entry.name) + "/")
                elif not _is_file(entry) or entry.name.lower().endswith(extensions):
                    names.append(ids.encode(entry.name))
        return sorted(names)

    def walk(below: str, parents: tuple[tuple[int, int], ...], links: int) -> Iterator[str]:
        for name in listed(below, parents, links):
            path = below + ids.decode(name)
            if not name.endswith("/"):
                yield ids.encode(path)
                continue
            try:
                is_link = Path(f"{root}/{path.rstrip('/')}").is_symlink()
                yield from walk(path, (*parents, _identity(f"{root}/{path}")), links + is_link)
            except FileNotFoundError as error:
                raise ConfigError(f"{error.filename} went away while it was listed: run again") from None

    try:
        yield from walk("", (_identity(root),), 0)
    except OSError as error:
        raise ConfigError(f"cannot list {error.filename or root!r}: {error.strerror}") from None


def _is_folder(entry: os.DirEntry[str], parents: tuple[tuple[int, int], ...], links: int) -> bool:
    """Whether to list what is below; not where it is a loop of links or may not be listed."""
    try:
        if not entry.is_dir():
            return False
        if entry.is_symlink() and (_identity(entry.path) in parents or links == _MAX_LINKS):
            return False
        os.scandir(entry.path).close()  # asked before anything is sorted, as its id depends on it
    except OSError as error:
        if error.errno in _FOR_GOOD:
            return False
        raise  # for the moment perhaps: what is in it must not count as gone
    return True


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is no folder; a link to nothing that is called like one may have been one."""
    try:
        if entry.is_symlink() and "." not in entry.name and not Path(entry.path).exists():
            return False
        return not entry.is_dir()
    except OSError:
        return False


def _identity(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_dev, status.st_ino
