"""Judges of coverage: features of images by something other than what selected them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsprune.embedding import Transform
from rsprune.encoders import Encoder, LearntEncoder, check_bands, load_encoder
from rsprune.encoders.precomputed import load_embeddings
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.reading import Reader, item_of
from rsprune.run import Run

STATISTICS = "statistics"
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LAGS = (1, 2, 4, 8, 16)  # pixels
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
_FLOOR = 1e-5  # of a mean square difference: that of a step of one in a hundred pixels of 8 bits


def colour_texture(image: np.ndarray) -> np.ndarray:
    """Colour and texture of an image uint8 [H, W, C], float32 [37]; needs no network and no fit.

    Bands are averaged in three groups of neighbours, which are red, green and blue where there are three.
    Quantiles of each, deviations of their differences, and the logarithm of the variogram of their mean:
    mean squares of differences at five lags in four directions.
    """
    groups = [image[..., part] for part in np.array_split(np.arange(image.shape[2]), 3) if len(part)]
    bands = np.stack([g.mean(axis=2, dtype=np.float32) for g in groups], axis=2) / 255
    bands = bands[..., np.arange(3) % bands.shape[2]]
    colour = np.quantile(bands.reshape(-1, 3), _QUANTILES, axis=0).ravel()
    opponent = np.diff(bands, axis=2).reshape(-1, 2).std(axis=0)
    grey = bands.mean(axis=2)
    variogram = [_mean_square_difference(grey, lag * y, lag * x) for lag in _LAGS for y, x in _DIRECTIONS]
    return np.concatenate([colour, opponent, np.log10(np.array(variogram) + _FLOOR)]).astype(np.float32)


def _mean_square_difference(grey: np.ndarray, y: int, x: int) -> float:
    h, w = grey.shape
    y, x = min(y, h - 1), max(min(x, w - 1), 1 - w)
    here = grey[: h - y, max(0, -x) : w - max(0, x)]
    there = grey[y:, max(0, x) : w - max(0, -x)]
    return float(np.square(there - here).mean())


def judge_features(
    judge: str, run: Run, rows: Sequence[Mapping[str, Any]], *, device: str = "cpu"
) -> np.ndarray:
    """Embeddings [n, D] float32 of manifest rows of a run: standardised on them, of unit length.

    Args:
        judge: `statistics` (colour and texture), an encoder, or a .npy or .parquet file of features as for
            ``--embeddings``, for the images of `run`.
        run: says how the images are read.
        rows: of its manifest.
        device: for an encoder.

    Returns:
        NaN where an image cannot be read any more.

    Raises:
        ConfigError: there is no such judge.
    """
    if Path(judge).suffix in (".npy", ".parquet"):
        features = _given(judge, run, rows)
    else:
        features = _computed(judge, run, rows, device)
    return Transform.fit(features)(features).astype(np.float32)


def _given(path: str, run: Run, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    ids = run.table("scan", ["id"])["id"].to_pylist()
    at = {id: i for i, id in enumerate(ids)}
    picked = np.array([at[row["id"]] for row in rows], np.int64)
    needed = np.zeros(len(ids), bool)
    needed[picked] = True
    return np.asarray(load_embeddings(path, ids, needed=needed)[picked], np.float32)


def _computed(judge: str, run: Run, rows: Sequence[Mapping[str, Any]], device: str) -> np.ndarray:
    encoder = None if judge == STATISTICS else _encoder(judge, run, rows, device)
    reader, batch = Reader(run), 32
    features: list[np.ndarray | None] = [None] * len(rows)
    # Windows of a scene one after the other, so that each scene is opened once.
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["source"], item_of(rows[i]).uri, rows[i]["id"]))
    for start in range(0, len(order), batch):
        at, images = [], []
        for i in order[start : start + batch]:
            try:
                images.append(reader.uint8(rows[i]))
            except UnreadableImage:
                continue
            at.append(i)
        found = encoder(images) if encoder and images else [colour_texture(image) for image in images]
        for i, f in zip(at, found, strict=True):
            features[i] = f
    width = next((len(f) for f in features if f is not None), 0)
    if not width:
        raise ConfigError(
            f"none of the {len(rows)} images of {run.path} that were drawn can be read: give features of them "
            "with --judge FILE.npy"
        )
    return np.stack([np.full(width, np.nan, np.float32) if f is None else f for f in features])


def _encoder(name: str, run: Run, rows: Sequence[Mapping[str, Any]], device: str) -> Encoder:
    """The encoder; one that learns does so from the images that it is to judge."""
    encoder, reader = load_encoder(name, device), Reader(run)
    sources = zip(run.settings.scan.sources, reader.declared, strict=True)
    check_bands(encoder, {source.name or source.path: declared["bands"] for source, declared in sources})
    if isinstance(encoder, LearntEncoder):
        step = max(1, len(rows) // encoder.fit_images)
        encoder.restore(encoder.fit(_readable(reader, rows[::step][: encoder.fit_images]), seed=0))
    return encoder


def _readable(reader: Reader, rows: Sequence[Mapping[str, Any]]) -> Iterator[np.ndarray]:
    for row in rows:
        try:
            yield reader.uint8(row)
        except UnreadableImage:
            continue
