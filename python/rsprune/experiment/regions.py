"""Which ground belongs to which use: blocks of a picture, with a rim that no tile touches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rsprune.errors import ConfigError
from rsprune.experiment.config import REGIONS, DataConfig, SceneConfig


@dataclass(frozen=True)
class Tiles:
    """Upper left corners (pixels) of the tiles of one region: rows `ys` [N] and columns `xs` [N]."""

    ys: np.ndarray
    xs: np.ndarray

    def cut(self, pixels: np.ndarray, side: int) -> np.ndarray:
        """uint8 [N, side, side, C] out of a picture [H, W, C]."""
        inside = np.arange(side)
        return pixels[
            self.ys[:, None, None] + inside[:, None], self.xs[:, None, None] + inside
        ]  # [N, side, side, C]


def split(shape: tuple[int, int], scene: SceneConfig, data: DataConfig) -> Mapping[str, Tiles]:
    """Tiles per region of a picture [H, W]; no two regions share a block, and rims lie between them.

    Whole blocks are dealt out, row by row of blocks in random order, so that every region has its share of
    every latitude. Tiles of different regions are at least twice the margin apart. Tiles of the pool lie
    `stride` pixels apart, those of the other regions twice as far, and never so near that they overlap.

    Raises:
        ConfigError: The picture is too small for all regions to get a tile.
    """
    rows, columns = shape[0] // scene.block, shape[1] // scene.block
    room = scene.block - 2 * data.margin - data.tile
    if rows * columns < len(REGIONS) or room < 0:
        raise ConfigError(
            f"{scene.path} has {rows} x {columns} blocks of {scene.block} pixels, and a block room for "
            f"{max(0, room + 1)} tiles in a row: give other blocks, another margin or a larger picture"
        )
    owner = deal(rows, columns, np.asarray(data.shares), seed=data.seed)
    found = {}
    for number, region in enumerate(REGIONS):
        step = scene.stride if region == "pool" else max(2 * scene.stride, data.tile)
        offsets = data.margin + np.arange(0, room + 1, step)
        block_y, block_x = np.nonzero(owner == number)
        y = (block_y * scene.block)[:, None, None] + offsets[None, :, None]
        x = (block_x * scene.block)[:, None, None] + offsets[None, None, :]
        y, x = np.broadcast_arrays(y, x)
        found[region] = Tiles(y.ravel(), x.ravel())
    return found


def deal(rows: int, columns: int, shares: np.ndarray, *, seed: int) -> np.ndarray:
    """Number int64 [rows, columns] of the region of each block; every region gets its share, and at least one."""
    rng = np.random.default_rng(seed)
    # One permutation per row of blocks, and the regions dealt by largest arrears, so rounding evens out.
    wanted = shares / shares.sum()
    given = np.zeros(len(shares))
    dealt = np.empty(rows * columns, np.int64)
    for i in range(rows * columns):
        dealt[i] = (wanted * (i + 1) - given).argmax()
        given[dealt[i]] += 1
    # Of few blocks a small share may be none: it takes one of the region with most.
    for region in np.flatnonzero((given == 0) & (wanted > 0)):
        rich = given.argmax()
        dealt[np.flatnonzero(dealt == rich)[-1]] = region
        given[rich], given[region] = given[rich] - 1, 1
    grid: np.ndarray = dealt.reshape(rows, columns)
    for row in grid:
        rng.shuffle(row)
    return grid
