"""Where data lie, as a user names it: a path, a URL, or SCHEME:REST of a plug-in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rsprune.errors import ConfigError


def source_values(text: str) -> dict[str, Any]:
    """Settings of a source from ``PATH`` or ``PATH=NAME``; of a folder in a store ``URL/=NAME``."""
    from rsprune.sources.store import is_url

    path, equals, name = text.rpartition("=")
    # In a store a folder may be called year=2020, and whether there is one would have to be asked.
    in_name = is_url(text) and not re.search(r"(/|\.[A-Za-z0-9]+)$", path)
    if not equals or "/" in name or in_name or _exists(text):
        path, name = text, ""
    return {"path": absolute(path), "name": name or Path(absolute(path)).stem}


def check_name(path: str, name: str) -> None:
    """Raises `ConfigError` where what lies at `path` has a name that is no folder's of its own."""
    if name in ("", ".", "..") or "/" in name:
        raise ConfigError(f"{path} cannot be called {name!r}: give it a name with {path}=NAME")


def source_scheme(path: str) -> str:
    """SCHEME of a source ``SCHEME:REST`` that a plug-in reads, "" for a path of the file system."""
    scheme = re.match(r"([a-z][a-z0-9+.-]+):(?!//)", path)
    return scheme[1] if scheme and not _exists(path) else ""


def absolute(path: str) -> str:
    """The path or URL as a run remembers it, so that it can be continued from any folder.

    Raises:
        ConfigError: the path is not UTF-8, or the URL holds a secret.
    """
    from rsprune.sources.store import check_url, is_url, local_path

    if source_scheme(path):
        return path
    if is_url(path):
        path = local_path(path) or check_url(path)
    if is_url(path):
        return path
    text = str(Path(path).expanduser().absolute())
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"the name of {path!r} is not UTF-8: rename it, or give the folder above it"
        ) from None
    return text


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # longer than a name can be, or with a NUL
        return False
