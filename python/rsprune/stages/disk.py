"""The room that a run folder needs, checked before hours of work are put into it."""

from __future__ import annotations

import shutil
from pathlib import Path

from rsprune.errors import NoSpace

# 150 were measured with names of 45 characters: manifest 30, scores 48, assignments 26, decisions and kept ids 46.
ROW_BYTES = 200
PAGE_BYTES = 5_000_000  # the page and what else does not grow with the images


def folder_bytes(images: int, features: int) -> int:
    """Expected size of a run folder with so many images, whose embeddings have so many numbers."""
    return images * (ROW_BYTES + 2 * features) + PAGE_BYTES


def free_bytes(path: Path) -> int:
    """Room where `path` is, or is going to be."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def check_disk(path: Path, images: int, features: int) -> None:
    """Raises `NoSpace` where the results about so many images do not fit."""
    copy = images * 2 * features  # of the embeddings, while `select` runs
    need, free = folder_bytes(images, features) + copy, free_bytes(path)
    if need > free:
        raise NoSpace(
            f"{path} needs about {in_words(need)} for {images:,} images but only {in_words(free)} are free: make "
            "room, or choose another folder with -o"
        )


def in_words(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if size < 100 else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
