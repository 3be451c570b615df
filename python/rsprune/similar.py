"""Images that stand for others: equal in content, or close enough in their cluster to be duplicates."""

from __future__ import annotations

from typing import Any

import numpy as np

from rsprune.cells import Cells
from rsprune.progress import Progress, silent
from rsprune.rows import content_numbers, groups, in_threads, most_similar, unit_rows

_NONE = -1
_COSINE_EPSILON = 1e-6  # float32 rounding of the cosine of a row with itself
_LEADER_BLOCK = 256  # rows compared with the accepted ones at once
_SEARCHED = 2**16  # dropped images at once whose nearest kept one is looked for


def exact_duplicates(
    hashes: Any,
    quality: np.ndarray,
    keys: np.ndarray,
    candidates: np.ndarray | None = None,
) -> np.ndarray:
    """Row int64 [N] of the copy that stays for each image that is dropped as a copy, else -1.

    Of the candidates with one hash the one of best quality stays, then of smaller key, then the first.

    Args:
        hashes: content hashes [N], None where unreadable, or `rows.Contents`.
        quality: float [N], higher stays; NaN is lowest.
        keys: uint64 [N] from `rows.content_key`.
        candidates: bool [N], images that take part.
    """
    content = content_numbers(hashes)
    part = content >= 0 if candidates is None else candidates & (content >= 0)
    rows = np.flatnonzero(part)
    rows = rows[best_first(quality[rows], keys[rows])]
    _, first, same = np.unique(content[rows], return_index=True, return_inverse=True)
    stays = rows[first[same]]
    duplicate_of = np.full(len(content), _NONE, dtype=np.int64)
    duplicate_of[rows[stays != rows]] = stays[stays != rows]
    return duplicate_of


def near_duplicates(
    x: Any,
    labels: np.ndarray,
    quality: np.ndarray,
    keys: np.ndarray,
    threshold: float,
    candidates: np.ndarray | None = None,
    *,
    workers: int = 1,
    progress: Progress = silent,
) -> np.ndarray:
    """Row int64 [N] of the image that stays for each near duplicate inside its cluster, else -1.

    In order of quality, then key, an image is dropped for the most similar one accepted before it if their
    cosine is at least `threshold`. Costs about 2 * n * accepted * D operations in a cluster of n images.

    Args:
        x: embeddings [N, D].
        labels: cluster, or cell of a cluster, of each image [N]; images below 0 take no part.
        quality: float [N], higher stays; NaN is lowest.
        keys: uint64 [N] from `rows.content_key`.
        threshold: cosine; above 1 switches the search off.
        candidates: bool [N], images that take part.
        workers: threads.
        progress: follows the images that are compared.
    """
    duplicate_of = np.full(len(labels), _NONE, dtype=np.int64)
    if threshold > 1:
        return duplicate_of

    def search(_: int, rows: np.ndarray) -> None:
        rows = rows[best_first(quality[rows], keys[rows])]
        leader = _leaders(unit_rows(x[rows]), threshold - _COSINE_EPSILON)
        follows = leader >= 0
        duplicate_of[rows[follows]] = rows[leader[follows]]

    in_threads(search, groups(labels, keys, candidates), workers, progress=progress, doing="near duplicates")
    return duplicate_of


def nearest_kept(
    x: Any,
    cells: Cells,
    keys: np.ndarray,
    kept: np.ndarray,
    duplicate_of: np.ndarray,
    centers: np.ndarray,
    *,
    workers: int = 1,
    progress: Progress = silent,
) -> tuple[np.ndarray, np.ndarray]:
    """The kept image, int64 [N], that stands for each dropped one, and the cosine to it, float32 [N].

    Of a copy it is the one that stayed in its place, else the most similar kept one of its cell; of its cluster
    where the cell keeps none; and of the nearest cluster where that keeps none either.

    Args:
        x: embeddings [N, D].
        cells: cell and cluster of each image.
        keys: uint64 [N] from `rows.content_key`.
        kept: bool [N].
        duplicate_of: row [N] of the image that stays for each duplicate, else -1.
        centers: of the clusters [K, D].
        workers: threads.
        progress: follows the images that are compared.
    """
    nearest = np.full(len(kept), _NONE, dtype=np.int64)
    similarity = np.full(len(kept), np.nan, dtype=np.float32)
    copies = np.flatnonzero((duplicate_of >= 0) & kept[duplicate_of])
    nearest[copies] = duplicate_of[copies]
    for rows in np.array_split(copies, len(copies) // 65536 + 1):
        similarity[rows] = (unit_rows(x[rows]) * unit_rows(x[nearest[rows]])).sum(axis=1)

    in_cell = dict(groups(cells.cell, keys, kept))
    if not in_cell:
        return nearest, similarity
    in_cluster = dict(groups(cells.clusters, keys, kept))
    holders = np.array(list(in_cluster))
    holder_centers = np.asarray(centers, dtype=np.float32)[holders]

    def search(cell: int, rows: np.ndarray) -> None:
        cluster = int(cells.cluster[cell])
        if cell in in_cell:
            others = in_cell[cell]
        elif cluster in in_cluster:
            others = in_cluster[cluster]
        else:
            apart = np.square(holder_centers - np.asarray(centers[cluster], np.float32)).sum(axis=1)
            others = in_cluster[int(holders[apart.argmin()])]
        vectors = unit_rows(x[others])
        for start in range(0, len(rows), _SEARCHED):  # of what filters drop a cell may hold millions
            part = rows[start : start + _SEARCHED]
            at, similarity[part] = most_similar(unit_rows(x[part]), vectors)
            nearest[part] = others[at]

    dropped = groups(cells.cell, keys, ~kept & (nearest < 0))
    in_threads(search, dropped, workers, progress=progress, doing="nearest kept")
    return nearest, similarity


def best_first(quality: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Rows by quality [M], highest first, then by key [M], then by row; NaN is the lowest quality."""
    return np.lexsort((keys, -np.nan_to_num(quality.astype(np.float64), nan=-np.inf)))


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
