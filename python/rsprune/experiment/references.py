"""The held-out sets: one as nature has it, and one in which every kind of ground counts the same.

The balanced reference stands on clusters of colour and texture statistics. These are computed from pixels, without
a network, so they are neither the features that selection clusters (lite0), nor the scene rules whose labelled set
guides it, nor the features that distances are measured in: a selection cannot win by having balanced the very
groups that it is judged by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rsprune.experiment.config import ReferenceConfig
from rsprune.judge import colour_texture

KINDS = ("natural", "balanced")


@dataclass(frozen=True)
class References:
    """Held-out tiles, and which of them make up each set.

    Attributes:
        pixels: uint8 [N, H, W, C].
        cluster: int64 [N], of colour and texture.
        sets: row numbers by name: the kinds of reference, and as `KIND half` as many other tiles of its kind.
    """

    pixels: np.ndarray
    cluster: np.ndarray
    sets: dict[str, np.ndarray]

    def loss_rows(self, count: int) -> np.ndarray:
        """Rows that the held-out loss needs: the first `count` of each kind, each row once."""
        return np.unique(np.concatenate([self.sets[kind][:count] for kind in KINDS]))

    def mean(self, kind: str, values: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
        """Mean [...] over a kind's first `count` tiles of `values` [n, ...], which belong to `rows` [n], sorted.

        Of the balanced kind every cluster counts the same, also one that has fewer tiles than there are seats.
        """
        wanted = self.sets[kind][:count]
        found = values[np.searchsorted(rows, wanted)]
        if kind == "natural":
            return found.mean(axis=0)
        cluster = self.cluster[wanted]
        return np.mean([found[cluster == c].mean(axis=0) for c in np.unique(cluster)], axis=0)


def build(tiles: np.ndarray, settings: ReferenceConfig) -> References:
    """References from all tiles [N, H, W, C] of the held-out region.

    One random half of the tiles is for the references, the other for the floor: what real tiles of the same
    kind get against them.
    """
    from rsprune.cluster import KMeans

    features = np.stack([colour_texture(tile) for tile in tiles])
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    fitted = KMeans(n_clusters=settings.clusters, random_state=settings.seed).fit(features)
    cluster = np.asarray(fitted.labels_, np.int64)
    halves = np.array_split(np.random.default_rng(settings.seed).permutation(len(tiles)), 2)
    sets = {}
    for suffix, half in zip(("", " half"), halves, strict=True):
        sets[f"natural{suffix}"] = half[: settings.n]
        sets[f"balanced{suffix}"] = _alike(half, cluster[half], settings.n)
    return References(tiles, cluster, sets)


def _alike(rows: np.ndarray, cluster: np.ndarray, n: int) -> np.ndarray:
    """At most n of the rows, as many of each cluster as it has seats or tiles; one of each in turn."""
    names, index = np.unique(cluster, return_inverse=True)
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(len(names)))
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows)) - starts[index[order]]
    taken = np.flatnonzero(place < max(1, n // len(names)))
    return rows[taken[np.lexsort((index[taken], place[taken]))]]
