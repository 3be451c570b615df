"""Contact sheets: many thumbnails in one picture, as a data URI that an HTML page carries in itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from rsprune.reading import COLUMNS, Reader, rows
from rsprune.run import Run

THUMBNAIL = 64  # pixels
RING, GAP = 3, 2  # pixels of the outline, and between two of them
PITCH = THUMBNAIL + 2 * RING + GAP
OUTLINE = (240, 127, 30, 255)  # stands out from fields, woods and water, on white and on black
MISSING = (128, 128, 128, 96)


class Thumbnails(dict[str, "Image.Image | None"]):
    """Thumbnail by id; None where the image cannot be read (any more)."""

    def __init__(self, run: Run, ids: Iterable[str]):
        super().__init__(dict.fromkeys(ids))
        wanted = pa.array(list(self), pa.string())
        table = run.table("scan", COLUMNS)
        table = table.filter(pc.is_in(table["id"], value_set=wanted))
        try:
            reader = Reader(run)
        except Exception:
            return  # as below: the collection has moved away
        # In this order the windows of one scene come together, row by row.
        for row in sorted(rows(table), key=lambda r: (r["source"], r["uri"], r["y"] or 0, r["x"] or 0)):
            self[row["id"]] = _thumbnail(reader, row)

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


def contact_sheet(cells: Sequence[tuple[Image.Image | None, bool]], *, columns: int) -> dict[str, Any]:
    """One picture of thumbnails, row by row.

    Args:
        cells: thumbnail (None gives a grey cell) and whether it is outlined.
        columns: cells per row.

    Returns:
        `src` (a data URI), `width` and `height` in pixels.
    """
    n_rows = -(-len(cells) // columns)
    sheet = Image.new("RGBA", (PITCH * columns, PITCH * n_rows))
    draw = ImageDraw.Draw(sheet)
    for i, (thumbnail, outlined) in enumerate(cells):
        x, y = PITCH * (i % columns), PITCH * (i // columns)
        if thumbnail is None:
            box = (x + RING + 1, y + RING + 1, x + RING + THUMBNAIL, y + RING + THUMBNAIL)
            draw.rectangle(box, fill=MISSING)
            draw.line(box, fill=(128, 128, 128, 255))
            continue
        x += (PITCH - thumbnail.width) // 2
        y += (PITCH - thumbnail.height) // 2
        if outlined:
            right, bottom = x + thumbnail.width + RING - 1, y + thumbnail.height + RING - 1
            draw.rectangle((x - RING, y - RING, right, bottom), fill=OUTLINE)
        sheet.paste(thumbnail, (x, y))
    data = io.BytesIO()
    sheet.save(data, "WEBP", quality=80, method=4)
    src = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
    return {"src": src, "width": sheet.width, "height": sheet.height}
