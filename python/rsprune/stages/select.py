"""Select: one decision per image, from stored scores, clusters and a budget; reads no image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from threadpoolctl import threadpool_limits

from rsprune import strata
from rsprune.duplicates import COLUMNS as FOOTPRINT_COLUMNS
from rsprune.duplicates import Footprints
from rsprune.errors import BudgetError
from rsprune.files import write_atomic
from rsprune.filters import REASONS
from rsprune.run import Run
from rsprune.selection import Decisions, decide
from rsprune.stages.exclusions import Exclusion, leaks, prepare_exclusions
from rsprune.stages.job import Job
from rsprune.stages.pool import Assignments, Pool, tables
from rsprune.stored import ClusteredEmbeddings, StoredEmbeddings

ROW_GROUP = 65_536  # decisions written, and read by whoever wants only some of them, at once
SCHEMA = pa.schema(
    {
        "id": pa.string(), "uri": pa.string(), "kept": pa.bool_(), "reason": pa.string(), "rank": pa.int64(),
        "score": pa.float32(), "threshold": pa.float32(), "cluster": pa.int32(), "scene": pa.string(),
        "distance": pa.float32(), "duplicate_of": pa.string(), "nearest_kept": pa.string(),
        "nearest_kept_similarity": pa.float32(),
    }
)  # fmt: skip


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
    reasons = _counts(run)
    kept = reasons.get("kept", 0)
    if kept == 0:
        counts = ", ".join(f"{n} {r}" for r, n in reasons.items())
        raise BudgetError(
            f"no image is left to keep ({counts}): loosen the filters, see {run.path}/decisions.parquet"
        )
    if kept < budget:
        job.say(f"{budget:,} images were asked for, but only {kept:,} pass the filters: all of them are kept")


def _counts(run: Run) -> dict[str, int]:
    counted = run.table("select", ["reason"])["reason"].value_counts().to_pylist()
    return {c["values"]: c["counts"] for c in sorted(counted, key=lambda c: -c["counts"])}


def _select(job: Job, budget: int, exclusions: list[Exclusion]) -> None:
    run, select = job.run, job.settings.select
    pool, assigned = Pool.of(run, job.settings.seed), Assignments.of(run)
    with safe_open(run.path / "clusters.safetensors", framework="numpy") as f:
        centers = f.get_tensor("centers")
    kinds = [kind for kind in select.stratify if kind != "scene"]
    sources = [source.name for source in run.settings.scan.sources]
    spatial = select.spatial_overlap < 1
    d = decide(
        scores=pool.scores,
        hashes=pool.contents,
        x=ClusteredEmbeddings(pool.x, assigned.cluster, run.path),
        labels=assigned.cluster,
        distance=assigned.distance,
        centers=centers,
        # Pseudo-scenes are clusters too: to divide the seats among them first made the selection worse.
        scenes=assigned.known_scene if job.settings.cluster.reference else None,
        footprints=(lambda: Footprints.of(tables(run, "scan", FOOTPRINT_COLUMNS))) if spatial else None,
        leaked=_leaked(run, exclusions, pool.x, select.near_duplicate) if exclusions else None,
        strata=strata.strata(tables(run, "scan", strata.COLUMNS), kinds, sources)[0] if kinds else None,
        filters=job.settings.filter,
        select=select,
        budget=budget,
        seed=job.settings.seed,
        workers=job.workers,
        progress=job.progress,
    )
    ids = run.table("scan", ["id"])["id"].cast(pa.large_string()).combine_chunks()
    write_atomic(run.path / "decisions.parquet", lambda f: _write_decisions(f, run, ids, d, assigned))
    kept = np.flatnonzero(d.kept)
    write_atomic(run.path / "kept.txt", lambda f: _write_ids(f, ids, kept[np.argsort(d.rank[kept])]))


def _leaked(run: Run, exclusions: list[Exclusion], x: StoredEmbeddings, threshold: float) -> np.ndarray:
    return leaks(exclusions, run.table("score", ["content_hash"])["content_hash"], x, threshold)


def _write_ids(file: BinaryIO, ids: pa.LargeStringArray, rows: np.ndarray) -> None:
    for start in range(0, len(rows), ROW_GROUP):
        names = ids.take(pa.array(rows[start : start + ROW_GROUP])).to_pylist()
        file.write("".join(f"{name}\n" for name in names).encode())


def _write_decisions(
    file: BinaryIO, run: Run, ids: pa.LargeStringArray, d: Decisions, assigned: Assignments
) -> None:
    reasons, scenes = pa.array(REASONS), pa.array(assigned.scenes, pa.string())
    uris = _in_row_groups(table["uri"] for table in tables(run, "scan", ["uri"]))
    with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for start, uri in zip(range(0, len(ids), ROW_GROUP), uris, strict=True):
            rows = slice(start, start + ROW_GROUP)

            def of(place: np.ndarray, names: pa.Array, rows: slice = rows) -> pa.Array:
                return names.take(pa.array(place[rows], mask=place[rows] < 0))

            columns = {
                "id": ids[rows],
                "uri": uri,
                "kept": d.kept[rows],
                "reason": reasons.take(pa.array(d.reason[rows])),
                "rank": pa.array(d.rank[rows], mask=d.rank[rows] < 0),
                "score": d.score[rows],
                "threshold": d.threshold[rows],
                "cluster": assigned.cluster[rows],
                "scene": of(assigned.scene, scenes),
                "distance": assigned.distance[rows],
                "duplicate_of": of(d.duplicate_of, ids),
                "nearest_kept": of(d.nearest_kept, ids),
                "nearest_kept_similarity": d.nearest_kept_similarity[rows],
            }
            writer.write_table(pa.table(columns).cast(SCHEMA), row_group_size=ROW_GROUP)


def _in_row_groups(columns: Iterable[pa.ChunkedArray]) -> Iterator[pa.ChunkedArray]:
    """The same values in pieces of `ROW_GROUP`, so that a file does not show how the work was cut into parts."""
    waiting = pa.chunked_array([], pa.string())
    for column in columns:
        waiting = pa.chunked_array([*waiting.chunks, *column.chunks])
        while len(waiting) >= ROW_GROUP:
            yield waiting.slice(0, ROW_GROUP)
            waiting = waiting.slice(ROW_GROUP)
    if len(waiting):
        yield waiting
