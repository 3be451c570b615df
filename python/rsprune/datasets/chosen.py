"""Which images of a run are handed out, in which order, and what is known of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from rsprune.columns import Columns
from rsprune.errors import ConfigError
from rsprune.reading import COLUMNS, Reader
from rsprune.run import Run

RunPath = Run | str | os.PathLike[str]
_DECIDED = ("rank", "cluster", "scene")


def open_run(run: RunPath) -> Run:
    """The run, or the one in that folder. Raises `ConfigError` where there is none, or it is not finished."""
    run = run if isinstance(run, Run) else Run.open(run)
    run.require("select")
    return run


def open_images(run: Run) -> Reader:
    """What reads the images of a run. Raises `ConfigError` where they are not at their place any more."""
    try:
        return Reader(run)
    except ConfigError as error:
        raise ConfigError(f"the images of the run {run.path} cannot be opened: {error}") from None


def chosen(run: Run, ids: Iterable[str] | None = None, columns: Sequence[str] = ()) -> pa.Table:
    """The kept images best first, or those called `ids` in their order, as rows of the manifest.

    Args:
        run: with a finished selection.
        ids: of images of the run, kept or not.
        columns: of the manifest, besides those that reading needs.

    Returns:
        Also `rank`, `cluster` and `scene` of each image.

    Raises:
        ConfigError: the run has no such image.
    """
    known = Columns(run)
    if ids is None:
        rows = np.flatnonzero(known.kept)
        rows = rows[np.argsort(known.rank[rows], kind="stable")]
    else:
        if isinstance(ids, str):
            raise ConfigError(f"ids is the text {ids!r}: give a list of ids")
        ids = list(ids)
        of = known.rows_of(ids)
        unknown = [id for id in ids if id not in of]
        if unknown:
            raise ConfigError(
                f"{run.path} has no image {unknown[0]!r} ({len(unknown):,} of {len(ids):,} ids are unknown): "
                "give ids of its decisions.parquet"
            )
        rows = np.array([of[id] for id in ids], dtype=np.int64)
    table = known.pick("scan", [*COLUMNS, *columns], rows)
    decided = known.pick("select", ["id", *_DECIDED], rows)
    if not table["id"].equals(decided["id"]):
        raise ConfigError(f"{run.path} has decisions about other images: run 'rsprune select' again")
    for name in _DECIDED:
        table = table.append_column(name, decided[name])
    return table
