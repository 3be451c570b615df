"""Score: entropy, the guards and the content hash of every image; one decode per image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rsprune.errors import UnreadableImage
from rsprune.files import write_table
from rsprune.layout import digest
from rsprune.radiometry import Radiometry
from rsprune.reading import Reader, rows
from rsprune.run import Run
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
    run = job.run
    run.require("scan")
    with job.stage(
        "score", asdict(job.settings.score), run.begun("scan").fingerprint, inputs=_radiometry(run)
    ) as todo:
        if todo:
            parts = [ScorePart(run.path, name) for name in job.missing("score")]
            images = job.images_in(part.name for part in parts)
            job.map_parts("score", score_part, _unread_part, parts, images)
    check_readable(job, "score")


def _radiometry(run: Run) -> str:
    """Fingerprint of how stored values become scores, but for how that came about."""
    declared = run.json("radiometry.json")
    return digest([{k: v for k, v in d.items() if k not in ("sample", "provisional")} for d in declared])


class ScorePart(NamedTuple):
    """A part to score."""

    folder: Path
    name: str


def score_part(task: ScorePart) -> int:
    """Writes the scores of a part; returns how many images it has."""
    run = Run.open(task.folder)
    reader, patch = Reader(run), run.settings.score.patch
    manifest = list(rows(pq.read_table(run.part("scan", task.name))))
    records: list[dict[str, Any]] = [{"id": row["id"], **_UNREAD} for row in manifest]
    for start in range(0, len(manifest), BATCH):
        read: list[dict[str, Any]] = []
        images = _images(reader, manifest[start : start + BATCH], records[start : start + BATCH], read)
        for record, scores in zip(read, score_stream(images, patch), strict=True):
            record |= scores
    return _write(run, task, records)


def _unread_part(task: ScorePart, reason: str) -> int:
    run = Run.open(task.folder)
    manifest = list(rows(pq.read_table(run.part("scan", task.name))))
    records = [{"id": row["id"], **_UNREAD, "error": row["error"] or reason} for row in manifest]
    _write(run, task, records)
    return sum(row["error"] is None for row in manifest)


def _write(run: Run, task: ScorePart, records: list[dict[str, Any]]) -> int:
    write_table(run.part("score", task.name), pa.Table.from_pylist(records, schema=SCHEMA))
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
