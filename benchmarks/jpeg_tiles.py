"""JPEG tiles of 256 pixels as collections hold them, cut from Blue Marble."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import simplejpeg
from rates import blue_marble

SIDE, STRIDE = 256, 64  # pixels
QUALITIES = (75, 85, 90, 95)
TEXTURED = (
    12.0  # grey standard deviation; tiles of open sea would be smaller than those that collections hold
)


def write_tiles(folder: Path, count: int) -> list[Path]:
    """`count` files, in random order over the land, of four qualities in turn."""
    image = blue_marble("RGB")
    corners = [
        (y, x)
        for y in range(0, image.shape[0] - SIDE + 1, STRIDE)
        for x in range(0, image.shape[1] - SIDE + 1, STRIDE)
        if image[y : y + SIDE : 4, x : x + SIDE : 4].std() > TEXTURED
    ]
    chosen = np.random.default_rng(0).permutation(len(corners))
    paths = []
    for i in range(count):
        y, x = corners[chosen[i % len(corners)]]
        tile = np.ascontiguousarray(image[y : y + SIDE, x : x + SIDE])
        paths.append(folder / f"{i:05}.jpg")
        paths[-1].write_bytes(simplejpeg.encode_jpeg(tile, QUALITIES[i % 4], colorsubsampling="420"))
    return paths
