"""The boxes that a JPEG 2000 file is made of, checked before GDAL follows them: it goes round in wrong ones for ever."""

from __future__ import annotations

import struct

from rsprune.errors import UnreadableImage
from rsprune.sources.blobs import Blob

_WITH_BOXES = (b"jp2h", b"res ", b"asoc", b"uinf")
_MOST = 10_000  # boxes; real files have some ten
_DEEPEST = 8


def check_boxes(blob: Blob) -> None:
    """Raises `UnreadableImage` unless each box ends inside the one around it; a bare codestream has none."""
    if blob.read(0, 4) == b"\xff\x4f\xff\x51":
        return
    todo, count = [(0, blob.size, 0)], 0
    while todo:
        at, end, depth = todo.pop()
        while at < end:
            count += 1
            start, length, kind = _box(blob, at)
            if length == 0 and depth == 0:  # the last box may go on to the end
                length = end - at
            if length < start or at + length > end or count > _MOST or depth > _DEEPEST:
                raise UnreadableImage("is a JPEG 2000 file that is cut, or whose boxes make no sense")
            if kind in _WITH_BOXES:
                todo.append((at + start, at + length, depth + 1))
            at += length


def _box(blob: Blob, at: int) -> tuple[int, int, bytes]:
    """Bytes before the content of a box, length of the whole box, and its kind."""
    head = blob.read(at, 16)
    if len(head) < 8:
        return 8, -1, b""
    length, kind = struct.unpack(">I4s", head[:8])
    if length != 1:
        return 8, length, kind
    return 16, struct.unpack(">Q", head[8:])[0] if len(head) == 16 else -1, kind
