"""Scenes: a labelled reference gives prototypes and tags, and tags give strata to fit clusters on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsprune.allocate import priorities
from rsprune.errors import ConfigError
from rsprune.progress import Progress, silent
from rsprune.rows import (
    BLOCK_BYTES,
    content_key,
    finite_rows,
    groups,
    row_hashes,
    unique_rows,
    unit_rows,
)

UNKNOWN = -1
PSEUDO_GRANULARITY = 4  # clusters per pseudo-scene, as no reference is there to say


@dataclass(frozen=True)
class Reference:
    """A labelled set: `labels` int32 [M] index `classes` (below 0: not labelled), `embeddings` [M, D]."""

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    embeddings: np.ndarray

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.embeddings):
            raise ValueError(
                f"reference {self.name} has {len(self.labels)} labels for {len(self.embeddings)} embeddings"
            )
        if len(self.labels) and self.labels.max() >= len(self.classes):
            raise ValueError(
                f"reference {self.name} has label {self.labels.max()} but {len(self.classes)} classes"
            )


@dataclass(frozen=True)
class Prototypes:
    """Directions that stand for scenes.

    Attributes:
        vectors: float32 [P, D] of unit length, sorted by scene.
        scene: int32 [P], index into `names`.
        names: name of each scene.
        threshold: cosine below which an image is of no known scene.
    """

    vectors: np.ndarray
    scene: np.ndarray
    names: tuple[str, ...]
    threshold: float


@dataclass(frozen=True)
class SceneTags:
    """Scene int32 [N] (-1 unknown), cosine to the best prototype, lead over the next scene, float32 [N]."""

    scene: np.ndarray
    similarity: np.ndarray
    margin: np.ndarray


def fit_prototypes(
    reference: Reference | Sequence[Reference], *, per_class: int = 4, seed: int = 0
) -> Prototypes:
    """Up to `per_class` prototypes for every class of the references, by k-means inside the class.

    A class gets at most one prototype for two distinct images, so that an image is not its own prototype
    and the similarities behind the threshold need no leave-one-out. Classes of one image do not take part
    in the threshold; if all are such, it is 0. A class name that two references share becomes `name/class`.

    Raises:
        ConfigError: if no labelled image can be used, or the references differ in their features.
    """
    names, labels, x = joined(reference)
    keys = content_key(row_hashes(x), seed)
    vectors, scene, own = [], [], []
    for label, rows in groups(labels, keys):
        members = x[rows[np.unique(keys[rows], return_index=True)[1]]]
        fitted = _directions(members, min(per_class, max(1, len(members) // 2)), seed)
        vectors.append(fitted)
        scene += [label] * len(fitted)
        if len(members) > 1:
            own.append((members @ fitted.T).max(axis=1))
    return Prototypes(
        vectors=np.concatenate(vectors),
        scene=np.array(scene, dtype=np.int32),
        names=names,
        threshold=float(np.percentile(np.concatenate(own), 1)) if own else 0.0,
    )


def pseudo_scenes(
    x: Any, s: int, keys: np.ndarray, seed: int = 0, candidates: np.ndarray | None = None
) -> Prototypes:
    """Prototypes of at most `s` scenes found by a small k-means, for a pool without a reference.

    Fitted on a sample of distinct images of `x` [N, D] among `candidates` [N], by default those with an embedding;
    at least 8 of them make a scene. Every image that has a direction is then of one of the scenes.
    """
    rows = unique_rows(keys, finite_rows(x) if candidates is None else candidates)
    s = max(1, min(s, len(rows) // 8))
    names = tuple(f"pseudo-{i:02d}" for i in range(s))
    if not len(rows):
        return Prototypes(np.zeros((0, x.shape[1]), np.float32), np.zeros(0, np.int32), (), -1.0)
    vectors = _directions(unit_rows(x[rows[: 256 * s]]), s, seed)
    return Prototypes(vectors, np.arange(len(vectors), dtype=np.int32), names[: len(vectors)], -1.0)


def tag(x: Any, prototypes: Prototypes, *, progress: Progress = silent) -> SceneTags:
    """Scene of each image of `x` [N, D]: that of its most similar prototype, ties to the lower scene.

    An image below the threshold, or with a zero row, is unknown; a row with NaN is unknown and has NaN
    similarity. The margin is NaN where there is only one scene.
    """
    if len(prototypes.vectors) and x.shape[1] != prototypes.vectors.shape[1]:
        raise ValueError(f"x has {x.shape[1]} features, the prototypes have {prototypes.vectors.shape[1]}")
    scene = np.full(len(x), UNKNOWN, dtype=np.int32)
    similarity = np.full(len(x), np.nan, dtype=np.float32)
    margin = np.full(len(x), np.nan, dtype=np.float32)
    if not len(prototypes.vectors):
        return SceneTags(scene, similarity, margin)
    by_scene = np.argsort(prototypes.scene, kind="stable")
    vectors = prototypes.vectors[by_scene]
    present, starts = np.unique(prototypes.scene[by_scene], return_index=True)
    block = max(1, BLOCK_BYTES // (4 * max(vectors.shape)))

    def done() -> Iterator[int]:
        for start in range(0, len(x), block):
            part = x[start : start + block]
            finite = np.flatnonzero(finite_rows(part))
            rows, members = start + finite, unit_rows(part[finite])
            best = np.maximum.reduceat(members @ vectors.T, starts, axis=1)
            at = best.argmax(axis=1)
            similarity[rows] = best[np.arange(len(at)), at]
            if len(present) > 1:
                two = np.partition(best, -2, axis=1)[:, -2:]
                margin[rows] = two[:, 1] - two[:, 0]
            known = (similarity[rows] >= prototypes.threshold) & members.any(axis=1)
            scene[rows] = np.where(known, present[at], UNKNOWN)
            yield len(part)

    for _ in progress(done(), "scenes", len(x)):
        pass
    return SceneTags(scene, similarity, margin)


def stratified_sample(
    scene: np.ndarray, n_fit: int, keys: np.ndarray, candidates: np.ndarray | None = None
) -> np.ndarray:
    """Rows int64 [min(n_fit, distinct contents)] to fit the clusters on, in key order.

    Seats of a scene, unknown included, are proportional to the root of its size, and at least a quarter of
    an equal share where it has as many images; inside a scene the smallest keys are taken.

    Args:
        scene: int32 [N], -1 unknown.
        n_fit: rows wanted.
        keys: uint64 [N] from `rows.content_key`; copies of one content count once.
        candidates: bool [N], rows that may be taken (those with an embedding).
    """
    rows = unique_rows(keys, candidates)
    _, stratum, sizes = np.unique(scene[rows], return_inverse=True, return_counts=True)
    rank = np.empty(len(rows), dtype=np.int64)
    by_stratum = np.argsort(stratum, kind="stable")
    rank[by_stratum] = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    floor = n_fit // (4 * max(1, len(sizes)))
    priority = priorities(rank, stratum, sizes, alpha=0.5)
    first = np.lexsort((np.arange(len(rows)), -priority, rank >= floor))[: max(0, n_fit)]
    return rows[np.sort(first)]


def joined(reference: Reference | Sequence[Reference]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Class names, labels [M] and unit rows [M, D] of all usable images of the references."""
    references = [reference] if isinstance(reference, Reference) else list(reference)
    used = {r.embeddings.shape[1]: r.name for r in references}
    if len(used) > 1:
        (d0, name0), (d1, name1) = list(used.items())[:2]
        raise ConfigError(
            f"reference {name0} has {d0} features and {name1} has {d1}: embed both with one encoder."
        )
    shared = Counter(name for r in references for name in r.classes)
    names: list[str] = []
    labels, x = [], []
    for r in references:
        usable = (r.labels >= 0) & finite_rows(r.embeddings)
        labels.append(r.labels[usable].astype(np.int64) + len(names))
        x.append(unit_rows(r.embeddings[usable]))
        names += [f"{r.name}/{name}" if shared[name] > 1 else name for name in r.classes]
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(
                f"two references have the name and class {name}: name them apart with DIR=NAME."
            )
    if not sum(map(len, labels)):
        which = " and ".join(r.name for r in references) or "given"
        raise ConfigError(
            f"reference {which} holds no labelled image that could be embedded: check its folder."
        )
    return tuple(names), np.concatenate(labels), np.concatenate(x)


def cluster_rows(x: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and centres [K, D] of k-means on `x` [N, D]."""
    from rsprune.cluster import KMeans  # brings scikit-learn with it

    fitted = KMeans(n_clusters=k, random_state=seed % 2**32).fit(x)
    return np.asarray(fitted.labels_), np.asarray(fitted.cluster_centers_)


def _directions(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    """At most `k` unit rows that stand for the unit rows `x` [N, D], which come in key order."""
    # Different images may have one embedding: k-means needs as many distinct rows as clusters.
    x = x[np.sort(np.unique(row_hashes(x), return_index=True)[1])]
    if k == 1:
        centers = x.mean(axis=0, keepdims=True)
    elif len(x) <= k:
        centers = x
    else:
        centers = cluster_rows(x, k, seed)[1]
    centers = unit_rows(centers)
    # Opposite rows cancel out: one of them stands for the class rather than no direction at all.
    return centers if centers.any() else x[:1]
