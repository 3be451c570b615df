"""Embed: features of every image, standardised and of unit length, written once as float16.

Mean and scale come from a sample of the pool. The sample is encoded first and its features are set aside, so
that no image is encoded twice. They stay when images come or go later: another space would make every embedding void.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import xxhash

from rsprune import resume
from rsprune.embedding import Transform
from rsprune.encoders import LearntEncoder, encoder_files
from rsprune.encoders.precomputed import load_embeddings
from rsprune.errors import ConfigError
from rsprune.files import is_whole, write_array
from rsprune.layout import digest
from rsprune.run import Run
from rsprune.stages.encode import STATE, Encoding, Sample, check_bands_of, encode, learn, sample_images
from rsprune.stages.job import Job
from rsprune.stages.scan import check_readable

TRANSFORM = "transform.safetensors"


def embed_images(job: Job) -> None:
    """Writes the transformed features of every image, the transform, and what the encoder learnt, if it does."""
    run, settings = job.run, job.settings.embed
    run.require("score")
    score = run.begun("score")
    stands_on: list[Any] = [asdict(settings), job.settings.seed, score.fingerprint]
    inputs, given = score.inputs, {}
    if settings.embeddings:
        given = _given(run, settings.embeddings)
        inputs = digest(inputs, given)
        _check_order(job, given)
    else:
        stands_on += map(_identity, encoder_files(settings.encoder))
    job.admit("embed", *stands_on)
    if _is_outdated(job):
        resume.discard(run.path, "embed")
    with job.stage("embed", *stands_on, inputs=inputs) as todo:
        if todo:
            chosen = _choose(job)
            _keep_estimate(job, chosen)
            if settings.embeddings:
                _transform_given(job, chosen, given)
            else:
                _encode_all(job, chosen)
    if failed := run.begun("embed").failed:
        name, reason = next(iter(failed.items()))
        lost = sum(int(_readable(run, name).sum()) for name in failed)
        check_readable(job, "score", lost, f"those of {name}: {reason}")


def check_embeddings(job: Job) -> None:
    """Raises `ConfigError` where there is no file of the embeddings that are given."""
    if job.settings.embed.embeddings:
        _identity(Path(job.settings.embed.embeddings))


def check_encoder(job: Job) -> None:
    """Raises `ConfigError` where the encoder cannot take the bands that were scanned."""
    if not job.settings.embed.embeddings:
        check_bands_of(job.run, Encoding(job.settings.embed.encoder, job.device).load())


def embedding_size(job: Job) -> int:
    """Numbers in an embedding, 0 where that can only be said later. Raises `ConfigError` without the encoder."""
    settings = job.settings.embed
    if not settings.embeddings:
        return getattr(Encoding(settings.encoder, job.device).load(), "dim", 0)
    path = Path(settings.embeddings)
    if path.suffix != ".npy" or not is_whole(path):  # `load_embeddings` says what is wrong with it
        return 0
    shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    return shape[1] if len(shape) == 2 else 0


def _identity(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from None
    return stat.st_size, stat.st_mtime_ns


def _given(run: Run, path: str) -> dict[str, str]:
    """What embeddings of the user's stand on: the file, and the order of the ids where rows have no other name."""
    ids = xxhash.xxh3_128()
    for part in run.parts("scan") if path.endswith(".npy") else ():
        ids.update("\n".join(pq.read_table(part, columns=["id"])["id"].to_pylist()).encode() + b"\n")
    return {"file": digest(_identity(Path(path))), "ids": ids.hexdigest()}


def _check_order(job: Job, given: dict[str, str]) -> None:
    """Raises `ConfigError` where rows that are known by their place are those of other images."""
    before = _known(job.run)
    if before.get("file") == given["file"] and before.get("ids") != given["ids"] and not job.overwrite:
        raise ConfigError(
            f"{job.settings.embed.embeddings} has a row per image in the order of their ids, and other images have "
            "come since: write it anew, or give a .parquet file with the columns id and embedding"
        )


def _known(run: Run) -> Mapping[str, str]:
    """How the transform came about, empty where there is none that can be used."""
    path = run.path / TRANSFORM
    return Transform.load(path).metadata if is_whole(path) else {}


def _choose(job: Job) -> Sample:
    """The images that anything is estimated on: mean and scale on the first `transform_sample` of them."""
    settings = job.settings.embed
    size = settings.transform_sample
    if not settings.embeddings:
        encoder = Encoding(settings.encoder, job.device).load()
        size = max(size, encoder.fit_images if isinstance(encoder, LearntEncoder) else 0)
    return sample_images(job.run, size, job.settings.seed)


def _is_outdated(job: Job) -> bool:
    """Whether the transform is to be estimated anew, because other images would be chosen for that."""
    before = _known(job.run)
    # One that was estimated while parts had failed must not outlive that: a crash would leave other results.
    if "sample" not in before or not (job.overwrite or before.get("provisional")):
        return False
    chosen = _choose(job)
    now = _about(job.run, chosen)
    names = ("sample", "places") if before.get("provisional") else ("sample",)
    return any(before[name] != now[name] for name in names)


def _keep_estimate(job: Job, chosen: Sample) -> None:
    """Says where an estimate stays though the images have changed; one that has proved right is final."""
    before = _known(job.run)
    if "sample" not in before:
        return
    now = _about(job.run, chosen)
    if before["sample"] != now["sample"]:
        job.say(
            "the embedding space stays as it was estimated before the images changed; "
            "--overwrite estimates it anew and encodes every image again"
        )
    elif before.get("provisional") and "provisional" not in now:
        path = job.run.path / TRANSFORM
        metadata = {name: value for name, value in before.items() if name != "provisional"}
        replace(Transform.load(path), metadata=metadata).save(path)


def _about(run: Run, chosen: Sample) -> dict[str, str]:
    failed = run.begun("scan").failed or run.begun("score").failed
    places = chosen.digest_of_places(run.names)
    return {"sample": chosen.digest(), "places": places, **({"provisional": "yes"} if failed else {})}


def _readable(run: Run, name: str) -> np.ndarray:
    """Images of a part that have scores, bool [n]."""
    return pq.read_table(run.part("score", name), columns=["error"])["error"].is_null().to_numpy()


def _transform_given(job: Job, chosen: Sample, given: dict[str, str]) -> None:
    run, path = job.run, job.run.path / TRANSFORM
    sample = chosen.first(job.settings.embed.transform_sample)
    ids = run.table("scan", ["id"])["id"]
    readable = [_readable(run, name) for name in run.names]
    start = np.cumsum([0, *map(len, readable)])
    features = load_embeddings(str(job.settings.embed.embeddings), ids, needed=np.concatenate(readable))
    if path.exists():
        transform = Transform.load(path)
    else:
        rows = np.asarray(features[start[sample.part] + sample.row], np.float32)
        transform = Transform.fit(rows, encoder="precomputed", metadata={**_about(run, chosen), **given})
        transform.save(path)
    for k, name in enumerate(run.names):
        if not run.part("embed", name).exists():
            rows = np.asarray(features[start[k] : start[k + 1]], np.float32)
            write_array(run.part("embed", name), transform(rows))


class _EmbedPart(NamedTuple):
    folder: Path
    encoding: Encoding
    name: str
    sample: np.ndarray  # rows that the transform is estimated on

    @property
    def sample_path(self) -> Path:
        """Where the features of the sample wait for the others; another sample or encoder has another name."""
        about = digest(self.sample.tolist(), self.encoding.state_hash)
        return self.folder / "embeddings" / f"sample-{self.name}-{about[:8]}.npy"


def _encode_all(job: Job, chosen: Sample) -> None:
    run, settings = job.run, job.settings.embed
    sample = chosen.first(settings.transform_sample)
    missing = set(job.missing("embed"))
    if not missing:  # stopped after the last part: the sample may be gone already
        return
    # A missing package or a wrong number of bands is said here, before any worker starts. What was learnt goes with the
    # transform: a crash between the two may have left it from other images.
    encoding = learn(job, settings.encoder, run.path / STATE, renew=not (run.path / TRANSFORM).exists())
    tasks = [_EmbedPart(run.path, encoding, name, sample.rows_of(k)) for k, name in enumerate(run.names)]
    path = run.path / TRANSFORM
    if not path.exists():
        of_sample = [t for t in tasks if len(t.sample) and not is_whole(t.sample_path)]
        images = sum(len(t.sample) for t in of_sample)
        job.map(_encode_sample, of_sample, "embed (sample)", images, on_device=True)
        encoder = encoding.on(job.device).load()
        features = np.empty((len(sample), encoder.dim), np.float32)
        for k, task in enumerate(tasks):
            if len(task.sample):
                at = np.flatnonzero(sample.part == k)
                features[at[np.argsort(sample.row[at])]] = np.load(task.sample_path, allow_pickle=False)
        transform = Transform.fit(
            features, encoder=encoder.name, weight_hash=encoder.weight_hash, metadata=_about(run, chosen)
        )
        transform.save(path)
    parts = [task for task in tasks if task.name in missing]
    job.map_parts("embed", _embed_part, _unread_part, parts, job.images_in(missing), on_device=True)
    for file in (run.path / "embeddings").glob("sample-*"):
        file.unlink()


def _encode_sample(task: _EmbedPart) -> int:
    run = Run.open(task.folder)
    write_array(task.sample_path, encode(run, task.name, task.sample, task.encoding))
    return len(task.sample)


def _embed_part(task: _EmbedPart) -> int:
    run, dim = Run.open(task.folder), task.encoding.load().dim
    n = pq.read_metadata(run.part("scan", task.name)).num_rows
    # Apart from the others, also where they have been encoded before: the batches decide on the last bits.
    rest = np.setdiff1d(np.arange(n), task.sample)
    features = np.full((n, dim), np.nan, np.float32)
    if is_whole(task.sample_path):
        features[task.sample] = np.load(task.sample_path, allow_pickle=False)
    elif len(task.sample):
        features[task.sample] = encode(run, task.name, task.sample, task.encoding)
    if len(rest):
        features[rest] = encode(run, task.name, rest, task.encoding)
    write_array(run.part("embed", task.name), Transform.load(run.path / TRANSFORM)(features))
    return n


def _unread_part(task: _EmbedPart, reason: str) -> int:
    run = Run.open(task.folder)
    readable = _readable(run, task.name)
    dim = len(Transform.load(run.path / TRANSFORM).mean)
    write_array(run.part("embed", task.name), np.full((len(readable), dim), np.nan, np.float16))
    return int(readable.sum())
