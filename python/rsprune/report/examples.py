"""Which images the report shows: samples per reason, examples along a score, duplicates, clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
from safetensors import safe_open

from rsprune.columns import Columns
from rsprune.filters import CODES, REASONS

KEPT_SHOWN, DROPPED_SHOWN = 70, 20
PERCENTILES = (5, 25, 50, 75, 95)
GROUPS_SHOWN, PER_GROUP = 12, 5
PER_ORDER, PER_CLUSTER = 24, 6
# By what clusters are sorted: label, number of the cluster, whether the largest comes first.
ORDERS = (
    ("largest first", "size", True),
    ("smallest first", "size", False),
    ("widest first", "spread", True),
    ("tightest first", "spread", False),
    ("most kept first", "share", True),
    ("least kept first", "share", False),
)


def draw(rows: np.ndarray, n: int, *seed: int) -> np.ndarray:
    """At most `n` of `rows`, in their order."""
    if len(rows) <= n:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), n, replace=False))]


def samples(columns: Columns, seed: int) -> dict[str, list[int]]:
    """Rows to show per reason; kept and ranked ones best first, then by entropy."""
    found = {}
    for code, reason in enumerate(REASONS):
        rows = np.flatnonzero(columns.reason == code)
        if reason == "unreadable" or not len(rows):
            continue
        rows = draw(rows, KEPT_SHOWN if reason == "kept" else DROPPED_SHOWN, seed, code)
        found[reason] = rows[np.lexsort((columns.entropy[rows], columns.rank[rows]))].tolist()
    return found


def along(values: np.ndarray) -> list[tuple[int, float, int]]:
    """Percentile, value there and a row that has it, for values [N]; empty where all are NaN."""
    rows = np.flatnonzero(np.isfinite(values))
    if not len(rows):
        return []
    places = [round((len(rows) - 1) * p / 100) for p in PERCENTILES]
    order = rows[np.argpartition(values[rows], places)]
    return [(p, float(values[order[at]]), int(order[at])) for p, at in zip(PERCENTILES, places, strict=True)]


def duplicate_groups(columns: Columns) -> tuple[int, list[tuple[int, int, list[int]]]]:
    """How many groups there are, and of the largest: the row that stays, its duplicates and rows of some."""
    counts = pc.value_counts(columns.run.table("select", ["duplicate_of"])["duplicate_of"].drop_null())
    by_size = sorted(zip(counts.field("counts").to_pylist(), counts.field("values").to_pylist(), strict=True),
                     key=lambda c: (-c[0], c[1]))  # fmt: skip
    largest = {name: n for n, name in by_size[:GROUPS_SHOWN]}
    stays = columns.rows_of(list(largest))
    rows, names = columns.where("duplicate_of", list(largest))
    copies: dict[str, list[int]] = {}
    for row, name in zip(rows.tolist(), names, strict=True):
        copies.setdefault(name, []).append(row)
    groups = [
        (stays[name], n, [stays[name], *copies[name][: PER_GROUP - 1]])
        for name, n in largest.items()
        if name in stays
    ]
    return len(by_size), groups


def clusters(columns: Columns, seed: int) -> list[dict[str, Any]]:
    """The clusters that come first by any of `ORDERS`, largest first, with rows of each."""
    sizes, _, kept = columns.clusters
    present = np.flatnonzero(sizes)
    with safe_open(columns.run.path / "clusters.safetensors", framework="numpy") as f:
        spread = f.get_tensor("spreads")
    numbers = {"size": sizes, "spread": spread, "share": kept / np.maximum(sizes, 1)}
    first = PER_ORDER if len(present) > PER_ORDER * len(ORDERS) else len(present)  # few are all shown
    chosen: set[int] = set()
    for _, by, descending in ORDERS:
        value = numbers[by][present]
        chosen.update(present[np.lexsort((present, -value if descending else value))][:first].tolist())
    scene, scenes = columns.scenes
    shown = np.flatnonzero(np.isin(columns.cluster, list(chosen)))
    shown = shown[np.argsort(columns.cluster[shown], kind="stable")]
    starts = np.flatnonzero(np.diff(columns.cluster[shown], prepend=-1))
    found = []
    for rows in np.split(shown, starts[1:]) if len(shown) else ():
        k = int(columns.cluster[rows[0]])
        mine = rows[columns.kept[rows]]
        best = mine[np.argsort(columns.rank[mine], kind="stable")]
        others = draw(rows[~columns.kept[rows]], PER_CLUSTER - min(3, len(best)), seed, len(REASONS) + k)
        known = np.bincount(scene[rows][scene[rows] >= 0])
        found.append({
            "cluster": k, "size": len(rows), "kept": len(mine), "share": float(numbers["share"][k]),
            "spread": float(spread[k]), "scene": scenes[known.argmax()] if len(known) else None,
            "rows": [*best[: PER_CLUSTER - len(others)].tolist(), *others.tolist()],
        })  # fmt: skip
    return sorted(found, key=lambda c: (-c["size"], c["cluster"]))


def unreadable(columns: Columns, n: int) -> list[tuple[str, str]]:
    """Id and reason of unreadable images, the first `n`."""
    rows = np.flatnonzero(columns.reason == CODES["unreadable"])[:n]
    errors = [columns.pick(stage, ["error"], rows)["error"].to_pylist() for stage in ("scan", "score")]
    return [
        (id, scan or score or "cannot be read")
        for id, scan, score in zip(columns.ids(rows), *errors, strict=True)
    ]
