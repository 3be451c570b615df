"""A tiny experiment: a picture made of real tiles, a network of a few thousand weights, a few steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import collection
from rsprune.experiment.config import ExperimentConfig, load

TOML = """
title = "Tiny"
seeds = [0, 1]
primary = ["rsprune 25 %", "full"]

[data]
tile = 32
margin = 8

[[data.scenes]]
path = "picture.png"
stride = 24
block = 96

[reference]
n = 16
clusters = 4

[selection.embed]
encoder = "rcf"

[selection.select]
near_duplicate = 2.0

[training]
pixel_unshuffle = 2
train_batch_size = 4
lr_warmup_steps = 2

[network]
block_out_channels = [8, 16]
norm_num_groups = 4
attention_head_dim = 8

[measure]
checkpoints = [2, 4, 6]
loss_images = 8
grid = 4
sample_steps = 2

[[arms]]
strategy = "full"

[[arms]]
strategy = "rsprune"
keep = 0.25
"""


def picture(path: Path) -> Path:
    """Writes 384 x 512 pixels of real tiles, each in several orientations."""
    rng = np.random.default_rng(0)
    tiles = [np.asarray(Image.open(tile).convert("RGB")) for tile in collection.tiles()]
    rows = []
    for _ in range(6):
        turned = [np.rot90(tiles[rng.integers(len(tiles))], rng.integers(4)) for _ in range(8)]
        rows.append(np.concatenate(turned, axis=1))
    Image.fromarray(np.concatenate(rows)).save(path)
    return path


def settings(folder: Path, text: str = TOML) -> tuple[Path, ExperimentConfig]:
    """Writes the picture and the experiment's file into `folder`; the file and what it says."""
    path = folder / "tiny.toml"
    path.write_text(text)
    picture(folder / "picture.png")
    return path, load(path)
