"""Precision, recall, density and coverage, from balls around images that reach to their k-th neighbour.

All distances between two sets are too many to keep, and most are too large to matter. Products of blocks in
float32 find the few pairs that may; those within the rounding error of a radius are measured again in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import numpy as np

from rsprune.evaluation.features import Array, as_pair, blocks

BLOCK = 1024  # points on either side of a product
SPARE = 4  # neighbours beyond k that are measured exactly, as float32 may order them otherwise
PAIRS = 8192  # measured exactly at once


R = TypeVar("R")


@dataclass(frozen=True)
class PRDC:
    """Precision and density say how real samples are, recall and coverage how much of the reference they reach.

    Attributes:
        precision: Share of samples inside a ball around any reference image.
        recall: Share of reference images inside a ball around any sample.
        density: Balls of the reference that a sample lies in, on average, over k; about 1 for equal sets.
        coverage: Share of reference images with a sample in their ball.
        k: A ball reaches to the k-th nearest image of its own set.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int


class _Points:
    """Points `x` [N, D], and float32 rows [N, D + 2] of which a product is minus half the squared distance."""

    def __init__(self, x: np.ndarray, origin: np.ndarray):
        self.x = x
        n, d = x.shape
        self.rows = np.empty((n, d + 2), np.float32)
        self.squares = np.empty(n)  # squared distance from the origin
        for part in blocks(n):
            centred = x[part] - origin
            self.squares[part] = np.square(centred).sum(axis=1)
            self.rows[part, :d] = centred
        self.rows[:, d] = -0.5 * self.squares
        self.rows[:, d + 1] = 1

    def closeness(self, part: slice, other: _Points, others: slice) -> np.ndarray:
        """-|x - y|^2 / 2 of points of both, float32 [n, m]."""
        columns = other.rows[others].copy()
        columns[:, -2:] = columns[:, :-3:-1]
        return self.rows[part] @ columns.T

    def rounding(self, part: slice, other: _Points, others: slice) -> np.ndarray:
        """Upper bound [n, 1] of the error of `closeness` (Higham 2002, 3.1), inputs rounded as well."""
        scale = self.squares[part, None] + other.squares[others].max()
        bound: np.ndarray = scale * (self.rows.shape[1] + 4) * 2.0**-23
        return bound


def prdc(samples: Array, reference: Array, *, k: int = 5) -> PRDC:
    """Precision, recall, density and coverage of features [N, D] against a reference [M, D].

    Naeem et al. 2020; precision and recall of Kynkäänniemi et al. 2019. Inside is strictly nearer than the
    radius, as in the authors' code. Precision and recall depend on N and M: compare equal numbers only.

    Raises:
        ValueError: The dimensions differ, a value is not finite, or a set has no more than k rows.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    x, y = as_pair(samples, reference, least=k + 1)
    origin = y.mean(axis=0, dtype=np.float64)
    ours, theirs = _Points(x, origin), _Points(y, origin)
    our_radii, their_radii = _squared_radii(ours, k), _squared_radii(theirs, k)
    covered, recalled = np.zeros(len(y), bool), np.zeros(len(y), bool)

    def count(part: slice) -> np.ndarray:
        """Balls of these reference images around each sample."""
        balls = np.zeros(len(x), np.int64)
        for others in blocks(len(x), BLOCK):
            near = theirs.closeness(part, ours, others)
            error = theirs.rounding(part, ours, others)
            i, j = _inside(near, their_radii[part, None], error, y[part], x[others])
            balls[others] = np.bincount(j, minlength=near.shape[1])
            covered[part.start + i] = True
            i, _ = _inside(near, our_radii[None, others], error, y[part], x[others])
            recalled[part.start + i] = True
        return balls

    balls_around = np.zeros(len(x), np.int64)
    for balls in _in_threads(count, blocks(len(y), BLOCK)):
        balls_around += balls
    return PRDC(
        precision=float((balls_around > 0).mean()),
        recall=float(recalled.mean()),
        density=float(balls_around.mean() / k),
        coverage=float(covered.mean()),
        k=k,
    )


def _inside(
    near: np.ndarray, radii: np.ndarray, error: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of x and of y whose squared distance is below `radii` ([n, 1] or [1, m])."""
    # One bound per row or column, so that no matrix is made of it; rounding it down only adds doubtful pairs.
    slack = error if radii.shape[1] == 1 else error.max()
    bound = np.nextafter((-radii / 2 - slack).astype(np.float32), np.float32(-np.inf))
    i, j = np.divmod(np.flatnonzero(near >= bound), near.shape[1])
    limit = (-radii / 2 + error)[i, 0] if radii.shape[1] == 1 else -radii[0, j] / 2 + error[i, 0]
    sure = near[i, j] > limit
    doubtful = np.flatnonzero(~sure)
    for part in blocks(len(doubtful), PAIRS):
        pairs = doubtful[part]
        exact = _squared_distances(x[i[pairs]], y[j[pairs]])
        sure[pairs] = exact < np.broadcast_to(radii, near.shape)[i[pairs], j[pairs]]
    return i[sure], j[sure]


def _squared_radii(points: _Points, k: int) -> np.ndarray:
    """Squared distance [N] of every point to its k-th nearest other one."""
    n = len(points.x)
    keep = min(k + SPARE, n - 1)
    value = np.full((n, keep), -np.inf, np.float32)
    index = np.zeros((n, keep), np.int64)
    lock = Lock()

    def compare(part: slice) -> None:
        for others in blocks(n, BLOCK):
            if others.start < part.start:
                continue  # distances are symmetric
            near = points.closeness(part, points, others)
            with lock:
                if others == part:
                    np.fill_diagonal(near, -np.inf)
                else:
                    _keep_nearest(value[others], index[others], near.T, part.start)
                _keep_nearest(value[part], index[part], near, others.start)

    for _ in _in_threads(compare, blocks(n, BLOCK)):
        pass
    radii = np.empty(n)
    for part in blocks(n, PAIRS // keep + 1):
        exact = _squared_distances(points.x[part, None], points.x[index[part]])
        radii[part] = np.partition(exact, k - 1, axis=1)[:, k - 1]
    return radii


def _keep_nearest(value: np.ndarray, index: np.ndarray, near: np.ndarray, first: int) -> None:
    """Puts the largest of `near` [n, m] into `value` [n, keep], with their columns plus `first`."""
    keep = value.shape[1]
    worst = value.min(axis=1)
    if np.isneginf(worst).any():
        _keep_nearest_of_all(value, index, near, first)
        return
    i, j = _where_above(near, worst)
    if not len(i):
        return
    rows = np.unique(i)
    row = np.concatenate([i, np.repeat(rows, keep)])
    candidate = np.concatenate([near[i, j], value[rows].ravel()])
    column = np.concatenate([j + first, index[rows].ravel()])
    order = np.lexsort((-candidate, row))
    starts = np.searchsorted(row[order], rows)
    best = order[starts[:, None] + np.arange(keep)]
    value[rows], index[rows] = candidate[best], column[best]


def _keep_nearest_of_all(value: np.ndarray, index: np.ndarray, near: np.ndarray, first: int) -> None:
    keep = value.shape[1]
    column = np.broadcast_to(np.arange(first, first + near.shape[1]), near.shape)
    near, column = np.concatenate([value, near], axis=1), np.concatenate([index, column], axis=1)
    best = np.argpartition(near, -keep, axis=1)[:, -keep:]
    value[:], index[:] = np.take_along_axis(near, best, 1), np.take_along_axis(column, best, 1)


def _where_above(near: np.ndarray, bound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the entries of `near` [n, m] above the `bound` [n] of their row."""
    if near.flags.c_contiguous:
        return np.divmod(np.flatnonzero(near > bound[:, None]), near.shape[1])
    j, i = np.divmod(np.flatnonzero(bound < near.T), near.shape[0])
    return i, j


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    squared: np.ndarray = np.square(np.subtract(x, y, dtype=np.float64)).sum(axis=-1)
    return squared


def _in_threads(function: Callable[[slice], R], parts: Iterable[slice]) -> Iterator[R]:
    """Results over `parts`, in as many threads as matrix products would use (``OMP_NUM_THREADS``)."""
    from threadpoolctl import threadpool_info, threadpool_limits

    threads = max(
        (pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1
    )
    # Not left to the products: everything but them would run in one thread.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as executor:
        yield from executor.map(function, parts)
