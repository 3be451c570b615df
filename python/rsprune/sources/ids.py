"""Ids: file paths as printable text that survives a one-id-per-line file."""

from __future__ import annotations

import re

from rsprune.sources.base import Window

# Control characters, line and paragraph separators, what `os.fsdecode` makes of bytes that are not UTF-8, and
# the two characters that ids give a meaning to.
_SPECIAL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff%#]")
_ESCAPE = re.compile("(?:%[0-9A-Fa-f]{2})+")
_WINDOW = re.compile(r"#(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9})$")


def encode(path: str) -> str:
    """`path` in POSIX form with control characters, non-UTF-8 bytes, `%` and `#` percent-encoded."""
    return _SPECIAL.sub(_percent, path)


def decode(text: str) -> str:
    """The path that `encode` was given."""
    return _ESCAPE.sub(_character, text)


def window_id(path_id: str, window: Window) -> str:
    """Id of a window of the scene `path_id`: `path#x,y,w,h`."""
    return f"{path_id}#{window.x},{window.y},{window.w},{window.h}"


def parse(text: str) -> tuple[str, Window | None]:
    """What `window_id` was given; no window where `text` names a whole file."""
    if found := _WINDOW.search(text):
        return text[: found.start()], Window(*map(int, found.groups()))
    return text, None


def accept(text: str) -> str:
    """The id that a name found in a shard, a table or a list stands for.

    An id that was written there stays as it is, with ``%2E`` for a dot that would have ended the key of a tar
    member; any other name is encoded.
    """
    id = text.replace("%2E", ".")
    path, _ = parse(id)
    return id if encode(decode(path)) == path else encode(text)


def leaves_root(path: str) -> bool:
    """Whether a relative path or an id is absolute, empty, or has parts such as ``..`` that lead elsewhere."""
    return any(part in ("", ".", "..") for part in path.split("/"))


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def _character(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "surrogateescape")
