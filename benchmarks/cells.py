"""What is lost when a large cluster is ranked and searched for duplicates cell by cell: the table in docs/scale.md.

    python benchmarks/cells.py --cache features.npy

Takes 60,000 windows of 64 pixels at random places of Blue Marble and Sentinel-2 (what `rsprune demo` needs), turned by
random quarters, as `lite0` sees them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image as Picture

from rsprune import demo
from rsprune.cells import Cells
from rsprune.embedding import Transform
from rsprune.encoders import load_encoder
from rsprune.radiometry import Radiometry
from rsprune.rank import rank_within
from rsprune.rows import most_similar, unit_rows
from rsprune.similar import near_duplicates
from rsprune.sources.base import Image

WINDOWS, USED, TILE = 60_000, 50_000, 64
NEAR = 0.95  # default of --near-duplicate
JUDGED = 5_000  # images that measures are taken on
LARGEST = {"whole": USED, "cells of 16,384": 16_384, "cells of 4,096": 4_096, "cells of 1,024": 1_024}


def features() -> np.ndarray:
    """Features [WINDOWS, 112] of random windows, two of three from Blue Marble."""
    marble = np.asarray(Picture.open(demo.BLUE_MARBLE.verified()).convert("RGB"))
    bands = [demo._read(demo.SENTINEL2[band].verified()) for band in ("B04", "B03", "B02")]
    sentinel2 = Radiometry(demo.SENTINEL2_SCALE, None).to_uint8(Image(np.stack(bands, axis=-1)))
    rng, encode, found = np.random.default_rng(0), load_encoder("lite0", "cpu"), []
    for start in range(0, WINDOWS, 64):
        tiles = []
        for i in range(start, min(start + 64, WINDOWS)):
            scene = marble if i % 3 else sentinel2
            y, x = (rng.integers(0, side - TILE) for side in scene.shape[:2])
            tiles.append(np.ascontiguousarray(np.rot90(scene[y : y + TILE, x : x + TILE], rng.integers(4))))
        found.append(encode(tiles))
    return np.concatenate(found)


class Judge:
    """Compares the first images of an order with all images [n, D], by a sample of them."""

    def __init__(self, x: np.ndarray, rng: np.random.Generator):
        self.x, self.mean = x, x.mean(axis=0)
        self.some = x[rng.permutation(len(x))[:JUDGED]]
        apart = 2 - 2 * self.some @ self.some.T
        self.width = np.median(apart)
        self.own = np.exp(-apart / self.width).mean()

    def __call__(self, order: np.ndarray, n: int) -> tuple[float, float, float]:
        """Distance of means, RBF maximum mean discrepancy, and mean distance to the nearest chosen image."""
        chosen = self.x[order[:n]]
        within = sum(self._kernel(chosen[i : i + 2048], chosen).sum() for i in range(0, n, 2048)) / n**2
        across = self._kernel(self.some, chosen).mean()
        gap = np.sqrt(np.maximum(0, 2 - 2 * most_similar(self.some, chosen)[1]))
        discrepancy = np.sqrt(max(0, self.own + within - 2 * across))
        return float(np.linalg.norm(self.mean - chosen.mean(axis=0))), float(discrepancy), float(gap.mean())

    def _kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp((2 * a @ b.T - 2) / self.width)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="features are kept here")
    options = parser.parse_args()
    if not options.cache.exists():
        np.save(options.cache, features())
    raw, rng = np.load(options.cache), np.random.default_rng(1)
    x = unit_rows(Transform.fit(raw)(raw))[rng.permutation(len(raw))[:USED]]
    labels, keys, judge = np.zeros(USED, int), rng.permutation(USED).astype(np.uint64), Judge(x, rng)
    budgets = (64, 512, USED // 20, USED * 15 // 100, USED * 3 // 10)
    print("| | processor seconds |", " | ".join(f"{n:,} kept" for n in budgets), "| duplicates | missed |")
    print("|---" * (len(budgets) + 4) + "|")
    for name, largest in {**LARGEST, "random": 0}.items():
        with patch("rsprune.cells.LARGEST", largest or USED):
            started = time.process_time()
            rank = rank_within(x, labels, keys=keys, method="herding" if largest else "random")
            seconds = time.process_time() - started
            cell = Cells.of(x, labels, keys).cell
            found = near_duplicates(x, cell, keys, keys, NEAR) >= 0
            missed = near_duplicates(x[~found], labels[~found], keys[~found], keys[~found], NEAR) >= 0
        order = np.argsort(rank)
        measures = ("{:.4f} / {:.4f} / {:.3f}".format(*judge(order, n)) for n in budgets)
        counts = [f"{found.sum():,}", f"{missed.sum():,}"] if largest else ["", ""]
        print(f"| {name} | {seconds:.1f} |", " | ".join([*measures, *counts]), "|", flush=True)


if __name__ == "__main__":
    main()
