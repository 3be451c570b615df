"""Time and memory from given embeddings to decisions, for pools of which only the numbers exist.

    python benchmarks/scale.py 100_000 1_000_000 10_000_000     measures, writes results/scale.json
    python benchmarks/scale.py --table                          prints the table of docs/scale.md from it

It writes a run folder as `scan` and `score` would have left it, and a matrix of embeddings, then runs the command line
in a process of its own for each stage. Ten million images take 6 GB below ``--folder``, which is emptied again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from rsprune import config
from rsprune.files import write_json, write_table
from rsprune.filters import REASONS
from rsprune.run import Run
from rsprune.scores import SCORES
from rsprune.stages.scan import MANIFEST
from rsprune.stages.score import SCHEMA

RESULTS = Path(__file__).parent / "results" / "scale.json"
D = 112
KINDS = 2000  # of images; sizes fall with the root of their rank
LATENT = 24  # dimensions in which the images of a kind differ most
COPIES, NEAR = 0.03, 0.03  # shares of the images that repeat the one before them, exactly or nearly
PLACED = 0.5  # share of the images with coordinates
PART, BLOCK = 1024, 1 << 16  # images; the first is the default of --part-size
STAGES = ("embed", "cluster", "select", "report")


def write_pool(folder: Path, n: int) -> Path:
    """A run folder of `n` images up to `score`, beside the embeddings that belong to it; returns the latter."""
    rng = np.random.default_rng(n)
    source = {"path": "s3://tiles/landcover", "name": "landcover"}
    settings = config.settings({"scan": {"sources": [source]}, "seed": 1})
    run, features = Run(folder / "run"), folder / "features.npy"
    run.path.mkdir(parents=True)
    x = np.lib.format.open_memmap(features, "w+", np.float16, (n, D))
    places = np.cumsum([0, *([PART] * (n // PART)), *([n % PART] if n % PART else [])])
    names = [f"part-{k:06d}-{xxhash.xxh3_64_hexdigest(str(k).encode())}" for k in range(len(places) - 1)]
    rows = _Rows(rng)
    with run.stage("scan", "scale", settings, parts=names):
        (folder / "scores").mkdir()  # the stage would throw away what is there before it begins
        for start in range(0, n, BLOCK):
            stop = min(start + BLOCK, n)
            x[start:stop], manifest, scores = rows.next(start, stop)
            for k in range(start // PART, -(-stop // PART)):
                part = slice(places[k] - start, places[k + 1] - start)
                write_table(run.part("scan", names[k]), manifest[part])
                write_table(folder / "scores" / f"{names[k]}.parquet", scores[part])
        declared = {"bands": 3, "dtype": "uint8", "scale": [[0, 256]] * 3, "nodata": None, "estimated": False}
        write_json(run.path / "radiometry.json", [declared])
    with run.stage("score", "scale", settings, parts=names):
        (run.path / "scores").rmdir()
        (folder / "scores").rename(run.path / "scores")
    return features


class _Rows:
    """Images block by block: kinds of images are mixtures of Gaussians in few dimensions, with some noise in all."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        share = 1 / np.sqrt(np.arange(1, KINDS + 1))
        self.share = share / share.sum()
        self.center = rng.standard_normal((KINDS, D), np.float32)
        self.spread = rng.uniform(0.3, 0.9, KINDS).astype(np.float32)
        self.axes = rng.standard_normal((16, LATENT, D), np.float32) / np.sqrt(LATENT)

    def next(self, start: int, stop: int) -> tuple[np.ndarray, pa.Table, pa.Table]:
        rng, n = self.rng, stop - start
        kind = rng.choice(KINDS, n, p=self.share)
        x = self.center[kind] + np.float32(0.1) * rng.standard_normal((n, D), np.float32)
        latent = rng.standard_normal((n, LATENT), np.float32) * self.spread[kind, None]
        for k in range(len(self.axes)):
            mine = np.flatnonzero(kind % len(self.axes) == k)
            x[mine] += latent[mine] @ self.axes[k]
        content = np.arange(start, stop)
        repeats = 1 + np.flatnonzero(rng.random(n - 1) < COPIES + NEAR)
        near = rng.random(len(repeats)) < NEAR / (COPIES + NEAR)
        for row, is_near in zip(repeats.tolist(), near.tolist(), strict=True):  # a copy of a copy is one, too
            x[row] = x[row - 1] + (np.float32(0.03) * rng.standard_normal(D, np.float32) if is_near else 0)
            content[row] = content[row] if is_near else content[row - 1]
        return x, *self._tables(content, start, stop)

    def _tables(self, content: np.ndarray, start: int, stop: int) -> tuple[pa.Table, pa.Table]:
        rng, n = self.rng, stop - start
        bad = rng.random(n) < 0.002
        names = [
            f"zone-{i // 250_000:03d}/scene-{i // 2_500:06d}/tile-{i % 2_500:04d}.tif"
            for i in range(start, stop)
        ]
        error = pa.array(np.where(bad, "is damaged", ""), mask=~bad)
        placed = rng.random(n) < PLACED
        # A grid of tiles of 640 m in the zone's coordinates, of which one in ten is looked at again.
        cell = np.where(rng.random(n) < 0.1, rng.integers(start, stop, n), np.arange(start, stop)) % 250_000
        left, bottom = 200_000 + cell % 500 * 640.0, 1_000_000 + cell // 500 * 640.0
        day = np.datetime64("2021-01-01T10:00:00") + rng.integers(0, 700, n).astype("timedelta64[D]")
        columns: dict[str, Any] = {
            "id": names,
            "uri": [f"s3://tiles/landcover/{name}" for name in names],
            "source": np.zeros(n, np.int16),
            "width": np.full(n, 64), "height": np.full(n, 64), "bands": np.full(n, 3),
            "dtype": ["uint8"] * n, "bytes": rng.integers(3_000, 12_000, n),
            "crs": pa.array([f"EPSG:{32601 + i // 250_000 % 60}" for i in range(start, stop)], mask=~placed),
            "gsd": pa.array(np.full(n, 10, np.float32), mask=~placed),
            "timestamp": pa.array(day.astype(str), mask=~placed),
            "left": pa.array(left, mask=~placed), "right": pa.array(left + 640, mask=~placed),
            "bottom": pa.array(bottom, mask=~placed), "top": pa.array(bottom + 640, mask=~placed),
            "status": ["ok"] * n, "error": error, "stamp": [""] * n,
        }  # fmt: skip
        filled = [columns[f.name] if f.name in columns else pa.nulls(n) for f in MANIFEST]
        manifest = pa.table(
            [pa.array(c).cast(f.type) for c, f in zip(filled, MANIFEST, strict=True)], schema=MANIFEST
        )
        # Of one content, all scores are the same: they are drawn by it.
        draw = np.random.default_rng(start).random((7, BLOCK))[:, content - start]
        values = {
            "entropy": 3 + 4 * np.sqrt(draw[0]), "entropy_p10": 2 + 3 * draw[1], "flat_fraction": draw[2] ** 8,
            "nodata_fraction": np.where(draw[3] < 0.03, draw[3] * 30, 0), "saturated_fraction": draw[4] ** 20,
            "autocorrelation": 0.05 + 0.95 * np.sqrt(draw[5]), "sharpness": 0.2 + draw[6],
        }  # fmt: skip
        hashes = pa.array(
            [xxhash.xxh3_128_hexdigest(c.to_bytes(8, "little")) for c in content.tolist()], mask=bad
        )
        scored = [
            names,
            *(np.where(bad, np.nan, values[s]).astype(np.float32) for s in SCORES),
            hashes,
            error,
        ]
        scores = pa.table(
            [pa.array(c).cast(f.type) for c, f in zip(scored, SCHEMA, strict=True)], schema=SCHEMA
        )
        return manifest, scores


def measured(*arguments: Any) -> dict[str, Any]:
    """Runs the command line in a process of its own: seconds, processor seconds and largest memory in GB."""
    load, started = os.getloadavg()[0], time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", "from rsprune.cli import main; main()", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
    )
    anonymous = [0]
    watch = threading.Thread(target=_watch, args=(child.pid, anonymous), daemon=True)
    watch.start()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "processor": round(usage.ru_utime + usage.ru_stime, 1),
        "memory": round(usage.ru_maxrss * 1024 / 1e9, 2),
        "own memory": round(anonymous[0] * 1024 / 1e9, 2),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        **({"failed": child.returncode} if child.returncode else {}),
    }


def _watch(pid: int, anonymous: list[int]) -> None:
    """Keeps the largest memory (KiB) of a process that is no file's content, which the system could drop."""
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            anonymous[0] = max(anonymous[0], int(status.partition("RssAnon:")[2].split()[0]))
        except (OSError, IndexError):
            return
        time.sleep(0.2)


def measure(n: int, folder: Path, clusters: str) -> dict[str, Any]:
    """All stages on a pool of `n` images, and what came of them."""
    work = Path(tempfile.mkdtemp(prefix="rsprune-scale-", dir=folder))
    try:
        features, run = write_pool(work, n), work / "run"
        stages = {}
        for stage in STAGES:
            more = {"embed": ["--embeddings", features], "cluster": ["--n-clusters", clusters]}
            workers = [] if stage == "report" else ["--workers", 2]
            stages[stage] = measured(stage, run, "--quiet", *workers, *more.get(stage, ()))
            print(n, stage, stages[stage], flush=True)
            if "failed" in stages[stage] and stage != "report":
                raise SystemExit(f"{stage} of {n:,} images ended with {stages[stage]['failed']}")
        counted = Run(run).table("select", ["reason"])["reason"].value_counts().to_pylist()
        counts = {c["values"]: c["counts"] for c in counted}
        sizes = {p.name: sum(f.stat().st_size for f in p.rglob("*")) for p in run.iterdir() if p.is_dir()}
        decisions = (run / "decisions.parquet").stat().st_size
        return {
            "images": n,
            "clusters": Run(run).json("calibration.json")["n_clusters"],
            "stages": stages,
            "reasons": {r: counts[r] for r in REASONS if r in counts},
            "bytes": {**sizes, "decisions.parquet": decisions},
        }
    finally:
        shutil.rmtree(work)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row per pool and stage."""
    lines = [
        "| images | clusters | stage | seconds | processor seconds | memory, GB | of it own, GB | load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        for stage, m in r["stages"].items():
            load = " to ".join(map(str, m["load"]))
            cells = [
                f"{r['images']:,}",
                r["clusters"],
                stage,
                m["seconds"],
                m["processor"],
                m["memory"],
                m["own memory"],
                load,
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", type=int)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--clusters", default="auto")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []
    for n in options.images:
        result = {"asked": options.clusters, **measure(n, options.folder, options.clusters)}
        known = [r for r in known if (r["images"], r["asked"]) != (n, options.clusters)] + [result]
        known.sort(key=lambda r: (r["asked"], r["images"]))
        about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        write_json(
            RESULTS, {**about, "python": platform.python_version(), "numpy": np.__version__, "results": known}
        )
    if options.table or not options.images:
        print(table(known))


if __name__ == "__main__":
    main()
