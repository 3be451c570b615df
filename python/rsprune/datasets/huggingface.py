"""The kept images of a run as a data set of Hugging Face `datasets`, with the columns of that export."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetGenerationError

from rsprune.datasets.chosen import RunPath, chosen, open_images, open_run
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.export.samples import Sample, samples
from rsprune.export.tables import SCHEMA, record
from rsprune.locations import source_scheme
from rsprune.run import Run
from rsprune.sources import ids
from rsprune.sources.originals import beside
from rsprune.sources.store import is_url

_SPAN = 1000  # images that one worker takes at a time


def to_huggingface(
    run: RunPath,
    *,
    streaming: bool = False,
    workers: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """The kept images with `id`, `image`, `rank`, `cluster`, `scene` and sidecars, as `--format huggingface` has them.

    Images that are files stay where they are, and the data set has their paths. Windows of scenes, members of shards
    and rows of tables are copied into its cache on the disk, unless it is streamed. Rows come as the images lie, which
    reads them fastest; ``data.sort("rank")`` gives the best first. Pillow decodes them, which knows neither colours of
    16 bits nor more than four bands: such images are had as bytes, with
    ``data.cast_column("image", datasets.Image(decode=False))``.

    Args:
        run: A run with a finished selection, or its folder.
        streaming: Give an `IterableDataset`, which writes nothing and reads what is asked for.
        workers: Processes that fill the cache.
        cache_dir: The cache, in place of that of Hugging Face.

    Raises:
        ConfigError: The run is not finished, or an image is not there any more.
    """
    run = open_run(run)
    open_images(run)  # here, as what a worker raises loses its words on the way
    kept = len(chosen(run))
    spans = [(start, min(start + _SPAN, kept)) for start in range(0, kept, _SPAN)]
    # The fingerprint names the cache: another selection is another data set.
    arguments = {
        "folder": str(run.path.absolute()),
        "selection": run.fingerprint("select"),
        "spans": spans,
    }
    features = datasets.Features.from_arrow_schema(SCHEMA)
    if streaming:
        return datasets.IterableDataset.from_generator(_records, features=features, gen_kwargs=arguments)
    try:
        return datasets.Dataset.from_generator(
            _records,
            features=features,
            gen_kwargs=arguments,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            num_proc=workers,
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UnreadableImage):
            raise ConfigError(f"{error.__cause__}: mend it, or run 'rsprune run' again") from None
        raise


def _records(folder: str, selection: str, spans: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    run = Run.open(folder)
    kept = chosen(run).sort_by("id")  # by name, so that images of one scene or shard come together
    reader = open_images(run)
    for start, stop in spans:
        part = kept.slice(start, stop - start)
        files = pa.array(_are_files(run, part), pa.bool_())
        for row in part.filter(files).to_pylist():
            yield _with_path(row)
        failed: dict[str, str] = {}
        for sample in samples(part.filter(pc.invert(files)), reader, failed):
            yield record(sample)
        for id, reason in failed.items():
            raise UnreadableImage(f"{id} {reason}")


def _are_files(run: Run, kept: pa.Table) -> list[bool]:
    """Which images are whole files of this machine, by names that are text."""
    ours = [not source_scheme(source.path) for source in run.settings.scan.sources]
    rows = kept.select(["uri", "source", "member", "w"]).to_pylist()
    return [
        ours[row["source"]]
        and row["member"] is None
        and row["w"] is None
        and _is_path(ids.decode(row["uri"]))
        for row in rows
    ]


def _is_path(uri: str) -> bool:
    return not is_url(uri) and not any("\ud800" <= c <= "\udfff" for c in uri)


def _with_path(row: dict[str, Any]) -> dict[str, Any]:
    path = Path(ids.decode(row["uri"]))
    if not path.is_file():
        raise UnreadableImage(f"{row['id']} is not at {path} any more")
    files = {path.suffix[1:]: b""}
    for sidecar, extension in beside(str(path)):
        files.setdefault(extension, Path(sidecar).read_bytes())
    return {**record(Sample(row, files)), "image": {"bytes": None, "path": str(path)}}
