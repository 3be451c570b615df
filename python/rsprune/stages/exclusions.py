"""Evaluation sets whose images must not be kept: folders, runs and Parquet files, in the space of the run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rsprune.config import ScanConfig
from rsprune.embedding import Transform
from rsprune.errors import ConfigError
from rsprune.layout import digest
from rsprune.locations import check_name, source_scheme, source_values
from rsprune.rows import finite_rows, most_similar, unit_rows
from rsprune.run import Run
from rsprune.sources.store import is_url
from rsprune.stages.beside import like_the_pool
from rsprune.stages.embed import TRANSFORM
from rsprune.stages.features import features_of_run
from rsprune.stages.job import Job
from rsprune.stages.references import prepare_references
from rsprune.stages.scan import scan_images
from rsprune.stages.score import score_images

_BLOCK = 65_536  # images of the pool compared at once
_COSINE_EPSILON = 1e-6  # float32 rounding of the cosine of a row with itself


@dataclass(frozen=True)
class Exclusion:
    """A set of images that are not to be kept.

    Attributes:
        name: as the user gave it.
        fingerprint: of what its features stand on.
        hashes: content hashes.
        x: embeddings [M, D] in the space of the run.
    """

    name: str
    fingerprint: str
    hashes: frozenset[str]
    x: np.ndarray


def prepare_exclusions(job: Job) -> list[Exclusion]:
    """Encodes the evaluation sets of the job that are not encoded yet, and the references if they count as such.

    Raises:
        ConfigError: a set cannot be used.
    """
    transform = Transform.load(job.run.path / TRANSFORM)
    found = [_prepare(job, s["path"], s["name"], transform) for s in check_exclusions(job)]
    if job.settings.select.exclude_reference:
        for reference in prepare_references(job):
            hashes = _hashes(reference.folder) if reference.folder else frozenset()
            embeddings = transform(reference.features)
            found.append(Exclusion(reference.name, reference.fingerprint, hashes, embeddings))
    return found


def check_exclusions(job: Job) -> list[dict[str, Any]]:
    """Path and name of each set that is not to be kept.

    Raises:
        ConfigError: One is not there or is of a kind that the run cannot use, two have one name, or the reference is
            to be excluded and there is none.
    """
    select = job.settings.select
    sets = [source_values(text) for text in select.exclude_from]
    for one in sets:
        check_name(one["path"], one["name"])
    for name, count in Counter(s["name"] for s in sets).items():
        if count > 1:
            raise ConfigError(f"two sets to exclude are called '{name}': rename one with PATH=NAME")
    for path in (s["path"] for s in sets):
        if _is_table(path):
            continue
        if not (is_url(path) or source_scheme(path) or re.search(r"[{*?\[]", path) or Path(path).exists()):
            raise ConfigError(
                f"there is nothing to exclude at {path}: give images, a run folder, or a .parquet file"
            )
        if job.settings.embed.embeddings:
            raise ConfigError(
                f"{path} holds images, but this run takes its features from {job.settings.embed.embeddings}: "
                "give what to exclude as .parquet with a column embedding"
            )
    if select.exclude_reference and not job.settings.cluster.reference:
        raise ConfigError("--exclude-reference needs a --reference: give one, or leave the option out")
    return sets


def leaks(
    exclusions: Sequence[Exclusion], hashes: pa.Array | pa.ChunkedArray, x: Any, threshold: float
) -> np.ndarray:
    """Images that are also in one of the sets: equal in content, or with a cosine of at least `threshold`; [N].

    Args:
        exclusions: the sets.
        hashes: content hashes [N] of the pool, None where unreadable.
        x: embeddings [N, D] of the pool.
        threshold: cosine; above 1 only equal contents count.
    """
    listed = pa.array(frozenset().union(*(e.hashes for e in exclusions)), pa.string())
    leaked = np.array(pc.is_in(hashes, value_set=listed))
    embedded = [e.x[finite_rows(e.x)] for e in exclusions]
    if threshold > 1 or not sum(map(len, embedded)):
        return leaked
    others = unit_rows(np.concatenate(embedded))
    for start in range(0, len(x), _BLOCK):
        part = x[start : start + _BLOCK]
        at = np.flatnonzero(finite_rows(part) & ~leaked[start : start + _BLOCK])
        _, cosine = most_similar(unit_rows(part[at]), others)
        leaked[start + at] = cosine >= threshold - _COSINE_EPSILON
    return leaked


def _prepare(job: Job, where: str, name: str, transform: Transform) -> Exclusion:
    if _is_table(where):
        return _from_parquet(Path(where), name, transform)
    other = Run(where)
    if other.config_path.is_file():
        sources = other.settings.scan.sources
    else:
        sources = (like_the_pool(job.run, where, name, windows=True),)
    scan = ScanConfig(sources, part_size=job.settings.scan.part_size, max_bad=job.settings.scan.max_bad)
    run = Run(job.run.path / "excluded" / name)
    run.path.mkdir(parents=True, exist_ok=True)
    mine = replace(job, run=run, settings=replace(job.settings, scan=scan), overwrite=True)
    scan_images(mine)
    score_images(mine)
    raw = features_of_run(job, mine, transform)
    return Exclusion(name, raw.fingerprint, _hashes(run), transform(raw.load()))


def _is_table(path: str) -> bool:
    return path.endswith(".parquet") and Path(path).is_file()


def _hashes(run: Run) -> frozenset[str]:
    return frozenset(run.table("score", ["content_hash"])["content_hash"].drop_null().to_pylist())


def _from_parquet(path: Path, name: str, transform: Transform) -> Exclusion:
    try:
        columns = pq.read_schema(path).names
        table = pq.read_table(path, columns=[c for c in ("embedding", "content_hash") if c in columns])
        lists = (
            table["embedding"].combine_chunks()
            if "embedding" in columns
            else pa.array([], pa.list_(pa.float64()))
        )
        known = lists.drop_null()
        lengths = pc.unique(pc.list_value_length(known)).to_pylist()
        values = pc.list_flatten(known).cast(pa.float64()).to_numpy(zero_copy_only=False)
        hashes = table["content_hash"].cast(pa.string()).to_pylist() if "content_hash" in columns else []
    except (pa.ArrowException, OSError) as e:
        raise ConfigError(f"{path} cannot be read as Parquet: {str(e).splitlines()[0]}") from None
    if not {"embedding", "content_hash"} & set(columns):
        raise ConfigError(f"{path} needs a column embedding or content_hash to exclude images by")
    wanted = len(transform.mean)
    if set(lengths) - {wanted}:
        raise ConfigError(f"{path} needs embeddings of {wanted} features, as the run has")
    features = np.full((len(lists), wanted), np.nan)
    features[lists.is_valid().to_numpy(zero_copy_only=False)] = values.reshape(-1, wanted)
    stat = path.stat()
    fingerprint = digest(str(path), stat.st_size, stat.st_mtime_ns)
    return Exclusion(name, fingerprint, frozenset(hashes) - {None}, transform(features))
