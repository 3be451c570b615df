"""Select: one decision per image, from stored scores, clusters and a budget; reads no image."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors import safe_open
from threadpoolctl import threadpool_limits

from rsprune import duplicates, strata
from rsprune.errors import BudgetError
from rsprune.filters import REASONS
from rsprune.run import Run, write_atomic, write_table
from rsprune.selection import Decisions, decide
from rsprune.stages.cluster import Pool
from rsprune.stages.exclusions import Exclusion, leaks, prepare_exclusions
from rsprune.stages.job import Job


def select_images(job: Job) -> None:
    """Writes ``decisions.parquet`` and ``kept.txt``. Raises `BudgetError` where nothing can be kept."""
    run, settings = job.run, job.settings
    run.require("cluster")
    errors = run.table("score", ["error"])["error"]
    readable = errors.null_count
    budget = settings.select.budget(readable)
    if budget > readable:
        raise BudgetError(f"{budget} images are to be kept but only {readable} can be read: lower --n")
    exclusions = prepare_exclusions(job)
    inputs = [asdict(settings.select), asdict(settings.filter), settings.seed, run.fingerprint("cluster")]
    with job.stage("select", *inputs, *(e.fingerprint for e in exclusions)) as todo:
        if todo:
            # Its many small products are slower on several threads, which may also round otherwise.
            with threadpool_limits(1):
                _select(job, budget, exclusions)
    kept = pc.sum(run.decisions["kept"]).as_py() or 0
    if kept == 0:
        reasons = ", ".join(f"{n} {r}" for r, n in _counts(run).items())
        raise BudgetError(
            f"no image is left to keep ({reasons}): loosen the filters, see {run.path}/decisions.parquet"
        )
    if kept < budget:
        job.say(f"{budget:,} images were asked for, but only {kept:,} pass the filters: all of them are kept")


def _counts(run: Run) -> dict[str, int]:
    counted = run.decisions["reason"].value_counts().to_pylist()
    return {c["values"]: c["counts"] for c in sorted(counted, key=lambda c: -c["counts"])}


def _select(job: Job, budget: int, exclusions: list[Exclusion]) -> None:
    run = job.run
    pool = Pool.of(run)
    clusters = run.table("cluster")
    with safe_open(run.path / "clusters.safetensors", framework="numpy") as f:
        centers = f.get_tensor("centers")
    select = job.settings.select
    manifest = run.table("scan", sorted({*duplicates.COLUMNS, *strata.COLUMNS}))
    kinds = [kind for kind in select.stratify if kind != "scene"]
    sources = [source.name for source in job.run.settings.scan.sources]
    d = decide(
        scores=pool.scores,
        hashes=pool.hashes,
        x=pool.x,
        labels=clusters["cluster"].to_numpy(),
        distance=clusters["distance"].to_numpy(),
        centers=centers,
        # Pseudo-scenes are clusters too: to divide the seats among them first made the selection worse.
        scenes=_scene_codes(clusters["scene"]) if job.settings.cluster.reference else None,
        footprints=duplicates.Footprints.of(manifest) if select.spatial_overlap < 1 else None,
        leaked=leaks(exclusions, pool.hashes, pool.x, select.near_duplicate) if exclusions else None,
        strata=strata.strata(manifest, kinds, sources)[0] if kinds else None,
        filters=job.settings.filter,
        select=select,
        budget=budget,
        seed=job.settings.seed,
    )
    table = _table(run, d, clusters)
    write_table(run.path / "decisions.parquet", table)
    kept = np.flatnonzero(d.kept)
    best_first = table["id"].take(kept[np.argsort(d.rank[kept])]).to_pylist()
    write_atomic(run.path / "kept.txt", lambda f: f.write("".join(f"{id}\n" for id in best_first).encode()))


def _scene_codes(scene: pa.ChunkedArray) -> np.ndarray:
    """Number int64 [N] of each scene; -1 for `unknown`, and where there is none."""
    codes = pc.dictionary_encode(scene).combine_chunks()
    names = codes.dictionary.to_pylist()
    numbers = pc.fill_null(codes.indices, -1).to_numpy().astype(np.int64)
    if "unknown" in names:
        numbers[numbers == names.index("unknown")] = -1
    return numbers


def _table(run: Run, d: Decisions, clusters: pa.Table) -> pa.Table:
    manifest = run.table("scan", ["id", "uri"])
    nearest = pa.array(d.nearest_kept, mask=d.nearest_kept < 0)
    return pa.table(
        {
            "id": manifest["id"],
            "uri": manifest["uri"],
            "kept": d.kept,
            "reason": pa.array(REASONS).take(pa.array(d.reason)),
            "rank": pa.array(d.rank, mask=d.rank < 0),
            "score": d.score,
            "threshold": d.threshold,
            "cluster": clusters["cluster"],
            "scene": clusters["scene"],
            "distance": clusters["distance"],
            "duplicate_of": manifest["id"].take(pa.array(d.duplicate_of, mask=d.duplicate_of < 0)),
            "nearest_kept": manifest["id"].take(nearest),
            "nearest_kept_similarity": d.nearest_kept_similarity,
        }
    )
