"""How images that are compared with the pool, references and sets to exclude, are read: as the pool is."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import islice

import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsprune.config import SourceConfig
from rsprune.errors import UnreadableImage
from rsprune.radiometry import Radiometry
from rsprune.reading import COLUMNS, item_of
from rsprune.run import Run
from rsprune.sources import open_source

_LOOKED_AT = 16  # images, of which the first readable one tells


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
        source, whole = open_source(like), open_source(plain)
        stored = _stored_bands(run, number, config) if config.bands else None
        for item in islice(source.items(), _LOOKED_AT):
            try:
                header = source.header(item)
            except UnreadableImage:  # also where it lacks bands that the pool is read with
                continue
            fits = (header.bands, header.dtype) == (declared["bands"], declared["dtype"])
            # Bands by number mean the same only in files of as many bands.
            if fits and (stored is None or whole.header(item).bands == stored):
                return like
            break
    return plain


def _stored_bands(run: Run, number: int, config: SourceConfig) -> int | None:
    """How many bands the files of a source have, of which some are read; None where none can be read."""
    source = open_source(replace(config, bands=None, mask=None))
    for part in run.parts("scan"):
        table = pq.read_table(part, columns=[*COLUMNS, "status"] if "status" not in COLUMNS else COLUMNS)
        mine = table.filter(pc.and_(pc.equal(table["source"], number), pc.equal(table["status"], "ok")))
        for row in mine.slice(0, _LOOKED_AT).to_pylist():
            with contextlib.suppress(UnreadableImage):
                return source.header(item_of(row)).bands
    return None
