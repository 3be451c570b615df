"""Masks given beside the imagery: where they lie, and which of their numbers mean that a pixel cannot be used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsprune.errors import UnreadableImage
from rsprune.sources.base import Image
from rsprune.sources.sidecars import stem_of
from rsprune.sources.store import check_url, is_url, local_path

SYNTAX = (
    "give BAND, FILE or _SUFFIX and a rule, such as l8_BQA.tif:bits=4, _SCL.tif:values=3,8-10 or 5:valid=1"
)
_RULES = ("bits", "values", "valid")
_EXACT = 2**24  # from here on float32, in which numbers wider than 16 bits are read, skips integers


@dataclass(frozen=True)
class Mask:
    """Where the mask of an image lies and how to read it.

    Attributes:
        band: 1-based band of the image's own file, or None.
        file: absolute path or URL of one mask for all images, or "".
        suffix: what takes the place of the extension in the name of the image, or "".
        rule: `bits` (masked where any of them is set, 0 is the lowest), `values` (masked where equal to one of
            them) or `valid` (masked unless equal to one of them).
        numbers: of the rule.
    """

    band: int | None
    file: str
    suffix: str
    rule: str
    numbers: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.band or self.file or self.suffix}:{self.rule}={','.join(map(str, self.numbers))}"

    def path(self, image: str) -> str:
        """File that holds the mask of the file `image`, if it is another one."""
        folder, slash, name = image.rpartition("/")
        return self.file or folder + slash + stem_of(name) + self.suffix

    def is_mask(self, path: str) -> bool:
        """Whether the file at `path` is a mask, and so no image."""
        return path == self.file if self.file else bool(self.suffix) and path.endswith(self.suffix)

    def apply(self, image: Image, mask: Image) -> Image:
        """`image` with the pixels that `mask` [H, W, 1] names made invalid.

        Only the rule counts: a nodata value of the mask's own file often means clear.

        Raises:
            UnreadableImage: the mask holds numbers that the rule cannot be applied to.
        """
        numbers = mask.pixels[..., 0]
        if numbers.dtype.kind == "f":
            if (np.abs(numbers) >= _EXACT).any() or (numbers != np.floor(numbers)).any():
                raise UnreadableImage("has a mask with fractions or numbers above 2^24: convert it to uint16")
            numbers = numbers.astype(np.int64)
        if self.rule == "bits":
            usable = numbers & np.asarray(sum(1 << b for b in self.numbers), np.int64) == 0
        else:
            usable = np.isin(numbers, self.numbers, invert=self.rule == "values")
        if image.valid is not None:
            usable &= image.valid
        return Image(image.pixels, None if usable.all() else usable)


def parse(text: str) -> Mask:
    """The mask that `text` names, as ``WHERE:bits=N,...``, ``WHERE:values=N,...`` or ``WHERE:valid=N,...``.

    WHERE is a band, the path of a file, or a suffix. Ranges are written ``8-10``. Raises `ValueError`.
    """
    where, colon, rule = text.rpartition(":")
    name, equals, listed = rule.partition("=")
    if not (where and colon and equals and name in _RULES):
        raise ValueError(f"--mask is {text!r}: {SYNTAX}")
    numbers: list[int] = []
    for part in listed.split(","):
        found = re.fullmatch(r"\s*(\d{1,8})(?:-(\d{1,8}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not 0 <= last - first < 1 << 16:
            raise ValueError(
                f"--mask has {part!r} among its {name}: give numbers from 0 on, or ranges such as 8-10"
            )
        numbers += range(first, last + 1)
    if name == "bits" and max(numbers) > 23:
        raise ValueError(f"--mask asks for bit {max(numbers)}: bits are numbered from 0, the lowest, to 23")
    numbers = sorted(set(numbers))
    band, file, suffix = None, "", ""
    if re.fullmatch(r"\d{1,5}", where):
        band = int(where)
        if band < 1:
            raise ValueError("--mask names band 0: the first band is 1")
    elif is_url(where):
        file = local_path(where) or check_url(where)
    elif "/" in where or Path(where).expanduser().is_file():
        file = str(Path(where).expanduser().absolute())
    elif where[0] in "_-.":
        suffix = where
    else:
        raise ValueError(f"--mask names {where!r}, which is no file here; {SYNTAX}")
    return Mask(band, file, suffix, name, tuple(numbers))
