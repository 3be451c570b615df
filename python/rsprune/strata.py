"""Strata: kinds of images that are pruned by the same share, because clusters would part them first anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa

from rsprune import allocate
from rsprune.duplicates import days_since_1970

COLUMNS = ("gsd", "source", "timestamp")
UNKNOWN = "unknown"
_SEASONS = ("December to February", "March to May", "June to August", "September to November")


def strata(
    tables: Iterable[pa.Table], by: Sequence[str], sources: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The stratum of each image, int32 [N], and the names of the strata.

    Args:
        tables: manifest rows with `COLUMNS`, one table after the other.
        by: `gsd` (to the nearest power of two metres), `sensor` (the source, as one source is one sensor) or
            `date` (the season). A stratum is a combination of them; what is not known is `unknown`.
        sources: name of each source.
    """
    number: dict[str, int] = {}
    parts = [np.zeros(0, np.int32)]
    for table in tables:
        columns = [_VALUES[name](table, sources) for name in by]
        names = [", ".join(values) for values in zip(*columns, strict=True)] if columns else [""] * len(table)
        parts.append(np.array([number.setdefault(name, len(number)) for name in names], np.int32))
    present = tuple(sorted(number))
    sorted_number = np.zeros(len(present), np.int32)
    sorted_number[[number[name] for name in present]] = np.arange(len(present))
    return sorted_number[np.concatenate(parts)], present


def stratified_order(
    rows: np.ndarray,
    stratum: np.ndarray,
    budget: int,
    keys: np.ndarray,
    order: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
    """Rows int64, best first, whose beginning holds each stratum by its share of `rows`.

    The highest-averages rule of `allocate` divides the seats, so a larger budget never takes one away.

    Args:
        rows: images to choose from, int64 [M].
        stratum: int [N], of all images.
        budget: images wanted.
        keys: uint64 [N] from `rows.content_key`.
        order: gives the rows of one stratum best first, as many as its second argument or all of them.
    """
    present, code = np.unique(stratum[rows], return_inverse=True)
    if len(present) < 2:
        return order(rows, budget)
    sizes = np.bincount(code)
    seats = allocate.seats(sizes, budget=min(budget, len(rows)), alpha=1.0)
    chosen = [order(rows[code == k], int(seats[k])) for k in range(len(present))]
    place = np.concatenate([np.arange(len(c)) for c in chosen])
    code = np.repeat(np.arange(len(present)), [len(c) for c in chosen])
    joined = np.concatenate(chosen)
    return joined[allocate.order(place, code, sizes, alpha=1.0, keys=keys[joined])]


def _gsd(table: pa.Table, sources: Sequence[str]) -> list[str]:
    known = {None: UNKNOWN}
    values = table["gsd"].to_pylist()
    for value in set(values) - {None}:
        usable = math.isfinite(value) and value > 0
        known[value] = f"about {2.0 ** round(math.log2(value)):g} m" if usable else UNKNOWN
    return [known[value] for value in values]


def _sensor(table: pa.Table, sources: Sequence[str]) -> list[str]:
    return [sources[i] or UNKNOWN for i in table["source"].to_pylist()]


def _date(table: pa.Table, sources: Sequence[str]) -> list[str]:
    days = days_since_1970(table["timestamp"])
    known = np.isfinite(days)
    month = np.where(known, days, 0).astype("datetime64[D]").astype("datetime64[M]").astype(int) % 12 + 1
    return [_SEASONS[m % 12 // 3] if k else UNKNOWN for m, k in zip(month.tolist(), known, strict=True)]


_VALUES = {"gsd": _gsd, "sensor": _sensor, "date": _date}
