"""Embed: features of every image, standardised and of unit length, written once as float16.

Mean and scale come from a sample of the pool. The sample is encoded first and its features are set aside, so
that no image is encoded twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rsprune.embedding import Transform
from rsprune.encoders import Encoder, load_encoder
from rsprune.encoders.precomputed import load_embeddings
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.reading import Reader, rows
from rsprune.rows import content_key
from rsprune.run import Run, write_array
from rsprune.stages.job import Job

TRANSFORM = "transform.safetensors"


def embed_images(job: Job, transform: Transform | None = None) -> None:
    """Writes the transformed features of every image and the transform: the one given, or one of its own."""
    run, settings = job.run, job.settings.embed
    run.require("score")
    stands_on: list[Any] = [run.fingerprint("score")]
    if settings.embeddings:
        stands_on.append(_identity(Path(settings.embeddings)))
    if transform:
        stands_on.append(
            [transform.encoder, transform.weight_hash, transform.mean.tolist(), transform.scale.tolist()]
        )
    with job.stage("embed", asdict(settings), job.settings.seed, *stands_on) as todo:
        if not todo:
            return
        if transform:
            transform.save(run.path / TRANSFORM)
        sample = (
            np.zeros(0, np.int64) if transform else _sample(run, settings.transform_sample, job.settings.seed)
        )
        if settings.embeddings:
            _transform_given(job, sample)
        else:
            _encode_all(job, sample)


def _identity(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as e:
        raise ConfigError(f"cannot read embeddings from {path}: {e.strerror}") from None
    return stat.st_size, stat.st_mtime_ns


def _sample(run: Run, size: int, seed: int) -> np.ndarray:
    """Rows to estimate the transform on, [<= size], in an order that ids and copies have no influence on."""
    hashes = run.table("score", ["content_hash"])["content_hash"].to_numpy(zero_copy_only=False)
    readable = np.flatnonzero([h is not None for h in hashes])
    _, first = np.unique(hashes[readable].astype(str), return_index=True)
    unique = readable[first]
    return unique[np.argsort(content_key(hashes[unique], seed), kind="stable")[:size]]


def _transform_given(job: Job, sample: np.ndarray) -> None:
    run = job.run
    ids = run.table("scan", ["id"])["id"].to_pylist()
    readable = run.table("score", ["error"])["error"].is_null().to_numpy()
    features = load_embeddings(job.settings.embed.embeddings, ids, needed=readable)
    transform = Transform.fit(features[sample].astype(np.float32), encoder="precomputed")
    transform.save(run.path / TRANSFORM)
    start = 0
    for k in range(run.n_parts):
        stop = start + pq.read_metadata(run.part("scan", k)).num_rows
        write_array(run.part("embed", k), transform(np.asarray(features[start:stop], np.float32)))
        start = stop


def _encode_all(job: Job, sample: np.ndarray) -> None:
    run, settings = job.run, job.settings.embed
    if not job.missing("embed"):  # stopped after the last part: the sample may be gone already
        return
    # A missing package is said here, before any worker starts.
    encoder = load_encoder(settings.encoder, job.device)
    edges = np.cumsum([0, *(pq.read_metadata(f).num_rows for f in run.parts("scan"))])
    in_part = [np.sort(sample[(sample >= a) & (sample < b)]) - a for a, b in itertools.pairwise(edges)]
    where = (run.path, settings.encoder, job.device)
    tasks = [
        (where, k, local)
        for k, local in enumerate(in_part)
        if len(local) and not _sample_path(run, k).exists()
    ]
    job.map(_encode_sample, tasks, "embed (sample)", sum(len(local) for _, _, local in tasks))

    transform_path = run.path / TRANSFORM
    if not transform_path.exists():
        features = np.empty((edges[-1] if len(sample) else 0, encoder.dim), np.float32)
        for k, local in enumerate(in_part):
            if len(local):
                features[edges[k] + local] = np.load(_sample_path(run, k), allow_pickle=False)
        Transform.fit(features[sample], encoder=encoder.name, weight_hash=encoder.weight_hash).save(
            transform_path
        )
    parts = [(where, k, in_part[k]) for k in job.missing("embed")]
    job.map(_embed_part, parts, "embed", job.missing_images("embed"))
    for k in range(run.n_parts):
        _sample_path(run, k).unlink(missing_ok=True)


def _sample_path(run: Run, k: int) -> Path:
    return run.path / "embeddings" / f"sample-{k:05d}.npy"


def _encode_sample(task: tuple[tuple[Path, str, str], int, np.ndarray]) -> int:
    where, k, local = task
    run = Run.open(where[0])
    write_array(_sample_path(run, k), _encode(run, k, local, *where[1:]))
    return len(local)


def _embed_part(task: tuple[tuple[Path, str, str], int, np.ndarray]) -> int:
    where, k, local = task
    run = Run.open(where[0])
    n = pq.read_metadata(run.part("scan", k)).num_rows
    rest = np.setdiff1d(np.arange(n), local)
    features = np.full((n, _encoder(*where[1:]).dim), np.nan, np.float32)
    if len(local):
        features[local] = np.load(_sample_path(run, k), allow_pickle=False)
    if len(rest):
        features[rest] = _encode(run, k, rest, *where[1:])
    write_array(run.part("embed", k), Transform.load(run.path / TRANSFORM)(features))
    return n


@lru_cache(maxsize=1)
def _encoder(name: str, device: str) -> Encoder:
    return load_encoder(name, device)


def _encode(run: Run, k: int, local: Sequence[int], name: str, device: str) -> np.ndarray:
    """Features of rows `local` of part `k`, [len(local), D] float32; NaN where an image cannot be read."""
    encoder, reader, batch = _encoder(name, device), Reader(run), run.settings.embed.batch_size
    unreadable = pq.read_table(run.part("score", k), columns=["error"])["error"].is_valid().to_pylist()
    manifest = list(rows(pq.read_table(run.part("scan", k))))
    features = np.full((len(local), encoder.dim), np.nan, np.float32)
    for start in range(0, len(local), batch):
        images, at = [], []
        for i in range(start, min(start + batch, len(local))):
            if not unreadable[local[i]]:
                row = manifest[local[i]]
                try:
                    images.append(reader.uint8(row))
                except UnreadableImage as e:
                    raise ConfigError(
                        f"{row['id']} could be read by 'score' but not any more: it {e}"
                    ) from None
                at.append(i)
        if images:
            features[at] = encoder(images)
    return features
