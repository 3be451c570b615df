"""Order of the images inside their cluster; independent of the budget, so that subsets are nested."""

from __future__ import annotations

from typing import Any

import numpy as np

from rsprune import allocate, cells
from rsprune.cells import Cells
from rsprune.progress import Progress, silent
from rsprune.rows import BLOCK_BYTES, groups, in_threads, unit_rows

METHODS = ("herding", "closest", "mmr", "random")
_BLOCK = 65_536  # rows that are float32 at once
_COMPACT_ABOVE = 512  # rows; below, dropping the taken ones costs more than it saves


def rank_within(
    x: Any,
    labels: np.ndarray,
    *,
    keys: np.ndarray,
    method: str = "herding",
    centers: np.ndarray | None = None,
    mmr_lambda: float = 0.5,
    workers: int = 1,
    progress: Progress = silent,
) -> np.ndarray:
    """Place of every image inside its cluster.

    In a cluster of more than `cells.LARGEST` images, `herding` and `mmr` rank each cell by itself; the cells take
    turns, as often as their sizes say.

    Args:
        x: embeddings [N, D]; `herding` and `mmr` look at their directions only.
        labels: cluster of each image [N]; images below 0 are not ranked.
        keys: uint64 [N] from `rows.content_key`; the smaller one wins a tie.
        method: `herding` takes next the image with the largest x.mu minus its mean similarity to those
            already taken, after Welling, "Herding dynamical weights to learn", 2009, and Chen, Welling and
            Smola, "Super-samples from kernel herding", 2010; `closest` goes by distance to the centre; `mmr`
            takes next the image with the largest lambda * cosine to the centre - (1 - lambda) * largest
            cosine to one already taken, after Carbonell and Goldstein, "The use of MMR", 1998; `random` goes
            by key.
        centers: [K, D]; None takes the mean of the cluster's images, unit length first where only directions
            count. A cell takes its own mean.
        mmr_lambda: 1 is closest by cosine, 0 the most different from those taken.
        workers: threads.
        progress: follows the images that are ranked.

    Returns:
        Rank int64 [N], 0 is best; -1 where the image is not ranked.

    Raises:
        ValueError: if the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    labels = np.asarray(labels)
    rank = np.full(len(labels), -1, dtype=np.int64)
    quadratic = method in ("herding", "mmr")
    cut = Cells.of(x, labels, keys) if quadratic else Cells(labels, np.arange(labels.max(initial=-1) + 1))
    in_pieces = np.bincount(cut.cluster) > 1

    def order(label: int, rows: np.ndarray) -> None:
        if method == "random" or (
            quadratic and len(rows) > cells.LARGEST
        ):  # a cell of images that look the same
            rank[rows] = np.arange(len(rows))
            return
        members = np.asarray(x[rows], dtype=np.float32) if method == "closest" else unit_rows(x[rows])
        label = int(cut.cluster[label])
        if centers is None or in_pieces[label]:
            center = members.mean(axis=0, dtype=np.float64).astype(np.float32)
        else:
            center = np.asarray(centers[label], dtype=np.float32)
        if method == "herding":
            taken = _herd(members, center)
        elif method == "mmr":
            taken = _marginal(members, unit_rows(center[None])[0], mmr_lambda)
        else:
            taken = np.argsort(np.square(members - center).sum(axis=1), kind="stable")
        rank[rows[taken]] = np.arange(len(rows))

    in_threads(order, groups(cut.cell, keys), workers, progress=progress, doing="ranking")
    if in_pieces.any():
        rows = np.flatnonzero((labels >= 0) & in_pieces[np.maximum(labels, 0)])
        rank[rows] = _taking_turns(rank[rows], cut.cell[rows], labels[rows], keys[rows])
    return rank


def _taking_turns(rank: np.ndarray, cell: np.ndarray, labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Place in the cluster [N] of the images at `rank` [N] of `cell` [N]."""
    _, cell = np.unique(cell, return_inverse=True)
    order = allocate.order(rank, cell, np.bincount(cell), alpha=1.0, keys=keys)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return rank_by(place, labels, keys=keys)


def rank_by(value: np.ndarray, labels: np.ndarray, *, keys: np.ndarray) -> np.ndarray:
    """Place int64 [N] of every image in its cluster by `value` [N], smallest first; -1 where labels < 0."""
    rank = np.full(len(labels), -1, dtype=np.int64)
    for _, rows in groups(labels, keys):
        rank[rows[np.argsort(value[rows], kind="stable")]] = np.arange(len(rows))
    return rank


def spreads(x: Any, labels: np.ndarray, n_clusters: int, *, keys: np.ndarray, workers: int = 1) -> np.ndarray:
    """Mean distance [K] float64 (L2) of the cluster's images to their mean; 0 for an empty cluster."""
    spread = np.zeros(n_clusters)

    def measure(label: int, rows: np.ndarray) -> None:
        blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
        total = sum(np.asarray(x[b], np.float32).sum(axis=0, dtype=np.float64) for b in blocks)
        center = (total / len(rows)).astype(np.float32)
        apart = (np.linalg.norm(np.asarray(x[b], np.float32) - center, axis=1) for b in blocks)
        spread[label] = sum(a.sum(dtype=np.float64) for a in apart) / len(rows)

    in_threads(measure, groups(labels, keys), workers)
    return spread


def _herd(x: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Herding order [n] int64 of the unit rows `x` [n, D]; the lower row wins a tie."""
    gram = x @ x.T if 4 * len(x) ** 2 <= BLOCK_BYTES else None
    rows = np.arange(len(x))
    towards_center = x @ center
    similarity = np.zeros(len(x), dtype=np.float32)  # summed over the rows taken
    score = towards_center.copy()
    order = np.empty(len(x), dtype=np.int64)
    n_taken_here = 0
    for n_taken in range(1, len(order) + 1):
        best = score.argmax()
        order[n_taken - 1] = rows[best]
        similarity += x @ x[best] if gram is None else gram[best]
        towards_center[best] = -np.inf
        n_taken_here += 1
        if len(rows) > _COMPACT_ABOVE and 2 * n_taken_here > len(rows):
            left = np.flatnonzero(towards_center > -np.inf)
            rows, towards_center, similarity = rows[left], towards_center[left], similarity[left]
            score = np.empty_like(similarity)
            if gram is None:
                x = x[left]
            else:
                gram = gram[np.ix_(left, left)]
            n_taken_here = 0
        np.multiply(similarity, -1 / n_taken, out=score)
        score += towards_center
    return order


def _marginal(x: np.ndarray, center: np.ndarray, weight: float) -> np.ndarray:
    """Order [n] int64 of the unit rows `x` [n, D] by maximal marginal relevance; the lower row wins a tie."""
    relevance = weight * (x @ center)
    nearest = np.full(len(x), -np.inf, dtype=np.float32)
    score = relevance.copy()
    order = np.empty(len(x), dtype=np.int64)
    for i in range(len(x)):
        order[i] = best = score.argmax()
        np.maximum(nearest, x @ x[best], out=nearest)
        relevance[best] = -np.inf
        score = relevance - (1 - weight) * nearest
    return order
