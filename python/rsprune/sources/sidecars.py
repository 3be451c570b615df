"""Files that belong to an image: which names beside it, and what they are called in its company."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

# Captions, labels and arrays; metadata; world files, projections and masks as GDAL names them.
SIDECARS = (
    ".txt", ".caption", ".json", ".npy", ".cls", ".aux.xml", ".xml", ".tfw", ".pgw", ".jgw", ".wld", ".prj", ".msk",
)  # fmt: skip


def sidecars(image: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Those of the sorted `names`, the files of one folder, that belong to the file `image`, with their extension.

    The extension lacks its dot, and holds that of the image where the name does: of ``a.tif``, ``a.txt`` is "txt"
    and ``a.tif.aux.xml`` is "tif.aux.xml".
    """
    stem = stem_of(image)
    # A folder may hold a million names: only those that begin like the image are looked at.
    for place in range(bisect_left(names, stem + "."), len(names)):
        name = names[place]
        if not name.startswith(stem + "."):
            break
        extension = name[len(stem) :].lower()
        if extension in SIDECARS or extension.removeprefix(image[len(stem) :].lower()) in SIDECARS:
            yield name, name[len(stem) + 1 :]


def stem_of(name: str) -> str:
    """A file name without its last extension."""
    stem, dot, _ = name.rpartition(".")
    return stem if dot and stem else name
