"""Pictures of several methods side by side, a row per image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rsprune.files import write_atomic
from rsprune.training.publish import viewable

SHOWN = 96  # pixels of a small image's side, so that its pixels can be seen
HEADING = 14


def write(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """A PNG with a column per name of images [N, h, w, C], whose sides divide the largest of them."""
    from PIL import Image, ImageDraw

    side = max(images.shape[1] for images in columns.values())
    side *= max(1, SHOWN // side)
    rows = len(next(iter(columns.values())))
    sheet = Image.new("RGB", (len(columns) * (side + 2), HEADING + rows * (side + 2)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, (name, images) in enumerate(columns.items()):
        draw.text((x * (side + 2) + 2, 1), name, fill="black")
        for y, image in enumerate(viewable(images)):
            picture = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (x * (side + 2), HEADING + y * (side + 2)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda f: sheet.save(f, format="PNG"))
