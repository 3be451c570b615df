"""Memorisation: are samples nearer to the training images than unseen real images are?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rsprune.evaluation.features import Array, as_pair

CLOSE = 0.05  # share of held-out images that count as close


@dataclass(frozen=True)
class Memorization:
    """Distances to the nearest training image, of samples against held-out images.

    Attributes:
        ratio: Median distance of samples over that of held-out images; 1 is as far as unseen images, below 1
            is nearer, 0 is copies.
        close: Share of samples nearer than all but 5 % of held-out images; 0.05 where nothing is memorised.
        nearer: Probability that a sample is nearer than a held-out image; 0.5 where nothing is memorised.
    """

    ratio: float
    close: float
    nearer: float


def memorization(samples: Array, training: Array, held_out: Array) -> Memorization:
    """Distance of samples [N, D] to the nearest of training images [T, D], against held-out images [M, D].

    `nearer` is the Mann-Whitney statistic of Meehan, Chaudhuri & Dasgupta 2020 (data-copying), over all of the
    space as one cell. Held-out images must come from where the training images come from, and not be among them:
    unseen images from elsewhere are far from the training images and make any model look like a copier.

    Raises:
        ValueError: The dimensions differ, there are fewer than 2 rows, or a value is not finite.
    """
    x, t = as_pair(samples, training, names=("samples", "training"))
    y, _ = as_pair(held_out, training, names=("held_out", "training"))
    ours, theirs = _nearest(x, t), _nearest(y, t)
    typical = float(np.median(theirs))
    ratio = float(np.median(ours)) / typical if typical else float("nan")
    ordered = np.sort(theirs)
    below, upto = (np.searchsorted(ordered, ours, side=side) for side in ("left", "right"))
    # Of equal distances half count as nearer.
    nearer = float((1 - (below + upto) / (2 * len(ordered))).mean())
    return Memorization(ratio, float((ours < np.quantile(theirs, CLOSE)).mean()), nearer)


def _nearest(x: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Distance [N] of each row to the nearest training row."""
    from rsprune.ops import kmeans_assign

    _, squared = kmeans_assign(x.astype(np.float32, copy=False), training.astype(np.float32, copy=False))
    distances: np.ndarray = np.sqrt(squared)
    return distances
