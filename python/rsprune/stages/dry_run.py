"""What a run will take: its images counted, and a few of them put through the stages that read images."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash

from rsprune.reading import open_sources
from rsprune.run import Run
from rsprune.stages.check import check
from rsprune.stages.disk import folder_bytes, free_bytes, in_words
from rsprune.stages.embed import embedding_size
from rsprune.stages.encode import STATE, encode, learn
from rsprune.stages.job import Job
from rsprune.stages.listing import Listed, write_parts
from rsprune.stages.references import reference_sources
from rsprune.stages.scan import ScanPart, check_sources, scan_listed, scan_part
from rsprune.stages.score import ScorePart, score_images, score_part

SAMPLE = 48  # images, of each source


@dataclass(frozen=True)
class DryRun:
    """What is expected of a run; `seconds` are up to the embeddings, `per_image` those of one core."""

    images: int
    bytes: int
    reference_images: int
    disk_bytes: int
    free_bytes: int
    seconds: float
    sampled: int
    unreadable: int
    per_image: dict[str, float]
    workers: int

    def to_json(self) -> dict[str, Any]:
        """The facts, JSON-able."""
        return {"dry_run": True, **vars(self)}

    def in_words(self) -> str:
        """The facts in a few lines."""
        each = ", ".join(f"{stage} {1000 * s:.2g} ms" for stage, s in self.per_image.items())
        fits = "" if self.disk_bytes <= self.free_bytes else "which is NOT enough; "
        lines = [
            f"images: {self.images:,}, about {in_words(self.bytes)} to read",
            f"run folder: about {in_words(self.disk_bytes)}; {fits}{in_words(self.free_bytes)} are free",
            f"time: about {_duration(self.seconds)} with {self.workers} workers up to the embeddings; "
            "clustering, selection and the page come on top",
            f"measured on {self.sampled} images, per image on one core: {each}",
        ]
        if self.reference_images:
            lines.insert(1, f"references: {self.reference_images:,} images more, which the time includes")
        if self.unreadable:
            lines.append(f"unreadable: {self.unreadable} of these {self.sampled}")
        return "\n".join(lines)


def dry_run(job: Job) -> DryRun:
    """Counts and measures without touching the job's run folder; what it writes lies in a temporary one.

    Raises:
        ConfigError: The run would refuse what it is given.
    """
    configs = job.settings.scan.sources
    check_sources(configs)
    check(job)
    counts = [_count(i, source) for i, source in enumerate(open_sources(configs))]
    folders = [r for r in reference_sources(job) if Path(r.path).is_dir()]
    reference_images = sum(sum(1 for _ in source.items()) for source in open_sources(folders))
    images = sum(n for n, _, _ in counts)
    sample = sorted((pair for _, _, chosen in counts for pair in chosen), key=lambda pair: pair[1].id)

    tolerant = replace(job.settings.scan, max_bad=1.0, on_error="record")
    with TemporaryDirectory(prefix="rsprune-") as folder:
        mine = Job(Run(folder), replace(job.settings, scan=tolerant), workers=1, device=job.device)
        per_image, features = _measure(mine, sample)
        manifest = mine.run.table("scan", ["source", "bytes", "error"])
        unreadable = mine.run.table("score", ["error"])["error"]
    size = 0.0
    for i, (_, files, _) in enumerate(counts):
        known = manifest["bytes"].filter(np.equal(manifest["source"].to_numpy(), i)).drop_null().to_numpy()
        size += files * known.mean() if len(known) else 0.0
    parallel = job.workers if job.device == "cpu" else 1  # workers share the device
    each = per_image["scan"] / job.workers + per_image["score"] / job.workers + per_image["embed"] / parallel
    return DryRun(
        images=images,
        bytes=round(size),
        reference_images=reference_images,
        disk_bytes=folder_bytes(images + reference_images, features),
        free_bytes=free_bytes(job.run.path),
        seconds=round(each * (images + reference_images), 1),
        sampled=len(sample),
        unreadable=len(unreadable) - unreadable.null_count,
        per_image=per_image,
        workers=job.workers,
    )


def _count(i: int, source: Any) -> tuple[int, int, Sequence[Listed]]:
    """Images of a source, files that they lie in, and the sample."""
    images, files, last = 0, 0, None
    chosen: list[tuple[int, str, Listed]] = []
    for item in source.items():
        images += 1
        files += last != (last := (item.uri, item.member))
        key = -xxhash.xxh3_64_intdigest(item.id.encode())
        push = heapq.heappush if len(chosen) < SAMPLE else heapq.heappushpop
        push(chosen, (key, item.id, (i, item)))
    return images, files, [listed for _, _, listed in chosen]


def _measure(job: Job, sample: Sequence[Listed]) -> tuple[dict[str, float], int]:
    """Seconds per image of each stage, and the length of an embedding; the first images of all are not measured."""
    run, settings, n = job.run, job.settings, len(sample)
    with run.lock():
        scan_listed(job, lambda: write_parts(run, [list(sample)]))
        score_images(job)
    (name,) = run.names
    write_parts(run, [list(sample)], again=True)
    seconds = {
        "scan": _timed(lambda: scan_part(ScanPart(run.path, settings.scan.sources, name))) / n,
        "score": _timed(lambda: score_part(ScorePart(run.path, name))) / n,
        "embed": 0.0,
    }
    features = embedding_size(job)
    readable = pq.read_table(run.part("score", name), columns=["error"])["error"].null_count
    if not settings.embed.embeddings and readable:
        encoding = learn(job, settings.embed.encoder, run.path / STATE)
        run.save_settings(settings)
        rows = np.arange(n)
        features = encode(run, name, rows[:4], encoding).shape[1]  # some know it only once they have learnt
        seconds["embed"] = _timed(lambda: encode(run, name, rows, encoding)) / readable
    return {stage: round(s, 6) for stage, s in seconds.items()}, features


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
