"""Scan: lists the images, reads their headers, and settles the radiometry of each source."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsprune.config import ScanConfig, SourceConfig
from rsprune.errors import ConfigError, TooManyUnreadable, UnreadableImage
from rsprune.radiometry import Radiometry, estimate
from rsprune.reading import COLUMNS, item_of, open_sources
from rsprune.run import digest, write_json, write_table
from rsprune.sources import harmonise, ids
from rsprune.sources.base import Image, Item, Source
from rsprune.sources.masks import parse
from rsprune.stages.job import Job

RADIOMETRY_SAMPLE = 256  # images of a source that its percentiles are estimated on

MANIFEST = pa.schema(
    {
        "id": pa.string(), "uri": pa.string(), "source": pa.int16(),
        "width": pa.int32(), "height": pa.int32(), "bands": pa.int32(), "dtype": pa.string(), "bytes": pa.int64(),
        "x": pa.int32(), "y": pa.int32(), "w": pa.int32(), "h": pa.int32(),
        "crs": pa.string(), "gsd": pa.float32(), "centre_lat": pa.float64(), "centre_lon": pa.float64(),
        "timestamp": pa.string(),
        "left": pa.float64(), "bottom": pa.float64(), "right": pa.float64(), "top": pa.float64(),
        "status": pa.string(), "error": pa.string(),
    }
)  # fmt: skip


def scan_images(job: Job) -> None:
    """Lists the images, reads their headers, and settles the radiometry of each source."""
    configs = job.settings.scan.sources
    if not configs:
        raise ConfigError("no data given: name at least one folder or file")
    names = Counter(c.name for c in configs)
    if len(configs) > 1 and max(names.values()) > 1:
        raise ConfigError(f"two sources are called '{max(names, key=names.get)}': rename one with PATH=NAME")
    listed = [zip(itertools.repeat(i), source.items()) for i, source in enumerate(open_sources(configs))]
    items = list(heapq.merge(*listed, key=lambda pair: pair[1].id))
    settings = job.settings.scan
    with job.stage(
        "scan", [asdict(c) for c in configs], settings.part_size, _listing(items, configs)
    ) as todo:
        if todo:
            size = settings.part_size
            chunks = [items[start : start + size] for start in range(0, len(items), size)]
            tasks = [(job.run.part("scan", k), configs, c) for k, c in enumerate(chunks)]
            missing = [t for t in tasks if not t[0].exists()]
            job.map(_scan_part, missing, "scan", sum(len(t[2]) for t in missing))
            table = pa.concat_tables(pq.read_table(f) for f in job.run.parts("scan"))
            write_json(job.run.path / "radiometry.json", _radiometry(job, table))
    check_readable(settings, job.run.table("scan", ["id", "error"]))


def _listing(items: Sequence[tuple[int, Item]], configs: Sequence[SourceConfig]) -> str:
    """Changes when an image or its mask is added, removed, resized or touched."""

    @lru_cache(maxsize=2)
    def stat(path: str) -> Any:
        try:
            s = Path(path).stat()
        except OSError:
            return None
        return s.st_size, s.st_mtime_ns

    masks = [parse(c.mask) if c.mask else None for c in configs]
    files = [(item.id, ids.decode(item.uri), masks[i]) for i, item in items]
    return digest([(id, stat(path), stat(mask.path(path)) if mask else None) for id, path, mask in files])


def _scan_part(task: tuple[Path, Sequence[SourceConfig], Sequence[tuple[int, Item]]]) -> int:
    path, configs, items = task
    sources = open_sources(configs)
    records = []
    for i, item in items:
        record: dict[str, Any] = {"id": item.id, "uri": item.uri, "source": i}
        if item.window:
            record |= item.window._asdict()
        try:
            record |= asdict(sources[i].header(item)) | {"status": "ok"}
        except UnreadableImage as e:
            record |= {"status": "unreadable", "error": str(e)}
        records.append(record)
    write_table(path, pa.Table.from_pylist(records, schema=MANIFEST))
    return len(records)


def _radiometry(job: Job, table: pa.Table) -> list[dict[str, Any]]:
    """Per source its band count and dtype (the most common), and the [lo, hi] that map to 0..1."""
    configs = job.settings.scan.sources
    declared = []
    for i, (config, source) in enumerate(zip(configs, open_sources(configs), strict=True)):
        mine = [r for r in table.select([*COLUMNS, "bands", "dtype"]).to_pylist() if r["source"] == i]
        readable = [r for r in mine if r["status"] == "ok"]
        if not readable:
            reason = mine[0]["error"] if mine else "it is empty"
            raise TooManyUnreadable(f"none of the {len(mine)} images of {config.path} can be read: {reason}")
        bands = _most_common(r["bands"] for r in readable)
        dtype = _most_common(r["dtype"] for r in readable)
        radiometry = Radiometry.declare(dtype, config.scale, config.nodata)
        if estimated := radiometry is None:
            alike = [r for r in readable if (r["bands"], r["dtype"]) == (bands, dtype)]
            sample = sorted(alike, key=lambda r: digest(job.settings.seed, r["id"]))[:RADIOMETRY_SAMPLE]
            radiometry = estimate(_images(source, sample, bands), nodata=config.nodata)
            pairs = ", ".join(f"{lo:g} to {hi:g}" for lo, hi in radiometry.scale)
            job.say(
                f"{config.path}: {dtype} without --scale, "
                f"so it was estimated on {len(sample)} images: {pairs}"
            )
        declared.append({"bands": bands, "dtype": dtype, "estimated": estimated, **radiometry.to_json()})
    return declared


def _images(source: Source, sample: Iterable[Mapping[str, Any]], bands: int) -> Iterator[Image]:
    for row in sample:
        try:
            yield harmonise(source.read(item_of(row)), bands)
        except UnreadableImage:
            continue  # the score stage records it


def _most_common(values: Iterable[Any]) -> Any:
    counts = Counter(values)
    return max(
        sorted(counts, reverse=True), key=counts.__getitem__
    )  # of 1 and 3 bands 3: one can be repeated


def check_readable(settings: ScanConfig, table: pa.Table) -> None:
    """Raises `TooManyUnreadable` where more rows have an `error` than the settings allow."""
    bad = table.filter(pc.is_valid(table["error"]))
    if not len(bad):
        return
    first = f"{bad['id'][0]} {bad['error'][0]}"
    if settings.on_error == "stop":
        raise TooManyUnreadable(f"unreadable image: {first}")
    if len(bad) > settings.max_bad * len(table):
        raise TooManyUnreadable(
            f"{len(bad)} of {len(table)} images are unreadable, "
            f"more than --max-bad {settings.max_bad:g} allows (first: {first}); mend them, or raise --max-bad and run again"
        )
