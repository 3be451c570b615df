"""Scores, clusters and a budget in; one decision per image out. Pure functions of arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsprune.cells import Cells
from rsprune.config import FilterConfig, SelectConfig
from rsprune.duplicates import Footprints, spatial_duplicates
from rsprune.filters import CODES, eligibility
from rsprune.progress import Progress, silent
from rsprune.rank import METHODS
from rsprune.rows import Contents, finite_rows, row_hashes, unique_rows
from rsprune.similar import exact_duplicates, near_duplicates, nearest_kept
from rsprune.stored import Selected
from rsprune.strata import stratified_order
from rsprune.strategies import Clusters, Strategy, load_strategy

_NONE = -1


@dataclass(frozen=True)
class Decisions:
    """What became of each of N images.

    Attributes:
        reason: uint8 [N], index into `filters.REASONS`.
        kept: bool [N].
        rank: int64 [N], 0 is best; the images that the strategy chose from are ranked, or only the kept ones
            where it does not rank them all; the others are -1. The selection for any budget B is `rank < B`.
        score: float32 [N], entropy in bits.
        threshold: float32 [N], the threshold that decided (bits; a cosine for near duplicates).
        duplicate_of: int64 [N], row of the image that stays in its place, or -1.
        nearest_kept: int64 [N], row of the kept image that stands for a dropped one; -1 for kept images and
            where there is none.
        nearest_kept_similarity: float32 [N], cosine to it, NaN where there is none.
        thresholds: threshold by score name, None where nothing could be estimated.
    """

    reason: np.ndarray
    kept: np.ndarray
    rank: np.ndarray
    score: np.ndarray
    threshold: np.ndarray
    duplicate_of: np.ndarray
    nearest_kept: np.ndarray
    nearest_kept_similarity: np.ndarray
    thresholds: dict[str, float | None]


def decide(
    *,
    scores: Mapping[str, np.ndarray],
    hashes: Any,
    x: Any,
    labels: np.ndarray,
    distance: np.ndarray,
    centers: np.ndarray,
    scenes: np.ndarray | None = None,
    footprints: Callable[[], Footprints] | None = None,
    leaked: np.ndarray | None = None,
    strata: np.ndarray | None = None,
    filters: FilterConfig | None = None,
    select: SelectConfig | None = None,
    budget: int,
    seed: int = 0,
    workers: int = 1,
    progress: Progress = silent,
) -> Decisions:
    """Decides about every image of a pool.

    Filters and duplicates decide only where the strategy chooses from `eligible` or `distinct` images; an
    image that is no part of its choice for another reason than being unreadable is then not ranked.

    Args:
        scores: columns [N] as for `filters.eligibility`; `entropy` also says which duplicate stays.
        hashes: content hashes [N], None where unreadable; a sequence, a column of a table, or `rows.Contents`.
        x: embeddings [N, D], NaN where unreadable; an array, or `stored.ClusteredEmbeddings`.
        labels: int32 [N], cluster of each image; -1 where it has no embedding.
        distance: float32 [N] to the centre of the cluster, for the ranking `closest`.
        centers: [K, D].
        scenes: int [N], scene of each image, -1 unknown, for a strategy that divides its seats among scenes.
        footprints: gives where the images lie, when that is needed; None looks for no spatial duplicates.
        leaked: bool [N], images of an evaluation set, which no strategy may keep.
        strata: int [N], stratum of each image; each gets its share of the seats.
        filters: thresholds of the filters.
        select: strategy, duplicates, allocation and ranking; its `keep` and `n` are not read.
        budget: images to keep; if fewer survive, all of them are kept.
        seed: decides ties, and whatever a strategy leaves to chance.
        workers: threads; they change no decision.
        progress: follows the images in what takes long.

    Raises:
        ValueError: if the arrays differ in length.
        ConfigError: if there is no such strategy.
        RspruneError: if the strategy does not return what it was asked for.
    """
    select = select or SelectConfig()
    strategy = load_strategy(select.strategy, **select.rsprune, workers=workers, progress=progress)
    pool = strategy.pool if select.pool == "auto" else select.pool
    labels = np.asarray(labels)
    n = len(x)
    quality = np.asarray(scores["entropy"], dtype=np.float32)
    _same_length(n, "x", scores=quality, hashes=hashes, labels=labels, distance=distance)
    if n and labels.max() >= len(centers):
        raise ValueError(f"labels go up to {labels.max()} but there are {len(centers)} centers")

    contents = hashes if isinstance(hashes, Contents) else Contents.of(hashes, seed)
    keys = contents.key
    embedded = (labels >= 0) & finite_rows(x)
    passed = eligibility(scores, filters, hashes=contents)
    reason, threshold = passed.reason.copy(), passed.threshold_used.copy()
    reason[passed.eligible & ~embedded] = CODES["unreadable"]
    threshold[passed.eligible & ~embedded] = np.nan
    if pool == "readable":
        reason[(reason != CODES["unreadable"]) & embedded] = 0
        threshold[:] = np.nan
    if leaked is not None:
        leaked = leaked & (reason == 0)
        reason[leaked], threshold[leaked] = CODES["reference_leak"], select.near_duplicate

    duplicate_of = np.full(n, _NONE, dtype=np.int64)

    def drop(found: np.ndarray, why: str, limit: float | None = None) -> None:
        rows = np.flatnonzero((found >= 0) & (reason == 0))
        reason[rows], duplicate_of[rows] = CODES[why], found[rows]
        if limit is not None:
            threshold[rows] = limit

    if pool == "distinct":
        candidates = reason == 0
        drop(exact_duplicates(contents, quality, keys, candidates), "exact_duplicate")
        if footprints is not None:
            overlap, days = select.spatial_overlap, select.duplicate_days
            found = spatial_duplicates(footprints(), quality, keys, candidates, overlap=overlap, days=days)
            drop(found, "spatial_duplicate", overlap)
            del found
    cells = Cells.of(x, np.where(embedded, labels, _NONE), keys, reason == 0)
    if pool == "distinct":
        least = select.near_duplicate
        near = near_duplicates(
            x, cells.cell, quality, keys, least, reason == 0, workers=workers, progress=progress
        )
        drop(near, "near_duplicate", least)
        del near

    chosen_from = reason == 0
    clusters = Clusters(labels, np.asarray(distance), np.asarray(centers, np.float32), scenes)

    def best_first(rows: np.ndarray, seats: int) -> np.ndarray:
        return _order(strategy, rows, x, scores, clusters, keys, seats, seed)

    rank = np.full(n, _NONE, dtype=np.int64)
    if strata is None:
        order = best_first(np.flatnonzero(chosen_from), budget)
    else:
        order = stratified_order(np.flatnonzero(chosen_from), strata, budget, keys, best_first)
    rank[order] = np.arange(len(order))
    del order
    kept = (rank >= 0) & (rank < budget)
    reason[chosen_from] = CODES["over_budget"]
    reason[kept] = CODES["kept"]
    nearest, similarity = nearest_kept(
        x, cells, keys, kept, duplicate_of, centers, workers=workers, progress=progress
    )
    return Decisions(
        reason=reason,
        kept=kept,
        rank=rank,
        score=quality,
        threshold=threshold,
        duplicate_of=duplicate_of,
        nearest_kept=nearest,
        nearest_kept_similarity=similarity,
        thresholds=passed.thresholds,
    )


def select(
    x: Any,
    n: int,
    *,
    labels: Any = None,
    scores: Any = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    rank: str = "herding",
    near_duplicate: float = 0.95,
    seed: int = 0,
) -> Any:
    """Chooses images from their embeddings, by size and spread of clusters and representative inside them.

    Args:
        x: embeddings [N, D], a NumPy, torch or CuPy array; rows with NaN are never chosen.
        n: images to choose; a smaller `n` gives the beginning of the same order.
        labels: cluster of each image [N], images below 0 are never chosen. None fits k-means with one
            cluster for 64 images, at least 16, at most 1024, and with 8 images each if possible.
        scores: quality of each image [N]; the better of two duplicates stays. None leaves it to the seed.
        alpha: seats of a cluster ~ size^alpha * spread^beta; 0, 0 is uniform over clusters.
        beta: see `alpha`.
        rank: order inside a cluster: `herding`, `closest` to its mean, `mmr` or `random`.
        near_duplicate: cosine from which images of one cluster are duplicates; above 1 switches it off.
        seed: for the k-means and for ties.

    Returns:
        Row numbers int64, best first, of the same library and device as `x`; n of them, or as many as
        are left without duplicates.

    Raises:
        ValueError: if shapes do not fit together, `n` is below 1 or `rank` is unknown.
    """
    rows = _to_numpy(x)
    if rows.ndim != 2:
        raise ValueError(f"x must have 2 dimensions [N, D], got {rows.ndim}")
    if rows.dtype.kind != "f":
        rows = rows.astype(np.float32)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if rank not in METHODS:
        raise ValueError(f"rank must be one of {', '.join(METHODS)}, got {rank!r}")
    quality = np.zeros(len(rows), np.float32) if scores is None else _to_numpy(scores)
    _same_length(len(rows), "x", scores=quality)
    candidates = finite_rows(rows)
    contents = Contents.of(row_hashes(rows), seed)
    keys = contents.key
    if labels is None:
        clusters = _cluster(rows, keys, candidates, seed)
    else:
        clusters = _to_numpy(labels)
        _same_length(len(rows), "x", labels=clusters)
    candidates &= clusters >= 0
    candidates &= exact_duplicates(contents, quality, keys, candidates) < 0
    cell = Cells.of(rows, clusters, keys, candidates).cell
    candidates &= near_duplicates(rows, cell, quality, keys, near_duplicate, candidates) < 0
    left = np.flatnonzero(candidates)
    around = Clusters.of(rows[left], clusters[left])
    strategy = load_strategy("rsprune", alpha=alpha, beta=beta, rank=rank)
    order = left[_order(strategy, np.arange(len(left)), rows[left], {}, around, keys[left], n, seed)]
    return _like(order[:n], x)


class _Columns(Mapping[str, np.ndarray]):
    """Columns by name, of which only those that are asked for are taken at `rows`."""

    def __init__(self, columns: Mapping[str, np.ndarray], rows: np.ndarray):
        self._columns, self._rows = columns, rows

    def __getitem__(self, name: str) -> np.ndarray:
        column: np.ndarray = np.asarray(self._columns[name])[self._rows]
        return column

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def _order(
    strategy: Strategy,
    rows: np.ndarray,
    x: Any,
    scores: Mapping[str, np.ndarray],
    clusters: Clusters,
    keys: np.ndarray,
    budget: int,
    seed: int,
) -> np.ndarray:
    """The images among `rows` [M] int64, best first, that `strategy` chooses; see `Strategy.order`."""
    rows = rows[np.argsort(keys[rows], kind="stable")]
    given = Clusters(
        clusters.labels[rows].astype(np.int64),
        clusters.distance[rows],
        clusters.centers,
        None if clusters.scenes is None else clusters.scenes[rows],
    )
    embeddings = Selected(x, rows) if strategy.reads_rows else x[rows]
    chosen: np.ndarray = rows[strategy.order(embeddings, _Columns(scores, rows), given, budget, seed)]
    return chosen


def _cluster(x: np.ndarray, keys: np.ndarray, candidates: np.ndarray, seed: int) -> np.ndarray:
    """Cluster int32 [N] of each row from k-means on a sample of distinct rows; -1 where not a candidate."""
    from rsprune.cluster import KMeans  # brings scikit-learn with it
    from rsprune.ops import kmeans_assign

    labels = np.full(len(x), _NONE, dtype=np.int32)
    distinct = unique_rows(keys, candidates)
    if len(distinct):
        k = max(1, min(max(16, min(len(distinct) // 64, 1024)), len(distinct) // 8))
        sample = np.asarray(x[distinct[: 256 * k]], dtype=np.float32)
        fitted = KMeans(n_clusters=k, random_state=seed % 2**32).fit(sample)
        labels[candidates] = kmeans_assign(
            np.asarray(x[candidates], np.float32), np.asarray(fitted.cluster_centers_, np.float32)
        )[0]
    return labels


def _same_length(n: int, name: str, **others: Any) -> None:
    for other, value in others.items():
        if len(value) != n:
            raise ValueError(f"{other} has {len(value)} rows, {name} has {n}")


def _to_numpy(array: Any) -> np.ndarray:
    """A NumPy array of the same values; bfloat16, which NumPy lacks, becomes float32."""
    library = type(array).__module__.partition(".")[0]
    if library == "torch":
        array = array.detach().cpu()
        torch = sys.modules["torch"]
        return np.asarray((array.float() if array.dtype == torch.bfloat16 else array).numpy())
    return np.asarray(array.get() if library == "cupy" else array)


def _like(rows: np.ndarray, array: Any) -> Any:
    """`rows` as an array of the library and on the device of `array`."""
    library = type(array).__module__.partition(".")[0]
    if library == "torch":
        return sys.modules["torch"].from_numpy(rows).to(array.device)
    if library == "cupy":
        with array.device:
            return sys.modules["cupy"].asarray(rows)
    return rows
