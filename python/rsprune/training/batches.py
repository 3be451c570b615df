"""Batches as tensors on the device, out of a pool that lies there as well where there is room."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pixel_unshuffle

from rsprune.training.config import TrainConfig
from rsprune.training.latents import mirrored
from rsprune.training.pool import Pool
from rsprune.training.sampler import Batch, Sampler

ROOM = 0.5  # share of a GPU's free memory that images may take; the rest is the network's
AHEAD = 2  # batches that are drawn while a GPU works on those before; a CPU has better things to do


@dataclass(frozen=True)
class Images:
    """A batch: `image` and `noise` [B, C, R, R] float32, images of unit scale, and what is drawn with them."""

    image: torch.Tensor
    noise: torch.Tensor
    time: torch.Tensor  # [B], uniform
    normal_time: torch.Tensor  # [B]
    label: torch.Tensor | None  # [B] int64
    drawn: Batch


class Batches:
    """Turns what the sampler draws into tensors.

    Args:
        sampler: Draws.
        pool: What it draws from; its pixels are moved to the device where they fit.
        device: Of the network.
        settings: Of the training.
        latents: [V, N, h, w, C] float32 instead of the pool's pixels (`latents.encode`).
        ahead: Batches that a thread draws in advance.
    """

    def __init__(
        self,
        sampler: Sampler,
        pool: Pool,
        device: torch.device,
        settings: TrainConfig,
        *,
        latents: np.ndarray | None = None,
        ahead: int = 0,
    ):
        self.sampler, self.device, self.unshuffle, self.ahead = (
            sampler,
            device,
            settings.pixel_unshuffle,
            ahead,
        )
        stored = pool.pixels[None] if latents is None else latents
        self.is_resident = device.type == "cpu" or fits(stored.nbytes, device)
        self._stored = torch.from_numpy(stored)  # [V, N, H, W, C]
        if self.is_resident:
            self._stored = self._stored.to(device)
        self._half = np.iinfo(stored.dtype).max / 2 if stored.dtype.kind == "u" else None
        self._nothing = len(pool.names)  # the label of images whose condition is left out
        labels = pool.labels
        self._labels = None if labels is None else np.where(labels < 0, self._nothing, labels)
        self._wants_label = settings.model == "dit"

    def feed(self, positions: Iterable[np.ndarray]) -> Generator[Images, None, None]:
        """Batches of images at each of `positions` [B]."""
        if not self.ahead:
            yield from (self.at(self.sampler.batch(p)) for p in positions)
            return
        with ThreadPoolExecutor(1) as drawing:
            queue: deque[Future[Batch]] = deque()
            for p in positions:
                queue.append(drawing.submit(self.sampler.batch, p))
                if len(queue) > self.ahead:
                    yield self.at(queue.popleft().result())
            while queue:
                yield self.at(queue.popleft().result())

    def at(self, drawn: Batch) -> Images:
        """The images that were drawn."""
        rows, ys, xs = drawn.rows, drawn.ys, drawn.xs
        variant = np.zeros_like(rows)
        if len(self._stored) > 1:  # mirrored before they were encoded
            variant, ys, xs = mirrored(ys, xs), np.sort(ys), np.sort(xs)
        where = self.device if self.is_resident else torch.device("cpu")
        index = [torch.from_numpy(a).to(where) for a in (variant, rows, ys, xs)]
        v, r, y, x = index[0][:, None, None], index[1][:, None, None], index[2][:, :, None], index[3][:, None]
        image = self._moved(self._stored[v, r, y, x]).permute(0, 3, 1, 2).float()  # from [B, R, R, C]
        if self._half is not None:
            image = image / self._half - 1
        noise = pixel_unshuffle(self._moved(torch.from_numpy(drawn.noise)), self.unshuffle)
        return Images(
            pixel_unshuffle(image, self.unshuffle).contiguous(),
            noise,
            self._moved(torch.from_numpy(drawn.time)),
            self._moved(torch.from_numpy(drawn.normal_time)),
            self._label(drawn),
            drawn,
        )

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _label(self, drawn: Batch) -> torch.Tensor | None:
        if self._labels is None:  # a transformer always wants one
            zeros = torch.zeros(len(drawn.rows), dtype=torch.long, device=self.device)
            return zeros if self._wants_label else None
        label = np.where(drawn.unconditional, self._nothing, self._labels[drawn.rows])
        return self._moved(torch.from_numpy(label))


def fits(size: int, device: torch.device) -> bool:
    """Whether that many bytes fit beside a network on a GPU."""
    return size < ROOM * torch.cuda.mem_get_info(device)[0]
