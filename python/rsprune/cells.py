"""Cells: large clusters cut into pieces, so that what grows with the square of a cluster stays affordable."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsprune.rows import groups, unit_rows

LARGEST = 4096  # images; docs/scale.md says what a smaller and a larger number cost
_FIT_PER_CELL = 64
_ITERATIONS = 10
_BLOCK = 65_536  # images that are looked at at once


@dataclass(frozen=True)
class Cells:
    """Cells of N images.

    Attributes:
        cell: int32 [N], -1 where an image has no cluster.
        cluster: int32 [C], the cluster that each cell is a part of.
    """

    cell: np.ndarray
    cluster: np.ndarray

    @classmethod
    def of(cls, x: Any, labels: np.ndarray, keys: np.ndarray, candidates: np.ndarray | None = None) -> Cells:
        """Cuts the clusters that are too large.

        A cluster of at most `LARGEST` different candidates is one cell. A larger one is cut by a k-means of its
        own, fitted on the candidates with the smallest keys, until no piece is larger; images that all look the
        same stay together.

        Args:
            x: embeddings [N, D]; only directions count.
            labels: cluster [N] of each image.
            keys: uint64 [N] from `rows.content_key`.
            candidates: bool [N], the images that are counted and fitted on; the others only get a cell.
        """
        cell = np.full(len(labels), -1, dtype=np.int32)
        cluster: list[int] = []
        for label, rows in groups(labels, keys):
            for piece in _cut(x, rows, keys, candidates):
                cell[piece] = len(cluster)
                cluster.append(label)
        return cls(cell, np.array(cluster, dtype=np.int32))

    @property
    def clusters(self) -> np.ndarray:
        """The cluster int32 [N] of each image, -1 where it has none."""
        return np.append(self.cluster, np.int32(-1))[self.cell]


def _cut(x: Any, rows: np.ndarray, keys: np.ndarray, candidates: np.ndarray | None) -> list[np.ndarray]:
    """The images `rows` [n] of one cluster, in key order, as pieces in key order."""
    if len(rows) <= LARGEST:
        return [rows]
    counted = rows if candidates is None else rows[candidates[rows]]
    distinct = counted[np.unique(keys[counted], return_index=True)[1]]
    if len(distinct) <= LARGEST:
        return [rows]
    k = -(-2 * len(distinct) // LARGEST)
    nearest = _nearest(x, rows, _centers(x, distinct[: _FIT_PER_CELL * k], k))
    if len(np.unique(nearest[np.isin(rows, distinct)])) == 1:  # so many look the same
        return [rows]
    pieces = (rows[nearest == j] for j in np.unique(nearest))
    return [cell for piece in pieces for cell in _cut(x, piece, keys, candidates)]


def _centers(x: Any, rows: np.ndarray, k: int) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning

    from rsprune.cluster import KMeans  # brings scikit-learn with it

    with warnings.catch_warnings():  # different images may have equal embeddings
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(n_clusters=k, max_iter=_ITERATIONS, random_state=0).fit(unit_rows(x[rows]))
    return np.asarray(fitted.cluster_centers_, np.float32)


def _nearest(x: Any, rows: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Index int32 [n] of the nearest of `centers` [K, D] for each of `rows` [n]."""
    from rsprune.ops import kmeans_assign

    blocks = (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
    return np.concatenate([kmeans_assign(unit_rows(x[block]), centers)[0] for block in blocks])
