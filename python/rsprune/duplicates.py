"""Images of the same ground: footprints that overlap by more than half, taken within some days of each other."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

COLUMNS = ("uri", "width", "height", "x", "y", "w", "h", "crs", "left", "bottom", "right", "top", "timestamp")
_NONE = -1
_TOLERANCE = 1e-6  # of the smaller footprint; windows at half a side from each other do not overlap by more
_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Footprints:
    """Where N images lie.

    Attributes:
        frame: int64 [N], images with the same number lie in one plane and show the same detail; -1 where an
            image has no place. A frame is a coordinate system and an octave of pixel sizes, or, for images
            without coordinates, the file that they are windows of.
        box: float64 [N, 4], left, bottom, right, top in the units of the frame.
        day: float64 [N], days since 1970, NaN where unknown.
    """

    frame: np.ndarray
    box: np.ndarray
    day: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> Footprints:
        """Footprints of manifest rows with `COLUMNS`."""
        n = len(table)
        number = {name: _floats(table[name]) for name in ("width", "height", "x", "y", "w", "h")}
        box = np.stack([_floats(table[name]) for name in ("left", "bottom", "right", "top")], axis=1)
        placed = np.isfinite(box).all(axis=1)
        is_window = np.isfinite(number["w"]) & ~placed
        x, y, w, h = (number[name][is_window] for name in ("x", "y", "w", "h"))
        box[is_window] = np.stack([x, y, x + w, y + h], axis=1)

        pixel = np.ones(n)  # side of a pixel in units of the frame
        area = (box[placed, 2] - box[placed, 0]) * (box[placed, 3] - box[placed, 1])
        pixel[placed] = np.sqrt(area / (number["width"][placed] * number["height"][placed]))
        usable = (placed | is_window) & (pixel > 0) & np.isfinite(pixel)
        # Of a scene and its enlarged centre, one does not replace the other.
        octave = np.round(np.log2(np.where(usable, pixel, 1))).astype(np.int64)
        crs, uri = _codes(table["crs"]), _codes(table["uri"])
        kind = np.where(placed, crs, uri)
        _, frame = np.unique(np.stack([placed, kind, octave], axis=1), axis=0, return_inverse=True)
        return cls(np.where(usable, frame.reshape(-1), _NONE), box, _days(table["timestamp"]))


def spatial_duplicates(
    footprints: Footprints,
    quality: np.ndarray,
    keys: np.ndarray,
    candidates: np.ndarray | None = None,
    *,
    overlap: float = 0.5,
    days: float = math.inf,
) -> np.ndarray:
    """Row int64 [N] of the image that stays for each spatial duplicate, else -1.

    In order of quality, then key, an image is dropped for one accepted before it in its frame whose footprint
    shares more than `overlap` of the smaller one with its own, and whose date is at most `days` away. An unknown
    date is any date. Copies of one content, which have one key, are one image with several footprints,
    so that it does not matter which of them is there.

    Accepted images are looked up in grids whose cells are as large as a footprint, so the time grows with the
    number of images and not with its square.

    Args:
        footprints: of all N images.
        quality: float [N], higher stays; NaN is lowest.
        keys: uint64 [N] from `rows.content_key`.
        candidates: bool [N], images that take part.
        overlap: share of the smaller footprint; 1 or more finds none.
        days: largest distance in time.
    """
    n = len(keys)
    duplicate_of = np.full(n, _NONE, dtype=np.int64)
    if overlap >= 1:
        return duplicate_of
    part = np.ones(n, bool) if candidates is None else candidates
    rows = np.flatnonzero(part & (footprints.frame >= 0))
    _, frame, members = np.unique(footprints.frame[rows], return_inverse=True, return_counts=True)
    rows = rows[members[frame] > 1]  # alone in its frame: most files without coordinates
    if not len(rows):
        return duplicate_of
    value = -np.nan_to_num(quality[rows].astype(np.float64), nan=-np.inf)
    order = np.lexsort((rows, keys[rows], value))
    rows, value, key = rows[order], value[order], keys[rows[order]]
    # Copies are neighbours in this order, as they are equal in quality and key.
    starts = np.flatnonzero(np.r_[True, (key[1:] != key[:-1]) | (value[1:] != value[:-1])])
    columns = footprints.frame[rows], footprints.box[rows], footprints.day[rows], rows
    frames, boxes, times, listed = (column.tolist() for column in columns)
    accepted = _Grid(overlap + _TOLERANCE, days)
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(listed)], strict=True):
        found = None
        for i in range(start, stop):
            found = accepted.find(frames[i], boxes[i], times[i])
            if found is not None:
                break
        for i in range(start, stop):
            if found is not None:
                duplicate_of[listed[i]] = found
            else:
                accepted.add(listed[start], frames[i], boxes[i], times[i])
    return duplicate_of


class _Grid:
    """Footprints by frame, size and cell: each lies in the cell of its centre, on a grid of about its size."""

    def __init__(self, overlap: float, days: float):
        self._overlap, self._days = overlap, days
        self._cells: dict[tuple[int, int, int, int], list[tuple[int, list[float], float]]] = defaultdict(list)
        self._levels: dict[int, list[int]] = defaultdict(list)

    def add(self, row: int, frame: int, box: list[float], day: float) -> None:
        left, bottom, right, top = box
        level = math.frexp(max(right - left, top - bottom))[1]
        if level not in self._levels[frame]:
            self._levels[frame].append(level)
        cell = 2.0**level  # the footprint is at most as large, and more than half as large
        at = frame, level, math.floor((left + right) / 2 / cell), math.floor((bottom + top) / 2 / cell)
        self._cells[at].append((row, box, day))

    def find(self, frame: int, box: list[float], day: float) -> int | None:
        """Row of a footprint that this one repeats, or None."""
        left, bottom, right, top = box
        area = (right - left) * (top - bottom)
        for level in self._levels.get(frame, ()):
            cell = 2.0**level
            reach = cell / 2
            across = range(math.floor((left - reach) / cell), math.floor((right + reach) / cell) + 1)
            for j in range(math.floor((bottom - reach) / cell), math.floor((top + reach) / cell) + 1):
                for i in across:
                    for row, (x0, y0, x1, y1), other in self._cells.get((frame, level, i, j), ()):
                        w, h = min(right, x1) - max(left, x0), min(top, y1) - max(bottom, y0)
                        smaller = min(area, (x1 - x0) * (y1 - y0))
                        # Not `<=`: the distance to an unknown date is NaN.
                        if (
                            w > 0
                            and h > 0
                            and w * h > self._overlap * smaller
                            and not abs(day - other) > self._days
                        ):
                            return row
        return None


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy().astype(np.float64)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """A number int64 [N] for every distinct value, -1 for null."""
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return np.asarray(encoded.indices.fill_null(_NONE).to_numpy(zero_copy_only=False), np.int64)


def _days(column: pa.ChunkedArray) -> np.ndarray:
    """Days since 1970 as float64 [N]; NaN where there is no date that can be read."""
    encoded = column.combine_chunks().dictionary_encode()
    known = np.array([*(_day(text) for text in encoded.dictionary.to_pylist()), math.nan])
    return known[encoded.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]


def _day(text: str) -> float:
    try:
        when = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        return math.nan
    return (when.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds() / _SECONDS_PER_DAY
