"""Fréchet distance between Gaussians fitted to features, and its limit for infinitely many samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rsprune.evaluation.features import Array, as_pair, blocks

SMALLEST = 5000  # samples of the first of the sizes that are extrapolated from, as published


@dataclass(frozen=True)
class FDInfinity:
    """FD_N = value + slope / N, fitted over `sizes`; `deviation` is the standard error of the value."""

    value: float
    slope: float
    deviation: float
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class _Gaussian:
    mean: np.ndarray  # [D]
    root: np.ndarray  # [D, D], root @ root.T is the covariance
    variance: float  # its trace


def frechet_distance(samples: Array, reference: Array) -> float:
    """Squared Fréchet distance between Gaussians fitted to features [N, D] and [M, D].

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Dowson & Landau 1982; Heusel et al. 2017 (FID, where the
    features are Inception's). Covariances divide by N - 1. The trace of the root of C1 C2 is the sum of the
    singular values of R1' R2 where Ci = Ri Ri': symmetric eigenvalue problems only, no root of a product.

    Raises:
        ValueError: The dimensions differ, there are fewer than 2 rows, or a value is not finite.
    """
    x, y = as_pair(samples, reference)
    return _distance(_fit(x), _fit(y))


def fd_infinity(
    samples: Array, reference: Array, *, points: int = 15, smallest: int | None = None, seed: int = 0
) -> FDInfinity:
    """Fréchet distance extrapolated to infinitely many samples.

    FD of N samples is linear in 1 / N to first order (Chong & Forsyth 2020). It is computed for `points`
    random subsets of evenly spaced sizes, and the fitted line is read at 1 / N = 0. The reference stays as it
    is: what its own finite number adds is left in.

    Args:
        samples: Features [N, D].
        reference: Features [M, D].
        points: Sizes; fewer where N has not that many.
        smallest: Samples of the first size; 5,000 as published, but at most half of N, if not given.
        seed: Of the subsets.

    Raises:
        ValueError: As `frechet_distance`, or there are fewer than 4 samples, or `smallest` is not in 2 .. N - 1.
    """
    x, y = as_pair(samples, reference)
    n = len(x)
    if n < 4:
        raise ValueError(f"samples has {n} rows, but at least 4 are needed to extrapolate")
    smallest = min(SMALLEST, n // 2) if smallest is None else smallest
    if not 2 <= smallest < n or points < 2:
        raise ValueError(
            f"smallest must be in 2 .. {n - 1} and points at least 2, got {smallest} and {points}"
        )
    sizes = np.unique(np.linspace(smallest, n, points).round().astype(int))
    rng, target = np.random.default_rng(seed), _fit(y)
    found = np.array([_distance(_fit(x, rng.permutation(n)[:size]), target) for size in sizes])
    design = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1)
    (value, slope), *_ = np.linalg.lstsq(design, found, rcond=None)
    freedom = len(sizes) - 2
    error = np.square(found - design @ (value, slope)).sum() / freedom if freedom else np.nan
    deviation = np.sqrt(error * np.linalg.inv(design.T @ design)[0, 0])
    return FDInfinity(float(value), float(slope), float(deviation), tuple(map(int, sizes)))


def _fit(x: np.ndarray, rows: np.ndarray | None = None) -> _Gaussian:
    """Mean and covariance of the rows of x, all of them if not given, summed in float64."""
    n, d = len(x) if rows is None else len(rows), x.shape[1]
    pick = (lambda part: x[part]) if rows is None else (lambda part: x[rows[part]])
    # One pass, as rows are costly to gather; near the mean, differences of large sums keep their digits.
    origin = pick(next(blocks(n))).mean(axis=0, dtype=np.float64)
    total, products = np.zeros(d), np.zeros((d, d))
    for part in blocks(n):
        centred = pick(part) - origin
        total += centred.sum(axis=0)
        products += centred.T @ centred
    mean = total / n
    values, vectors = np.linalg.eigh((products - n * np.outer(mean, mean)) / (n - 1))
    values = np.maximum(values, 0)
    return _Gaussian(origin + mean, vectors * np.sqrt(values), float(values.sum()))


def _distance(a: _Gaussian, b: _Gaussian) -> float:
    shared = np.linalg.svd(a.root.T @ b.root, compute_uv=False).sum()
    return max(0.0, float(np.square(a.mean - b.mean).sum() + a.variance + b.variance - 2 * shared))
