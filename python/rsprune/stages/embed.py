"""Embed: features of every image, standardised and of unit length, written once as float16.

Mean and scale come from a sample of the pool. The sample is encoded first and its features are set aside, so
that no image is encoded twice.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rsprune.embedding import Transform
from rsprune.encoders import encoder_files
from rsprune.encoders.precomputed import load_embeddings
from rsprune.errors import ConfigError
from rsprune.run import Run, write_array
from rsprune.stages.encode import STATE, Encoding, encode, learn, sample_rows
from rsprune.stages.job import Job

TRANSFORM = "transform.safetensors"


def embed_images(job: Job) -> None:
    """Writes the transformed features of every image, the transform, and what the encoder learnt, if it does."""
    run, settings = job.run, job.settings.embed
    run.require("score")
    files = [Path(settings.embeddings)] if settings.embeddings else encoder_files(settings.encoder)
    stands_on = [run.fingerprint("score"), *map(_identity, files)]
    with job.stage("embed", asdict(settings), job.settings.seed, *stands_on) as todo:
        if not todo:
            return
        sample = sample_rows(run, settings.transform_sample, job.settings.seed)
        if settings.embeddings:
            _transform_given(job, sample)
        else:
            _encode_all(job, sample)


def _identity(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    return stat.st_size, stat.st_mtime_ns


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
    # A missing package or a wrong number of bands is said here, before any worker starts.
    encoding = learn(job, settings.encoder, run.path / STATE)
    encoder = encoding.load()
    edges = np.cumsum([0, *(pq.read_metadata(f).num_rows for f in run.parts("scan"))])
    in_part = [np.sort(sample[(sample >= a) & (sample < b)]) - a for a, b in itertools.pairwise(edges)]
    where = (run.path, encoding)
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


def _encode_sample(task: tuple[tuple[Path, Encoding], int, np.ndarray]) -> int:
    (path, encoding), k, local = task
    run = Run.open(path)
    write_array(_sample_path(run, k), encode(run, k, local, encoding))
    return len(local)


def _embed_part(task: tuple[tuple[Path, Encoding], int, np.ndarray]) -> int:
    (path, encoding), k, local = task
    run = Run.open(path)
    n = pq.read_metadata(run.part("scan", k)).num_rows
    rest = np.setdiff1d(np.arange(n), local)
    features = np.full((n, encoding.load().dim), np.nan, np.float32)
    if len(local):
        features[local] = np.load(_sample_path(run, k), allow_pickle=False)
    if len(rest):
        features[rest] = encode(run, k, rest, encoding)
    write_array(run.part("embed", k), Transform.load(run.path / TRANSFORM)(features))
    return n
