"""Images of a run, read back from its manifest with the radiometry that was declared for their source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rsprune.config import SourceConfig
from rsprune.errors import UnreadableImage
from rsprune.radiometry import Radiometry
from rsprune.run import Run
from rsprune.sources import harmonise, open_source
from rsprune.sources.base import Image, Item, Source, Window

# Of the manifest, as `Reader` needs them.
COLUMNS = ["id", "uri", "source", "x", "y", "w", "h", "member", "stamp", "status", "error"]


class Reader:
    """Reads manifest rows; images of a source share its band count and dtype."""

    def __init__(self, run: Run):
        self.sources = open_sources(run.settings.scan.sources)
        self.declared: list[dict[str, Any]] = run.json("radiometry.json")
        self.radiometry = [Radiometry.from_json(d) for d in self.declared]

    def image(self, row: Mapping[str, Any]) -> Image:
        """Pixels as stored. Raises `UnreadableImage`."""
        if row["status"] != "ok":
            raise UnreadableImage(row["error"])
        declared = self.declared[row["source"]]
        image = self.sources[row["source"]].read(item_of(row))
        if image.pixels.dtype != declared["dtype"]:  # reading its name would cost more than the rest
            raise UnreadableImage(
                f"is {image.pixels.dtype.name} where its source is {declared['dtype']}; "
                "put it into a source of its own"
            )
        return harmonise(image, declared["bands"])

    def uint8(self, row: Mapping[str, Any]) -> np.ndarray:
        """Pixels mapped to 8 bits by the source's radiometry, [H, W, C]. Raises `UnreadableImage`."""
        return self.radiometry[row["source"]].to_uint8(self.image(row))

    def originals(self, row: Mapping[str, Any]) -> dict[str, bytes]:
        """Files of an image by extension, its own first (`Source.originals`). Raises `UnreadableImage`."""
        if row["status"] != "ok":
            raise UnreadableImage(row["error"])
        return self.sources[row["source"]].originals(item_of(row))


def item_of(row: Mapping[str, Any]) -> Item:
    """The source's item behind a manifest row."""
    window = None if row["w"] is None else Window(row["x"], row["y"], row["w"], row["h"])
    return Item(row["id"], row["uri"], window, row.get("member"), row.get("stamp") or "")


def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What sorts manifest rows so that windows of one image come together, row by row, and it is opened once."""
    return row["uri"], row["member"] or "", row["y"] or 0, row["x"] or 0


def open_sources(configs: Sequence[SourceConfig]) -> list[Source]:
    """The sources of a run; ids carry the source's name where there are several."""
    return [open_source(c, prefix=f"{c.name}/" if len(configs) > 1 else "") for c in configs]


def rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Manifest rows as plain dicts."""
    yield from table.select(COLUMNS).to_pylist()
