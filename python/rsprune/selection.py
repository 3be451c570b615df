"""Scores, clusters and a budget in; one decision per image out. Pure functions of arrays."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsprune.config import FilterConfig, SelectConfig
from rsprune.duplicates import Footprints, spatial_duplicates
from rsprune.filters import CODES, eligibility
from rsprune.rank import METHODS
from rsprune.rows import content_key, finite_rows, groups, most_similar, row_hashes, unique_rows, unit_rows
from rsprune.strata import stratified_order
from rsprune.strategies import Clusters, Strategy, load_strategy

_NONE = -1
_COSINE_EPSILON = 1e-6  # float32 rounding of the cosine of a row with itself
_LEADER_BLOCK = 256  # rows compared with the accepted ones at once


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


def exact_duplicates(
    hashes: Sequence[str | None],
    quality: np.ndarray,
    keys: np.ndarray,
    candidates: np.ndarray | None = None,
) -> np.ndarray:
    """Row int64 [N] of the copy that stays for each image that is dropped as a copy, else -1.

    Of the candidates with one hash the one of best quality stays, then of smaller key, then the first.
    """
    rows = np.arange(len(hashes)) if candidates is None else np.flatnonzero(candidates)
    duplicate_of = np.full(len(hashes), _NONE, dtype=np.int64)
    stays: dict[str, int] = {}
    for row in rows[_best_first(quality[rows], keys[rows])]:
        content = hashes[row]
        if content is not None:
            first = stays.setdefault(content, row)
            if first != row:
                duplicate_of[row] = first
    return duplicate_of


def near_duplicates(
    x: np.ndarray,
    labels: np.ndarray,
    quality: np.ndarray,
    keys: np.ndarray,
    threshold: float,
    candidates: np.ndarray | None = None,
) -> np.ndarray:
    """Row int64 [N] of the image that stays for each near duplicate inside its cluster, else -1.

    In order of quality, then key, an image is dropped for the most similar one accepted before it if their
    cosine is at least `threshold`. Costs about 2 * n * accepted * D operations in a cluster of n images.

    Args:
        x: embeddings [N, D].
        labels: cluster of each image [N]; images below 0 take no part.
        quality: float [N], higher stays; NaN is lowest.
        keys: uint64 [N] from `rows.content_key`.
        threshold: cosine; above 1 switches the search off.
        candidates: bool [N], images that take part.
    """
    duplicate_of = np.full(len(labels), _NONE, dtype=np.int64)
    if threshold > 1:
        return duplicate_of
    for _, rows in groups(labels, keys, candidates):
        rows = rows[_best_first(quality[rows], keys[rows])]
        leader = _leaders(unit_rows(x[rows]), threshold - _COSINE_EPSILON)
        follows = leader >= 0
        duplicate_of[rows[follows]] = rows[leader[follows]]
    return duplicate_of


def decide(
    *,
    scores: Mapping[str, np.ndarray],
    hashes: Sequence[str | None],
    x: np.ndarray,
    labels: np.ndarray,
    distance: np.ndarray,
    centers: np.ndarray,
    scenes: np.ndarray | None = None,
    footprints: Footprints | None = None,
    leaked: np.ndarray | None = None,
    strata: np.ndarray | None = None,
    filters: FilterConfig | None = None,
    select: SelectConfig | None = None,
    budget: int,
    seed: int = 0,
) -> Decisions:
    """Decides about every image of a pool.

    Filters and duplicates decide only where the strategy chooses from `eligible` or `distinct` images; an
    image that is no part of its choice for another reason than being unreadable is then not ranked.

    Args:
        scores: columns [N] as for `filters.eligibility`; `entropy` also says which duplicate stays.
        hashes: content hashes [N], None where unreadable.
        x: embeddings [N, D], NaN where unreadable.
        labels: int32 [N], cluster of each image; -1 where it has no embedding.
        distance: float32 [N] to the centre of the cluster, for the ranking `closest`.
        centers: [K, D].
        scenes: int [N], scene of each image, -1 unknown, for a strategy that divides its seats among scenes.
        footprints: where the images lie; None looks for no spatial duplicates.
        leaked: bool [N], images of an evaluation set, which no strategy may keep.
        strata: int [N], stratum of each image; each gets its share of the seats.
        filters: thresholds of the filters.
        select: strategy, duplicates, allocation and ranking; its `keep` and `n` are not read.
        budget: images to keep; if fewer survive, all of them are kept.
        seed: decides ties, and whatever a strategy leaves to chance.

    Raises:
        ValueError: if the arrays differ in length.
        ConfigError: if there is no such strategy.
        RspruneError: if the strategy does not return what it was asked for.
    """
    select = select or SelectConfig()
    strategy = load_strategy(select.strategy, **select.rsprune)
    pool = strategy.pool if select.pool == "auto" else select.pool
    labels = np.asarray(labels)
    n = len(x)
    quality = np.asarray(scores["entropy"], dtype=np.float32)
    _same_length(n, "x", scores=quality, hashes=hashes, labels=labels, distance=distance)
    if n and labels.max() >= len(centers):
        raise ValueError(f"labels go up to {labels.max()} but there are {len(centers)} centers")

    keys = content_key(hashes, seed)
    embedded = (labels >= 0) & finite_rows(x)
    passed = eligibility(scores, filters, hashes=hashes)
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
    if pool == "distinct":
        candidates = reason == 0
        duplicate_of = exact_duplicates(hashes, quality, keys, candidates)
        reason[duplicate_of >= 0] = CODES["exact_duplicate"]
        if footprints is not None:
            overlap, days = select.spatial_overlap, select.duplicate_days
            same = spatial_duplicates(footprints, quality, keys, candidates, overlap=overlap, days=days)
            same[reason != 0] = _NONE
            reason[same >= 0], threshold[same >= 0] = CODES["spatial_duplicate"], overlap
            duplicate_of = np.where(same >= 0, same, duplicate_of)
        near = near_duplicates(x, labels, quality, keys, select.near_duplicate, reason == 0)
        reason[near >= 0] = CODES["near_duplicate"]
        threshold[near >= 0] = select.near_duplicate
        duplicate_of = np.where(near >= 0, near, duplicate_of)

    chosen_from = np.flatnonzero(reason == 0)
    clusters = Clusters(labels, np.asarray(distance), np.asarray(centers, np.float32), scenes)

    def best_first(rows: np.ndarray, seats: int) -> np.ndarray:
        return _order(strategy, rows, x, scores, clusters, keys, seats, seed)

    if strata is None:
        order = best_first(chosen_from, budget)
    else:
        order = stratified_order(chosen_from, strata, budget, keys, best_first)
    rank = np.full(n, _NONE, dtype=np.int64)
    rank[order] = np.arange(len(order))
    kept = (rank >= 0) & (rank < budget)
    reason[chosen_from] = CODES["over_budget"]
    reason[kept] = CODES["kept"]
    nearest, similarity = _nearest_kept(
        x, np.where(embedded, labels, _NONE), keys, kept, duplicate_of, centers
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
    alpha: float = SelectConfig.alpha,
    beta: float = SelectConfig.beta,
    rank: str = SelectConfig.rank,
    near_duplicate: float = SelectConfig.near_duplicate,
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
    hashes = row_hashes(rows)
    keys = content_key(hashes, seed)
    if labels is None:
        clusters = _cluster(rows, keys, candidates, seed)
    else:
        clusters = _to_numpy(labels)
        _same_length(len(rows), "x", labels=clusters)
    candidates &= clusters >= 0
    candidates &= exact_duplicates(hashes, quality, keys, candidates) < 0
    candidates &= near_duplicates(rows, clusters, quality, keys, near_duplicate, candidates) < 0
    left = np.flatnonzero(candidates)
    around = Clusters.of(rows[left], clusters[left])
    strategy = load_strategy("rsprune", alpha=alpha, beta=beta, rank=rank)
    order = left[_order(strategy, np.arange(len(left)), rows[left], {}, around, keys[left], n, seed)]
    return _like(order[:n], x)


def _order(
    strategy: Strategy,
    rows: np.ndarray,
    x: np.ndarray,
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
    columns = {name: np.asarray(column)[rows] for name, column in scores.items()}
    return rows[strategy.order(x[rows], columns, given, budget, seed)]


def _leaders(x: np.ndarray, threshold: float) -> np.ndarray:
    """For unit rows [n, D], best first: the accepted row int64 [n] each one follows, -1 if it is accepted."""
    leader = np.full(len(x), _NONE, dtype=np.int64)
    accepted = np.empty(len(x), dtype=np.int64)
    vectors = np.empty_like(x)
    n_accepted = 0
    for start in range(0, len(x), _LEADER_BLOCK):
        block = x[start : start + _LEADER_BLOCK]
        at, cosine = most_similar(block, vectors[:n_accepted])
        follows = cosine >= threshold
        leader[start : start + len(block)][follows] = accepted[at[follows]]
        inside = block @ block.T
        close = np.tril(inside >= threshold, k=-1)
        for i in np.flatnonzero(close.any(axis=1)):
            leads = np.flatnonzero(close[i] & ~follows)
            if len(leads):
                best = leads[inside[i, leads].argmax()]
                if not follows[i] or inside[i, best] > cosine[i]:
                    leader[start + i] = start + best
                follows[i] = True
        new = np.flatnonzero(~follows)
        accepted[n_accepted : n_accepted + len(new)] = start + new
        vectors[n_accepted : n_accepted + len(new)] = block[new]
        n_accepted += len(new)
    return leader


def _nearest_kept(
    x: np.ndarray,
    labels: np.ndarray,
    keys: np.ndarray,
    kept: np.ndarray,
    duplicate_of: np.ndarray,
    centers: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The kept image, int64 [N], that stands for each dropped one, and the cosine to it, float32 [N]."""
    nearest = np.full(len(labels), _NONE, dtype=np.int64)
    similarity = np.full(len(labels), np.nan, dtype=np.float32)
    copies = np.flatnonzero((duplicate_of >= 0) & kept[duplicate_of])
    nearest[copies] = duplicate_of[copies]
    for rows in np.array_split(copies, len(copies) // 65536 + 1):
        similarity[rows] = (unit_rows(x[rows]) * unit_rows(x[nearest[rows]])).sum(axis=1)

    kept_rows = dict(groups(labels, keys, kept))
    if not kept_rows:
        return nearest, similarity
    holders = np.array(list(kept_rows))
    holder_centers = np.asarray(centers, dtype=np.float32)[holders]
    for label, rows in groups(labels, keys, ~kept & (nearest < 0)):
        if label in kept_rows:
            others = kept_rows[label]
        else:
            apart = np.square(holder_centers - np.asarray(centers[label], np.float32)).sum(axis=1)
            others = kept_rows[int(holders[apart.argmin()])]
        at, similarity[rows] = most_similar(unit_rows(x[rows]), unit_rows(x[others]))
        nearest[rows] = others[at]
    return nearest, similarity


def _best_first(quality: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Rows by quality [M], highest first, then by key [M], then by row; NaN is the lowest quality."""
    return np.lexsort((keys, -np.nan_to_num(quality.astype(np.float64), nan=-np.inf)))


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
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return array.get() if library == "cupy" else np.asarray(array)


def _like(rows: np.ndarray, array: Any) -> Any:
    """`rows` as an array of the library and on the device of `array`."""
    library = type(array).__module__.partition(".")[0]
    if library == "torch":
        return sys.modules["torch"].from_numpy(rows).to(array.device)
    if library == "cupy":
        with array.device:
            return sys.modules["cupy"].asarray(rows)
    return rows
