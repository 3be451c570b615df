"""Calibration: a labelled reference as benchmark of embedding spaces, and the number of clusters it asks for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rsprune.embedding import Transform
from rsprune.rows import BLOCK_BYTES, content_key, finite_rows, row_hashes, unique_rows, unit_rows
from rsprune.scenes import PSEUDO_GRANULARITY, Reference, cluster_rows, joined

PURITY = 0.9  # share of a cluster's images that have its commonest class
GRANULARITIES = (1, 2, 4, 8)  # clusters per class at which candidates are compared
_BENCHMARK_IMAGES = 8192  # more move the benchmark by less than its spread over seeds
_MAX_GRANULARITY = 32
_IMAGES_PER_CLUSTER = 8  # with fewer, any clusters are pure
_LEAST = 16  # clusters of a pool
_KEPT_VARIANCE = 0.95  # of the components that whitening blows up to one length


def calibrate(reference: Reference | Sequence[Reference], *, seed: int = 0) -> dict[str, Any]:
    """The reference as benchmark of the embedding space, ready for JSON.

    Returns:
        `granularity` g, the smallest for which k-means with g clusters per class is at least 90 % pure
        (`reached`; else the largest that leaves 8 images to a cluster, at most 32); for S classes and for
        g * S clusters: `nmi`, `ami`, `ari`, `purity`; `knn_accuracy` of 5 neighbours, leave-one-out, None
        for a single image; `images`, `images_used` and `classes`.
    """
    names, labels, x = joined(reference)
    keys = content_key(row_hashes(x), seed)
    rows = unique_rows(keys)[:_BENCHMARK_IMAGES]
    x, labels = x[rows], labels[rows]
    n_classes = len(np.unique(labels))
    fitted: dict[int, np.ndarray] = {}

    def purity(g: int) -> float:
        if g not in fitted:
            fitted[g] = cluster_rows(x, min(g * n_classes, len(x)), seed)[0]
        return _purity(labels, fitted[g])

    most = max(1, min(_MAX_GRANULARITY, len(x) // (_IMAGES_PER_CLUSTER * n_classes)))
    # Doubling, then halving the last gap: the fits with many clusters are the slow ones.
    failed, g = 0, 1
    while purity(g) < PURITY and g < most:
        failed, g = g, min(2 * g, most)
    reached = purity(g) >= PURITY
    while reached and g - failed > 1:
        middle = (failed + g) // 2
        failed, g = (failed, middle) if purity(middle) >= PURITY else (middle, g)
    return {
        "images": len(keys),
        "images_used": len(rows),
        "classes": list(names),
        "granularity": g,
        "reached": bool(reached),
        "at_classes": _agreement(labels, fitted[1]),
        "at_granularity": _agreement(labels, fitted[g]),
        "knn_accuracy": _knn_accuracy(x, labels),
    }


def pool_clusters(granularity: int, scenes_present: int, n: int) -> int:
    """Clusters for a pool of `n` distinct images: granularity x scenes, at least 16, at most n / 8."""
    return max(1, min(max(_LEAST, granularity * scenes_present), n // 8))


def explain(
    k: int, distinct: int, scenes: int, *, calibrated: Mapping[str, Any] | None, asked: bool = False
) -> str:
    """Why the pool has `k` clusters, in a sentence.

    Args:
        k: clusters of the pool.
        distinct: distinct images that they are for.
        scenes: scenes that those show, unknown included.
        calibrated: what `calibrate` found; None without a reference.
        asked: the number was given.
    """
    if calibrated is None:
        g = PSEUDO_GRANULARITY
        ground = f"without a reference there are {g} clusters to a pseudo-scene"
    else:
        g, at = calibrated["granularity"], calibrated["at_granularity"]
        reaches = (
            f"{at['clusters']} clusters of the reference, {g} per class, are {_percent(at['purity'])} pure"
        )
        if calibrated["reached"]:
            ground = f"{reaches}, and fewer are less than {_percent(PURITY)}"
        elif g == _MAX_GRANULARITY:
            ground = f"{reaches}, short of {_percent(PURITY)}, and the search goes no further"
        else:
            ground = f"{reaches}, short of {_percent(PURITY)}, and more would leave fewer than {_IMAGES_PER_CLUSTER} images to a cluster"
    wanted, got = g * scenes, pool_clusters(g, scenes, distinct)
    if asked:
        return f"{k:,} clusters, as asked for; {ground}, so {got:,} would have been chosen."
    times = f"{g} x {scenes} scenes of the pool = {wanted:,}"
    if k == wanted:
        return f"{k:,} clusters: {ground}; {times}."
    bounds = f"at least {_LEAST} and at most one to 8 of its {distinct:,} distinct images"
    return f"{k:,} clusters: {ground}; {times}, but the pool has {bounds}."


def spaces(features: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Embedding spaces that the raw features [M, D] of the references could be put into, by name.

    `raw` only has unit length; `standardised` and `whitened` (principal components of 95 % of the variance,
    at equal scale) take mean and scale from the references themselves, as no pool is known for them.
    """
    x = np.concatenate([np.asarray(f, np.float64) for f in features])
    edges = np.cumsum([len(f) for f in features])[:-1]
    usable = finite_rows(x)
    fit = x[usable]
    standardise = Transform.fit(fit)
    mean = fit.mean(axis=0) if len(fit) else np.zeros(x.shape[1])
    _, singular, axes = np.linalg.svd(fit - mean, full_matrices=False)
    variance = np.square(singular)
    wanted = np.searchsorted(np.cumsum(variance), _KEPT_VARIANCE * variance.sum()) + 1
    keep = np.flatnonzero(singular[:wanted] > 1e-6 * singular.max(initial=0))
    whitened = (x - mean) @ (axes[keep].T / singular[keep]) if len(keep) else np.zeros((len(x), 1))
    found = {"raw": x, "standardised": standardise(x), "whitened": whitened}
    return {name: np.split(unit_rows(y), edges) for name, y in found.items()}


def _percent(share: float) -> str:
    return f"{math.floor(1000 * share) / 10:g} %"  # 89.99 % is not 90 %


def benchmark(
    references: Sequence[Reference],
    candidates: Mapping[tuple[str, str], Sequence[np.ndarray]],
    *,
    granularities: Iterable[int] = GRANULARITIES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Every candidate on the references, each alone and all together, ready for JSON.

    Args:
        references: labels, and the embeddings of the run, whose contents say which images are used.
        candidates: embeddings [M, D] for each of `references`, by names of encoder and transform.
        granularities: clusters per class; those that leave fewer than 8 images to a cluster are left out, save 1.
        seed: of k-means and of the images used.

    Returns:
        A row for each reference (None for all together), candidate and granularity: `nmi`, `ami`, `ari` and
        `purity` of k-means, and `knn_accuracy`, which is the same for all granularities.
    """
    rows = []
    for i, one in enumerate(references if len(references) > 1 else ()):
        mine = {names: [x[i]] for names, x in candidates.items()}
        rows += [{**row, "reference": one.name} for row in _compared([one], mine, granularities, seed)]
    return rows + _compared(references, candidates, granularities, seed)


def _compared(
    references: Sequence[Reference],
    candidates: Mapping[tuple[str, str], Sequence[np.ndarray]],
    granularities: Iterable[int],
    seed: int,
) -> list[dict[str, Any]]:
    _, labels, x = joined(references)
    chosen = unique_rows(content_key(row_hashes(x), seed))[:_BENCHMARK_IMAGES]
    found = []
    for (encoder, transform), embeddings in candidates.items():
        mine = [replace(r, embeddings=e) for r, e in zip(references, embeddings, strict=True)]
        _, own, y = joined(mine)
        # An image that only this candidate cannot embed costs the comparability of the sample, not the row.
        same = len(own) == len(labels)
        rows = chosen if same else unique_rows(content_key(row_hashes(y), seed))[:_BENCHMARK_IMAGES]
        y, own = y[rows], own[rows]
        n_classes, knn = len(np.unique(own)), _knn_accuracy(y, own)
        for g in sorted(set(granularities)):
            if g == 1 or g * n_classes * _IMAGES_PER_CLUSTER <= len(y):
                clusters = cluster_rows(y, min(g * n_classes, len(y)), seed)[0]
                found.append({
                    "reference": None, "encoder": encoder, "transform": transform, "granularity": g,
                    **_agreement(own, clusters), "knn_accuracy": knn,
                })  # fmt: skip
    return found


def _purity(labels: np.ndarray, clusters: np.ndarray) -> float:
    pairs, counts = np.unique(np.stack([clusters, labels]), axis=1, return_counts=True)
    most = np.zeros(pairs[0].max() + 1, dtype=np.int64)
    np.maximum.at(most, pairs[0], counts)
    return float(most.sum() / len(labels))


def _agreement(labels: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    from sklearn import metrics

    with warnings.catch_warnings():
        # Warns where most clusters hold one image, as they do for a tiny reference.
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        return {
            "clusters": len(np.unique(clusters)),
            "nmi": float(metrics.normalized_mutual_info_score(labels, clusters)),
            "ami": float(metrics.adjusted_mutual_info_score(labels, clusters)),
            "ari": float(metrics.adjusted_rand_score(labels, clusters)),
            "purity": _purity(labels, clusters),
        }


def _knn_accuracy(x: np.ndarray, labels: np.ndarray, k: int = 5) -> float | None:
    """Share of the unit rows `x` [N, D] whose k nearest others vote for their label; ties to the nearer."""
    k = min(k, len(x) - 1)
    if k < 1:
        return None
    classes, labels = np.unique(labels, return_inverse=True)
    # Weights that only decide between equal numbers of votes.
    vote = 1 + np.arange(k, 0, -1) / (4 * k * k)
    right = 0
    block = max(1, BLOCK_BYTES // (4 * len(x)))
    for start in range(0, len(x), block):
        similarity = x[start : start + block] @ x.T
        own = np.arange(len(similarity))
        similarity[own, start + own] = -np.inf
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(
            near, np.argsort(-np.take_along_axis(similarity, near, axis=1), axis=1, kind="stable"), axis=1
        )
        votes = np.zeros((len(own), len(classes)))
        np.add.at(votes, (own[:, None], labels[near]), vote)
        right += int((votes.argmax(axis=1) == labels[start + own]).sum())
    return right / len(x)
