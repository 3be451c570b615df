"""The facts of `rsprune explain` about many images at once, for the search field of the report."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np

from rsprune.columns import Columns
from rsprune.filters import REASONS
from rsprune.report.examples import draw
from rsprune.rows import unit_rows

SEARCHED = 100_000  # images; more would make the page too large
SCORES = ("entropy", "nodata_fraction", "saturated_fraction", "autocorrelation", "sharpness")
_BLOCK = 8192


def facts(columns: Columns, shown: list[int]) -> dict[str, Any]:
    """Columns of facts about a sample of the images, of which those in `shown` are a part; JSON-able.

    `duplicate_of` and `nearest_kept` are places in the sample, or ids of images outside it.
    """
    settings = columns.run.settings
    others = np.setdiff1d(np.arange(len(columns)), shown)
    rows = np.unique([*shown, *draw(others, SEARCHED - len(set(shown)), settings.seed, 3)]).astype(np.int64)
    decided = columns.pick(
        "select", ["id", "scene", "duplicate_of", "nearest_kept", "nearest_kept_similarity"], rows
    )
    ids = decided["id"].to_pylist()
    place = {id: i for i, id in enumerate(ids)}
    stays = decided["duplicate_of"].to_pylist()
    scored = columns.pick("score", [*SCORES, "error"], rows)
    assigned = columns.pick("cluster", ["scene_similarity"], rows)
    errors = columns.pick("scan", ["error"], rows)["error"].to_pylist()
    scenes = decided["scene"].to_pylist()
    names = sorted({s for s in scenes if s is not None})
    sizes, ranked, kept = columns.clusters
    number = {name: i for i, name in enumerate(names)}
    return {
        "total": len(columns),
        "readable": int(columns.readable.sum()),
        "kept": int(columns.kept.sum()),
        "ranked": int((columns.rank >= 0).sum()),
        "thresholds": _thresholds(columns),
        "reasons": REASONS,
        "scenes": names,
        "clusters": [sizes.tolist(), ranked.tolist(), kept.tolist()],
        "id": ids,
        "reason": columns.reason[rows].tolist(),
        "error": {
            i: scan or score
            for i, (scan, score) in enumerate(zip(errors, scored["error"].to_pylist(), strict=True))
            if scan or score
        },
        "scores": {name: _numbers(scored[name].to_numpy()) for name in SCORES},
        "scene": [-1 if s is None else number[s] for s in scenes],
        "scene_similarity": _numbers(assigned["scene_similarity"].to_numpy()),
        "cluster": columns.cluster[rows].tolist(),
        "in_cluster": _in_cluster(columns)[rows].tolist(),
        "rank": columns.rank[rows].tolist(),
        "duplicate_of": [place.get(name, name) for name in stays],
        "duplicate_similarity": _similarities(columns, rows, stays),
        "nearest_kept": [place.get(name, name) for name in decided["nearest_kept"].to_pylist()],
        "nearest_kept_similarity": _numbers(decided["nearest_kept_similarity"].to_numpy()),
    }


def packed(value: Any) -> str:
    """JSON, compressed, as base64; equal values give equal text."""
    return packed_text(json.dumps(value, separators=(",", ":"), allow_nan=False))


def packed_text(text: str) -> str:
    """UTF-8, compressed, as base64."""
    return base64.b64encode(gzip.compress(text.encode("utf-8", "surrogatepass"), mtime=0)).decode()


def _thresholds(columns: Columns) -> dict[str, float | None]:
    filters, select = columns.run.settings.filter, columns.run.settings.select
    return {
        "entropy": columns.entropy_threshold,
        "nodata_fraction": filters.nodata_max,
        "saturated_fraction": filters.saturated_max,
        "autocorrelation": filters.autocorrelation_min,
        "sharpness": filters.sharpness_min,
        "near_duplicate": select.near_duplicate,
    }


def _numbers(column: np.ndarray) -> list[float | None]:
    """Shortest decimals that give the same float32 again; None for NaN."""
    return [None if text == "nan" else float(text) for text in column.astype(np.float32).astype(str)]


def _in_cluster(columns: Columns) -> np.ndarray:
    """Place int64 [N] of every ranked image among the ranked ones of its cluster, from 1; 0 for others."""
    place = np.zeros(len(columns), np.int64)
    rows = np.flatnonzero((columns.rank >= 0) & (columns.cluster >= 0))
    rows = rows[np.lexsort((columns.rank[rows], columns.cluster[rows]))]
    cluster = columns.cluster[rows]
    first = np.searchsorted(cluster, cluster)
    place[rows] = np.arange(len(rows)) - first + 1
    return place


def _similarities(columns: Columns, rows: np.ndarray, stays: list[str | None]) -> dict[int, float]:
    """Cosine to the image that stays, by place in the sample, of the duplicates in it."""
    named = {i: name for i, name in enumerate(stays) if name is not None}
    row_of = columns.rows_of(list(named.values()))
    at = [i for i, name in named.items() if name in row_of]
    found: dict[int, float] = {}
    for start in range(0, len(at), _BLOCK):
        block = at[start : start + _BLOCK]
        copies = unit_rows(columns.embeddings(rows[block]))
        originals = unit_rows(columns.embeddings([row_of[named[i]] for i in block]))
        cosines = np.einsum("ij,ij->i", copies, originals)
        found |= zip(block, map(float, cosines.astype(str)), strict=True)
    return found
