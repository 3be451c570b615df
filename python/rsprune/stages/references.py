"""Labelled reference sets: class folders or Parquet files in, embeddings in the space of the run out."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rsprune.config import ScanConfig, SourceConfig
from rsprune.embedding import Transform
from rsprune.errors import ConfigError
from rsprune.layout import digest
from rsprune.locations import check_name, source_values
from rsprune.prepared import describe_file, describe_folder, read_labelled, write_prepared
from rsprune.run import Run
from rsprune.scenes import Reference
from rsprune.stages.beside import like_the_pool
from rsprune.stages.embed import TRANSFORM
from rsprune.stages.features import RawFeatures, features_alone, features_of_run, given_features
from rsprune.stages.job import Job
from rsprune.stages.scan import scan_images
from rsprune.stages.score import score_images


@dataclass(frozen=True)
class PreparedReference:
    """A reference whose features can be read, and the fingerprint of what they stand on.

    Attributes:
        folder: scored images with their features; None for a Parquet file.
        raw: the features of `folder`; None for a Parquet file.
        about: licence and origin, as far as they are stated.
    """

    name: str
    fingerprint: str
    folder: Run | None
    file: Path | None
    transform: Transform
    raw: RawFeatures | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Reference:
        """Its embeddings [M, D] and labels [M]. Raises `ConfigError`."""
        return self.reference(self.transform(self.features))

    def reference(self, embeddings: np.ndarray) -> Reference:
        """Its labels with embeddings [M, D] of whatever kind."""
        classes, labels = self._labels
        return Reference(self.name, classes, labels, embeddings)

    @cached_property
    def features(self) -> np.ndarray:
        """Raw features [M, D], NaN where an image is unreadable."""
        return self.raw.load() if self.raw else self._content[0]

    @cached_property
    def _labels(self) -> tuple[tuple[str, ...], np.ndarray]:
        if self.folder is not None:
            return _class_folders(self.folder)
        names = self._content[1]
        classes = tuple(sorted({v for v in names if v is not None}))
        index = {c: i for i, c in enumerate(classes)}
        return classes, np.array([-1 if v is None else index[v] for v in names], np.int32)

    @cached_property
    def _content(self) -> tuple[np.ndarray, list[str | None]]:
        assert self.file is not None, "a reference is a folder or a file"
        features, names = read_labelled(self.file)
        wanted = len(self.transform.mean)
        if features.shape[1] != wanted:
            raise ConfigError(
                f"reference {self.file} has embeddings of {features.shape[1]} features, the run has {wanted}: "
                "give one that was made with the encoder of the run"
            )
        return features, names


def prepare_references(job: Job) -> list[PreparedReference]:
    """Encodes every reference of the job that is not encoded yet, for the space of the run's own images."""
    transform = Transform.load(job.run.path / TRANSFORM)
    return [_prepare(job, source, transform) for source in reference_sources(job)]


def reference_sources(job: Job) -> list[SourceConfig]:
    """Where the references of a job lie, and their names. Raises `ConfigError` where two have the same."""
    sources = [SourceConfig(**source_values(text)) for text in job.settings.cluster.reference]
    for source in sources:
        check_name(source.path, source.name)
    for name, count in Counter(s.name for s in sources).items():
        if count > 1:
            raise ConfigError(f"two references are called '{name}': rename one with PATH=NAME")
    return sources


def check_references(job: Job) -> None:
    """Raises `ConfigError` where a reference is not there, or is of a kind that the run cannot use."""
    for source in reference_sources(job):
        _about(job, Path(source.path))


def check_output(out: Path, *, overwrite: bool) -> None:
    """Raises `ConfigError` where a prepared reference may not be written to `out`."""
    if out.suffix != ".parquet":
        raise ConfigError(f"a reference is written to a .parquet file, not to {out}: give -o NAME.parquet")
    if out.exists() and not overwrite:
        raise ConfigError(
            f"{out} exists already: choose another file with -o, or replace it with --overwrite"
        )


def write_reference(job: Job, out: Path) -> dict[str, Any]:
    """Encodes the class folders that are the job's only source, and writes `out` for use in any run.

    The job's run folder holds the work in progress and is removed at the end.

    Returns:
        What was written about the reference, JSON-able.

    Raises:
        ConfigError: The folder is no reference.
    """
    folder = Path(job.settings.scan.sources[0].path)
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: give a folder with a folder per class")
    stated = describe_folder(folder)
    job = replace(job, overwrite=True)  # of its own work, as another encoder may have been asked for before
    scan_images(job)
    try:
        classes, labels = _class_folders(job.run)
    except ConfigError:
        shutil.rmtree(job.run.path)  # there is nothing to continue
        raise
    score_images(job)
    if job.settings.embed.embeddings:
        encoder, weight_hash = "precomputed", ""
        features = given_features(job.run, job.settings.embed.embeddings)
    else:
        raw = features_alone(job)
        encoder, weight_hash, features = raw.encoder, raw.weight_hash, raw.load()
    usable = np.flatnonzero(np.isfinite(features).all(axis=1))
    ids = job.run.table("scan", ["id"])["id"].take(usable).to_pylist()
    names = [classes[labels[i]] for i in usable]
    about = {
        "name": job.settings.scan.sources[0].name, **stated, "encoder": encoder, "weight_hash": weight_hash,
        "source": str(folder), "images": len(usable), "unreadable": len(labels) - len(usable),
        "classes": dict(sorted(Counter(names).items())),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    write_prepared(out, ids, features[usable], names, about)
    shutil.rmtree(job.run.path)
    return {**about, "path": str(out)}


def _prepare(job: Job, source: SourceConfig, transform: Transform) -> PreparedReference:
    path = Path(source.path)
    about = _about(job, path)
    if path.is_file():
        _check_encoder(path, about, transform)
        stat = path.stat()
        fingerprint = digest(str(path), stat.st_size, stat.st_mtime_ns)
        return PreparedReference(source.name, fingerprint, None, path, transform, about=about)
    # A reference is a collection like any other: scanned and scored in a run folder of its own.
    like = like_the_pool(job.run, source.path, source.name, windows=False)
    scan = ScanConfig(
        sources=(like,), part_size=job.settings.scan.part_size, max_bad=job.settings.scan.max_bad
    )
    run = Run(job.run.path / "references" / source.name)
    run.path.mkdir(parents=True, exist_ok=True)
    mine = replace(job, run=run, settings=replace(job.settings, scan=scan), overwrite=True)
    scan_images(mine)
    _class_folders(run)
    score_images(mine)
    raw = features_of_run(job, mine, transform)
    fingerprint = digest(raw.fingerprint, about)
    return PreparedReference(source.name, fingerprint, run, None, transform, raw, about)


def _about(job: Job, path: Path) -> dict[str, Any]:
    """Licence and origin of a reference. Raises `ConfigError` where it is not there, or the run cannot use it."""
    if path.is_file():
        if path.suffix != ".parquet":
            raise ConfigError(f"reference {path} is neither a folder of class folders nor a .parquet file")
        return describe_file(path)
    if not path.is_dir():
        raise ConfigError(
            f"there is no reference {path}: give a folder with a folder per class, or a .parquet file"
        )
    if job.settings.embed.embeddings:
        raise ConfigError(
            f"reference {path} holds images, but this run takes its features from "
            f"{job.settings.embed.embeddings}: give the reference as .parquet with columns embedding and label"
        )
    return describe_folder(path)


def _check_encoder(path: Path, about: Mapping[str, Any], transform: Transform) -> None:
    """Raises `ConfigError` where a prepared reference stands on another encoder than the run."""
    if "encoder" not in about:  # of other origin: its maker has to know
        return
    theirs = about["encoder"], about.get("weight_hash", "")
    if theirs != (transform.encoder, transform.weight_hash):
        same = theirs[0] == transform.encoder
        other = f"other weights of {theirs[0]}" if same else f"the encoder {theirs[0]}"
        raise ConfigError(
            f"reference {path} was prepared with {other}, this run has {transform.encoder}: "
            f"prepare it again with 'rsprune reference' and the encoder of the run"
        )


def _class_folders(run: Run) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and the label int32 [M] of each image: the first folder of its id."""
    table = run.table("scan", ["id", "status"])
    folders = [id.split("/", 1)[0] if "/" in id else "" for id in table["id"].to_pylist()]
    if any(not folder and s == "ok" for folder, s in zip(folders, table["status"].to_pylist(), strict=True)):
        where = run.settings.scan.sources[0].path
        raise ConfigError(
            f"reference {where} has images outside class folders: "
            "put each into a folder named after its class"
        )
    classes = tuple(sorted(set(folders) - {""}))
    index = {name: i for i, name in enumerate(classes)}
    return classes, np.array([index.get(f, -1) for f in folders], np.int32)
