"""What another budget would keep, from the ranking that is stored: no stage runs again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rsprune.columns import Columns
from rsprune.errors import RspruneError
from rsprune.rows import unit_rows
from rsprune.strategies import load_strategy

SHARES = range(5, 51)  # percent of the readable images
IN_TABLE = (5, 10, 15, 20, 30, 40, 50)
DEFAULT_COSINE = 0.95  # where the run looked for no near duplicates
MEASURED = 2000  # images that are compared with all better ones
_PRODUCTS = 4e11  # multiplications that this may cost at most
_BLOCK = 4096


def what_if(columns: Columns, seed: int) -> dict[str, Any] | None:
    """Scenes and duplicates at every budget of `SHARES`; None where the order beyond the kept is not known."""
    select = columns.run.settings.select
    readable = int(columns.readable.sum())
    ranked = int((columns.rank >= 0).sum())
    if not ranked or not is_nested(columns):
        return None
    budgets = np.array([replace(select, keep=p / 100, n=None).budget(readable) for p in SHARES])
    complete = ranked > int(columns.kept.sum()) or ranks_all(columns)
    shares = [p for p, n in zip(SHARES, budgets, strict=True) if n <= ranked or complete]
    if len(shares) < 2:
        return None
    budgets = np.minimum(budgets[: len(shares)], ranked)
    scene, names = columns.scenes
    by_rank = np.flatnonzero(columns.rank >= 0)
    by_rank = by_rank[np.argsort(columns.rank[by_rank])]
    known = scene[by_rank]
    counts = np.zeros((len(budgets), len(names)), int)
    for i, n in enumerate(budgets):
        counts[i] = np.bincount(known[:n][known[:n] >= 0], minlength=len(names))
    before = np.bincount(scene[scene >= 0], minlength=len(names))
    order = np.lexsort((np.array(names), -before)) if names else np.empty(0, int)
    cosine = select.near_duplicate if select.near_duplicate <= 1 else DEFAULT_COSINE
    place, similarity = nearest_better(columns, by_rank[: budgets[-1]], seed)
    repeated = [
        float((similarity[place < n] >= cosine).mean()) if (place < n).any() else None for n in budgets
    ]
    return {
        "percent": shares,
        "images": budgets.tolist(),
        "ranked": ranked,
        "readable": readable,
        "scenes": [names[s] for s in order],
        "before": before[order].tolist(),
        "counts": counts[:, order].tolist(),
        "duplicates": repeated,
        "measured": len(place),
        "cosine": cosine,
        "now": int(columns.kept.sum()),
        "limited": not complete,
        "table": [i for i, p in enumerate(shares) if p in IN_TABLE],
    }


def ranks_all(columns: Columns) -> bool:
    """Whether the strategy ranked all it could choose from."""
    try:
        return load_strategy(columns.run.settings.select.strategy).ranks_all
    except RspruneError:  # its package is no longer there
        return False


def is_nested(columns: Columns) -> bool:
    """Whether the beginning of the ranking is the selection for a smaller budget."""
    return ranks_all(columns) or columns.run.settings.select.strategy == "kcenter"


def nearest_better(columns: Columns, best_first: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Place int64 [M] in the ranking of a sample of it, and cosine float32 [M] to the most similar better one.

    Args:
        columns: of the run.
        best_first: rows int64 [B] of the images that the largest budget keeps.
        seed: of the sample.
    """
    parts = [(start, len(part), part.shape[1]) for start, part in columns.embedding_parts()]
    cost = len(best_first) * (parts[0][2] if parts else 1)
    n = min(len(best_first), MEASURED, max(50, int(_PRODUCTS / max(cost, 1))))
    place = np.sort(np.random.default_rng((seed, 1)).choice(len(best_first), n, replace=False))
    queries = unit_rows(columns.embeddings(best_first[place]))
    position = np.full(len(columns), np.iinfo(np.int64).max)
    position[best_first] = np.arange(len(best_first))
    nearest = np.full(n, -1, np.float32)
    for start, part in columns.embedding_parts():
        inside = np.flatnonzero(position[start : start + len(part)] < len(best_first))
        for rows in np.array_split(inside, len(inside) // _BLOCK + 1):
            cosines = queries @ unit_rows(part[rows]).T
            cosines[position[start + rows] >= place[:, None]] = -1
            nearest = np.maximum(nearest, cosines.max(axis=1, initial=-1))
    return place, nearest
