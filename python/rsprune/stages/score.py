"""Score: entropy, the guards and the content hash of every image; one decode per image."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rsprune.errors import UnreadableImage
from rsprune.reading import Reader, rows
from rsprune.run import Run, write_table
from rsprune.scores import SCORES, content_hash, score_batch
from rsprune.stages.job import Job
from rsprune.stages.scan import check_readable

READ_BATCH = 64  # images decoded at once: the kernel gets stacks, memory stays bounded

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        *((name, pa.float32()) for name in SCORES),
        ("content_hash", pa.string()),
        ("error", pa.string()),
    ]
)


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
    records: list[dict[str, Any]] = []
    for start in range(0, len(manifest), READ_BATCH):
        batch = manifest[start : start + READ_BATCH]
        images, read = [], []
        for row in batch:
            record: dict[str, Any] = {"id": row["id"], **dict.fromkeys(SCORES, float("nan"))}
            records.append(record)
            try:
                image = reader.image(row)
            except UnreadableImage as e:
                record["error"] = str(e)
            else:
                record["content_hash"] = content_hash(image)
                images.append(image)
                read.append((record, reader.radiometry[row["source"]]))
        for (record, _), scores in zip(read, score_batch(images, [r for _, r in read], patch), strict=True):
            record |= scores
    write_table(run.part("score", k), pa.Table.from_pylist(records, schema=SCHEMA))
    return len(records)
