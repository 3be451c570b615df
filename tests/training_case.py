"""A tiny training: real tiles, a network of 9,000 weights, a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

import collection
from rsprune.training.config import TrainConfig, checked

TINY_UNET = {"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 8}
TINY_DIT = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "patch_size": 4}


def tiles(folder: Path, n: int = 24, *, side: int = 32) -> Path:
    """Writes `n` real tiles as class folders, cut to `side`."""
    for i, tile in enumerate(collection.tiles()[:n]):
        pixels = np.asarray(Image.open(tile).convert("RGB"))[:side, :side]
        collection.save(folder / tile.parent.name / f"{i:02d}.png", pixels)
    return folder


def settings(data: Path, **changes) -> TrainConfig:
    """Settings of a tiny training; `network` changes the network's arguments."""
    network = {**(TINY_DIT if changes.get("model") == "dit" else TINY_UNET), **changes.pop("network", {})}
    path = data.parent / f"{changes.get('model', 'unet')}.json"
    path.write_text(json.dumps(network))
    base = {
        "data": str(data), "resolution": 16, "train_batch_size": 4, "max_train_steps": 6,
        "lr_warmup_steps": 2, "checkpointing_steps": 100, "validation_images": 0, "model_config": str(path),
    }  # fmt: skip
    return checked(TrainConfig, {**base, **changes})


def losses(output: Path) -> list[float]:
    """Loss of each step, of which none may be missing or twice."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]
