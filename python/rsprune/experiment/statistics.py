"""What may be concluded from a few seeds: paired differences, their intervals, and corrected p-values.

The unit is the training run. Images are not replicates: a bootstrap over them calls noise significant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

CONFIDENCE = 0.95
Point = TypeVar("Point", int, float)


@dataclass(frozen=True)
class Paired:
    """Difference of two arms over the seeds that both have.

    Attributes:
        difference: Mean of first minus second; below 0 the first has the lower loss.
        low: Lower end of the 95 % t-interval; NaN with one seed.
        high: Its upper end.
        p: Two-sided; NaN with one seed.
        seeds: Number of pairs.
    """

    difference: float
    low: float
    high: float
    p: float
    seeds: int


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """Paired t-test of values by seed; None where no seed is in both."""
    from scipy import stats

    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    differences = np.array([first[s] - second[s] for s in seeds])
    mean, n = float(differences.mean()), len(seeds)
    if n < 2:
        return Paired(mean, np.nan, np.nan, np.nan, n)
    error = differences.std(ddof=1) / np.sqrt(n)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * error
    p = 2 * stats.t.sf(abs(mean) / error, n - 1) if error else float(mean == 0)
    return Paired(mean, float(mean - half), float(mean + half), float(p), n)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % t-interval; NaN with one value."""
    from scipy import stats

    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(half)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); NaN counts as a comparison and stays NaN."""
    order = np.argsort([1.0 if np.isnan(v) else v for v in p], kind="stable")
    out, highest = [float("nan")] * len(p), 0.0
    for place, i in enumerate(order):
        if not np.isnan(p[i]):
            highest = max(highest, min(1.0, (len(p) - place) * p[i]))
            out[i] = highest
    return out


def first_reached(curve: Mapping[Point, float], target: float) -> float | None:
    """Where a falling curve, of values by steps or by kept share, first reaches `target`; None if nowhere.

    Between two points the logarithm of the value is taken as linear in that of the step or share. A curve that is
    there at its first point is so from there on or earlier: that point is given.
    """
    points = sorted((float(at), value) for at, value in curve.items())
    if points[0][1] <= target:
        return points[0][0]
    for (before, high), (here, low) in pairwise(points):
        if low <= target:
            part = np.log(high / target) / np.log(high / low)
            return float(before * (here / before) ** part)
    return None
