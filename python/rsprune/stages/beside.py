"""How images that are compared with the pool, references and sets to exclude, are read: as the pool is."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from rsprune.config import SourceConfig
from rsprune.errors import UnreadableImage
from rsprune.radiometry import Radiometry
from rsprune.run import Run
from rsprune.sources import open_source

_LOOKED_AT = 16  # images, of which the first readable one tells


def like_the_pool(run: Run, path: str, name: str, *, windows: bool) -> SourceConfig:
    """Settings to read a set with: those of the first source of the pool that its first readable image fits.

    Where it fits none, it is read whole, with all bands and a range of its own.

    Args:
        run: The pool, scanned.
        path: Of the set.
        name: Of the set.
        windows: Whether it is cut as the pool is; copies have equal contents only then.
    """
    plain = SourceConfig(path, name)
    for config, declared in zip(run.settings.scan.sources, run.json("radiometry.json"), strict=True):
        mask = config.mask if config.mask and config.mask[0].isdigit() else None  # others lie beside the pool
        scale = Radiometry.from_json(declared).scale
        like = replace(config, path=path, name=name, scale=scale, mask=mask)
        if not windows:
            like = replace(like, tile=None, stride=None)
        source = open_source(like)
        for item in islice(source.items(), _LOOKED_AT):
            try:
                header = source.header(item)
            except UnreadableImage:  # also where it lacks bands that the pool is read with
                continue
            if (header.bands, header.dtype) == (declared["bands"], declared["dtype"]):
                return like
            break
    return plain
