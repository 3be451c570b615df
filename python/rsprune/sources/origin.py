"""Paths named in lists and tables: what they are relative to, and which of them may be followed."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources import ids
from rsprune.sources.store import check_url, is_url, local_path


@dataclass(frozen=True)
class Origin:
    """Where a list or a table lies: `folder` is the path or the URL of the folder that holds it.

    Who gives a list of this machine may name any file in it. A list from elsewhere was written by someone else, and
    may name what lies below it or on the web, but no file of this machine.
    """

    folder: str

    def resolve(self, path: str) -> str:
        """The absolute path or URL that `path` in the list means. Raises `UnreadableImage`."""
        here = not is_url(self.folder)
        if is_url(path):
            target = local_path(path)
            if target is None and (here or self._may_follow(path)):
                try:
                    return check_url(path)
                except ConfigError as error:
                    raise UnreadableImage(str(error)) from None
            if target is not None and here:
                return target
            raise UnreadableImage(
                f"is named as {path.partition('://')[0]}:// by a list from elsewhere, which may not point there: "
                "copy the list to this machine if you trust it"
            )
        path = ids.decode(ids.accept(path))
        if here:
            return os.path.normpath(os.path.join(self.folder, path))  # noqa: PTH118
        below = posixpath.normpath(path)
        if path.startswith("/") or below.split("/")[0] == "..":
            raise UnreadableImage(
                "is named by a list from elsewhere with a path that leads out of the list's folder: "
                "copy the list to this machine if you trust it"
            )
        return f"{self.folder}/{below}"

    def id_of(self, path: str) -> str | None:
        """The id of what the list calls `path`; None where that cannot be written down."""
        if is_url(path):
            try:
                path = check_url(path).partition("://")[2]
            except ConfigError:
                return None
        elif not path.startswith("/"):
            path = posixpath.normpath(path)
            if path.split("/")[0] == "..":
                path = posixpath.normpath(posixpath.join(urlsplit(self.folder).path, path))
        id = ids.accept(path.lstrip("/"))
        return None if ids.leaves_root(id) else id

    def stamp(self, target: str) -> str:
        """What changes with the bytes of a file of this machine, "" for others: stores are not asked one by one."""
        return "" if is_url(target) else local_stamp(target)

    def _may_follow(self, url: str) -> bool:
        scheme, own = (u.partition("://")[0].lower() for u in (url, self.folder))
        return scheme == own or scheme in ("http", "https")


def local_stamp(path: str) -> str:
    """Size and time of change of a file, "" where there is none."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"
