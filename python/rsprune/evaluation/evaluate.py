"""All scores of samples against a reference, each beside its floor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rsprune.config import SourceConfig
from rsprune.encoders import Encoder
from rsprune.errors import ConfigError
from rsprune.evaluation import (
    fd_infinity,
    frechet_distance,
    kernel_distance,
    memorization,
    prdc,
    vendi_score,
)
from rsprune.evaluation.config import EvaluateConfig
from rsprune.evaluation.inputs import Measured, is_matrix, measure
from rsprune.evaluation.model import drawn_features, held_out_loss, is_model
from rsprune.evaluation.provenance import code
from rsprune.progress import Progress, silent

FEW = 1000  # images below which the bias of FD is larger than most differences
NAMES = {"alexnet": "AlexNet", "vgg16": "VGG16"}
Scores = dict[str, dict[str, Any]]


def evaluate(
    samples: str,
    reference: str,
    *,
    training: str | None = None,
    settings: EvaluateConfig | None = None,
    source: SourceConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Scores of samples, and their floors: one random half of the reference against the other.

    Args:
        samples: A trained model's folder, a folder of images or a single one, or features in a .npy or
            .parquet file. Of a model the held-out loss is measured, and images are drawn if the settings say so.
        reference: The same of real images; held-out ones where `training` is given.
        training: The same of the images that a model was trained on, for memorisation.
        settings: Of the extractor and the scores.
        source: How images are read (bands, scale, windows); its path is not used.
        seed: Of subsets and halves.
        device: Of the extractor.
        progress: Passes on how many images each step had.

    Returns:
        JSON-able facts: ``scores`` by name with value, deviation and floor, ``loss`` of a model, and everything
        they depend on.

    Raises:
        ConfigError: Something cannot be measured.
        TooManyUnreadable: Too few of the images can be read.
    """
    settings, source = settings or EvaluateConfig(), source or SourceConfig("")
    held_out = {}
    if is_model(samples):
        if training and not settings.draw:
            raise ConfigError(
                "memorisation is of drawn images, and of a model only the held-out loss is measured: give --draw N as "
                "well, or leave out --training"
            )
        held_out = held_out_loss(samples, replace(source, path=reference), seed=seed, device=device)
        if not settings.draw:
            return {**code(), **held_out, "reference_kind": settings.reference_kind, "notes": []}
    elif settings.draw:
        raise ConfigError(f"{samples} is no model, so there is nothing to --draw: give the folder of one")
    paths = {"samples": samples, "reference": reference} | ({"training": training} if training else {})
    extractor = _extractor(paths, settings, device)
    if held_out:
        del paths["samples"]
    found = measure(paths, source, extractor, progress=progress)
    if held_out:
        drawn = drawn_features(samples, extractor, settings, seed=seed, device=device)
        found = {"samples": drawn, **found}
    if extractor is None:
        about: dict[str, Any]
        about, label = {"name": "given features", "weight_hash": None, "resize": None}, "features"
    else:
        from rsprune.evaluation.extractors import input_side

        about = {
            "name": extractor.name, "weight_hash": extractor.weight_hash, "resize": input_side(extractor),
        }  # fmt: skip
        label = NAMES.get(extractor.name, extractor.name)
    x, y = found["samples"].x, found["reference"].x
    _check(found, settings)
    half, other = np.array_split(np.random.default_rng(seed).permutation(len(y)), 2)
    scores = _scores(x, y, label, settings, seed)
    floors = _scores(y[half], y[other], label, settings, seed)
    if training:
        scores |= _memorization(memorization(x, found["training"].x, y))
    for name, score in scores.items():
        score["floor"] = floors[name]["value"] if name in floors else score.pop("unlearnt")
    return {
        **code(),
        "extractor": {**about, "dim": x.shape[1]},
        **{name: measured.facts() for name, measured in found.items()},
        **{name: held_out[name] for name in ("model", "loss") if held_out},
        "reference_kind": settings.reference_kind,
        "floor": {"kind": "one random half of the reference against the other", "n": [len(half), len(other)]},
        "seed": seed,
        "scores": scores,
        "notes": _notes(len(x), len(y), x.shape[1]),
    }


def _extractor(paths: dict[str, str], settings: EvaluateConfig, device: str) -> Encoder | None:
    matrices = [path for path in paths.values() if is_matrix(path)]
    if not matrices:
        from rsprune.evaluation.extractors import load_extractor

        weights = Path(settings.weights) if settings.weights else None
        return load_extractor(settings.extractor, weights=weights, resize=settings.resize, device=device)
    images = [path for path in paths.values() if not is_matrix(path)]
    if images:
        raise ConfigError(
            f"{matrices[0]} holds features and {images[0]} images, and nothing says that one extractor made both: "
            "give images for all, or features for all"
        )
    if settings != replace(settings, extractor=EvaluateConfig().extractor, weights=None, resize=None):
        raise ConfigError(
            "features are given, so there is nothing to extract: leave out --extractor, --weights and --resize"
        )
    return None


def _check(found: dict[str, Measured], settings: EvaluateConfig) -> None:
    dims = {measured.path: measured.x.shape[1] for measured in found.values()}
    (first, d), *others = dims.items()
    for path, dim in others:
        if dim != d:
            raise ConfigError(f"{first} has {d} features and {path} has {dim}: use one extractor for all")
    # Each half of the reference needs k neighbours too.
    least = {"samples": max(4, settings.k + 1), "reference": 2 * max(4, settings.k + 1), "training": 2}
    for name, measured in found.items():
        if len(measured.x) < least[name]:
            raise ConfigError(
                f"{measured.path} has {len(measured.x)} images, but the {name} must have at least {least[name]} "
                f"with --k {settings.k}: give more images"
            )
    most = min(len(found["samples"].x), len(found["reference"].x) // 2)
    if settings.subset_size and settings.subset_size > most:
        raise ConfigError(
            f"--subset-size is {settings.subset_size}, but the smallest set has {most} images (halves of the "
            "reference included): give fewer, or leave it out"
        )


def _scores(x: np.ndarray, y: np.ndarray, label: str, settings: EvaluateConfig, seed: int) -> Scores:
    limit = fd_infinity(x, y, seed=seed)
    kernel = kernel_distance(x, y, subsets=settings.subsets, subset_size=settings.subset_size, seed=seed)
    near = prdc(x, y, k=settings.k)
    return {
        "fd": {"name": f"FD-{label}", "value": frechet_distance(x, y)},
        "fd_infinity": {"name": f"FD∞-{label}", "value": limit.value, "deviation": limit.deviation},
        "kd": {
            "name": f"KD-{label}", "value": kernel.value, "deviation": kernel.deviation,
            "subsets": kernel.subsets, "subset_size": kernel.subset_size,
        },
        **{
            name: {"name": name, "value": getattr(near, name), "k": near.k}
            for name in ("precision", "recall", "density", "coverage")
        },
        "vendi": {"name": "Vendi score", "value": vendi_score(x)},
    }  # fmt: skip


def _memorization(found: Any) -> Scores:
    """`unlearnt` is what a model gets that has learnt nothing by heart."""
    return {
        "memorization_ratio": {"name": "memorisation: ratio", "value": found.ratio, "unlearnt": 1.0},
        "memorization_close": {"name": "memorisation: close", "value": found.close, "unlearnt": 0.05},
        "memorization_nearer": {"name": "memorisation: nearer", "value": found.nearer, "unlearnt": 0.5},
    }


def _notes(n: int, m: int, d: int) -> list[str]:
    notes = []
    if min(n, m) < FEW:
        notes.append(f"with {min(n, m):,} images FD is mostly its own bias: compare the kernel distance")
    if min(n, m) <= d:
        notes.append(f"{min(n, m):,} images do not span {d} features: FD says little")
    if n != m:
        notes.append(
            f"FD, precision and recall depend on the number of images, here {n:,} and {m:,}: compare equal numbers"
        )
    return notes
