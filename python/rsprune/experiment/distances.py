"""Distances between samples and real images, and what real images themselves get: the floor."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rsprune.encoders import Encoder
from rsprune.evaluation import fd_infinity, frechet_distance, kernel_distance, prdc
from rsprune.evaluation.extractors import input_side, load_extractor
from rsprune.experiment.config import MeasureConfig
from rsprune.experiment.prepare import Prepared
from rsprune.experiment.references import KINDS
from rsprune.files import write_array

Row = dict[str, Any]
BATCH = 64


def distances(x: np.ndarray, y: np.ndarray, seed: int) -> list[Row]:
    """Rows for features [N, D] against those of a reference [M, D]."""
    kernel, limit = kernel_distance(x, y, subsets=50, seed=seed), fd_infinity(x, y, seed=seed)
    near = prdc(x, y)
    values = {
        "KD": (kernel.value, kernel.deviation),
        "FD": (frechet_distance(x, y), None),
        "FD-infinity": (limit.value, limit.deviation),
        **{name: (getattr(near, name), None) for name in ("precision", "recall", "density", "coverage")},
    }
    return [
        {
            "metric": name,
            "value": float(value),
            "deviation": deviation,
            "n_real": len(y),
            "n_generated": len(x),
        }
        for name, (value, deviation) in values.items()
    ]


def features(extractor: Encoder, images: np.ndarray) -> np.ndarray:
    """[N, D] of images uint8 [N, H, W, C]."""
    parts = (images[first : first + BATCH] for first in range(0, len(images), BATCH))
    return np.concatenate([extractor(list(part)) for part in parts])


def real_features(data: Prepared, extractor: str, of: str) -> np.ndarray:
    """Features [N, D] of the `pool`, in the order of ids, or of all `held_out` tiles."""
    return np.load(_features_path(data, extractor, of), mmap_mode="r", allow_pickle=False)


def write_real_features(data: Prepared, name: str, *, weights: str | None, device: str) -> None:
    """Once for all runs: what distances, memorisation and the floors are measured with."""
    from PIL import Image

    extractor = open_extractor(name, weights, device)
    path = _features_path(data, name, "held_out")
    if not path.is_file():
        write_array(path, features(extractor, data.references().pixels))
    path = _features_path(data, name, "pool")
    if not path.is_file():
        images = [np.asarray(Image.open(data.pool / id)) for id in data.table["id"].to_pylist()]
        write_array(path, features(extractor, np.stack(images)))


def _features_path(data: Prepared, extractor: str, of: str) -> Path:
    return data.path / f"{extractor}-{of}.npy"


def floors(data: Prepared, kept: dict[str, Path | None], measure: MeasureConfig, *, device: str) -> list[Row]:
    """Rows of real images against the references: a second real half, and as many of what each arm keeps.

    Args:
        data: Of the experiment.
        kept: Ids that an arm is trained on, by its label; None is all of the pool.
        measure: Extractors, number of samples and seed.
        device: Of the extractors.
    """
    references, found = data.references(), []
    for name in measure.extractors:
        extractor = open_extractor(name, measure.weights, device)
        pool, held_out = (real_features(data, name, of) for of in ("pool", "held_out"))
        about = {"extractor": name, "extractor_hash": extractor.weight_hash, "resize": input_side(extractor)}
        sets = {kind: np.asarray(held_out[rows]) for kind, rows in references.sets.items()}
        for kind in KINDS:
            y = sets[kind]
            real = {"second half": sets[f"{kind} half"]}
            real |= {arm: pool[pool_rows(file, data)] for arm, file in kept.items()}
            for arm, x in real.items():
                chosen = np.random.default_rng(measure.seed).permutation(len(x))[: measure.samples]
                rows = distances(np.asarray(x[np.sort(chosen)]), y, measure.seed)
                found += [{**about, "arm": floor_name(arm), "reference": kind, **row} for row in rows]
    return found


def floor_name(arm: str) -> str:
    """What the rows of real images that an arm keeps are called, in the place of an arm."""
    return f"real: {arm}"


def pool_rows(kept: Path | None, data: Prepared) -> np.ndarray:
    """Rows of the pool, sorted, that a list of ids names; None is all of them."""
    ids = data.table["id"].to_pylist()
    if kept is None:
        return np.arange(len(ids))
    chosen = set(kept.read_text("utf-8").splitlines())
    return np.flatnonzero([id in chosen for id in ids])


@cache
def open_extractor(name: str, weights: str | None, device: str) -> Encoder:
    """The extractor of that name, opened once."""
    return load_extractor(name, weights=Path(weights) if weights else None, device=device)
