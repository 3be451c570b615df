"""Which images come when, and all that is random about them: functions of seed and position, without state.

Position k counts images over the whole run. So a batch does not depend on how the run was interrupted, on the
number of processes, or on how a step is split into forward passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rsprune.training.pool import Pool

ORDER, IMAGE = 0, 1  # streams of random numbers that belong to one seed


@dataclass(frozen=True)
class Batch:
    """What is random about `B` images at their positions."""

    rows: np.ndarray  # [B] int64, in the pool
    time: np.ndarray  # [B] float32, uniform in [0, 1], as rounding may give 1
    normal_time: np.ndarray  # [B] float32, standard normal
    ys: np.ndarray  # [B, R] int64, rows of pixels
    xs: np.ndarray  # [B, R] int64, columns of pixels
    unconditional: np.ndarray  # [B] bool: the condition is left out
    noise: np.ndarray  # [B, C, R, R] float32, standard normal


class Sampler:
    """Draws batches of positions from a pool of images."""

    def __init__(
        self,
        pool: Pool,
        *,
        seed: int,
        resolution: int,
        center_crop: bool = False,
        random_flip: bool = False,
        condition_dropout: float = 0.0,
    ):
        self.n, self.height, self.width, self.bands = pool.pixels.shape
        self.weights, self.seed, self.resolution = pool.weights, seed, resolution
        self.center_crop, self.random_flip, self.dropout = center_crop, random_flip, condition_dropout
        self._order = lru_cache(maxsize=2)(self._epoch)  # a batch may reach over the end of an epoch

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Rows [B] of the pool at `positions` [B]."""
        return np.array([self._order(k // self.n)[k % self.n] for k in positions.tolist()], dtype=np.int64)

    def batch(self, positions: np.ndarray) -> Batch:
        """Everything random about the images at `positions` [B]."""
        r, count = self.resolution, len(positions)
        uniform = np.empty((count, 6))
        normal_time = np.empty(count, np.float32)
        noise = np.empty((count, self.bands, r, r), np.float32)
        for i, position in enumerate(positions.tolist()):
            stream = self._stream(IMAGE, position)
            stream.random(out=uniform[i])
            normal_time[i] = stream.standard_normal(dtype=np.float32)
            stream.standard_normal(dtype=np.float32, out=noise[i])
        time, top, left, mirror_y, mirror_x, drop = uniform.T
        ys = self._window(top, mirror_y, self.height)
        xs = self._window(left, mirror_x, self.width)
        rows = self.rows(positions)
        return Batch(rows, time.astype(np.float32), normal_time, ys, xs, drop < self.dropout, noise)

    def _window(self, place: np.ndarray, mirror: np.ndarray, size: int) -> np.ndarray:
        free = size - self.resolution
        start = np.full(len(place), free // 2) if self.center_crop else (place * (free + 1)).astype(np.int64)
        inside = np.arange(self.resolution)[None].repeat(len(place), axis=0)
        if self.random_flip:
            inside = np.where(mirror[:, None] < 0.5, inside[:, ::-1], inside)
        return start[:, None] + inside

    def _epoch(self, epoch: int) -> np.ndarray:
        """Rows [N] of one pass: a permutation, or by weight, each row floor or ceil of its share."""
        stream = self._stream(ORDER, epoch)
        if self.weights is None:
            return stream.permutation(self.n)
        # Systematic sampling: N equidistant points on the sums of the weights.
        points = (np.arange(self.n) + stream.random()) / self.n
        chosen = np.searchsorted(np.cumsum(self.weights), points, side="right")
        return stream.permutation(np.minimum(chosen, np.flatnonzero(self.weights)[-1]))

    def _stream(self, kind: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, 2 * number + kind]))
