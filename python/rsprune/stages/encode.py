"""Images of a run through an encoder, in whatever process; one that learns from the pool learns first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from rsprune.encoders import Encoder, LearntEncoder, check_bands, load_encoder
from rsprune.encoders.packaged import sha256
from rsprune.encoders.state import load_state, sample_of, save_state
from rsprune.errors import ConfigError, RspruneError, UnreadableImage
from rsprune.layout import digest
from rsprune.reading import COLUMNS, Reader, rows
from rsprune.resume import images_of
from rsprune.rows import content_key
from rsprune.run import Run
from rsprune.stages.job import Job

STATE = "encoder.safetensors"  # in a run folder: what the encoder has learnt from the pool


@dataclass(frozen=True)
class Encoding:
    """What a worker needs to have the encoder: its name, the device, and where its state lies, if it has one."""

    encoder: str
    device: str
    state: Path | None = None
    state_hash: str = ""  # another state at the same path is another encoder

    def load(self) -> Encoder:
        """The encoder, ready to be called; the last one stays loaded. Raises `ConfigError`."""
        return _load(self)

    def on(self, device: str) -> Encoding:
        """The same on another device."""
        return replace(self, device=device)


@lru_cache(maxsize=1)
def _load(encoding: Encoding) -> Encoder:
    encoder = load_encoder(encoding.encoder, encoding.device)
    if encoding.state and isinstance(encoder, LearntEncoder):
        encoder.restore(load_state(encoding.state, encoding.encoder))
    return encoder


def learn(job: Job, name: str, state: Path, *, renew: bool = False) -> Encoding:
    """How to encode with `name`; an encoder that learns does so from the images of `job.run`, unless `state` is there.

    With `renew` also where `state` is of other images than it would learn from now.

    Raises:
        ConfigError: the encoder or something that it needs is not there, or it cannot take the run's bands.
    """
    run, encoder = job.run, Encoding(name, job.device).load()
    check_bands_of(run, encoder)
    if not isinstance(encoder, LearntEncoder):
        return Encoding(name, job.worker_device)
    if renew or not state.exists():
        sample = sample_images(run, encoder.fit_images, job.settings.seed)
        if sample_of(state) != sample.digest():
            state.parent.mkdir(parents=True, exist_ok=True)
            with threadpool_limits(1):  # as in the parts: the number of threads changes the last bits
                learnt = encoder.fit(_images(run, sample), job.settings.seed)
            save_state(state, name, learnt, sample=sample.digest())
    return Encoding(name, job.worker_device, state, sha256(state))


def learnt(job: Job, name: str, state: Path | None) -> Encoding:
    """How to encode images of `job.run` with `name` as it was learnt elsewhere, at `state`.

    Raises:
        ConfigError: as `learn`, or the encoder needs a state and there is none.
    """
    encoding = Encoding(name, job.device)
    if isinstance(encoding.load(), LearntEncoder):
        if state is None or not state.exists():
            raise ConfigError(
                f"the encoder {name} learns from the images of a run, so its features of other images "
                "mean nothing before: give the run the reference as a folder, --reference DIR"
            )
        encoding = Encoding(name, job.device, state, sha256(state))
    check_bands_of(job.run, encoding.load())
    return encoding.on(job.worker_device)


@dataclass(frozen=True)
class Sample:
    """Images of different readable contents, in an order that ids and copies have no influence on.

    `part` and `row` [n] say where each of them is, `key` [n] is the seeded number of its content.
    """

    part: np.ndarray
    row: np.ndarray
    key: np.ndarray

    def __len__(self) -> int:
        return len(self.key)

    def rows_of(self, part: int) -> np.ndarray:
        """Rows of that part, ascending."""
        return np.sort(self.row[self.part == part])

    def first(self, size: int) -> Sample:
        """The sample that would have been chosen of that size."""
        return Sample(self.part[:size], self.row[:size], self.key[:size])

    def digest(self) -> str:
        """The same for the same contents."""
        return digest(self.key.tobytes().hex())

    def digest_of_places(self, names: Sequence[str]) -> str:
        """The same for the same images, in parts of these `names`; of copies either may have been chosen."""
        parts = [images_of(names[k]) for k in self.part.tolist()]
        return digest(parts, self.row.tolist())


def sample_images(run: Run, size: int, seed: int) -> Sample:
    """At most `size` images; one part after the other, so that the pool may be of any size."""
    run.require("score")
    chosen = Sample(*(np.zeros(0, kind) for kind in (np.int64, np.int64, np.uint64)))
    for k, file in enumerate(run.parts("score")):
        hashes = pq.read_table(file, columns=["content_hash"])["content_hash"]
        row = np.flatnonzero(hashes.is_valid().to_numpy())
        key = content_key(hashes.drop_null(), seed)
        if len(chosen) == size:
            row, key = row[key < chosen.key[-1]], key[key < chosen.key[-1]]
        columns = zip(vars(chosen).values(), (np.full(len(row), k), row, key), strict=True)
        part, row, key = (np.concatenate(pair) for pair in columns)
        _, first = np.unique(key, return_index=True)  # sorted by key; of copies the first
        first = first[:size]
        chosen = Sample(part[first], row[first], key[first])
    return chosen


def encode(run: Run, name: str, local: Sequence[int] | np.ndarray, encoding: Encoding) -> np.ndarray:
    """Features of rows `local` of a part, [len(local), D] float32; NaN where an image cannot be read."""
    encoder, reader, batch = encoding.load(), Reader(run), run.settings.embed.batch_size
    unreadable = pq.read_table(run.part("score", name), columns=["error"])["error"].is_valid().to_pylist()
    manifest = list(rows(pq.read_table(run.part("scan", name))))
    features = np.full((len(local), encoder.dim), np.nan, np.float32)
    readable = [i for i in range(len(local)) if not unreadable[local[i]]]
    for start in range(0, len(readable), batch):
        at = readable[start : start + batch]
        found = encoder([_read(reader, manifest[local[i]]) for i in at])
        if np.shape(found) != (len(at), encoder.dim):
            raise RspruneError(
                f"the encoder {encoding.encoder} gave features {list(np.shape(found))} for {len(at)} images "
                f"of {encoder.dim} features each: tell its author"
            )
        features[at] = found
    return features


def check_bands_of(run: Run, encoder: Encoder) -> None:
    """Raises `ConfigError` where an encoder cannot take the bands of a run's sources."""
    sources = run.settings.scan.sources
    declared = run.json("radiometry.json")
    check_bands(encoder, {c.name or c.path: d["bands"] for c, d in zip(sources, declared, strict=True)})


def _images(run: Run, sample: Sample) -> Iterator[np.ndarray]:
    reader = Reader(run)
    found: dict[tuple[int, int], Mapping[str, Any]] = {}
    for part in np.unique(sample.part).tolist():
        at = sample.rows_of(part)
        table = pq.read_table(run.part("scan", part), columns=COLUMNS).take(at)
        found |= zip(((part, row) for row in at.tolist()), rows(table), strict=True)
    for where in zip(sample.part.tolist(), sample.row.tolist(), strict=True):
        yield _read(reader, found[where])


def _read(reader: Reader, row: Mapping[str, Any]) -> np.ndarray:
    try:
        return reader.uint8(row)
    except UnreadableImage as e:
        raise ConfigError(f"{row['id']} could be read by 'score' but not any more: it {e}") from None
