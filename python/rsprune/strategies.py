"""Strategies: which images to keep, behind one signature, and how an installed package adds its own.

A strategy is a function ``(embeddings, scores, clusters, budget, seed) -> order``: rows, best first, exactly
`budget` of them or all there are. The images come in an order that their contents and the seed decide, so
that nothing a strategy does can depend on the order of files, and a tie may go to the lower row.

Strategies differ in what they choose from, their *pool*: `readable` images; `eligible` ones, which passed the
filters; or `distinct` ones, which are no duplicates either. `rsprune` chooses from the distinct images. The
strategies of the literature choose from all readable ones, noise and copies included, as they were published;
``--pool distinct`` puts the filters of `rsprune` before them.

The selection for a smaller budget is the beginning of that for a larger one with every strategy built in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rsprune import allocate
from rsprune.errors import ConfigError, RspruneError
from rsprune.progress import Progress, silent
from rsprune.rank import rank_by, rank_within, spreads
from rsprune.rows import BLOCK_BYTES, groups, unit_rows

if TYPE_CHECKING:
    from rsprune.stored import Selected

POOLS = ("readable", "eligible", "distinct")
DENSITY_TEMPERATURE = 0.1  # of the published softmax
DENSITY_NEIGHBOURS = 20  # nearest clusters that the distance between clusters is averaged over

Scores = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Clusters:
    """The clusters of M images.

    Attributes:
        labels: int64 [M], 0 <= label < K; every image has a cluster, but a cluster may be empty.
        distance: float32 [M], squared L2 to the centre of its cluster.
        centers: float32 [K, D].
        scenes: int64 [M], scene of each image, -1 unknown; None where nobody has told scenes apart.
    """

    labels: np.ndarray
    distance: np.ndarray
    centers: np.ndarray
    scenes: np.ndarray | None = None

    @classmethod
    def of(cls, embeddings: np.ndarray, labels: np.ndarray) -> Clusters:
        """Clusters around the means of their images: `embeddings` [M, D], `labels` [M] of any numbers >= 0."""
        names, labels = np.unique(labels, return_inverse=True)
        centers = np.zeros((len(names), embeddings.shape[1]), dtype=np.float32)
        distance = np.zeros(len(labels), dtype=np.float32)
        for label, rows in groups(labels, _row_keys(labels)):
            members = np.asarray(embeddings[rows], dtype=np.float32)
            centers[label] = members.mean(axis=0, dtype=np.float64)
            distance[rows] = np.square(members - centers[label]).sum(axis=1)
        return cls(labels, distance, centers)


Function = Callable[[Any, Scores, Clusters, int, int], Any]


@dataclass(frozen=True)
class Strategy:
    """A strategy and what it is given.

    Attributes:
        name: as in ``--strategy``.
        function: ``(embeddings [M, D], scores of [M] each, clusters, budget, seed) -> rows``, best first.
        pool: one of `POOLS`, the images that it chooses from unless ``--pool`` says otherwise.
        ranks_all: whether it is asked to rank its whole pool, of which the budget takes the beginning. Then
            subsets are nested; otherwise it is asked for the budget only.
        reads_rows: whether it reads some rows of the embeddings at a time, so that they need not lie in memory:
            it is given `stored.Selected`.
    """

    name: str
    function: Function
    pool: str = "distinct"
    ranks_all: bool = False
    reads_rows: bool = False

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise RspruneError(
                f"strategy {self.name} wants the pool {self.pool!r}: it must be one of {', '.join(POOLS)}"
            )

    def order(
        self,
        embeddings: np.ndarray | Selected,
        scores: Scores,
        clusters: Clusters,
        budget: int,
        seed: int,
    ) -> np.ndarray:
        """Rows int64, best first: `budget` of them or, where `ranks_all`, the whole pool.

        Raises:
            RspruneError: if the strategy returns other than that many distinct rows of the pool.
        """
        n = len(embeddings)
        wanted = n if self.ranks_all else min(budget, n)
        if not wanted:
            return np.zeros(0, dtype=np.int64)
        rows = np.asarray(self.function(embeddings, scores, clusters, wanted, seed))
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise RspruneError(
                f"strategy {self.name} returned {rows.dtype} {list(rows.shape)} instead of row numbers [{wanted}]"
            )
        if len(rows) != wanted:
            raise RspruneError(f"strategy {self.name} returned {len(rows)} rows but was asked for {wanted}")
        outside = rows[(rows < 0) | (rows >= n)]
        if len(outside):
            raise RspruneError(
                f"strategy {self.name} returned row {outside[0]}, but rows go from 0 to {n - 1}"
            )
        repeated = len(rows) - len(np.unique(rows))
        if repeated:
            raise RspruneError(
                f"strategy {self.name} returned {repeated} of its {wanted} rows more than once"
            )
        return rows.astype(np.int64)


def random(embeddings: np.ndarray, scores: Scores, clusters: Clusters, budget: int, seed: int) -> np.ndarray:
    """Uniformly at random."""
    return np.random.default_rng(seed).permutation(len(embeddings))[:budget]


def entropy(embeddings: np.ndarray, scores: Scores, clusters: Clusters, budget: int, seed: int) -> np.ndarray:
    """Highest entropy first; NaN is lowest."""
    value = np.nan_to_num(np.asarray(scores["entropy"], np.float64), nan=-np.inf)
    return np.argsort(-value, kind="stable")[:budget]


def dedup(embeddings: np.ndarray, scores: Scores, clusters: Clusters, budget: int, seed: int) -> np.ndarray:
    """Images least similar to one that precedes them in their cluster, farthest from the centre first.

    After Abbas et al., "SemDeDup", 2023: there an image is dropped if that similarity exceeds a threshold.
    Sorted by it, the first images are those that the threshold leaves which leaves just as many.
    """
    most = np.full(len(embeddings), -np.inf, dtype=np.float32)
    for _, rows in groups(clusters.labels, _row_keys(clusters.labels)):
        rows = rows[np.argsort(-clusters.distance[rows], kind="stable")]
        x = unit_rows(embeddings[rows])
        block = max(1, BLOCK_BYTES // (4 * len(x)))
        for start in range(0, len(x), block):
            stop = min(start + block, len(x))
            before = x[start:stop] @ x[:stop].T
            before[np.triu_indices(stop - start, start, stop)] = -np.inf
            most[rows[start:stop]] = before.max(axis=1)
    return np.argsort(most, kind="stable")[:budget]


def proportional(
    embeddings: np.ndarray, scores: Scores, clusters: Clusters, budget: int, seed: int
) -> np.ndarray:
    """Seats proportional to cluster size, closest to the centre first."""
    rank = rank_by(clusters.distance, clusters.labels, keys=_row_keys(clusters.labels))
    return _seated(rank, clusters, alpha=1.0)[:budget]


def balanced(
    embeddings: np.ndarray, scores: Scores, clusters: Clusters, budget: int, seed: int
) -> np.ndarray:
    """Equal seats for all clusters, at random inside."""
    chance = np.random.default_rng(seed).permutation(len(embeddings))
    rank = rank_by(chance, clusters.labels, keys=_row_keys(clusters.labels))
    return _seated(rank, clusters)[:budget]


def kcenter(embeddings: np.ndarray, scores: Scores, clusters: Clusters, budget: int, seed: int) -> np.ndarray:
    """Greedy k-centre: next is the image farthest, by cosine, from all taken; first the one nearest the mean.

    After Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985, as used by Sener and
    Savarese, "Active learning for convolutional neural networks: a core-set approach", 2018. Costs
    2 * M * budget * D operations.
    """
    x = unit_rows(embeddings)
    order = np.empty(min(budget, len(x)), dtype=np.int64)
    best = int((x @ x.mean(axis=0, dtype=np.float64).astype(np.float32)).argmax()) if len(x) else 0
    distance = np.full(len(x), np.inf, dtype=np.float32)
    for i in range(len(order)):
        order[i] = best
        np.minimum(distance, 1 - x @ x[best], out=distance)
        distance[best] = -np.inf
        best = int(distance.argmax())
    return order


def density(embeddings: np.ndarray, scores: Scores, clusters: Clusters, budget: int, seed: int) -> np.ndarray:
    """Seats by the softmax of a cluster's spread times its distance to others, farthest from the centre first.

    After Abbas et al., "Effective pruning of web-scale datasets based on complexity of concept clusters",
    2024, with cosine distances, the 20 nearest clusters and a temperature of 0.1 as there. Seats that a
    cluster cannot fill go to the others by the same weights, instead of by a quadratic programme.
    """
    present, labels = np.unique(clusters.labels, return_inverse=True)
    centers = unit_rows(clusters.centers[present])
    intra = np.zeros(len(present))
    for label, rows in groups(labels, _row_keys(labels)):
        intra[label] = 1 - (unit_rows(embeddings[rows]) @ centers[label]).mean(dtype=np.float64)
    apart = 1 - centers @ centers.T
    np.fill_diagonal(apart, np.inf)
    neighbours = min(DENSITY_NEIGHBOURS, len(present) - 1)
    inter = np.sort(apart, axis=1)[:, :neighbours].mean(axis=1) if neighbours else np.ones(1)
    complexity = intra * inter / DENSITY_TEMPERATURE
    rank = rank_by(-clusters.distance, labels, keys=_row_keys(labels))
    return _seated(rank, clusters, spread=np.exp(complexity - complexity.max(initial=0)), beta=1.0)[:budget]


def rsprune(
    embeddings: np.ndarray,
    scores: Scores,
    clusters: Clusters,
    budget: int,
    seed: int,
    *,
    scene_alpha: float | None = 0.5,
    unknown: float = 0.5,
    alpha: float = 1.0,
    beta: float = 1.0,
    rank: str = "herding",
    mmr_lambda: float = 0.5,
    workers: int = 1,
    progress: Progress = silent,
) -> np.ndarray:
    """Seats for scenes, in a scene for its part of every cluster, representative images inside.

    Args:
        scene_alpha: seats of a scene ~ size^scene_alpha; None, and clusters without scenes, leave it to the
            clusters alone.
        unknown: most seats of the images of no known scene, in shares of what their number would give them;
            broken images resemble no scene more often than sound ones do.
        alpha: seats of a cluster ~ size^alpha * spread^beta, in its scene.
        beta: see `alpha`. An image alone in its scene's part of a cluster has no spread, and comes last in its scene.
        rank: order inside a cluster; see `rank_within`.
        mmr_lambda: for `mmr`.
        workers: threads.
        progress: follows the images that are ranked.
    """
    scenes = None if scene_alpha is None else clusters.scenes
    parts = _parts(clusters.labels, scenes)
    keys = _row_keys(parts)
    if rank == "closest":
        inside = rank_by(clusters.distance, parts, keys=keys)
    elif rank == "random":
        chance = np.random.default_rng(seed).permutation(len(embeddings))
        inside = rank_by(chance, parts, keys=keys)
    else:
        inside = rank_within(
            embeddings,
            parts,
            keys=keys,
            method=rank,
            mmr_lambda=mmr_lambda,
            workers=workers,
            progress=progress,
        )
    sizes = np.bincount(parts)
    # Measuring the spread reads all embeddings again: only where it counts.
    spread = spreads(embeddings, parts, len(sizes), keys=keys, workers=workers) if beta else None
    order = allocate.order(inside, parts, sizes, spread, alpha, beta, keys=keys)
    if scenes is None or scene_alpha is None:
        return order[:budget]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    names, scene = np.unique(scenes, return_inverse=True)
    sizes = np.bincount(scene)
    factor = np.ones(len(names))
    if names[0] < 0 < len(names) - 1:
        weight: np.ndarray = sizes**scene_alpha
        fair = weight[1:].sum() / sizes[1:].sum() * sizes[0]
        factor[0] = min(1, unknown * fair / weight[0])
    inside = rank_by(place, scene, keys=keys)
    return allocate.order(inside, scene, sizes, factor, scene_alpha, 1.0, keys=keys)[:budget]


def _parts(labels: np.ndarray, scenes: np.ndarray | None) -> np.ndarray:
    """Number int64 [M] of the part, one scene's share of one cluster, that each image belongs to."""
    if scenes is not None:
        labels = np.unique(scenes, return_inverse=True)[1] * (labels.max(initial=0) + 1) + labels
    return np.unique(labels, return_inverse=True)[1]


# Greedy k-centre could rank all, but at a cost that grows with the square of the pool.
STRATEGIES = {
    s.name: s
    for s in (
        Strategy("random", random, "readable", ranks_all=True, reads_rows=True),
        Strategy("entropy", entropy, "readable", ranks_all=True, reads_rows=True),
        Strategy("dedup", dedup, "readable", ranks_all=True, reads_rows=True),
        Strategy("proportional", proportional, "readable", ranks_all=True, reads_rows=True),
        Strategy("balanced", balanced, "readable", ranks_all=True, reads_rows=True),
        Strategy("kcenter", kcenter, "readable"),
        Strategy("density", density, "readable", ranks_all=True, reads_rows=True),
        Strategy("rsprune", rsprune, "distinct", ranks_all=True, reads_rows=True),
    )
}


def load_strategy(name: str, **settings: Any) -> Strategy:
    """The strategy of that name, built in or from an installed package.

    A package adds one by an entry point of the group ``rsprune.strategies`` that is a `Strategy`, or a
    function, which is then given the distinct images. `settings` are for `rsprune` only.

    Raises:
        ConfigError: if there is none of that name.
        RspruneError: if what a package added is not a strategy.
    """
    if name in STRATEGIES:
        found = STRATEGIES[name]
        if name == "rsprune" and settings:
            return replace(found, function=partial(rsprune, **settings))
        return found
    from rsprune import plugins

    added = plugins.find(plugins.STRATEGIES, name)
    if added is None:
        known = ", ".join([*STRATEGIES, *plugins.names(plugins.STRATEGIES)])
        raise ConfigError(f"there is no strategy {name!r}: give one of {known}, or install a package with it")
    if isinstance(added, Strategy):
        return replace(added, name=name)
    if not callable(added):
        raise RspruneError(
            f"strategy {name} is neither a function nor a Strategy, but {type(added).__name__}"
        )
    return Strategy(name, added)


def _seated(
    rank: np.ndarray,
    clusters: Clusters,
    *,
    spread: np.ndarray | None = None,
    alpha: float = 0.0,
    beta: float = 0.0,
) -> np.ndarray:
    """All rows in the order in which they get a seat; `spread` is of the clusters that are not empty."""
    present, labels = np.unique(clusters.labels, return_inverse=True)
    sizes = np.bincount(labels, minlength=len(present))
    return allocate.order(rank, labels, sizes, spread, alpha, beta, keys=_row_keys(labels))


def _row_keys(rows: np.ndarray) -> np.ndarray:
    """Keys for images that come in the order of their keys already."""
    return np.arange(len(rows), dtype=np.uint64)
