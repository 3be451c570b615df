"""Raw features of a labelled reference, a folder per encoder, so that any transform can be tried on them.

References are small, so their features are kept as float32; those of a pool are only kept transformed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsprune.embedding import Transform
from rsprune.encoders.precomputed import load_embeddings
from rsprune.files import is_whole, write_array, write_json
from rsprune.layout import digest
from rsprune.run import Run
from rsprune.stages.encode import STATE, Encoding, encode, learn, learnt
from rsprune.stages.job import Job


@dataclass(frozen=True)
class RawFeatures:
    """Features of the images of a run folder as an encoder gives them, one file per part."""

    encoder: str
    weight_hash: str
    fingerprint: str
    files: tuple[Path, ...]

    def load(self) -> np.ndarray:
        """[M, D] float32, NaN where an image is unreadable."""
        return np.concatenate([np.load(f, allow_pickle=False) for f in self.files])


def features_of_run(job: Job, images: Job, transform: Transform) -> RawFeatures:
    """Features of `images`, a scored run folder of its own, by the encoder of the run that `job` is about."""
    name = job.settings.embed.encoder
    known = transform.encoder, transform.weight_hash
    return _raw(images, name, known, lambda: learnt(images, name, job.run.path / STATE))


def features_by(job: Job, images: Job, encoder: str) -> RawFeatures:
    """Features of `images` by another encoder, which learns from the run that `job` is about, if it does."""
    of_pool = digest(job.run.fingerprint("score"), job.settings.seed)[:8]
    state = job.run.path / "references" / f"{_file_name(encoder)}-{of_pool}.safetensors"
    learn(job, encoder, state)
    encoding = learnt(images, encoder, state)
    loaded = encoding.on(job.device).load()
    return _raw(images, encoder, (loaded.name, loaded.weight_hash), lambda: encoding)


def features_alone(images: Job) -> RawFeatures:
    """Features of `images` by the encoder of their own settings. Raises `ConfigError` for one that learns."""
    name = images.settings.embed.encoder
    encoding = learnt(images, name, None)
    loaded = encoding.on(images.device).load()
    return _raw(images, name, (loaded.name, loaded.weight_hash), lambda: encoding)


def _raw(job: Job, encoder: str, known: tuple[str, str], load: Callable[[], Encoding]) -> RawFeatures:
    """Encodes what is not encoded yet; `known` are name and weight hash, so that nothing is loaded in vain."""
    run = job.run
    run.require("score")
    score = run.begun("score")
    made_with = digest(score.fingerprint, score.inputs, *known)
    folder = run.path / "features" / _file_name(encoder)
    marker = folder / "made.json"
    if not marker.exists() or marker.read_text("utf-8").strip() != f'"{made_with}"':
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(marker, made_with)
    files = {name: folder / f"{name}.npy" for name in run.names}
    todo = [name for name, file in files.items() if not is_whole(file)]
    if todo:
        where = run.path, load()
        tasks = [(where, name, job.images_in([name]), files[name]) for name in todo]
        job.map(_encode_part, tasks, f"embed ({run.path.name})", job.images_in(todo), on_device=True)
    for other in {*folder.glob(".*.tmp"), *folder.glob("*.npy")} - {*files.values()}:
        other.unlink(missing_ok=True)
    return RawFeatures(*known, digest(run.fingerprint("score"), *known), tuple(files.values()))


def given_features(run: Run, path: str) -> np.ndarray:
    """Features [M, D] float32 of the images of a run from a file of the user's."""
    ids = run.table("scan", ["id"])["id"].to_pylist()
    readable = run.table("score", ["error"])["error"].is_null().to_numpy()
    return np.asarray(load_embeddings(path, ids, needed=readable), np.float32)


def _encode_part(task: tuple[tuple[Path, Encoding], str, int, Path]) -> int:
    (path, encoding), name, n, file = task
    write_array(file, encode(Run.open(path), name, np.arange(n), encoding))
    return n


def _file_name(encoder: str) -> str:
    safe = re.sub(r"[^\w.-]+", "_", encoder)
    return safe if safe == encoder else f"{safe[-40:]}-{digest(encoder)[:8]}"
