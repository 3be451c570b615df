"""Cluster: scene tags from the labelled reference, k-means on a sample with all scenes, labels for all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save
from sklearn.exceptions import ConvergenceWarning

from rsprune.calibration import explain, pool_clusters
from rsprune.cluster import KMeans
from rsprune.errors import ConfigError
from rsprune.files import write_atomic, write_json, write_table
from rsprune.filters import eligibility
from rsprune.layout import digest
from rsprune.ops import kmeans_assign
from rsprune.rows import finite_rows, unique_rows
from rsprune.run import Run
from rsprune.scenes import (
    PSEUDO_GRANULARITY,
    Prototypes,
    SceneTags,
    fit_prototypes,
    pseudo_scenes,
    stratified_sample,
    tag,
)
from rsprune.stages.calibrate import calibrate_references, encode_candidates
from rsprune.stages.features import RawFeatures
from rsprune.stages.job import Job
from rsprune.stages.pool import Pool, tables
from rsprune.stages.references import PreparedReference, prepare_references
from rsprune.stored import StoredEmbeddings

_BLOCK = 65_536  # images assigned at once
SCHEMA = pa.schema(
    {
        "id": pa.string(), "cluster": pa.int32(), "distance": pa.float32(),
        "scene": pa.string(), "scene_similarity": pa.float32(), "scene_margin": pa.float32(),
    }
)  # fmt: skip


@dataclass(frozen=True)
class _Images:
    """The images of the pool, and which of them the clusters are fitted on, bool [N]."""

    pool: Pool
    candidates: np.ndarray

    @classmethod
    def of(cls, job: Job) -> _Images:
        pool = Pool.of(job.run, job.settings.seed)
        embedded = finite_rows(pool.x)
        passed = eligibility(pool.scores, job.settings.filter, hashes=pool.contents).eligible
        candidates = passed & embedded
        if not candidates.any():  # nothing can be kept; clusters still say where the images lie
            candidates = embedded
        return cls(pool, candidates)

    @property
    def keys(self) -> np.ndarray:
        return self.pool.contents.key

    @cached_property
    def distinct(self) -> np.ndarray:
        """One row for each content among the candidates, in key order."""
        return unique_rows(self.keys, self.candidates)


def cluster_images(job: Job) -> None:
    """Writes the scene, cluster and distance of every image, the centres and the reference benchmark.

    Raises:
        ConfigError: a reference cannot be used, or the pool has fewer images than clusters were asked for; what was
            clustered before is then still there.
    """
    job.run.require("embed")
    references = prepare_references(job)
    others = encode_candidates(job, references)
    settings, marker = job.settings, None
    try:
        marker = job.run.marker("cluster")
    except ConfigError:  # damaged: begun again where that is wanted
        if not job.overwrite:
            raise
    inputs = [asdict(settings.filter), asdict(settings.cluster), settings.seed, job.run.fingerprint("embed")]
    inputs += [r.fingerprint for r in references]
    images = None
    if marker is None or not marker.complete or marker.fingerprint != digest("cluster", *inputs):
        for reference in references:
            reference.load()
        images = _Images.of(job)
        _check_n_clusters(job, images)
    with job.stage("cluster", *inputs) as todo:
        if todo:
            _cluster(job, images or _Images.of(job), references, others)


def _check_n_clusters(job: Job, images: _Images) -> None:
    wanted = job.settings.cluster.n_clusters
    if wanted is not None and wanted > len(images.distinct):
        raise ConfigError(
            f"--n-clusters is {wanted} but only {len(images.distinct)} distinct images are eligible: give fewer"
        )


def _cluster(
    job: Job, images: _Images, references: list[PreparedReference], others: dict[str, list[RawFeatures]]
) -> None:
    run, settings, seed = job.run, job.settings.cluster, job.settings.seed
    x = images.pool.x
    prototypes, calibration = _scenes(job, references, others, images)
    tags = tag(x, prototypes, progress=job.progress)
    k = _n_clusters(job, calibration, tags, images.distinct)
    write_json(run.path / "calibration.json", calibration)
    fit = stratified_sample(tags.scene, k * settings.fit_per_cluster, images.keys, images.candidates)
    sample = x[fit].astype(np.float32)
    with (
        warnings.catch_warnings()
    ):  # images may differ and yet have equal embeddings, which leaves clusters empty
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(n_clusters=k, max_iter=settings.max_iter, random_state=seed % 2**32).fit(sample)
    centers = np.asarray(fitted.cluster_centers_, np.float32)
    labels, distance = _assign(x, centers, job)

    names = pa.array([*prototypes.names, "unknown"], pa.string())
    start = 0
    for name, table in zip(run.names, tables(run, "scan", ["id"]), strict=True):
        ids = table["id"]
        part = slice(start, start + len(ids))
        scene = np.where(tags.scene[part] < 0, len(names) - 1, tags.scene[part])
        columns = {
            "id": ids,
            "cluster": labels[part],
            "distance": distance[part],
            "scene": names.take(pa.array(scene, mask=labels[part] < 0)),
            "scene_similarity": tags.similarity[part],
            "scene_margin": tags.margin[part],
        }
        write_table(run.part("cluster", name), pa.table(columns).cast(SCHEMA))
        start += len(ids)
    _write_centers(run, centers, labels, distance, prototypes)


def _scenes(
    job: Job,
    references: list[PreparedReference],
    others: dict[str, list[RawFeatures]],
    images: _Images,
) -> tuple[Prototypes, dict[str, Any]]:
    """Scene prototypes and calibration, from the references or, without one, from the pool itself."""
    seed = job.settings.seed
    if references:
        loaded = [r.load() for r in references]
        return fit_prototypes(loaded, seed=seed), calibrate_references(job, references, loaded, others)
    s = job.settings.cluster.pseudo_scenes
    prototypes = pseudo_scenes(images.pool.x, s, images.keys, seed, images.candidates)
    job.say(f"no reference given: {len(prototypes.names)} pseudo-scenes from a small k-means take its place")
    return prototypes, {"references": {}, "granularity": PSEUDO_GRANULARITY}


def _n_clusters(job: Job, calibration: dict[str, Any], tags: SceneTags, distinct: np.ndarray) -> int:
    """The number asked for, or granularity times the scenes that the eligible images show; says why."""
    wanted = job.settings.cluster.n_clusters
    present = len(np.unique(tags.scene[distinct]))
    k = wanted or pool_clusters(calibration["granularity"], present, len(distinct))
    calibration["n_clusters"] = k
    calibration["explanation"] = explain(
        k, len(distinct), present, calibrated=calibration.get("joint"), asked=wanted is not None
    )
    job.say(calibration["explanation"])
    return k


def _assign(x: StoredEmbeddings, centers: np.ndarray, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centre int32 [N] and squared distance float32 [N]; -1 and NaN without an embedding."""
    labels, distance = np.empty(len(x), np.int32), np.empty(len(x), np.float32)

    def done() -> Iterator[int]:
        for start in range(0, len(x), _BLOCK):
            part = slice(start, start + _BLOCK)
            if job.device == "cpu":
                kmeans_assign(x[part], centers, out=(labels[part], distance[part]))
            else:
                import torch

                where = torch.device(job.device)
                there = kmeans_assign(
                    torch.from_numpy(x[part]).to(where), torch.from_numpy(centers).to(where)
                )
                labels[part], distance[part] = (array.cpu().numpy() for array in there)
            yield len(labels[part])

    for _ in job.progress(done(), "cluster", len(x)):
        pass
    return labels, distance


def _write_centers(
    run: Run, centers: np.ndarray, labels: np.ndarray, distance: np.ndarray, prototypes: Prototypes
) -> None:
    inside = labels >= 0
    sizes = np.bincount(labels[inside], minlength=len(centers))
    summed = np.bincount(labels[inside], np.sqrt(distance[inside].astype(np.float64)), minlength=len(centers))
    arrays = {
        "centers": centers,
        "sizes": sizes.astype(np.int64),
        "spreads": (summed / np.maximum(sizes, 1)).astype(np.float32),
        "prototypes": prototypes.vectors,
        "prototype_scenes": prototypes.scene,
    }
    about = {"scenes": "\n".join(prototypes.names)}
    write_atomic(run.path / "clusters.safetensors", lambda f: f.write(save(arrays, about)))
