"""Cluster: scene tags from the labelled reference, k-means on a sample with all scenes, labels for all."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save
from sklearn.exceptions import ConvergenceWarning

from rsprune.calibration import explain, pool_clusters
from rsprune.cluster import KMeans
from rsprune.config import FilterConfig
from rsprune.errors import ConfigError
from rsprune.filters import GUARDS, eligibility
from rsprune.ops import kmeans_assign
from rsprune.rows import content_key, finite_rows, unique_rows
from rsprune.run import Run, write_atomic, write_json, write_table
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
from rsprune.stages.references import PreparedReference, prepare_references

SCORE_COLUMNS = ("entropy", "nodata_fraction", *(guard.score for guard in GUARDS))
SCHEMA = pa.schema(
    {
        "id": pa.string(), "cluster": pa.int32(), "distance": pa.float32(),
        "scene": pa.string(), "scene_similarity": pa.float32(), "scene_margin": pa.float32(),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """What the earlier stages wrote, as arrays over all N images."""

    scores: dict[str, np.ndarray]
    hashes: np.ndarray
    x: np.ndarray

    @classmethod
    def of(cls, run: Run) -> Pool:
        table = run.table("score", [*SCORE_COLUMNS, "content_hash"])
        scores = {name: table[name].to_numpy() for name in SCORE_COLUMNS}
        return cls(scores, table["content_hash"].to_numpy(), run.embeddings())

    def eligible(self, filters: FilterConfig) -> np.ndarray:
        """Images that pass the filters and have an embedding, bool [N]."""
        return eligibility(self.scores, filters, hashes=self.hashes).eligible & finite_rows(self.x)


def cluster_images(job: Job) -> None:
    """Writes the scene, cluster and distance of every image, the centres and the reference benchmark."""
    job.run.require("embed")
    references = prepare_references(job)
    others = encode_candidates(job, references)
    settings = job.settings
    inputs = [asdict(settings.filter), asdict(settings.cluster), settings.seed, job.run.fingerprint("embed")]
    with job.stage("cluster", *inputs, *(r.fingerprint for r in references)) as todo:
        if todo:
            _cluster(job, references, others)


def _cluster(job: Job, references: list[PreparedReference], others: dict[str, list[RawFeatures]]) -> None:
    run, settings, seed = job.run, job.settings.cluster, job.settings.seed
    pool = Pool.of(run)
    keys = content_key(pool.hashes, seed)
    candidates = pool.eligible(job.settings.filter)
    if not candidates.any():  # nothing can be kept; clusters still say where the images lie
        candidates = finite_rows(pool.x)
    prototypes, calibration = _scenes(job, references, others, pool.x, keys, candidates)
    tags = tag(pool.x, prototypes)
    k = _n_clusters(job, calibration, tags, unique_rows(keys, candidates))
    write_json(run.path / "calibration.json", calibration)
    fit = stratified_sample(tags.scene, k * settings.fit_per_cluster, keys, candidates)
    sample = pool.x[fit].astype(np.float32)
    with (
        warnings.catch_warnings()
    ):  # images may differ and yet have equal embeddings, which leaves clusters empty
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(n_clusters=k, max_iter=settings.max_iter, random_state=seed % 2**32).fit(sample)
    centers = np.asarray(fitted.cluster_centers_, np.float32)
    labels, distance = _assign(pool.x, centers, job.device)

    names = np.array([*prototypes.names, "unknown"], dtype=object)[tags.scene]  # -1 is the last
    names[labels < 0] = None
    start = 0
    for i in range(run.n_parts):
        ids = pq.read_table(run.part("scan", i), columns=["id"])["id"]
        part = slice(start, start + len(ids))
        columns = [ids, labels[part], distance[part], names[part], tags.similarity[part], tags.margin[part]]
        columns = [pa.chunked_array(c) if isinstance(c, pa.ChunkedArray) else pa.array(c) for c in columns]
        write_table(run.part("cluster", i), pa.table(columns, names=SCHEMA.names).cast(SCHEMA))
        start += len(ids)
    _write_centers(run, centers, labels, distance, prototypes)


def _scenes(
    job: Job,
    references: list[PreparedReference],
    others: dict[str, list[RawFeatures]],
    x: np.ndarray,
    keys: np.ndarray,
    candidates: np.ndarray,
) -> tuple[Prototypes, dict[str, Any]]:
    """Scene prototypes and calibration, from the references or, without one, from the pool itself."""
    seed = job.settings.seed
    if references:
        loaded = [r.load() for r in references]
        return fit_prototypes(loaded, seed=seed), calibrate_references(job, references, loaded, others)
    rows = np.flatnonzero(candidates)
    prototypes = pseudo_scenes(x[rows], job.settings.cluster.pseudo_scenes, keys[rows], seed)
    job.say(f"no reference given: {len(prototypes.names)} pseudo-scenes from a small k-means take its place")
    return prototypes, {"references": {}, "granularity": PSEUDO_GRANULARITY}


def _n_clusters(job: Job, calibration: dict[str, Any], tags: SceneTags, distinct: np.ndarray) -> int:
    """The number asked for, or granularity times the scenes that the eligible images show; says why."""
    wanted = job.settings.cluster.n_clusters
    if wanted is not None and wanted > len(distinct):
        raise ConfigError(
            f"--n-clusters is {wanted} but only {len(distinct)} distinct images are eligible: give fewer"
        )
    present = len(np.unique(tags.scene[distinct]))
    k = wanted or pool_clusters(calibration["granularity"], present, len(distinct))
    calibration["n_clusters"] = k
    calibration["explanation"] = explain(
        k, len(distinct), present, calibrated=calibration.get("joint"), asked=wanted is not None
    )
    job.say(calibration["explanation"])
    return k


def _assign(x: np.ndarray, centers: np.ndarray, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centre int32 [N] and squared distance float32 [N]; -1 and NaN without an embedding."""
    if device == "cpu":
        return kmeans_assign(x, centers)
    import torch

    where = torch.device(device)
    labels, distance = kmeans_assign(torch.from_numpy(x).to(where), torch.from_numpy(centers).to(where))
    return labels.cpu().numpy(), distance.cpu().numpy()


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
