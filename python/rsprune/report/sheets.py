"""Contact sheets: many thumbnails in one picture, as a data URI that an HTML page carries in itself."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from rsprune.columns import Columns
from rsprune.reading import COLUMNS, Reader, place

THUMBNAIL = 64  # pixels
SMALL = 40  # pixels, in the picture that the maps take their tiles from
RING, GAP = 3, 2  # pixels of the outline, and between two of them
PITCH = THUMBNAIL + 2 * RING + GAP
KEPT = (227, 104, 10, 255)  # stands out from fields, woods and water, on white and on black
STAYS = (122, 128, 134, 255)  # as the grey of the page
EDGE = (128, 128, 128, 128)  # of every image, as ice would vanish on white paper and deep water on black
MISSING = (128, 128, 128, 96)
READ_AT_ONCE = 64  # images between two steps of the progress


class Thumbnails(dict[int, "Image.Image | None"]):
    """Thumbnail by row; None where the image cannot be read (any more)."""

    def __init__(
        self,
        columns: Columns,
        rows: Iterable[int],
        progress: Callable[[Iterable[int], str, int], Iterable[int]] = lambda done, *_: done,
    ):
        super().__init__(dict.fromkeys(sorted(rows)))
        try:
            reader = Reader(columns.run)
        except Exception:
            return  # as below: the collection has moved away
        listed = zip(self, columns.pick("scan", COLUMNS, list(self)).to_pylist(), strict=True)
        in_order = sorted(listed, key=lambda r: (r[1]["source"], *place(r[1])))
        for _ in progress(self._read(reader, in_order), "report", len(in_order)):
            pass

    def _read(self, reader: Reader, listed: list[tuple[int, dict[str, Any]]]) -> Iterable[int]:
        for start in range(0, len(listed), READ_AT_ONCE):
            some = listed[start : start + READ_AT_ONCE]
            for number, row in some:
                self[number] = _thumbnail(reader, row)
            yield len(some)

    @property
    def n_missing(self) -> int:
        return sum(v is None for v in self.values())


def _thumbnail(reader: Reader, row: Mapping[str, Any]) -> Image.Image | None:
    try:
        pixels = reader.uint8(row)
        bands = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
        image = Image.fromarray(np.ascontiguousarray(bands)).convert("RGB")
        larger = max(image.size)
        if larger > THUMBNAIL:
            size = [max(1, round(side * THUMBNAIL / larger)) for side in image.size]
            return image.resize(size, Image.Resampling.BOX)
        factor = THUMBNAIL // larger
        return image.resize([side * factor for side in image.size], Image.Resampling.NEAREST)
    except Exception:
        # Whatever has become of one image since it was scored, the page about the others is still wanted.
        return None


def contact_sheet(
    cells: Sequence[tuple[Image.Image | None, tuple[int, int, int, int] | None]], *, columns: int
) -> dict[str, Any]:
    """One picture of thumbnails, row by row.

    Args:
        cells: thumbnail (None gives a grey cell) and the colour of its outline, if it has one.
        columns: cells per row.

    Returns:
        `src` (a data URI), `width` and `height` in pixels.
    """
    n_rows = -(-len(cells) // columns)
    sheet = Image.new("RGBA", (PITCH * columns, PITCH * n_rows))
    draw = ImageDraw.Draw(sheet)
    for i, (thumbnail, outline) in enumerate(cells):
        x, y = PITCH * (i % columns), PITCH * (i // columns)
        if thumbnail is None:
            box = (x + RING + 1, y + RING + 1, x + RING + THUMBNAIL, y + RING + THUMBNAIL)
            draw.rectangle(box, fill=MISSING)
            draw.line(box, fill=(128, 128, 128, 255))
            continue
        x += (PITCH - thumbnail.width) // 2
        y += (PITCH - thumbnail.height) // 2
        ring = RING if outline else 1
        box = (x - ring, y - ring, x + thumbnail.width + ring - 1, y + thumbnail.height + ring - 1)
        draw.rectangle(box, fill=outline or EDGE)
        sheet.paste(thumbnail, (x, y))
    return {"src": _webp(sheet, quality=80), "width": sheet.width, "height": sheet.height}


def atlas(thumbnails: Sequence[Image.Image | None]) -> dict[str, Any]:
    """One picture of small square tiles, of which a script shows one at a time.

    Returns:
        `src` (a data URI), `columns` and `side` of a tile in pixels.
    """
    columns = max(1, math.isqrt(max(len(thumbnails) - 1, 0)) + 1)
    sheet = Image.new("RGB", (SMALL * columns, SMALL * max(1, -(-len(thumbnails) // columns))), MISSING[:3])
    for i, thumbnail in enumerate(thumbnails):
        if thumbnail is not None:
            tile = ImageOps.pad(thumbnail, (SMALL, SMALL), Image.Resampling.BOX, color=MISSING[:3])
            sheet.paste(tile, (SMALL * (i % columns), SMALL * (i // columns)))
    return {"src": _webp(sheet, quality=70), "columns": columns, "side": SMALL}


def _webp(sheet: Image.Image, *, quality: int) -> str:
    data = io.BytesIO()
    sheet.save(data, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
