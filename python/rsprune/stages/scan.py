"""Scan: lists the images, reads their headers, and settles the radiometry of each source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsprune import resume
from rsprune.config import SourceConfig
from rsprune.errors import ConfigError, TooManyUnreadable, UnreadableImage
from rsprune.files import write_json, write_table
from rsprune.layout import digest
from rsprune.radiometry import Radiometry, estimate
from rsprune.reading import COLUMNS, item_of, open_sources
from rsprune.resume import part_file
from rsprune.rows import content_key
from rsprune.run import Run
from rsprune.sources import harmonise
from rsprune.sources.base import Image, Source
from rsprune.stages.disk import check_disk
from rsprune.stages.job import Job
from rsprune.stages.listing import Listing, forget_listing, list_parts, listing_path

RADIOMETRY_SAMPLE = 256  # images of a source that its percentiles are estimated on

MANIFEST = pa.schema(
    {
        "id": pa.string(), "uri": pa.string(), "source": pa.int16(),
        "width": pa.int32(), "height": pa.int32(), "bands": pa.int32(), "dtype": pa.string(), "bytes": pa.int64(),
        "x": pa.int32(), "y": pa.int32(), "w": pa.int32(), "h": pa.int32(),
        "member": pa.string(), "stamp": pa.string(),
        "crs": pa.string(), "gsd": pa.float32(), "centre_lat": pa.float64(), "centre_lon": pa.float64(),
        "timestamp": pa.string(),
        "left": pa.float64(), "bottom": pa.float64(), "right": pa.float64(), "top": pa.float64(),
        "status": pa.string(), "error": pa.string(),
    }
)  # fmt: skip


def scan_images(job: Job, *, features: Callable[[], int] = lambda: 0) -> None:
    """Lists the images, reads their headers, and settles the radiometry of each source.

    `features` says how many numbers an image's embedding will have, so that there is room on the disk for all of them.
    """
    settings = job.settings.scan
    check_sources(settings.sources)
    open_sources(settings.sources)  # says what is not there before anything old is thrown away
    scan_listed(job, lambda: list_parts(job.run, settings.sources, settings.part_size), features=features)


def check_sources(configs: Sequence[SourceConfig]) -> None:
    """Raises `ConfigError` where there is no source, or two have the same name."""
    if not configs:
        raise ConfigError("no data given: name at least one folder or file")
    names = Counter(c.name for c in configs)
    if len(configs) > 1 and max(names.values()) > 1:
        raise ConfigError(f"two sources are called '{names.most_common(1)[0][0]}': rename one with PATH=NAME")


def scan_listed(
    job: Job, list_images: Callable[[], Listing], *, features: Callable[[], int] = lambda: 0
) -> None:
    """As `scan_images`, for images that `list_images` lists."""
    run, settings = job.run, job.settings.scan
    stands_on = [asdict(c) for c in settings.sources], settings.part_size
    job.admit("scan", *stands_on)
    before = run.names if run.complete("scan") else None
    listing = list_images()
    with job.stage("scan", *stands_on, parts=listing.names) as todo:
        if todo:
            tasks = [ScanPart(run.path, settings.sources, name) for name in listing.names]
            missing = [task for task in tasks if not run.part("scan", task.name).exists()]
            if before and len(missing) < len(tasks):
                job.say(f"the images have changed: {len(missing):,} of {len(tasks):,} parts are read again")
            images = listing.images if len(missing) == len(tasks) else _images_in(missing)
            if missing:
                check_disk(run.path, images, features())
            job.map_parts("scan", scan_part, _unread_part, missing, images)
            write_json(run.path / "radiometry.json", _radiometry(job))
        elif job.overwrite and (declared := _radiometry(job)) != run.json("radiometry.json"):
            resume.unfinish_after(run.path, "scan")
            write_json(run.path / "radiometry.json", declared)
    forget_listing(run)
    check_readable(job, "scan")


class ScanPart(NamedTuple):
    """A part to scan, whose images have been listed."""

    folder: Path
    configs: Sequence[SourceConfig]
    name: str


def _images_in(tasks: Iterable[ScanPart]) -> int:
    return sum(pq.read_metadata(listing_path(t.folder, t.name)).num_rows for t in tasks)


def scan_part(task: ScanPart) -> int:
    """Writes a part of the manifest; returns how many images it has."""
    sources = open_sources(task.configs)
    records = pq.read_table(listing_path(task.folder, task.name)).to_pylist()
    for record in records:
        try:
            header = sources[record["source"]].header(item_of(record))
        except UnreadableImage as e:
            record |= {"status": "unreadable", "error": str(e)}
        else:
            record |= asdict(header) | {"status": "ok"}
    return _write(task, records)


def _unread_part(task: ScanPart, reason: str) -> int:
    records = pq.read_table(listing_path(task.folder, task.name)).to_pylist()
    return _write(task, [record | {"status": "unreadable", "error": reason} for record in records])


def _write(task: ScanPart, records: list[dict[str, Any]]) -> int:
    write_table(part_file(task.folder, "scan", task.name), pa.Table.from_pylist(records, schema=MANIFEST))
    return len(records)


def _radiometry(job: Job) -> list[dict[str, Any]]:
    """Per source its band count and dtype (the most common), and the [lo, hi] that map to 0..1."""
    run, configs = job.run, job.settings.scan.sources
    known = run.json("radiometry.json") if (run.path / "radiometry.json").exists() else [None] * len(configs)
    provisional = bool(run.begun("scan").failed)
    declared = []
    for i, (config, source) in enumerate(zip(configs, open_sources(configs), strict=True)):
        bands, dtype = _bands_and_dtype(run, i, config)
        radiometry = Radiometry.declare(dtype, config.scale, config.nodata)
        record: dict[str, Any] = {"bands": bands, "dtype": dtype, "estimated": radiometry is None}
        if radiometry is None:
            sample = _sample(run, i, bands, dtype, job.settings.seed)
            record |= {"sample": digest(*((r["id"], r["stamp"]) for r in sample)), "provisional": provisional}
            if (kept := _kept(job, config, known[i], record)) is not None:
                declared.append(kept)
                continue
            radiometry = estimate(_images(source, sample, bands), nodata=config.nodata)
            pairs = ", ".join(f"{lo:g} to {hi:g}" for lo, hi in radiometry.scale)
            job.say(
                f"{config.path}: {dtype} without --scale, "
                f"so it was estimated on {len(sample)} images: {pairs}"
            )
        declared.append({**record, **radiometry.to_json()})
    return declared


def _kept(
    job: Job, config: SourceConfig, known: dict[str, Any] | None, now: dict[str, Any]
) -> dict[str, Any] | None:
    """An estimate of before that holds on: another one would make every score and every embedding void."""
    if known is None or any(known[name] != now[name] for name in ("bands", "dtype", "estimated")):
        return None
    if known.get("sample") == now["sample"]:
        return {**known, "provisional": known.get("provisional", False) and now["provisional"]}
    if job.overwrite or known.get("provisional"):
        return None
    job.say(
        f"{config.path}: the range of values stays as it was estimated before the images changed; "
        "--overwrite estimates it anew, and scores and encodes every image again"
    )
    return known


def _bands_and_dtype(run: Run, source: int, config: SourceConfig) -> tuple[int, str]:
    counts: Counter[tuple[int, str]] = Counter()
    images, first_error = 0, None
    for file in run.parts("scan"):
        table = pq.read_table(file, columns=["source", "bands", "dtype", "status", "error"])
        table = table.filter(pc.equal(table["source"], source))
        images += len(table)
        readable = table.filter(pc.equal(table["status"], "ok"))
        if first_error is None and len(readable) < len(table):
            first_error = table["error"].drop_null()[0].as_py()
        for row in readable.group_by(["bands", "dtype"]).aggregate([([], "count_all")]).to_pylist():
            counts[row["bands"], row["dtype"]] += row["count_all"]
    if not counts:
        reason = first_error or "it is empty"
        raise TooManyUnreadable(f"none of the {images} images of {config.path} can be read: {reason}")
    bands: Counter[int] = Counter()
    dtypes: Counter[str] = Counter()
    for (band, dtype), n in counts.items():
        bands[band] += n
        dtypes[dtype] += n
    return _most_common(bands), _most_common(dtypes)


def _sample(run: Run, source: int, bands: int, dtype: str, seed: int) -> list[dict[str, Any]]:
    """Manifest rows of the images of a source that its percentiles are estimated on."""
    chosen: list[tuple[int, dict[str, Any]]] = []
    for file in run.parts("scan"):
        table = pq.read_table(file, columns=[*COLUMNS, "bands", "dtype"])
        alike = {"source": source, "status": "ok", "bands": bands, "dtype": dtype}
        table = table.filter(reduce(pc.and_, (pc.equal(table[name], value) for name, value in alike.items())))
        keys = content_key(table["id"], seed)
        best = np.argsort(keys)[:RADIOMETRY_SAMPLE]
        chosen += zip(keys[best].tolist(), table.take(best).to_pylist(), strict=True)
        chosen = sorted(chosen, key=lambda pair: pair[0])[:RADIOMETRY_SAMPLE]
    return [row for _, row in chosen]


def _images(source: Source, sample: Iterable[Mapping[str, Any]], bands: int) -> Iterator[Image]:
    for row in sample:
        try:
            yield harmonise(source.read(item_of(row)), bands)
        except UnreadableImage:
            continue  # the score stage records it


def _most_common(counts: Counter[Any]) -> Any:
    # Of 1 and 3 bands as often 3: one can be repeated.
    return max(sorted(counts, reverse=True), key=counts.__getitem__)


def check_readable(job: Job, stage: str, more: int = 0, reason: str = "") -> None:
    """Raises `TooManyUnreadable` where a stage has more unreadable images than the settings allow.

    Args:
        job: the run and its settings.
        stage: scan or score.
        more: images that a later stage could not use, and the `reason`.
    """
    settings = job.settings.scan
    images, bad, first = 0, more, reason
    for file in reversed(job.run.parts(stage)):
        with pq.ParquetFile(file) as parquet:
            images += parquet.metadata.num_rows
            if not _has_errors(parquet.metadata):
                continue
            table = parquet.read(["id", "error"])
        table = table.filter(pc.is_valid(table["error"]))
        bad += len(table)
        first = f"{table['id'][0]} {table['error'][0]}"
    if bad and settings.on_error == "stop":
        raise TooManyUnreadable(f"unreadable image: {first}")
    if bad > settings.max_bad * images:
        raise TooManyUnreadable(
            f"{bad} of {images} images are unreadable, "
            f"more than --max-bad {settings.max_bad:g} allows (first: {first}); mend them, or raise --max-bad and run again"
        )


def _has_errors(about: pq.FileMetaData) -> bool:
    """From the footer alone, which is all that there is to read of most parts."""
    column = about.schema.names.index("error")
    groups = (about.row_group(g).column(column) for g in range(about.num_row_groups))
    return any(c.statistics is None or c.statistics.null_count < c.num_values for c in groups)
