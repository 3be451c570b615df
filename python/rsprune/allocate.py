"""Budget to seats per cluster, by a highest-averages rule in closed form.

The image at rank r of cluster k has priority w_k / (r + 1/2), with w_k = size^alpha * spread^beta.
Sorted by priority, the first B images are the selection for the budget B: one order answers for all
budgets, so a larger budget never takes a seat away (the rule is house-monotone).
"""

from __future__ import annotations

import numpy as np


def weights(
    sizes: np.ndarray, spreads: np.ndarray | None = None, alpha: float = 0.0, beta: float = 0.0
) -> np.ndarray:
    """Weight of each cluster [K] float64 from its size [K] and spread [K]."""
    sizes = np.asarray(sizes, dtype=np.float64)
    spreads = np.ones(len(sizes)) if spreads is None else np.nan_to_num(np.asarray(spreads, np.float64))
    if len(spreads) != len(sizes):
        raise ValueError(f"spreads has {len(spreads)} clusters, sizes has {len(sizes)}")
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        weight = np.maximum(sizes, 1) ** alpha * spreads**beta
    # Weights of 0 and inf would leave their clusters' images without an order by rank.
    return np.clip(np.nan_to_num(weight, nan=1.0), 1e-150, 1e150)


def priorities(
    rank: np.ndarray,
    cluster: np.ndarray,
    sizes: np.ndarray,
    spreads: np.ndarray | None = None,
    alpha: float = 0.0,
    beta: float = 0.0,
) -> np.ndarray:
    """Priority [N] float64 of the images at `rank` [N] (0 is best) of `cluster` [N]; highest goes first."""
    return weights(sizes, spreads, alpha, beta)[cluster] / (np.asarray(rank) + 0.5)


def order(
    rank: np.ndarray,
    cluster: np.ndarray,
    sizes: np.ndarray,
    spreads: np.ndarray | None = None,
    alpha: float = 0.0,
    beta: float = 0.0,
    *,
    keys: np.ndarray,
) -> np.ndarray:
    """Images [N] int64 in the order in which they get a seat.

    Ties go to the larger cluster, then to the cluster whose best image has the smaller key, so that the
    numbering of the clusters does not matter.

    Args:
        rank: place inside the cluster [N], 0 is best, without gaps.
        cluster: cluster of each image [N], 0 <= cluster < K.
        sizes: images in each cluster [K].
        spreads: spread of each cluster [K].
        alpha: exponent of the size; 0 is uniform over clusters, 1 proportional.
        beta: exponent of the spread.
        keys: uint64 [N] from `rows.content_key`.
    """
    rank, cluster, sizes = np.asarray(rank), np.asarray(cluster), np.asarray(sizes)
    first_key = np.zeros(len(sizes), dtype=np.uint64)
    best = rank == 0
    first_key[cluster[best]] = keys[best]
    priority = priorities(rank, cluster, sizes, spreads, alpha, beta)
    return np.lexsort((rank, cluster, first_key[cluster], -sizes[cluster], -priority))


def seats(
    sizes: np.ndarray,
    spreads: np.ndarray | None = None,
    *,
    budget: int,
    alpha: float = 0.0,
    beta: float = 0.0,
) -> np.ndarray:
    """Seats [K] int64 with 0 <= seats <= sizes [K] that add up to min(budget, sum of sizes).

    Ties go to the larger cluster, then to the lower index.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.arange(len(cluster)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = order(rank, cluster, sizes, spreads, alpha, beta, keys=cluster.astype(np.uint64))
    return np.bincount(cluster[taken[: max(budget, 0)]], minlength=len(sizes))
