"""Held-out denoising loss of a trained model: the same images, noise and times for every model that is compared.

Of two models the differences over images are paired, so most of what makes one image harder than another cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ModelMixin
from torch.nn.functional import pixel_unshuffle

from rsprune.errors import ConfigError
from rsprune.evaluation.config import TIMES
from rsprune.training import latents, models, publish
from rsprune.training.config import TrainConfig
from rsprune.training.objective import Objective, make_objective


@dataclass(frozen=True)
class Denoiser:
    """A trained network, and what is needed to ask it to denoise.

    Attributes:
        labels: Number of its conditions; it is asked without any.
        resolution: Side of its images (pixels).
        bands: Of its images.
        vae: What makes latents of images, where it was trained on them; each is then given the mean of its own.
    """

    network: ModelMixin
    objective: Objective
    labels: int
    unshuffle: int
    resolution: int
    bands: int
    vae: AutoencoderKL | None = None

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> Denoiser:
        """The model in `folder`, which are averaged weights where it was trained with them.

        Raises:
            ConfigError: There is no model, or it needs more than noise.
        """
        network = models.load(folder).to(device).eval().requires_grad_(False)
        if models.given_channels(network):
            raise ConfigError(
                f"{folder} is fine-tuned to follow an image, which this loss does not give it: "
                f"its scores are in {folder / 'metrics.json'}"
            )
        index = publish.read_index(folder)
        unshuffle = index["pixel_unshuffle"]
        side, bands = network.config.sample_size * unshuffle, network.config.in_channels // unshuffle**2
        vae = None
        if (folder / "vae").is_dir():
            vae = AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True)
            vae = vae.to(device).eval().requires_grad_(False)
            side, bands = side * latents.factor(vae), vae.config.in_channels
        return cls(network, _objective(folder), len(index["labels"]), unshuffle, side, bands, vae)

    @torch.inference_mode()
    def encoded(self, images: np.ndarray) -> torch.Tensor:
        """What noise is added to [B, C, h, w]: pixels from -1 to 1, or latents, of images uint8 [B, H, W, C]."""
        device = next(self.network.parameters()).device
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        if self.vae is None:
            return pixels
        return latents.scaled(self.vae, self.vae.encode(pixels).latent_dist.mean)


def denoising_loss(
    model: Denoiser,
    images: np.ndarray,
    *,
    times: Sequence[float] = TIMES,
    seed: int = 0,
    batch_size: int = 128,
    mixed_precision: str = "no",
) -> np.ndarray:
    """Mean squared error of what the network predicts, float64 [N, T], for each image and time.

    Image i gets noise of its own at each time, drawn from `seed` and i; nothing depends on the batch.

    Args:
        model: The network.
        images: uint8 [N, H, W, C] of the model's size.
        times: Share of noise, 0 to 1.
        seed: Of the noise.
        batch_size: Images per forward pass.
        mixed_precision: "no", or "bf16" for a faster forward pass.

    Raises:
        ConfigError: The images are not of the model's size.
    """
    wanted = (model.resolution, model.resolution, model.bands)
    if images.ndim != 4 or images.shape[1:] != wanted:
        raise ConfigError(
            f"the model takes images of {wanted[0]} x {wanted[1]} pixels and {wanted[2]} bands, "
            f"not {' x '.join(map(str, images.shape[1:]))}: cut them with --tile {wanted[0]}"
        )
    losses = np.empty((len(images), len(times)))
    for first in range(0, len(images), batch_size):
        rows = slice(first, min(first + batch_size, len(images)))
        given = model.encoded(images[rows])
        image = pixel_unshuffle(given, model.unshuffle).contiguous()
        shape = (len(times), *given.shape[1:])
        noise = np.stack([_noise(seed, i, shape) for i in range(rows.start, rows.stop)])
        for j, time in enumerate(times):
            eps = pixel_unshuffle(torch.from_numpy(noise[:, j]).to(given.device), model.unshuffle)
            losses[rows, j] = _loss(model, image, eps, time, mixed_precision == "bf16")
    return losses


@torch.inference_mode()
def _loss(model: Denoiser, image: torch.Tensor, noise: torch.Tensor, time: float, bf16: bool) -> np.ndarray:
    at = torch.full((len(image),), time, device=image.device)
    inputs, step, target = model.objective.task(image, noise, at, at)
    label = None
    if model.labels or isinstance(model.network, models.CLASSES["dit"]):
        label = torch.full((len(image),), model.labels, dtype=torch.long, device=image.device)
    with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
        predicted = model.network(inputs, timestep=step, class_labels=label).sample
    squared: np.ndarray = (predicted.float() - target).square().mean((1, 2, 3)).double().cpu().numpy()
    return squared


def _noise(seed: int, number: int, shape: tuple[int, ...]) -> np.ndarray:
    stream = np.random.Generator(np.random.Philox(key=[seed, number]))
    return stream.standard_normal(shape, dtype=np.float32)


def _objective(folder: Path) -> Objective:
    """As the model was trained with, from what its scheduler says."""
    about = publish.read_scheduler(folder)
    if "FlowMatch" in about["_class_name"]:
        # The times are given, not drawn.
        return make_objective(TrainConfig(data="", objective="flow", timestep_sampling="uniform"))
    kind = about["prediction_type"]
    return make_objective(TrainConfig(data="", objective="ddpm", prediction_type=kind))
