"""A small network that tells classes from pixels: taught by real images, it judges whether others follow a layout."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

WIDTHS = (32, 64, 96)
BATCH = 32
LEARNING_RATE = 2e-3


class Segmenter(nn.Module):
    """Classes of pixels, from images [N, C, H, W] in -1..1: a U-Net on three levels."""

    def __init__(self, bands: int, classes: int):
        super().__init__()
        a, b, c = WIDTHS
        self.first, self.second, self.third = _block(bands, a), _block(a, b, 2), _block(b, c, 2)
        self.up, self.top = _block(c + b, b), _block(b + a, a)
        self.head = nn.Conv2d(a, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes, H, W]."""
        first = self.first(x)
        second = self.second(first)
        third = self.third(second)
        for block, skip in ((self.up, second), (self.top, first)):
            third = block(torch.cat([interpolate(third, skip.shape[2:]), skip], dim=1))
        return self.head(third)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1),
        nn.GroupNorm(8, outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1),
        nn.GroupNorm(8, outputs),
        nn.ReLU(),
    )


def taught(
    images: np.ndarray, masks: np.ndarray, classes: int, *, steps: int, seed: int, device: str = "cpu"
) -> Segmenter:
    """A segmenter that real images [N, H, W, C] with masks [N, H, W] have taught; mirrored at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Segmenter(images.shape[3], classes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(0, len(images), BATCH)
        down, right = (slice(None, None, step) for step in rng.choice([-1, 1], 2))
        x = _input(images[rows][:, down, right], device)
        y = torch.from_numpy(np.ascontiguousarray(masks[rows][:, down, right])).to(device).long()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def predicted(model: Segmenter, images: np.ndarray, *, batch_size: int = 128) -> np.ndarray:
    """Classes [N, H, W] uint8 of images [N, H, W, C]."""
    device = next(model.parameters()).device
    parts = range(0, len(images), batch_size)
    found = [model(_input(images[i : i + batch_size], device)).argmax(1) for i in parts]
    return torch.cat(found).to(torch.uint8).cpu().numpy()


def confusion(found: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Pixels [classes, classes] int64 of each true class (rows) that were found to be of each (columns)."""
    pairs = truth.astype(np.int64).ravel() * classes + found.ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def mean_iou(counts: np.ndarray) -> float:
    """Mean over the classes that occur of the pixels that both call so, over those that either does."""
    both, true = np.diag(counts), counts.sum(axis=1)
    either = true + counts.sum(axis=0) - both
    return float((both[true > 0] / either[true > 0]).mean())


def _input(images: np.ndarray, device: str | torch.device) -> torch.Tensor:
    x = torch.from_numpy(np.ascontiguousarray(images).astype(np.float32)).to(device)
    return x.permute(0, 3, 1, 2) / (np.iinfo(images.dtype).max / 2) - 1
