"""Kernel distance (KID where the features are Inception's): unbiased, so it can be used on few images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rsprune.evaluation.features import Array, as_pair

SUBSET = 1000  # rows, as published


@dataclass(frozen=True)
class KernelDistance:
    """Mean squared MMD over subsets, and how much it differs between them (standard deviation)."""

    value: float
    deviation: float
    subsets: int
    subset_size: int


def kernel_distance(
    samples: Array, reference: Array, *, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> KernelDistance:
    """Unbiased squared MMD of features [N, D] and [M, D] with the kernel (x'y / D + 1)^3.

    Bińkowski et al. 2018. An unbiased estimate of 0 is as often negative as positive.

    Args:
        samples: Features [N, D].
        reference: Features [M, D].
        subsets: Random subsets of both, each without repetition; the value is the mean over them.
        subset_size: Rows of a subset; 1,000 as published, but at most half of the smaller set, if not given,
            because subsets that share most of their rows differ too little.
        seed: Of the subsets.

    Raises:
        ValueError: The dimensions differ, a value is not finite, there are fewer than 4 rows, or `subset_size`
            is not in 2 .. min(N, M).
    """
    x, y = as_pair(samples, reference, least=4)
    most = min(len(x), len(y))
    size = min(SUBSET, most // 2) if subset_size is None else subset_size
    if not 2 <= size <= most or subsets < 1:
        raise ValueError(
            f"subset_size must be in 2 .. {most} and subsets at least 1, got {size} and {subsets}"
        )
    rng = np.random.default_rng(seed)
    # Products in float32, whose rounding averages out over size^2 of them; sums in float64.
    found = [
        _squared_mmd(*(z[rng.choice(len(z), size, replace=False)].astype(np.float32) for z in (x, y)))
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(found)), float(np.std(found)), subsets, size)


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Of [m, D] and [m, D], without the diagonals."""
    m = len(x)
    within = sum(
        k.sum(dtype=np.float64) - np.trace(k, dtype=np.float64) for k in (_kernel(x, x), _kernel(y, y))
    )
    return float(within / (m * (m - 1)) - 2 * _kernel(x, y).mean(dtype=np.float64))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    k: np.ndarray = x @ y.T
    k /= x.shape[1]
    k += 1
    cubes: np.ndarray = k * k * k
    return cubes
