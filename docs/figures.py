"""Draws the pictures of the page on the method from the demo's run: python docs/figures.py DEMO [FOLDER]."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import rsprune
from rsprune import reading
from rsprune.radiometry import Radiometry
from rsprune.run import Run
from rsprune.scores import score
from rsprune.sources.base import Image as Tile

GAP, TEXT, ZOOM = 6, 34, 2
INK, PAPER, ACCENT = (40, 40, 40), (255, 255, 255), (0, 114, 178)
AS_IS = Radiometry(((0.0, 256.0),))


def main(demo: str, folder: str = "docs/figures") -> None:
    run, out = Run.open(demo), Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    pool = Pool(run)
    for name, draw in (
        ("patches", patches), ("noise", noise), ("cloud", cloud), ("clusters", clusters), ("selection", selection),
    ):  # fmt: skip
        draw(pool).save(out / f"{name}.webp", quality=72, method=6)


class Pool:
    """Tiles of the demo with what the run says of them."""

    def __init__(self, run: Run):
        self.reader = reading.Reader(run)
        self.rows = list(reading.rows(run.table("scan")))
        self.entropy = run.table("score")["entropy"].to_numpy()
        decisions = run.decisions
        self.kept = decisions["kept"].to_numpy(zero_copy_only=False)
        self.rank = decisions["rank"].fill_null(-1).to_numpy()
        self.reason = np.array(decisions["reason"].to_pylist())
        self.cluster = decisions["cluster"].fill_null(-1).to_numpy()
        self.scene = np.array([s or "none" for s in decisions["scene"].to_pylist()])
        self.source = np.array([row["id"].partition("/")[0] for row in self.rows])

    def tile(self, row: int) -> np.ndarray:
        """Pixels uint8 [64, 64, 3]."""
        return self.reader.uint8(self.rows[row])


def patches(pool: Pool) -> Image.Image:
    """Whole-image against patch entropy, on tiles where they differ most and least."""
    rows = np.flatnonzero(pool.source != "landsat8")
    whole = np.array([entropy(pool.tile(i), 64) for i in rows])
    chosen = [
        rows[np.argmax(np.where(whole > 6, whole - pool.entropy[rows], 0))],
        rows[np.argmax(np.where(whole < 5.5, pool.entropy[rows], 0))],
        rows[np.argmax(pool.entropy[rows])],
    ]
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 4, 64, 0).repeat(3, 2)
    tiles = [ramp, *(pool.tile(i) for i in chosen)]
    cells = [(t, f"whole {entropy(t, 64):.1f} bits\n16-px patches {entropy(t, 16):.1f}") for t in tiles]
    return row_of(cells, zoom=3)


def noise(pool: Pool) -> Image.Image:
    """A tile with more and more noise: its entropy rises, its autocorrelation falls."""
    at = np.flatnonzero((pool.source == "sentinel2") & (pool.scene == "crops") & pool.kept)
    clean = pool.tile(at[np.argsort(pool.rank[at])[0]])
    rng = np.random.default_rng(0)
    tiles = [clean]
    for sigma in (20, 60):
        tiles.append(np.clip(clean + rng.normal(0, sigma, clean.shape), 0, 255).astype(np.uint8))
    tiles.append(rng.integers(0, 256, clean.shape, np.uint8))
    names = ("as it is", "noise, sigma 20", "noise, sigma 60", "nothing but noise")
    cells = []
    for tile, name in zip(tiles, names, strict=True):
        found = score(Tile(tile), AS_IS)
        cells.append(
            (tile, f"{name}\n{found['entropy']:.1f} bits, neighbours {found['autocorrelation']:.2f}")
        )
    return row_of(cells, zoom=3)


def cloud(pool: Pool) -> Image.Image:
    """Tiles of the cloudy scene with the most entropy, and sea tiles with the least."""
    landsat = np.flatnonzero(pool.source == "landsat8")
    sea = np.flatnonzero((pool.source == "bluemarble") & (pool.reason == "low_entropy"))
    rng = np.random.default_rng(0)
    most = landsat[np.argsort(-pool.entropy[landsat], kind="stable")[:4]]
    return row_of(
        [(pool.tile(i), f"{pool.entropy[i]:.1f} bits") for i in (*most, *rng.choice(sea, 4, replace=False))]
    )


def clusters(pool: Pool) -> Image.Image:
    """Clusters as rows: of each scene the largest one."""
    lines = []
    for scene in ("water", "coast", "woody", "crops", "built", "unknown"):
        inside = pool.cluster[(pool.scene == scene) & (pool.cluster >= 0)]
        largest = np.bincount(inside).argmax()
        rows = np.flatnonzero((pool.cluster == largest) & (pool.scene == scene))
        shown = np.random.default_rng(0).choice(rows, min(10, len(rows)), replace=False)
        lines.append(row_of([(pool.tile(i), "") for i in sorted(shown)], zoom=1, label=scene, places=10))
    return stacked(lines)


def selection(pool: Pool) -> Image.Image:
    """As many tiles drawn from the pool as from what is kept."""
    rng = np.random.default_rng(0)
    lines = []
    for name, rows in (("pool", np.arange(len(pool.rows))), ("kept", np.flatnonzero(pool.kept))):
        drawn = rng.choice(rows, 48, replace=False)
        for i in range(0, 48, 12):
            lines.append(
                row_of([(pool.tile(j), "") for j in drawn[i : i + 12]], zoom=1, label="" if i else name)
            )
    return stacked(lines)


def entropy(tile: np.ndarray, patch: int) -> float:
    """Mean bits over bands and patches."""
    return float(rsprune.patch_entropy(np.ascontiguousarray(tile[None]), patch).mean())


def row_of(
    cells: list[tuple[np.ndarray, str]], *, zoom: int = ZOOM, label: str | None = None, places: int = 0
) -> Image.Image:
    """Tiles beside each other, words below, a label before them."""
    font = ImageFont.load_default(13)
    side, left = 64 * zoom, 0 if label is None else 68
    below = TEXT if any(words for _, words in cells) else 0
    width = left + max(places, len(cells)) * (side + GAP) - GAP
    picture = Image.new("RGB", (width, side + below), PAPER)
    pen = ImageDraw.Draw(picture)
    if label:
        pen.text((0, side // 2 - 8), label, ACCENT, font)
    for i, (tile, words) in enumerate(cells):
        x = left + i * (side + GAP)
        picture.paste(Image.fromarray(tile).resize((side, side), Image.Resampling.NEAREST), (x, 0))
        pen.multiline_text((x, side + 3), words, INK, font, spacing=1)
    return picture


def stacked(lines: list[Image.Image]) -> Image.Image:
    """Pictures below each other."""
    height = sum(line.height + GAP for line in lines) - GAP
    picture = Image.new("RGB", (max(line.width for line in lines), height), PAPER)
    y = 0
    for line in lines:
        picture.paste(line, (0, y))
        y += line.height + GAP
    return picture


if __name__ == "__main__":
    main(*sys.argv[1:])
