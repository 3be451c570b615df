"""Images as files: PNG of 1 or 3 bands, TIFF of any number, 8 or 16 bits."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rsprune.errors import ConfigError
from rsprune.files import write_atomic


class Writer:
    """Writes images of one kind.

    Raises:
        ConfigError: The format cannot hold the bands, or what writes it is not installed.
    """

    def __init__(self, format: str, bands: int, bits: int):
        if format == "png" and bands not in (1, 3):
            raise ConfigError(f"PNG holds 1 or 3 bands and the model draws {bands}: use --format tif or npy")
        self._driver = "GTiff" if format == "tif" else "PNG"
        self._by_pillow = format == "png" and (bits == 8 or bands == 1)  # Pillow has no 16-bit colours
        if not self._by_pillow and find_spec("rasterio") is None:
            raise ConfigError(
                f"{bits}-bit {format} of {bands} bands needs rasterio: run pip install 'rsprune[geo]', "
                "or use --format npy"
            )

    def write(self, path: Path, image: np.ndarray) -> None:
        """Writes an image [H, W, C] uint8 or uint16; complete or not at all."""
        if not self._by_pillow:
            data = self._encoded(image)
            write_atomic(path, lambda f: f.write(data))
            return
        from PIL import Image

        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        write_atomic(path, lambda f: picture.save(f, format="PNG"))

    def _encoded(self, image: np.ndarray) -> bytes:
        from rasterio.errors import NotGeoreferencedWarning
        from rasterio.io import MemoryFile

        h, w, bands = image.shape
        with warnings.catch_warnings(), MemoryFile() as memory:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # nobody knows where these are
            profile = {"driver": self._driver, "width": w, "height": h, "count": bands, "dtype": image.dtype}
            if self._driver == "GTiff":
                profile["compress"] = "deflate"
            with memory.open(**profile) as file:
                file.write(image.transpose(2, 0, 1))
            return bytes(memory.getbuffer())
