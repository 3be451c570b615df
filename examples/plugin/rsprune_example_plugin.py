"""An encoder, a source and a strategy for rsprune, as small as they can be."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rsprune.config import SourceConfig
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources import ids
from rsprune.sources.bands import Selection
from rsprune.sources.base import Header, Image, Item


class Histogram:
    """``--encoder histogram[:BINS]``: shares of the brightness levels, over all bands."""

    weight_hash = ""
    device = "cpu"

    def __init__(self, argument: str, *, device: str):
        self.dim = int(argument or 32)
        self.name = f"histogram:{self.dim}"

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        counts = [np.histogram(image, self.dim, (0, 256))[0] / image.size for image in images]
        return np.array(counts, np.float32).reshape(-1, self.dim)


class ArraySource:
    """``npz:FILE``: the arrays [H, W, C] of a NumPy archive, uint8 or uint16, in the order of their names."""

    def __init__(self, config: SourceConfig, *, prefix: str = ""):
        self.path = Path(config.path.partition(":")[2]).absolute()
        self.prefix = prefix
        self.selection = Selection(config.bands)
        try:
            self.arrays = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, zipfile.BadZipFile) as e:
            raise ConfigError(
                f"{self.path} is not a NumPy archive ({e}): write one with numpy.savez"
            ) from None

    def items(self) -> Iterator[Item]:
        # The uri is where the image lies: it is what export links to and what tells that a file has changed.
        for id in sorted(self.prefix + ids.encode(name) for name in self.arrays.files):
            yield Item(id, ids.encode(str(self.path)))

    def header(self, item: Item) -> Header:
        pixels = self.read(item).pixels
        height, width, bands = pixels.shape
        return Header(width, height, bands, pixels.dtype.name, self.path.stat().st_size)

    def read(self, item: Item) -> Image:
        pixels = self.arrays[ids.decode(item.id.removeprefix(self.prefix))]
        if pixels.ndim != 3 or pixels.dtype not in (np.uint8, np.uint16):
            raise UnreadableImage(f"is {pixels.dtype} {list(pixels.shape)}, not uint8 or uint16 [H, W, C]")
        bands = self.selection.indexes(pixels.shape[2])
        return Image(np.ascontiguousarray(pixels[:, :, [band - 1 for band in bands]]))


def sharpest(embeddings, scores, clusters, budget, seed):
    """``--strategy sharpest``: the sharpest images, wherever they lie in the space of embeddings."""
    return np.argsort(-scores["sharpness"], kind="stable")[:budget]
