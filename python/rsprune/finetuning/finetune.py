"""Fine-tuning: a trained model learns to follow an image that it is given, and is measured on held-out images."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ModelMixin

from rsprune.encoders.packaged import sha256
from rsprune.errors import ConfigError
from rsprune.evaluation.provenance import code
from rsprune.files import write_json
from rsprune.finetuning.config import FinetuneConfig, SemanticConfig, SuperResolutionConfig
from rsprune.finetuning.foundation import Foundation, widen
from rsprune.finetuning.held_out import HeldOut, centred, first_by_hash, position, rows_of, unseen
from rsprune.radiometry import Radiometry
from rsprune.training import models
from rsprune.training.batches import Images
from rsprune.training.config import TrainConfig, checked
from rsprune.training.pipeline import TilePipeline
from rsprune.training.pool import Pool, load
from rsprune.training.sample import load_pipeline
from rsprune.training.train import train

METRICS = "metrics.json"
Say = Callable[[str], None]


class Finetuning(ABC):
    """What all fine-tuning has in common; a `rsprune.training.task.Task`."""

    name: ClassVar[str]
    defaults: ClassVar[dict[str, Any]] = {}  # of the training, over those of the foundation
    held_out: HeldOut  # once the pool is loaded
    residual: float = 0.0
    truth: np.ndarray  # [M, R, R, C], the middle of them

    def __init__(self, settings: FinetuneConfig, foundation: Foundation, *, device: str = "cpu"):
        self.settings, self.foundation, self.device = settings, foundation, device

    # What a task is --------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def given_bands(self) -> int: ...

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What of the task decides how the network is used."""

    @abstractmethod
    def check(self, training: TrainConfig) -> None:
        """Raises `ConfigError` where it could not be measured in the end; before anything is read."""

    @abstractmethod
    def given(self, batch: Images) -> torch.Tensor: ...

    @abstractmethod
    def measure(self, pipe: TilePipeline, training: TrainConfig, output: Path) -> dict[str, Any]:
        """JSON-able scores on the held-out images; draws a picture of some of them."""

    @abstractmethod
    def validate(
        self, pipe: TilePipeline, output: Path, step: int, settings: TrainConfig
    ) -> dict[str, float]: ...

    # What all do alike -----------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        own = {"foundation": self.foundation.sha256, "from_scratch": self.settings.from_scratch}
        return {"task": {"name": self.name, **self.about(), **own}}

    def pool(self, settings: TrainConfig, say: Say) -> Pool:
        if settings.vae or settings.condition != "none":
            raise ConfigError(
                "fine-tuning is for pixels and for what is given: leave out --vae and --condition"
            )
        pool = load(settings, say=say)
        self._check_bands(pool, settings.data)
        pool, held_out = self._split(pool, settings, say)
        new = unseen(held_out, pool)
        if len(new.ids) < len(held_out.ids):
            say(
                f"{len(held_out.ids) - len(new.ids):,} held-out images are equal to training images and left out"
            )
        if not new.ids:
            raise ConfigError("no held-out image is left to measure on: give others with --validation-data")
        self.held_out = first_by_hash(new, self.settings.metric_images, seed=settings.seed)
        self.truth = centred(self.held_out.pixels, settings.resolution or pool.pixels.shape[1])
        say(f"{len(pool.ids):,} images to train on, {len(new.ids):,} held out ({new.rule})")
        return pool

    def start(self, model: ModelMixin) -> None:
        if not self.settings.from_scratch:
            widen(model, self.foundation.network, labels=self.foundation.labels)

    def _split(self, pool: Pool, settings: TrainConfig, say: Say) -> tuple[Pool, HeldOut]:
        wish = self.settings.validation_data
        if wish is not None:
            bits, scales = 8 * pool.pixels.itemsize, pool.facts["scales"]
            alike = len({str(scale["scale"]) for scale in scales}) == 1
            other = load(
                replace(settings, data=wish, kept="all", sample_weights=None, bits=bits),
                radiometry=Radiometry.from_json(scales[0]) if alike else None,
                say=say,
            )
            self._check_bands(other, wish)
            self._check_scale(pool, other, wish)
            return pool, HeldOut(other.ids, other.pixels, f"all images of {Path(wish).name}")
        share = self.settings.held_out
        out = np.array([position(id, settings.seed) < share for id in pool.ids])
        if out.all() or not out.any():
            raise ConfigError(
                f"--held-out {share:g} of {len(pool.ids):,} images leaves {'none' if out.all() else 'all'} to "
                "train on: give another share, or --validation-data"
            )
        rule = f"{share:g} of the data, by a hash of seed {settings.seed} and id"
        return rows_of(pool, ~out), HeldOut([id for id, o in zip(pool.ids, out, strict=True) if o], pool.pixels[out], rule)  # fmt: skip

    def _check_scale(self, pool: Pool, other: Pool, data: str) -> None:
        """Raises `ConfigError` where equal values of held-out and training images would become different ones."""
        trained, held_out = ({str(scale["scale"]) for scale in p.facts["scales"]} for p in (pool, other))
        if held_out - trained:
            raise ConfigError(
                f"values {min(held_out - trained)} of {data} become 0 to 1, and {min(trained)} of the training "
                "images: give both the same range with 'rsprune run --scale'"
            )

    def _check_bands(self, pool: Pool, data: str) -> None:
        bands = pool.pixels.shape[3]
        if bands != self.foundation.bands:
            raise ConfigError(
                f"the images of {data} have {bands} bands and those of the model {self.foundation.folder} have "
                f"{self.foundation.bands}: choose bands with 'rsprune run --bands', or give another model"
            )


def make_task(settings: SuperResolutionConfig | SemanticConfig, *, device: str = "cpu") -> Finetuning:
    """What `settings` are settings of. Raises `ConfigError` where there is no model to start from."""
    from rsprune.finetuning.semantic import Semantic
    from rsprune.finetuning.super_resolution import SuperResolution

    foundation = Foundation.open(Path(settings.foundation))
    if isinstance(settings, SemanticConfig):
        return Semantic(settings, foundation, device=device)
    return SuperResolution(settings, foundation, device=device)


def finetune(
    settings: SuperResolutionConfig | SemanticConfig,
    training: Mapping[str, Any],
    output: Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Fine-tunes, or goes on, and measures; the result is written to ``output/metrics.json``.

    Args:
        settings: Of the kind of fine-tuning.
        training: Settings of `TrainConfig`, at least ``data``; the others are those of the foundation's training.
        output: The folder of the new model.
        device: "auto", "cpu" or "cuda".
        overwrite: Throw away what another training left there.
        say: Takes notices.

    Returns:
        Scores on held-out images and everything they depend on. Nothing of it in other processes than the first.

    Raises:
        ConfigError: The data, the settings or what lies in `output` cannot be used.
        DivergedError: The loss is not finite; the last good checkpoint is kept.
        OutOfMemory: A step does not fit into memory.
    """
    task = make_task(settings, device=_place(device))
    wish = training_settings(task, training)
    task.check(wish)
    state = train(wish, output, task=task, device=device, overwrite=overwrite, say=say)
    if os.environ.get("RANK", "0") != "0":  # one of several processes: the first one measures
        return {}
    say(f"measuring on {len(task.held_out.ids):,} held-out images")
    scores = task.measure(load_pipeline(output, device=task.device), wish, output)
    folder = output / models.FOLDERS[wish.model]
    facts = {
        **code(),
        "task": state["settings"]["task"],
        "settings": asdict(settings),
        "model": {"path": str(output), "weights_sha256": sha256(next(folder.glob("*.safetensors")))},
        "training": {
            **{name: state[name] for name in ("step", "images_seen", "data", "parameters", "versions")},
            "settings": asdict(wish),
        },
        "held_out": task.held_out.facts(),
        "seed": wish.seed,
        **scores,
    }
    write_json(output / METRICS, facts)
    return facts


def training_settings(task: Finetuning, values: Mapping[str, Any]) -> TrainConfig:
    """Settings of the training: those of the foundation's, over them the task's own, over them `values`.

    Raises:
        ConfigError: They do not fit each other.
    """
    found, own = task.foundation.training(), task.defaults | dict(values)
    batch = ("train_batch_size", "gradient_accumulation_steps")
    # Where one is given the other is its default, not the foundation's.
    if any(own.get(name) is not None for name in batch):
        found = {name: value for name, value in found.items() if name not in batch}
    return checked(TrainConfig, found | own)


def _place(device: str) -> str:
    """Where the model is measured."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
