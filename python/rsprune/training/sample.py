"""Drawing images: every image has a seed of its own, so that it does not depend on those beside it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    SchedulerMixin,
)

from rsprune.errors import ConfigError
from rsprune.files import make_folder, write_array
from rsprune.training import models, publish
from rsprune.training.config import SampleConfig
from rsprune.training.pictures import Writer
from rsprune.training.pipeline import TilePipeline


def load_pipeline(folder: Path, *, device: str = "cpu") -> TilePipeline:
    """The pipeline of a model folder; runs none of the code that may lie in it. Raises `ConfigError`."""
    model = models.load(folder)
    index = publish.read_index(folder)
    name = "unet" if (folder / "unet").is_dir() else "transformer"
    flow = "FlowMatch" in publish.read_scheduler(folder)["_class_name"]
    kind = FlowMatchEulerDiscreteScheduler if flow else DDPMScheduler
    scheduler = kind.from_pretrained(folder / "scheduler")
    vae = None
    if (folder / "vae").is_dir():
        vae = AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True).to(device).eval()
    return make_pipeline(name, model.to(device).eval(), scheduler, vae=vae, **index)


def make_pipeline(
    name: str,
    model: ModelMixin,
    scheduler: SchedulerMixin,
    *,
    labels: list[str],
    pixel_unshuffle: int,
    vae: AutoencoderKL | None = None,
    residual: float = 0.0,
) -> TilePipeline:
    """A pipeline for a network; a DDPM one takes DDIM steps, which are good in 25 instead of 1000."""
    if isinstance(scheduler, DDPMScheduler):
        scheduler = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    pipe = TilePipeline(
        scheduler,
        **{name: model},
        vae=vae,
        labels=labels,
        pixel_unshuffle=pixel_unshuffle,
        residual=residual,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: TilePipeline, settings: SampleConfig) -> Iterator[np.ndarray]:
    """Batches [B, H, W, C] of images 0 to n, uint8 or with 16 bits uint16 of the whole range.

    Raises:
        ConfigError: The model knows no such scene, or has to be given an image.
    """
    if models.given_channels(pipe.network):
        raise ConfigError("this model is fine-tuned: give the images that it draws from with --given FOLDER")
    if settings.mean_of != 1:
        raise ConfigError("--mean-of is for images that are drawn from others: leave it out, or give --given")
    labels = list(pipe.config.labels)
    if settings.scene is not None and settings.scene not in labels:
        known = f"it knows {', '.join(labels)}" if labels else "it was trained with --condition none"
        raise ConfigError(f"the model has no scene {settings.scene!r}: {known}")
    if settings.guidance != 1 and settings.scene is None:
        raise ConfigError("--guidance makes a condition stronger: give one with --scene")
    top, dtype = (65535, np.uint16) if settings.bits == 16 else (255, np.uint8)
    for first in range(0, settings.n, settings.batch_size):
        numbers = range(first, min(settings.n, first + settings.batch_size))
        images = pipe(
            batch_size=len(numbers),
            class_labels=None if settings.scene is None else [settings.scene] * len(numbers),
            guidance_scale=settings.guidance,
            generator=[image_generator(settings.seed, i) for i in numbers],
            num_inference_steps=settings.steps,
            output_type="np",
        ).images
        yield (images * top).round().astype(dtype)


def image_generator(seed: int, number: int) -> torch.Generator:
    """Random numbers of one image."""
    own = np.random.Philox(key=[seed, number]).random_raw() >> 1
    return torch.Generator().manual_seed(int(own))


def write_samples(pipe: TilePipeline, settings: SampleConfig, out: Path) -> Path:
    """Writes ``000000.png`` (or ``.tif``) and on, or ``samples.npy``; returns the folder or the file.

    Raises:
        ConfigError: The format cannot hold the bands, what writes it is not installed, or there can be no folder.
    """
    writer = None if settings.format == "npy" else Writer(settings.format, pipe.bands, settings.bits or 8)
    batches = draw(pipe, settings)
    # What cannot be drawn makes no folder, and where there can be none not all is drawn.
    first = next(batches)
    make_folder(out)
    batches = itertools.chain([first], batches)
    if writer is None:
        images = np.concatenate(list(batches))
        write_array(out / "samples.npy", images)
        return out / "samples.npy"
    number = 0
    for batch in batches:
        for image in batch:
            writer.write(out / f"{number:06d}.{settings.format}", image)
            number += 1
    return out
