"""A small collection with something of everything: real tiles, copies, flat, noisy and half-empty ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

TILES = Path(__file__).parent / "data" / "sentinel2"  # class folders, so it is a reference as well
EMPTY, FLAT, NOISE, COPIES = 3, 4, 5, 6


def tiles() -> list[Path]:
    return sorted(TILES.glob("*/*.png"))


def make(root: Path, *, seed: int = 0) -> Path:
    """Writes the collection below `root`: real tiles, mirrored ones, and faults of known number."""
    rng = np.random.default_rng(seed)
    for i, tile in enumerate(tiles()):
        pixels = np.asarray(Image.open(tile).convert("RGB"))
        save(root / f"real/{i:02d}.png", pixels)
        save(root / f"mirrored/{i:02d}.png", pixels[:, ::-1])
        if i < COPIES:
            (root / "copies").mkdir(exist_ok=True)
            shutil.copy(root / f"real/{i:02d}.png", root / f"copies/{i:02d}.png")
        if i < EMPTY:  # alpha 0 marks two thirds of the pixels as holding no data
            alpha = np.full((64, 64, 1), 255, np.uint8)
            alpha[:, :43] = 0
            save(root / f"empty/{i:02d}.png", np.concatenate([pixels, alpha], axis=2))
    for i in range(FLAT):
        save(root / f"flat/{i:02d}.png", np.full((64, 64, 3), 40 * i + 20, np.uint8))
    for i in range(NOISE):
        save(root / f"noise/{i:02d}.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
