"""Score: entropy, the guards and the content hash of every image; one decode per image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rsprune.errors import UnreadableImage
from rsprune.radiometry import Radiometry
from rsprune.reading import Reader, rows
from rsprune.run import Run, write_table
from rsprune.scores import SCORES, content_hash, score_stream
from rsprune.sources.base import Image
from rsprune.stages.job import Job
from rsprune.stages.scan import check_readable

BATCH = 64  # images whose scores are put together at once; their pixels are let go one after the other

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        *((name, pa.float32()) for name in SCORES),
        ("content_hash", pa.string()),
        ("error", pa.string()),
    ]
)


_UNREAD = dict.fromkeys(SCORES, float("nan"))


def score_images(job: Job) -> None:
    """Writes one row of scores per image."""
    job.run.require("scan")
    with job.stage("score", asdict(job.settings.score), job.run.fingerprint("scan")) as todo:
        if todo:
            parts = [(job.run.path, k) for k in job.missing("score")]
            job.map(_score_part, parts, "score", job.missing_images("score"))
    check_readable(job.settings.scan, job.run.table("score", ["id", "error"]))


def _score_part(task: tuple[Path, int]) -> int:
    path, k = task
    run = Run.open(path)
    reader, patch = Reader(run), run.settings.score.patch
    manifest = list(rows(pq.read_table(run.part("scan", k))))
    records: list[dict[str, Any]] = [{"id": row["id"], **_UNREAD} for row in manifest]
    for start in range(0, len(manifest), BATCH):
        read: list[dict[str, Any]] = []
        images = _images(reader, manifest[start : start + BATCH], records[start : start + BATCH], read)
        for record, scores in zip(read, score_stream(images, patch), strict=True):
            record |= scores
    write_table(run.part("score", k), pa.Table.from_pylist(records, schema=SCHEMA))
    return len(records)


def _images(
    reader: Reader,
    manifest: Sequence[Mapping[str, Any]],
    records: Sequence[dict[str, Any]],
    read: list[dict[str, Any]],
) -> Iterator[tuple[Image, Radiometry]]:
    """Decodes image after image; their records get the content hash and go to `read`, or get the error."""
    for row, record in zip(manifest, records, strict=True):
        try:
            image = reader.image(row)
        except UnreadableImage as e:
            record["error"] = str(e)
        else:
            record["content_hash"] = content_hash(image)
            read.append(record)
            yield image, reader.radiometry[row["source"]]
