"""What kind of collection a path or a URL names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path

from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources import ids, store
from rsprune.sources.base import Item
from rsprune.sources.collection import Files
from rsprune.sources.folder import EXTENSIONS, Folder, StoredFolder
from rsprune.sources.lists import Listed, Shards, Tables, TextList, list_name
from rsprune.sources.origin import local_stamp

_KINDS = {".tar": Shards, ".parquet": Tables}
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST = 100_000  # files that braces may stand for


def files_of(path: str) -> Files:
    """The files of the collection at `path`, a path or a URL; what kind they are is found out once they are listed.

    Raises:
        ConfigError: there is nothing, or its URL holds a secret.
    """
    if store.is_url(path):
        store.check_url(path)
        path = store.local_path(path) or path
    url = store.is_url(path)
    if (url or not os.path.lexists(path)) and re.search(r"[{*?\[]", path):
        return _Later(lambda: _of_kind(_expanded(path), path))
    name = path.rstrip("/").lower()
    if name.endswith(_PACKED):
        raise ConfigError(
            f"{path} is compressed, and images in it cannot be read one by one: unpack it to .tar first"
        )
    if not url:
        Folder(path)  # says that there is nothing
    if name.endswith((".tar", ".parquet", ".txt")) and (url or not Path(path).is_dir()):
        kind = TextList if name.endswith(".txt") else _KINDS["." + name.rpartition(".")[2]]
        return _Later(lambda: kind([Listed(path, list_name(path), _stamp(path))], path))
    if not url and not Path(path).is_dir():
        return Folder(path)
    if url and name.endswith(EXTENSIONS):
        return StoredFolder(path)
    return _Later(lambda: _in_folder(path, StoredFolder if url else Folder))


class _Later:
    """Files whose kind is found out once they are listed: workers never list."""

    def __init__(self, choose: Callable[[], Files]):
        self._choose = choose
        self._files: Files | None = None

    def items(self) -> Iterator[Item]:
        self._files = self._choose()
        yield from self._files.items()

    def stamp(self, path: str) -> str:
        return self._files.stamp(path) if self._files else ""


def _in_folder(path: str, folder: type[Folder] | type[StoredFolder]) -> Files:
    """Images, shards or tables, whichever a folder holds. Raises `ConfigError` where that is not clear."""
    images = folder(path)
    here, shards = _directly_in(path, EXTENSIONS), _directly_in(path, (".tar",))
    if here and shards:
        raise ConfigError(
            f"{path} holds images and shards: name the shards as {path.rstrip('/')}/*.tar, or move them"
        )
    if here or (not shards and _first(images, EXTENSIONS)):  # else shards go before images in folders below
        return images
    for extension, kind in _KINDS.items():
        files = folder(path, (extension,))
        if _first(files, (extension,)):
            # With folders that cannot be listed and broken links, which so are said to be unreadable.
            return kind([Listed(ids.decode(i.uri), i.id, i.stamp) for i in files.items()], path)
    return images  # says that there are none


def _first(files: Files, extensions: tuple[str, ...]) -> Item | None:
    """The first file with one of those extensions; not a folder that cannot be listed."""
    try:
        return next((item for item in files.items() if item.id.lower().endswith(extensions)), None)
    except ConfigError:
        return None


def _of_kind(files: Iterable[Listed], name: str) -> Files:
    files = list(files)
    for extension, kind in _KINDS.items():
        if files and all(file.path.lower().endswith(extension) for file in files):
            return kind(files, name)
    if not files:
        raise ConfigError(f"nothing is called {name}: give files that are there")
    raise ConfigError(
        f"{name} names other files than shards (.tar) or tables (.parquet): give the folder of the images"
    )


def _expanded(path: str) -> Iterator[Listed]:
    """Files that a pattern with ``{000..009}``, ``{a,b}``, ``*``, ``?`` or ``[...]`` stands for.

    They are called as from the folder that all alternatives have in common before their first ``*``.
    """
    paths = _braced(path)
    folder = _common([re.split(r"[*?\[]", one)[0].rpartition("/")[0] for one in paths])
    for one in paths:
        if not re.search(r"[*?\[]", one):
            found = [(one, _stamp(one))]
        elif store.is_url(one):
            try:
                found = list(store.glob(one))
            except UnreadableImage as error:
                raise ConfigError(f"{one} {error}") from None
        else:
            files = sorted(glob.glob(one, recursive=True))  # noqa: PTH207
            found = [(file, local_stamp(file)) for file in files]
        for file, stamp in found:
            inside = file.startswith(f"{folder}/")
            yield Listed(file, ids.encode(file[len(folder) + 1 :]) if inside else list_name(file), stamp)


def _common(folders: list[str]) -> str:
    """The folder that all of these lie in, paths or URLs."""
    alike = []
    for parts in zip(*(folder.split("/") for folder in folders), strict=False):
        if len(set(parts)) > 1:
            break
        alike.append(parts[0])
    return "/".join(alike)


def _braced(path: str) -> list[str]:
    """Paths that braces stand for, as in a shell. Raises `ConfigError`."""
    pieces = _BRACES.split(path)
    choices = []
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            choices.append([piece])
        elif numbers := re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", piece):
            first, last = map(int, numbers.groups())
            width = len(numbers[1]) if numbers[1].startswith("0") else 0
            if not 0 <= last - first < _MOST:
                raise ConfigError(
                    f"{path} names {last - first + 1} files: give the lower number first, and at most {_MOST}"
                )
            choices.append([f"{n:0{width}d}" for n in range(first, last + 1)])
        else:
            choices.append(piece.split(","))
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _MOST:
        raise ConfigError(f"{path} names {count} files: at most {_MOST} can be given")
    return ["".join(parts) for parts in product(*choices)]


def _stamp(path: str) -> str:
    """Raises `ConfigError` where there is no such file."""
    if not store.is_url(path):
        if not Path(path).exists():
            raise ConfigError(f"there is no file {path}")
        return local_stamp(path)
    try:
        return store.stamp_of(store.info(path))
    except UnreadableImage as error:
        raise ConfigError(f"{path} {error}") from None


def _directly_in(path: str, extensions: tuple[str, ...]) -> bool:
    """Whether a file with one of those extensions lies directly in a folder. Raises `ConfigError`."""
    if store.is_url(path):
        try:
            return any(e.name.lower().endswith(extensions) and not e.is_folder for e in store.entries(path))
        except UnreadableImage as error:
            raise ConfigError(f"{path} {error}; give a folder or an image") from None
    try:
        with os.scandir(path) as entries:
            return any(_is_visible(e.name, extensions) and not e.is_dir() for e in entries)
    except OSError as error:
        raise ConfigError(f"cannot list {path!r}: {error.strerror}") from None


def _is_visible(name: str, extensions: tuple[str, ...]) -> bool:
    return name.lower().endswith(extensions) and not name.startswith(".")
