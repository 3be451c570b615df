"""What each strategy and each setting of the selection keeps of real tiles with faults planted among them.

    python benchmarks/selection.py            measures (about a quarter of an hour on one core), writes both files
    python benchmarks/selection.py --write    writes docs/choices.md again from benchmarks/results/selection.json

Needs what `rsprune demo` needs. A selection is judged by features that it was not made with; see `judge`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from selection_cases import CASES, Case
from selection_pool import PATCHES, Tiles, load, long_tailed, natural
from selection_text import write

from rsprune import scores
from rsprune.cluster import KMeans
from rsprune.config import FilterConfig, SelectConfig
from rsprune.embedding import Transform
from rsprune.filters import eligibility
from rsprune.ops import kmeans_assign
from rsprune.rows import content_key, most_similar, unique_rows, unit_rows
from rsprune.scenes import PSEUDO_GRANULARITY, pool_clusters, pseudo_scenes, stratified_sample, tag
from rsprune.selection import decide

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "selection.json"
KEEPS = (0.05, 0.15, 0.30)


@dataclass
class Bench:
    """One pool under one seed, with what several cases share."""

    tiles: Tiles
    seed: int
    clusters: dict[Any, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict)
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.judges = {}
        for name, x in (("statistics", self.tiles.judge), ("random filters", self.tiles.second)):
            clean = x[self.tiles.clean]
            x = (x - clean.mean(axis=0)) / np.maximum(clean.std(axis=0), 1e-6)
            self.judges[name] = (x / np.sqrt(x.shape[1])).astype(np.float32)

    def run(self, case: Case) -> Iterator[dict[str, Any]]:
        """The measures of a case, a row for each share kept."""
        tiles = self.tiles
        columns = dict(zip(scores.SCORES, tiles.scores.T, strict=True))
        columns["entropy"] = tiles.entropies[:, PATCHES.index(case.patch)]
        filters, select = FilterConfig(**case.filters), SelectConfig(**case.select)
        x = self._embedded(case.encoder)
        eligible = eligibility(columns, filters, hashes=tiles.hashes).eligible
        labels, distance, centers = self._clustered(case, x, eligible)
        start = time.perf_counter()
        decisions = decide(
            scores=columns,
            hashes=tiles.hashes,
            x=x,
            labels=labels,
            distance=distance,
            centers=centers,
            filters=filters,
            select=select,
            budget=round(max(KEEPS) * len(x)),
            seed=self.seed,
        )
        seconds = time.perf_counter() - start
        for keep in KEEPS:
            # All are nested: the smaller selection is the beginning of the larger one.
            kept = decisions.kept & (decisions.rank < round(keep * len(x)))
            yield {"keep": keep, **self.judge(kept), "seconds": seconds, "clusters": len(centers)}

    def judge(self, kept: np.ndarray) -> dict[str, float]:
        """Measures of the selection `kept` [N] bool."""
        tiles = self.tiles
        sound = kept & ~tiles.bad
        dropped = tiles.clean & ~kept
        out = {}
        for name, x in self.judges.items():
            gap = _gaps(x[dropped], x[sound])
            out |= {f"coverage ({name})": gap.mean(), f"coverage 95 % ({name})": np.percentile(gap, 95)}
        names, sizes = np.unique(tiles.scene[tiles.clean], return_counts=True)
        shares = np.array([(tiles.scene[sound] == name).sum() for name in names])
        p = shares / max(1, shares.sum())
        rarest = names[sizes.argsort(kind="stable")[: max(1, len(names) // 4)]]
        recalls = [kept[tiles.clean & (tiles.scene == name)].mean() for name in rarest]
        return {
            **{name: float(value) for name, value in out.items()},
            "scene balance": float(-(p[p > 0] * np.log(p[p > 0])).sum() / np.log(len(names))),
            "rarest scene": float(kept[tiles.clean & (tiles.scene == rarest[0])].mean()),
            "rare scenes": float(np.mean(recalls)),
            "duplicates": float(1 - len(np.unique(tiles.origin[sound])) / max(1, sound.sum())),
            "bad": float(tiles.bad[kept].mean()),
            "kept": int(kept.sum()),
        }

    def _embedded(self, encoder: str) -> np.ndarray:
        if encoder not in self.embeddings:
            features = self.tiles.features[encoder]
            self.embeddings[encoder] = Transform.fit(features)(features)
        return self.embeddings[encoder]

    def _clustered(
        self, case: Case, x: np.ndarray, eligible: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, distances and centres, as the stage `cluster` makes them without a reference."""
        key = (case.encoder, case.clusters, eligible.tobytes())
        if key not in self.clusters:
            keys = content_key(self.tiles.hashes, self.seed)
            rows = np.flatnonzero(eligible)
            scenes = pseudo_scenes(x[rows], 32, keys[rows], self.seed)
            tags = tag(x, scenes)
            distinct = unique_rows(keys, eligible)
            present = len(np.unique(tags.scene[distinct]))
            k = case.clusters or pool_clusters(PSEUDO_GRANULARITY, present, len(distinct))
            k = min(k, len(distinct))
            sample = stratified_sample(tags.scene, 256 * k, keys, eligible)
            fitted = KMeans(n_clusters=k, random_state=self.seed).fit(x[sample].astype(np.float32))
            centers = np.asarray(fitted.cluster_centers_, np.float32)
            self.clusters[key] = (*kmeans_assign(x, centers), centers)
        return self.clusters[key]


def _gaps(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Euclidean distance [N] from each of `x` [N, D] to the nearest of `others` [M, D]."""
    return np.sqrt(kmeans_assign(x, others)[1])


def measure(cases: list[Case], seeds: list[int], cache: Path) -> dict[str, Any]:
    """All rows, ready for JSON."""
    encoders = tuple(sorted({case.encoder for case in cases}))
    rows = []
    for seed in seeds:
        clean, planted = load(cache, seed, encoders)
        for pool, tiles in (
            ("natural", natural(clean, planted)),
            ("long-tailed", long_tailed(clean, planted, seed)),
        ):
            bench = Bench(tiles, seed)
            start = time.perf_counter()
            for case in cases:
                about = {"group": case.group, "case": case.name, "pool": pool, "seed": seed}
                rows += [{**about, **row} for row in bench.run(case)]
            print(f"seed {seed} {pool} {len(tiles.scene)} {time.perf_counter() - start:.0f} s", flush=True)
    return {"seeds": seeds, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--group", nargs="+", help="only these groups of cases; writes no file")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "build" / "selection")
    parser.add_argument("--write", action="store_true", help="only write the document from the results")
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.group or case.group in arguments.group]
    if not arguments.write:
        result = measure(cases, arguments.seeds, arguments.cache)
        if arguments.group:
            print(json.dumps(result))
            return
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=0) + "\n")
    write(json.loads(RESULTS.read_text()), HERE.parent / "docs" / "choices.md")


if __name__ == "__main__":
    main()
