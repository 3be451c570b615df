"""Compare selections: what they share, how they shift scenes and clusters, and how well they cover the rest."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rsprune.errors import ConfigError
from rsprune.judge import STATISTICS, judge_features
from rsprune.ops import kmeans_assign
from rsprune.reading import COLUMNS
from rsprune.run import Run

PERCENTILES = (5, 25, 50, 75, 95)
RANDOM = "random"  # name of the baseline
_KEPT_PER_DROPPED = 4  # kept images are drawn as well, but fewer of them are left out
_BINS = 48


@dataclass(frozen=True)
class _Selection:
    """One run's decisions as arrays over its images [N]."""

    run: Run
    name: str
    ids: np.ndarray
    kept: np.ndarray
    readable: np.ndarray
    hashes: np.ndarray
    entropy: np.ndarray
    cluster: np.ndarray
    scene: np.ndarray

    @classmethod
    def of(cls, run: Run, name: str) -> _Selection:
        decisions = run.table("select", ["id", "kept", "cluster", "scene"])
        scores = run.table("score", ["entropy", "content_hash", "error"])
        return cls(
            run,
            name,
            _array(decisions["id"]),
            _array(decisions["kept"]).astype(bool),
            _array(pc.is_null(scores["error"])),
            _array(scores["content_hash"]),
            _array(scores["entropy"]),
            _array(pc.fill_null(decisions["cluster"], -1)),
            _array(decisions["scene"]),
        )


def compare(
    runs: Sequence[Run], *, judge: str = STATISTICS, sample: int = 2048, seed: int = 0, device: str = "cpu"
) -> dict[str, Any]:
    """Facts about the selections of two or more runs, ready for JSON.

    Args:
        runs: finished up to `select`, over pools that share at least one image.
        judge: whose features say what is near, see `judge.judge_features`; not the encoder that selected.
        sample: dropped images of each run whose nearest kept one is looked for, among at most four times as many
            kept ones; both are drawn from the images that all runs share.
        seed: of that draw and of the random baseline.
        device: for a judge that is an encoder.

    Returns:
        `runs` (counts, scenes and clusters before and after, entropy of the kept, coverage), `overlap` (numbers of
        images that both keep, and Jaccard indices), `shared` images of the pools, `baseline` (the coverage of as
        many random images as the first run keeps) and `notes`, sentences that a reader should know.

    Raises:
        ConfigError: fewer than two runs, one that is not finished or given twice, no shared image, a judge that
            selected itself or cannot be used.
    """
    if len(runs) < 2:
        raise ConfigError("compare needs at least two run folders: give another one")
    for a, b in itertools.combinations(runs, 2):
        if a.path.resolve() == b.path.resolve():
            raise ConfigError(f"{a.path} and {b.path} are one run folder: give two")
    for run in runs:
        run.require("select")
        _check_judge(judge, run)
    selections = [_Selection.of(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    shared, notes = _shared(selections)
    kept = [set(s.ids[s.kept]) for s in selections]
    coverage, more = _coverage(selections, kept, shared, judge, sample, seed, device)
    finite = np.concatenate([s.entropy[np.isfinite(s.entropy)] for s in selections])
    edges = np.histogram_bin_edges(finite, _BINS) if len(finite) else np.linspace(0, 8, _BINS + 1)
    both = [[len(a & b) for b in kept] for a in kept]
    either = [[len(a | b) for b in kept] for a in kept]
    return {
        "runs": [{**_facts(s, edges), "coverage": c} for s, c in zip(selections, coverage[:-1], strict=True)],
        "overlap": {
            "both": both,
            "jaccard": [
                [b / e if e else None for b, e in zip(*r, strict=True)]
                for r in zip(both, either, strict=True)
            ],
        },
        "shared": len(shared),
        "judge": judge,
        "baseline": {"name": RANDOM, "coverage": coverage[-1]},
        "entropy_edges": edges.tolist(),
        "notes": notes + more,
    }


def _check_judge(judge: str, run: Run) -> None:
    embed = run.settings.embed
    if embed.embeddings:
        same = Path(judge).suffix and Path(judge).absolute() == Path(embed.embeddings).absolute()
    else:
        same = judge == embed.encoder
    if same:
        raise ConfigError(
            f"{judge} has selected the images of {run.path} and cannot judge them as well: give another --judge"
        )


def _names(runs: Sequence[Run]) -> list[str]:
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _array(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy()


def _shared(selections: Sequence[_Selection]) -> tuple[list[str], list[str]]:
    """Ids that all pools hold and could read, sorted, and what is to be said about the others."""
    pools = [set(s.ids) for s in selections]
    common = set.intersection(*pools)
    if not common:
        names = " and ".join(s.name for s in selections)
        raise ConfigError(
            f"the runs {names} share none of their images by id: compare runs over the same pool"
        )
    notes = []
    if len(common) < max(map(len, pools)):
        sizes = ", ".join(f"{len(p):,} of {s.name}" for p, s in zip(pools, selections, strict=True))
        notes.append(
            f"The runs have different pools: {len(common):,} images are shared by all, out of {sizes}; "
            "coverage looks at the shared ones only."
        )
    readable = common.intersection(*(s.ids[s.readable] for s in selections))
    hashes = [dict(zip(s.ids, s.hashes, strict=True)) for s in selections]
    if differ := sum(len({h[id] for h in hashes}) > 1 for id in readable):
        notes.append(
            f"{differ:,} of the shared ids stand for different pixels: other files, or other bands of the same."
        )
    return sorted(readable), notes


def _facts(s: _Selection, edges: np.ndarray) -> dict[str, Any]:
    entropy = s.entropy[s.kept & np.isfinite(s.entropy)]
    scenes = {
        str(name): [int(n), int(((s.scene == name) & s.kept).sum())]
        for name, n in sorted(
            Counter(x for x in s.scene if x is not None).items(), key=lambda i: (-i[1], i[0])
        )
    }
    k = int(s.cluster.max(initial=-1)) + 1
    before, after = (
        np.bincount(s.cluster[at], minlength=k).tolist() for at in (s.cluster >= 0, s.kept & (s.cluster >= 0))
    )
    spread = np.percentile(entropy, PERCENTILES).tolist() if len(entropy) else [None] * len(PERCENTILES)
    return {
        "name": s.name,
        "path": str(s.run.path),
        "images": len(s.ids),
        "readable": int(s.readable.sum()),
        "kept": int(s.kept.sum()),
        "scenes": scenes,
        "effective_scenes": _effective([n for _, n in scenes.values()]),
        "clusters": {"before": before, "after": after},
        "effective_clusters": _effective(after),
        "entropy": {
            "mean": float(entropy.mean()) if len(entropy) else None,
            **{f"p{p}": v for p, v in zip(PERCENTILES, spread, strict=True)},
            "readable_histogram": np.histogram(s.entropy[s.readable], edges)[0].tolist(),
            "kept_histogram": np.histogram(entropy, edges)[0].tolist(),
        },
    }


def _effective(counts: Sequence[int]) -> float:
    """Number of equally large groups with the same Shannon entropy."""
    p = np.array([n for n in counts if n], float)
    p /= max(p.sum(), 1)
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def _coverage(
    selections: Sequence[_Selection],
    kept_ids: Sequence[set[str]],
    shared: Sequence[str],
    judge: str,
    sample: int,
    seed: int,
    device: str,
) -> tuple[list[dict[str, Any] | None], list[str]]:
    """Distances of dropped images to the nearest kept one, per run and at last for random images."""
    rng = np.random.default_rng(seed)
    ids = np.array(shared, dtype=object)
    order = rng.permutation(len(ids))
    kept = [np.array([id in mine for id in shared]) for mine in kept_ids]
    chance = np.zeros(len(ids), bool)
    chance[rng.permutation(len(ids))[: kept[0].sum()]] = True
    most = _KEPT_PER_DROPPED * sample
    drawn = [(order[~k[order]][:sample], order[k[order]][:most]) for k in (*kept, chance)]
    needed = np.unique(np.concatenate([i for pair in drawn for i in pair]))
    notes: list[str] = []
    if not len(needed):
        return [None] * len(drawn), notes
    if any(k.sum() > most for k in kept):
        notes.append(
            f"Coverage looks for the nearest of {most:,} kept images, drawn from more, so distances are upper "
            "bounds: raise --sample."
        )
    found = judge_features(judge, selections[0].run, _rows(selections[0].run, ids[needed]), device=device)
    if missing := int(np.isnan(found[:, 0]).sum()):
        notes.append(
            f"{missing:,} of {len(needed):,} images drawn to judge coverage cannot be read any more."
        )
    dropped = [int((~k).sum()) for k in (*kept, chance)]
    places = [tuple(np.searchsorted(needed, rows) for rows in pair) for pair in drawn]
    return [_distances(found[d], found[k], n) for (d, k), n in zip(places, dropped, strict=True)], notes


def _distances(dropped: np.ndarray, kept: np.ndarray, n_dropped: int) -> dict[str, Any] | None:
    dropped, kept = dropped[~np.isnan(dropped[:, 0])], kept[~np.isnan(kept[:, 0])]
    if not len(dropped) or not len(kept):
        return None
    distance = np.sqrt(kmeans_assign(dropped, kept)[1].astype(np.float64))
    return {
        "mean": float(distance.mean()),
        "p95": float(np.percentile(distance, 95)),
        "dropped": n_dropped,
        "dropped_judged": len(dropped),
        "kept_judged": len(kept),
        "percentiles": np.percentile(distance, np.arange(101)).tolist(),
    }


def _rows(run: Run, ids: np.ndarray) -> list[Mapping[str, Any]]:
    """Manifest rows of images [n], in their order."""
    manifest = run.table("scan", COLUMNS)
    return manifest.take(pc.index_in(pa.array(ids, pa.string()), manifest["id"])).to_pylist()
