"""Broken and awkward files, as collections contain them."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from image_files import encoded, texture

# Spaces, quotes, a line break, a tab, the characters that ids use, and bytes that are not UTF-8.
AWKWARD_NAMES = (
    b"two words.png",
    b'it\'s "quoted".png',
    b"line\nbreak.png",
    b"tab\tbell\a.png",
    b"100% #1,0,0,8,8.png",
    b"latin-\xe9\xff.png",
    "snow-\u2603-\u2028.png".encode(),
    b"-rf.png",
)


def empty(path: Path) -> None:
    """Zero bytes."""
    path.write_bytes(b"")


def not_an_image(path: Path) -> None:
    """Text, as a failed download leaves it."""
    path.write_bytes(b"<html>404 not found</html>")


def truncated(path: Path, kind: str = "jpeg", keep: float = 0.6) -> None:
    """The first part of an image file."""
    data = encoded(texture(), kind)
    path.write_bytes(data[: int(keep * len(data))])


def png_bomb(path: Path, width: int = 60_000, height: int = 60_000) -> None:
    """A PNG of a few dozen bytes whose header claims `width` x `height` pixels."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def jpeg_bomb(path: Path, width: int = 60_000, height: int = 60_000) -> None:
    """A small JPEG whose frame header claims `width` x `height` pixels."""
    data = bytearray(encoded(texture(), "jpeg"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    path.write_bytes(data)


def webp_bomb(path: Path, width: int = 60_000, height: int = 60_000) -> None:
    """A WebP whose canvas claims `width` x `height` pixels."""
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sizes
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def tiff_bomb(path: Path, width: int = 60_000, height: int = 60_000) -> None:
    """A TIFF without any pixel whose header claims `width` x `height` of them."""
    tags = (
        (256, width),
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, 1),
    )
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4))


def link_loop(folder: Path, name: str = "loop") -> None:
    """A link inside `folder` to `folder`."""
    (folder / name).symlink_to(folder, target_is_directory=True)


def deny_listing(monkeypatch, folder: Path) -> None:
    """Makes `folder` impossible to list in this process; permissions do not stop the superuser."""
    scandir = os.scandir

    def denied(path):
        if os.path.realpath(path) == os.path.realpath(folder):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
