"""Images of the same ground: footprints that overlap by more than half, taken within some days of each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

COLUMNS = (
    "uri", "member", "width", "height", "x", "y", "w", "h", "crs", "left", "bottom", "right", "top", "timestamp",
)  # fmt: skip
_NONE = -1
_TOLERANCE = 1e-6  # of the smaller footprint; windows at half a side from each other do not overlap by more
_SECONDS_PER_DAY = 86_400
_OCTAVES = 4096  # more than the exponents of a float
_FIRST_BLOCK, _LARGEST_BLOCK = 1024, 2**21  # images accepted at once; each block sorts all accepted before it
_PAIRS = 2**20  # compared at once
_MOST_PAIRS = 2**22  # of equal footprints in a block, which are all held
# They spread cells over 64 bits; that two cells may meet in one code only costs time.
_CELL_PRIMES = np.array([0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F], np.uint64)
_FRAME_PRIME = np.uint64(0x165667B19E3779F9)


@dataclass(frozen=True)
class Footprints:
    """Where N images lie.

    Attributes:
        frame: int64 [N], images with the same number lie in one plane and show the same detail; -1 where an
            image has no place. A frame is a coordinate system and an octave of pixel sizes, or, for images
            without coordinates, the image that they are windows of: a file, or a member of a shard or table.
        box: float64 [N, 4], left, bottom, right, top in the units of the frame.
        day: float64 [N], days since 1970, NaN where unknown.
    """

    frame: np.ndarray
    box: np.ndarray
    day: np.ndarray

    @classmethod
    def of(cls, tables: Iterable[pa.Table]) -> Footprints:
        """Footprints of the rows of manifest tables with `COLUMNS`, one table after the other."""
        planes: dict[tuple[str, str | None], int] = {}
        parts = [_placed(table, planes) for table in tables]
        if not parts:
            return cls(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
        plane, box, day = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        usable = np.flatnonzero(plane >= 0)
        plane[usable] = np.unique(plane[usable], return_inverse=True)[1]
        return cls(plane, box, day)


def _placed(
    table: pa.Table, planes: dict[tuple[str, str | None], int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame int64 [n], -1 where there is none, box [n, 4] and day [n] of one table; `planes` numbers what it meets."""
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
    frame = np.full(n, _NONE, dtype=np.int64)
    image = pc.binary_join_element_wise(
        table["uri"], table["member"], "\0", null_handling="replace", null_replacement=""
    )
    for kind, names, rows in (("crs", table["crs"], usable & placed), ("image", image, usable & is_window)):
        at = np.flatnonzero(rows)
        encoded = names.take(pa.array(at)).combine_chunks().dictionary_encode()
        known = [planes.setdefault((kind, name), len(planes)) for name in encoded.dictionary.to_pylist()]
        nowhere = planes.setdefault((kind, None), len(planes))
        codes = np.array([*known, nowhere])[encoded.indices.fill_null(len(known)).to_numpy()]
        frame[at] = codes * _OCTAVES + octave[at] + _OCTAVES // 2
    return frame, box, days_since_1970(table["timestamp"])


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

    In order of quality, then key, an image is dropped for the first one accepted before it in its frame whose footprint
    shares more than `overlap` of the smaller one with its own, and whose date is at most `days` away. An unknown
    date is any date. Copies of one content, which have one key, are one image with several footprints,
    so that it does not matter which of them is there.

    Footprints are compared with those in neighbouring cells of a grid, so the time grows with the number of images
    and not with its square.

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
    image = np.cumsum(np.r_[False, (key[1:] != key[:-1]) | (value[1:] != value[:-1])])
    starts = np.searchsorted(image, np.arange(image[-1] + 2))
    stays = np.full(image[-1] + 1, _NONE, dtype=np.int64)  # the image that stays in its place
    placed = _Placed.of(footprints, rows)

    # The first blocks are small, so that of many images of one place only a few are ever compared pair by pair.
    done = 0
    while done < len(stays):
        stop = min(len(stays), done + min(max(_FIRST_BLOCK, done), _LARGEST_BLOCK))
        block = np.arange(starts[done], starts[stop])
        while stop - done > _FIRST_BLOCK and _pairs_of_equals(placed, block) > _MOST_PAIRS:
            stop = done + (stop - done) // 2
            block = np.arange(starts[done], starts[stop])
        before = np.flatnonzero(stays[image[: block[0]]] < 0)
        follows = np.full(stop - done, len(stays), dtype=np.int64)
        for ours, theirs in _overlapping(placed, block, before, overlap + _TOLERANCE, days):
            np.minimum.at(follows, image[ours] - done, image[theirs])
        follows[follows == len(stays)] = _NONE
        rest = block[follows[image[block] - done] < 0]
        pairs = [
            np.stack([image[ours], image[theirs]], axis=1)[image[theirs] < image[ours]]
            for ours, theirs in _overlapping(placed, rest, rest, overlap + _TOLERANCE, days)
        ]
        for later, earlier in np.unique(np.concatenate(pairs), axis=0).tolist() if pairs else ():
            if follows[later - done] < 0 and follows[earlier - done] < 0:
                follows[later - done] = earlier
        stays[done:stop] = follows
        done = stop
    dropped = stays[image] >= 0
    duplicate_of[rows[dropped]] = rows[starts[stays[image[dropped]]]]
    return duplicate_of


@dataclass(frozen=True)
class _Placed:
    """Footprints in the order in which images are accepted; `side` is the longer one, `level` its octave."""

    frame: np.ndarray
    box: np.ndarray
    day: np.ndarray
    side: np.ndarray
    level: np.ndarray

    @classmethod
    def of(cls, footprints: Footprints, rows: np.ndarray) -> _Placed:
        box = footprints.box[rows]
        side = np.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])
        return cls(footprints.frame[rows], box, footprints.day[rows], side, np.frexp(side)[1])


def _pairs_of_equals(placed: _Placed, rows: np.ndarray) -> int:
    """Pairs of images with the same footprint, as of crops that kept the coordinates of their scene."""
    places = np.column_stack([placed.frame[rows], placed.box[rows]])
    counts = np.unique(places, axis=0, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _overlapping(
    placed: _Placed, ours: np.ndarray, theirs: np.ndarray, overlap: float, days: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields all pairs of `ours` [n] and `theirs` [m] that repeat each other, in pieces [p] and [p]."""
    for level in np.unique(placed.level[ours]):
        for other in np.unique(placed.level[theirs]):
            # The intersection is at least `overlap` of the smaller side, so centres are at most this far apart.
            a, b = ours[placed.level[ours] == level], theirs[placed.level[theirs] == other]
            cell = max(0.5, 1 - overlap) * max(placed.side[a].max(), placed.side[b].max())
            yield from _in_cells(placed, a, b, cell, overlap, days)


def _in_cells(
    placed: _Placed, ours: np.ndarray, theirs: np.ndarray, cell: float, overlap: float, days: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    theirs, code = _by_cell(placed, theirs, cell)
    ours, own = _by_cell(placed, ours, cell)
    for across, up in itertools.product((-1, 0, 1), repeat=2):
        # Codes wrap around: nearly sorted, which is what makes the search fast.
        wanted = own + (np.array([across, up]).astype(np.uint64) * _CELL_PRIMES).sum(dtype=np.uint64)
        first, last = (np.searchsorted(code, wanted, side) for side in ("left", "right"))
        found = np.flatnonzero(last > first)
        first, counts = first[found], (last - first)[found]
        ends = np.cumsum(counts)
        pieces = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, _PAIRS), side="right")
        for start, stop in itertools.pairwise([*np.unique(pieces), len(found)]):
            n = counts[start:stop]
            at = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first[start:stop], n)
            a, b = np.repeat(ours[found[start:stop]], n), theirs[at]
            repeats = _repeats(placed, a, b, overlap, days)
            if repeats.any():
                yield a[repeats], b[repeats]


def _repeats(placed: _Placed, a: np.ndarray, b: np.ndarray, overlap: float, days: float) -> np.ndarray:
    """Whether the footprints `a` [p] and `b` [p] are of the same ground and time, bool [p]."""
    first, second = placed.box[a], placed.box[b]
    shared = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    areas = [(box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (first, second)]
    ground = (shared > 0).all(axis=1) & (shared.prod(axis=1) > overlap * np.minimum(*areas))
    apart = np.abs(placed.day[a] - placed.day[b]) > days  # false where a date is unknown
    return ground & ~apart & (placed.frame[a] == placed.frame[b])


def _by_cell(placed: _Placed, rows: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """`rows` [n] sorted by the codes uint64 [n] of the frame and the cell that their centres lie in."""
    box = placed.box[rows]
    cells = np.floor((box[:, :2] + box[:, 2:]) / 2 / cell).astype(np.int64).astype(np.uint64)
    code = (cells * _CELL_PRIMES).sum(axis=1, dtype=np.uint64)
    code += placed.frame[rows].astype(np.uint64) * _FRAME_PRIME
    order = np.argsort(code, kind="stable")
    return rows[order], code[order]


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy().astype(np.float64)


def days_since_1970(column: pa.ChunkedArray) -> np.ndarray:
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
