"""Labelled reference sets: class folders or Parquet files in, embeddings in the space of the run out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rsprune.config import ScanConfig, SourceConfig, source_values
from rsprune.embedding import Transform
from rsprune.errors import ConfigError
from rsprune.run import Run, digest
from rsprune.scenes import Reference
from rsprune.stages.embed import TRANSFORM, embed_images
from rsprune.stages.job import Job
from rsprune.stages.scan import scan_images
from rsprune.stages.score import score_images


@dataclass(frozen=True)
class PreparedReference:
    """A reference whose embeddings can be read, and the fingerprint of what they stand on."""

    name: str
    fingerprint: str
    folder: Run | None  # embedded images; None for a Parquet file
    file: Path | None
    transform: Transform

    def load(self) -> Reference:
        """Its embeddings [M, D] and labels [M]. Raises `ConfigError`."""
        if self.folder is not None:
            classes, labels = _class_folders(self.folder)
            return Reference(self.name, classes, labels, self.folder.embeddings())
        return _from_parquet(self.file, self.name, self.transform)


def prepare_references(job: Job) -> list[PreparedReference]:
    """Embeds every reference of the job that is not embedded yet, in the space of the run's own images."""
    transform = Transform.load(job.run.path / TRANSFORM)
    sources = [SourceConfig(**source_values(text)) for text in job.settings.cluster.reference]
    counts = Counter(s.name for s in sources)
    for name, count in counts.items():
        if count > 1:
            raise ConfigError(f"two references are called '{name}': rename one with PATH=NAME")
    return [_prepare(job, source, transform) for source in sources]


def _prepare(job: Job, source: SourceConfig, transform: Transform) -> PreparedReference:
    path = Path(source.path)
    if path.is_file():
        if path.suffix != ".parquet":
            raise ConfigError(f"reference {path} is neither a folder of class folders nor a .parquet file")
        stat = path.stat()
        return PreparedReference(
            source.name, digest(str(path), stat.st_size, stat.st_mtime_ns), None, path, transform
        )
    if not path.is_dir():
        raise ConfigError(
            f"there is no reference {path}: give a folder with a folder per class, or a .parquet file"
        )
    if job.settings.embed.embeddings:
        raise ConfigError(
            f"reference {path} holds images, but this run takes its features from "
            f"{job.settings.embed.embeddings}: give the reference as .parquet with columns embedding and label"
        )
    # A reference is a collection like any other: scanned, scored and embedded in a run folder of its own.
    scan = ScanConfig(
        sources=(source,), part_size=job.settings.scan.part_size, max_bad=job.settings.scan.max_bad
    )
    run = Run(job.run.path / "references" / source.name)
    run.path.mkdir(parents=True, exist_ok=True)
    mine = replace(job, run=run, settings=replace(job.settings, scan=scan), overwrite=True)
    scan_images(mine)
    _class_folders(run)
    score_images(mine)
    embed_images(mine, transform)
    return PreparedReference(source.name, run.fingerprint("embed"), run, None, transform)


def _class_folders(run: Run) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and the label int32 [M] of each image: the first folder of its id."""
    folders = [
        id.split("/", 1)[0] if "/" in id else None for id in run.table("scan", ["id"])["id"].to_pylist()
    ]
    if None in folders:
        where = run.settings.scan.sources[0].path
        raise ConfigError(
            f"reference {where} has images outside class folders: "
            "put each into a folder named after its class"
        )
    classes = tuple(sorted(set(folders)))
    index = {name: i for i, name in enumerate(classes)}
    return classes, np.array([index[f] for f in folders], np.int32)


def _from_parquet(path: Path, name: str, transform: Transform) -> Reference:
    try:
        table = pq.read_table(path, columns=["embedding", "label"])
    except (pa.ArrowException, OSError) as e:
        raise ConfigError(
            f"reference {path} needs the columns embedding and label: {str(e).splitlines()[0]}"
        ) from None
    labels: list[Any] = table["label"].to_pylist()
    rows = table["embedding"].to_pylist()
    sizes = {len(row) if row is not None else None for row in rows}
    if sizes != {len(transform.mean)}:
        raise ConfigError(
            f"reference {path} needs embeddings of {len(transform.mean)} features as the run has, not {sizes}"
        )
    classes = tuple(sorted({str(v) for v in labels if v is not None}))
    index = {c: i for i, c in enumerate(classes)}
    codes = np.array([-1 if v is None else index[str(v)] for v in labels], np.int32)
    return Reference(name, classes, codes, transform(np.asarray(rows, np.float64)))
