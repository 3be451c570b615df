"""Ids: file paths as printable text that survives a one-id-per-line file."""

from __future__ import annotations

import re

from rsprune.sources.base import Window

# Control characters, line and paragraph separators, what `os.fsdecode` makes of bytes that are not UTF-8, and
# the two characters that ids give a meaning to.
_SPECIAL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff%#]")
_ESCAPE = re.compile("(?:%[0-9A-Fa-f]{2})+")


def encode(path: str) -> str:
    """`path` in POSIX form with control characters, non-UTF-8 bytes, `%` and `#` percent-encoded."""
    return _SPECIAL.sub(_percent, path)


def decode(text: str) -> str:
    """The path that `encode` was given."""
    return _ESCAPE.sub(_character, text)


def window_id(path_id: str, window: Window) -> str:
    """Id of a window of the scene `path_id`: `path#x,y,w,h`."""
    return f"{path_id}#{window.x},{window.y},{window.w},{window.h}"


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def _character(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "surrogateescape")
