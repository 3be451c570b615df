"""What is measured of a trained model itself: its loss on held-out images, and images drawn from it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rsprune.config import SourceConfig
from rsprune.encoders import Encoder
from rsprune.errors import ConfigError
from rsprune.evaluation.config import TIMES, EvaluateConfig
from rsprune.evaluation.inputs import BATCH, Measured, read_images

NEEDED = ("torch", "diffusers", "accelerate")


def is_model(path: str) -> bool:
    """Whether `path` is the folder of a trained model."""
    return (Path(path) / "model_index.json").is_file()


def held_out_loss(model: str, reference: SourceConfig, *, seed: int, device: str) -> dict[str, Any]:
    """Facts about the loss of a model on real images, JSON-able.

    ``loss`` has the mean over all images as they are (`natural`), and where they lie in several folders, the
    mean in which every folder counts the same (`balanced`), and that of each folder.

    Raises:
        ConfigError: There is no model, or the images are not of its size.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"to measure a model needs {', '.join(missing)}: run pip install 'rsprune[train]'")
    from rsprune.encoders.packaged import sha256
    from rsprune.encoders.torch_model import torch_device
    from rsprune.evaluation.denoising import Denoiser, denoising_loss
    from rsprune.training.models import weights_of

    place = torch_device(device)
    loaded = Denoiser.load(Path(model), device=place)
    images = read_images(reference)
    losses = denoising_loss(loaded, images.pixels, seed=seed)
    names = sorted(set(images.folders.tolist()))
    by_folder = {name: losses[images.folders == name] for name in names}
    found = {"natural": _told(losses.mean(axis=0))}
    if len(names) > 1:
        found["balanced"] = _told(np.mean([part.mean(axis=0) for part in by_folder.values()], axis=0))
        found["by_folder"] = {name: {"n": len(p), "mean": float(p.mean())} for name, p in by_folder.items()}
    return {
        "model": {"path": model, "weights_sha256": sha256(weights_of(Path(model)))},
        "reference": images.facts(),
        "seed": seed,
        "loss": {"name": "held-out denoising loss", "times": list(TIMES), **found},
    }


def drawn_features(
    model: str, extractor: Encoder | None, settings: EvaluateConfig, *, seed: int, device: str
) -> Measured:
    """Features of images drawn from a model. Raises `ConfigError` where there is nothing to extract them with."""
    from rsprune.encoders.torch_model import torch_device
    from rsprune.training.config import SampleConfig
    from rsprune.training.sample import draw, load_pipeline

    if extractor is None:
        raise ConfigError(
            "images drawn from a model are compared with images: give --reference a folder of images"
        )
    pipe = load_pipeline(Path(model), device=torch_device(device))
    wish = SampleConfig(n=settings.draw, steps=settings.draw_steps, seed=seed, batch_size=BATCH)
    return Measured(np.concatenate([extractor(list(batch)) for batch in draw(pipe, wish)]), model)


def _told(by_time: np.ndarray) -> dict[str, Any]:
    return {"mean": float(by_time.mean()), "by_time": by_time.tolist()}
