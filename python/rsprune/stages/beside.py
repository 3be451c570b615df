"""How images that are compared with the pool, references and sets to exclude, are read: as the pool is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsprune.config import SourceConfig
from rsprune.errors import UnreadableImage
from rsprune.radiometry import Radiometry
from rsprune.reading import COLUMNS, item_of
from rsprune.run import Run
from rsprune.sources import open_source
from rsprune.sources.base import Item

_LOOKED_AT = 16  # images, of which the first readable one tells
_MOST_BANDS = 1024  # that are told apart


def like_the_pool(run: Run, path: str, name: str, *, windows: bool) -> SourceConfig:
    """Settings to read a set with: those of the first source of the pool that its first readable image fits.

    Where it fits none, or files have another number of bands, it is read whole, with all bands and a range of its own.

    Args:
        run: The pool, scanned.
        path: Of the set.
        name: Of the set.
        windows: Whether it is cut as the pool is; copies have equal contents only then.
    """
    plain = SourceConfig(path, name)
    sources = zip(run.settings.scan.sources, run.json("radiometry.json"), strict=True)
    for number, (config, declared) in enumerate(sources):
        mask = config.mask if config.mask and config.mask[0].isdigit() else None  # others lie beside the pool
        scale = Radiometry.from_json(declared).scale
        like = replace(config, path=path, name=name, scale=scale, mask=mask)
        if not windows:
            like = replace(like, tile=None, stride=None)
        source = open_source(like)
        for item in itertools.islice(source.items(), _LOOKED_AT):
            try:
                header = source.header(item)
            except UnreadableImage:  # also where it lacks bands that the pool is read with
                continue
            fits = (header.bands, header.dtype) == (declared["bands"], declared["dtype"])
            # Bands by number mean the same only in files of as many bands.
            if fits and (not config.bands or _bands(plain, item) == _bands_of_pool(run, number, config)):
                return like
            break
    return plain


def _bands_of_pool(run: Run, number: int, config: SourceConfig) -> int | None:
    """How many bands the files of a source have, of which some are read; None where none can be read."""
    for part in run.parts("scan"):
        table = pq.read_table(part, columns=COLUMNS)
        mine = table.filter(pc.and_(pc.equal(table["source"], number), pc.equal(table["status"], "ok")))
        for row in mine.slice(0, 1).to_pylist():
            return _bands(config, item_of(row))
    return None


def _bands(config: SourceConfig, item: Item) -> int:
    """How many bands a file has, one that may be alpha included: those that can be asked for by number."""
    for number in range(1, _MOST_BANDS + 1):
        try:
            open_source(SourceConfig(config.path, bands=(number,))).header(item)
        except UnreadableImage:
            return number - 1
    return _MOST_BANDS  # or the source of a plug-in, which may not look at the number
