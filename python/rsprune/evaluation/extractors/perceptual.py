"""AlexNet and VGG16 up to their last rectified convolution, mean pooled: 256 and 512 features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rsprune.encoders import check_rgb, checked_image, rgb_bands
from rsprune.encoders.torch_model import torch_device
from rsprune.errors import ConfigError
from rsprune.evaluation.extractors.weights import WEIGHTS

MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of LPIPS, for values in -1 .. 1
SMALLEST = 32  # pixels that leave both networks a position


def alexnet() -> nn.Sequential:
    """Krizhevsky 2014 up to relu5; a convolution is called conv0, conv1, ... in order."""
    layers: list[nn.Module] = []
    shapes = (
        (3, 64, 11, 4, 2),
        (64, 192, 5, 1, 2),
        (192, 384, 3, 1, 1),
        (384, 256, 3, 1, 1),
        (256, 256, 3, 1, 1),
    )
    for i, (c_in, c_out, kernel, stride, padding) in enumerate(shapes):
        if i in (1, 2):
            layers.append(nn.MaxPool2d(3, 2))
        layers += [nn.Conv2d(c_in, c_out, kernel, stride, padding), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def vgg16() -> nn.Sequential:
    """Simonyan & Zisserman 2015 up to relu5_3."""
    layers: list[nn.Module] = []
    c_in = 3
    for stage, (c_out, repeats) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if stage:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(repeats):
            layers += [nn.Conv2d(c_in, c_out, 3, 1, 1), nn.ReLU(inplace=True)]
            c_in = c_out
    return nn.Sequential(*layers)


NETWORKS = {"alexnet": alexnet, "vgg16": vgg16}


class Perceptual:
    """The extractor `name`; images are resized to `resize` x `resize` pixels, averaged where they are larger."""

    group = 8  # images per forward pass; every pass has as many, so features do not depend on batches

    def __init__(self, name: str, *, weights: Path | None = None, resize: int = 128, device: str = "auto"):
        if resize < SMALLEST:
            raise ConfigError(f"--resize is {resize}: give {SMALLEST} pixels or more")
        self.name, self.size = name, resize
        self.weight_hash = WEIGHTS[name].sha256
        self.device = torch_device(device)
        self.network = NETWORKS[name]()
        tensors = WEIGHTS[name].load(weights)
        convolutions = [layer for layer in self.network if isinstance(layer, nn.Conv2d)]
        for i, layer in enumerate(convolutions):
            state = {part: torch.from_numpy(tensors[f"conv{i}.{part}"]) for part in ("weight", "bias")}
            layer.load_state_dict(state)
        self.dim = convolutions[-1].out_channels
        self.network = self.network.eval().requires_grad_(False).to(self.device)
        in_memory: Any = {"memory_format": torch.channels_last}  # which the types of `to` do not know
        self.network = self.network.to(**in_memory)
        self._mean, self._std = (torch.tensor(v, device=self.device)[:, None, None] for v in (MEAN, STD))

    def check_bands(self, bands: Mapping[str, int]) -> None:
        """Raises `ConfigError` naming a source whose red, green and blue cannot be told."""
        check_rgb(bands)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features [n, dim] float32 of n images, each uint8 [H, W, C] of any size."""
        if not images:
            return np.empty((0, self.dim), np.float32)
        x = torch.cat([self._input(image) for image in images])
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -len(x) % self.group)).contiguous(
            memory_format=torch.channels_last
        )
        with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
            passes = [self.network(part).mean((2, 3)) for part in x.split(self.group)]
        return torch.cat(passes)[: len(images)].cpu().numpy()

    def _input(self, image: np.ndarray) -> torch.Tensor:
        rgb = np.ascontiguousarray(checked_image(image)[:, :, rgb_bands(image.shape[2])].transpose(2, 0, 1))
        x = torch.from_numpy(rgb)[None].to(self.device).float()
        x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return (x / 127.5 - 1 - self._mean) / self._std
