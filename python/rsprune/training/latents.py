"""Training images as latents of an autoencoder: encoded once, and kept beside the checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xxhash
from diffusers import AutoencoderKL

from rsprune.errors import ConfigError
from rsprune.files import write_array
from rsprune.layout import digest
from rsprune.training.config import TrainConfig
from rsprune.training.pool import Pool

BATCH = 32


def load_vae(path: str, *, bands: int, resolution: int) -> AutoencoderKL:
    """The autoencoder in a folder. Raises `ConfigError` where there is none, or it is one for other images."""
    try:
        vae = AutoencoderKL.from_pretrained(path, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as e:
        first = str(e).splitlines()[0]
        raise ConfigError(
            f"--vae {path} cannot be loaded: {first}; give a folder that AutoencoderKL.save_pretrained wrote"
        ) from None
    if vae.config.in_channels != bands or vae.config.out_channels != bands:
        raise ConfigError(
            f"--vae {path} is for {vae.config.in_channels} bands and the images have {bands}: "
            "give another autoencoder, or choose bands with 'rsprune run --bands'"
        )
    if resolution % factor(vae):
        raise ConfigError(
            f"images of {resolution} pixels do not divide by {factor(vae)}, by which --vae {path} shrinks them: "
            "give a --resolution that does"
        )
    return vae.eval().requires_grad_(False)


def factor(vae: AutoencoderKL) -> int:
    """How many pixels a side of a latent stands for."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def fingerprint(vae: AutoencoderKL) -> str:
    """Hash of the weights and of what scales its latents."""
    content = [xxhash.xxh3_128_hexdigest(v.cpu().numpy().tobytes()) for v in vae.state_dict().values()]
    return digest(content, vae.config.scaling_factor, vae.config.shift_factor)


def check(pool: Pool, settings: TrainConfig, resolution: int) -> None:
    """Raises `ConfigError` where a place would be chosen anew at every step: that needs encoding at every step."""
    if pool.pixels.shape[1:3] != (resolution, resolution) and not settings.center_crop:
        raise ConfigError(
            f"--vae encodes every image once, so it cannot crop at random places: give --center-crop, or --fit resize "
            f"--resolution {resolution}"
        )


def encode(
    pool: Pool, vae: AutoencoderKL, settings: TrainConfig, resolution: int, *, device: torch.device
) -> np.ndarray:
    """Latents [V, N, h, w, C] float32 of unit scale; V is 1, or 4 with the mirrored images (`mirrored`).

    What is drawn from the autoencoder's distribution depends on seed and id only.
    """
    vae, n = vae.to(device), len(pool.ids)
    side, channels = resolution // factor(vae), vae.config.latent_channels
    variants = 4 if settings.random_flip else 1
    out = np.empty((variants, n, side, side, channels), np.float32)
    top, left = ((size - resolution) // 2 for size in pool.pixels.shape[1:3])
    window = pool.pixels[:, top : top + resolution, left : left + resolution]
    keys = [[settings.seed, xxhash.xxh3_64_intdigest(id.encode())] for id in pool.ids]
    noise_of = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
    half = np.iinfo(pool.pixels.dtype).max / 2
    for variant in range(variants):
        for first in range(0, n, BATCH):
            rows = slice(first, min(n, first + BATCH))
            pixels = window[rows, :: -1 if variant & 2 else 1, :: -1 if variant & 1 else 1]
            image = torch.from_numpy(pixels.astype(np.float32) / half - 1).permute(0, 3, 1, 2).to(device)
            noise = np.stack([g.standard_normal((channels, side, side), np.float32) for g in noise_of[rows]])
            with torch.no_grad():
                spread = vae.encode(image).latent_dist
            code = scaled(vae, spread.mean + spread.std * torch.from_numpy(noise).to(device))
            out[variant, rows] = code.permute(0, 2, 3, 1).cpu().numpy()
    return out


def scaled(vae: AutoencoderKL, code: torch.Tensor) -> torch.Tensor:
    """Latents [B, C, h, w] as the network sees them, of unit scale, from the autoencoder's own."""
    return (code - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def cached(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array at `path`, which is made where it is not there yet."""
    if not path.is_file():
        write_array(path, make())
    return np.load(path)


def mirrored(ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Number of the variant [B] that rows `ys` and columns `xs` [B, R] of pixels belong to."""
    return 2 * (ys[:, 0] > ys[:, -1]) + (xs[:, 0] > xs[:, -1])
