"""Which images are eligible at all: stored scores and thresholds in, one reason code per image out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rsprune.config import FilterConfig
from rsprune.rows import content_numbers

REASONS = (
    "kept",
    "unreadable",
    "nodata",
    "saturated",
    "noise",
    "blurred",
    "low_entropy",
    "exact_duplicate",
    "near_duplicate",
    "spatial_duplicate",
    "reference_leak",
    "over_budget",
)
CODES = {reason: code for code, reason in enumerate(REASONS)}


class Guard(NamedTuple):
    """Drops the images whose score is above or below a setting."""

    reason: str
    score: str
    setting: str
    above: bool


GUARDS = (
    Guard("saturated", "saturated_fraction", "saturated_max", above=True),
    Guard("noise", "autocorrelation", "autocorrelation_min", above=False),
    Guard("blurred", "sharpness", "sharpness_min", above=False),
)


@dataclass(frozen=True)
class Eligibility:
    """Result of the filters.

    Attributes:
        reason: uint8 [N], index into `REASONS`; 0 where the image is eligible.
        thresholds: threshold by score name (bits for entropy); None where nothing could be estimated.
        threshold_used: float32 [N], the threshold that decided about the image: the entropy threshold
            unless another guard dropped it, NaN where it is unreadable.
    """

    reason: np.ndarray
    thresholds: dict[str, float | None]
    threshold_used: np.ndarray

    @property
    def eligible(self) -> np.ndarray:
        """Images that passed every filter, bool [N]."""
        return self.reason == CODES["kept"]


def eligibility(
    scores: Mapping[str, np.ndarray],
    filters: FilterConfig | None = None,
    *,
    hashes: Any = None,
) -> Eligibility:
    """Applies the filters in the order unreadable, nodata, saturated, noise, blurred, low entropy.

    Args:
        scores: columns [N]; `entropy` (bits) is needed, `nodata_fraction` and those in `GUARDS` are used
            where present. An unreadable image has NaN in all of them.
        filters: thresholds.
        hashes: content hashes [N], None where unreadable, or `rows.Contents`. A content
            counts once towards the entropy threshold however many copies the pool holds.
    """
    filters = filters or FilterConfig()
    entropy = np.asarray(scores["entropy"], dtype=np.float32)
    nodata = _column(scores, "nodata_fraction", len(entropy))

    reason = np.zeros(len(entropy), dtype=np.uint8)
    threshold_used = np.full(len(entropy), np.nan, dtype=np.float32)
    unreadable = np.isnan(entropy) & ~(nodata >= 0)
    content = None if hashes is None else content_numbers(hashes)
    if content is not None:
        unreadable |= content < 0
    # An image without a single valid patch has no entropy, whatever share of nodata is allowed.
    empty = (nodata > filters.nodata_max) | np.isnan(entropy)
    limits = {"nodata_fraction": filters.nodata_max}
    for guard in reversed(GUARDS):  # the first that applies is written last
        limits[guard.score] = limit = getattr(filters, guard.setting)
        column = _column(scores, guard.score, len(entropy))
        caught = column > limit if guard.above else column < limit
        if guard.reason == "blurred":
            caught &= column > 0  # a constant image is not blurred: its entropy says what it lacks
        reason[caught] = CODES[guard.reason]
        threshold_used[caught] = limit
    reason[empty] = CODES["nodata"]
    reason[unreadable] = CODES["unreadable"]

    threshold = entropy_threshold(_once(entropy, reason == 0, content), filters)
    reason[(reason == 0) & (entropy < threshold)] = CODES["low_entropy"]

    threshold_used[np.isin(reason, (CODES["kept"], CODES["low_entropy"]))] = threshold
    threshold_used[reason == CODES["nodata"]] = filters.nodata_max
    threshold_used[unreadable] = np.nan
    return Eligibility(
        reason=reason,
        thresholds={"entropy": None if np.isnan(threshold) else threshold, **limits},
        threshold_used=threshold_used,
    )


def entropy_threshold(entropy: np.ndarray, filters: FilterConfig) -> float:
    """Entropy in bits below which an image is dropped, from the values [M] of the pool; NaN drops none.

    The quantile is one of the values, and as only values strictly below it are dropped, never more than
    `entropy_drop` of the pool are, and none where all are equal.
    """
    if filters.entropy_min is not None:
        return float(filters.entropy_min)
    if not len(entropy):
        return float("nan")
    entropy = np.sort(entropy)
    if filters.entropy_otsu:
        return otsu(entropy)
    # The small term keeps 0.29 * 100 from becoming 28.
    return float(entropy[int(filters.entropy_drop * len(entropy) + 1e-9)])


def otsu(values: np.ndarray) -> float:
    """Smallest value of the upper class in the split of `values` [M] with the largest between-class variance.

    Otsu, "A threshold selection method from gray-level histograms", 1979, on the values themselves
    instead of a histogram, so that there is no bin width to choose.
    """
    values = np.sort(np.asarray(values, dtype=np.float64))
    below = np.arange(1, len(values))
    above = len(values) - below
    sums = np.cumsum(values)
    difference = (sums[-1] - sums[:-1]) / above - sums[:-1] / below
    between = np.where(values[1:] > values[:-1], below * above * difference**2, 0)
    if not between.any():
        return float(values[0])
    return float(values[between.argmax() + 1])


def _column(scores: Mapping[str, np.ndarray], name: str, n: int) -> np.ndarray:
    """Column [N]; NaN, which no guard drops, where the run did not compute it."""
    if name not in scores:
        return np.full(n, np.nan, dtype=np.float32)
    column = np.asarray(scores[name], dtype=np.float32)
    if len(column) != n:
        raise ValueError(f"score {name} has {len(column)} rows, entropy has {n}")
    return column


def _once(entropy: np.ndarray, candidates: np.ndarray, content: np.ndarray | None) -> np.ndarray:
    """Entropies of the candidates, one for every content."""
    rows = np.flatnonzero(candidates)
    if content is None:
        return entropy[rows]
    rows = rows[np.lexsort((entropy[rows], content[rows]))]
    # The value belongs to the pair: one content read with two radiometries has two entropies.
    repeats = (content[rows[1:]] == content[rows[:-1]]) & (entropy[rows[1:]] == entropy[rows[:-1]])
    return entropy[rows[np.r_[True, ~repeats]]] if len(rows) else entropy[rows]
