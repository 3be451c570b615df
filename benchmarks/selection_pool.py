"""The pools that `selection.py` measures on: real tiles with known scenes, and faults planted among them.

Everything slow (features of the tiles) is computed once and cached in one file per seed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import alexnet
import numpy as np
from PIL import Image as Picture
from scipy import ndimage

from rsprune.encoders import load_encoder
from rsprune.experiment.imagery import open_picture, tile_scenes
from rsprune.judge import colour_texture
from rsprune.ops import patch_entropy
from rsprune.radiometry import Radiometry
from rsprune.scores import SCORES, content_hash, score_batch
from rsprune.sources.base import Image

TILE = 64  # pixels
PATCHES = (8, 16, 32, 64)
BAD = ("noise", "nodata", "blur", "jpeg", "stripes")  # the others are copies, which are sound
FAULTS = (*BAD, "copy", "near_copy")
FAULT_SHARE = 0.1
TEXTURED = 6.0  # grey standard deviation; a fault planted in an empty sea would not be one
IDENTITY = Radiometry(((0.0, 256.0),))


@dataclass(frozen=True)
class Tiles:
    """N tiles and all that is known of them.

    Attributes:
        scene: text [N], the scene by rules on bands and colours that no encoder sees; of the original.
        fault: text [N], "" for a clean tile, else one of `FAULTS`.
        origin: int64 [N], equal for a tile and its copies.
        hashes: content hash [N].
        deviation: float32 [N], mean over bands of the standard deviation of the pixels.
        statistics: float32 [N, 37], colour and texture statistics.
        alexnet: float32 [N, 256], conv5.
        entropies: float32 [N, len(PATCHES)], bits.
        scores: float32 [N, len(SCORES)].
        features: by encoder, float32 [N, D], not yet transformed.
    """

    scene: np.ndarray
    fault: np.ndarray
    origin: np.ndarray
    hashes: np.ndarray
    deviation: np.ndarray
    statistics: np.ndarray
    alexnet: np.ndarray
    entropies: np.ndarray
    scores: np.ndarray
    features: dict[str, np.ndarray]

    def take(self, rows: np.ndarray) -> Tiles:
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "features"}
        return Tiles(
            **{name: column[rows] for name, column in columns.items()},
            features={name: x[rows] for name, x in self.features.items()},
        )

    @property
    def clean(self) -> np.ndarray:
        return self.fault == ""

    @property
    def empty(self) -> np.ndarray:
        """Whether there is next to nothing to see: a deviation below 3 of 255, as on open sea."""
        return self.deviation < 3

    @property
    def bad(self) -> np.ndarray:
        return np.isin(self.fault, BAD)


def natural(clean: Tiles, faulty: Tiles) -> Tiles:
    """All clean tiles and all planted ones, which are a tenth of the clean ones."""
    return _joined(clean, faulty)


def long_tailed(clean: Tiles, faulty: Tiles, seed: int) -> Tiles:
    """Scenes in random order, the r-th with 800 / r^1.5 tiles or what there is; the same share of faults."""
    random = np.random.default_rng(seed)
    names = random.permutation(np.unique(clean.scene))
    rows = []
    for place, name in enumerate(names, start=1):
        members = np.flatnonzero(clean.scene == name)
        rows.append(random.permutation(members)[: round(800 / place**1.5)])
    taken = np.sort(np.concatenate(rows))
    # A fault needs its original neither in the pool nor absent, but a copy does need it.
    usable = np.flatnonzero(faulty.bad | np.isin(faulty.origin, clean.origin[taken]))
    n = round(FAULT_SHARE * len(taken))
    return _joined(clean.take(taken), faulty.take(np.sort(random.permutation(usable)[:n])))


def load(cache: Path, archive: Path, seed: int, encoders: tuple[str, ...]) -> tuple[Tiles, Tiles]:
    """The clean tiles, and those planted with `seed`; from the cache where they are there."""
    pixels: list[tuple[np.ndarray, np.ndarray]] = []

    def clean_pixels() -> tuple[np.ndarray, np.ndarray]:
        if not pixels:
            pixels.append(_tiles())
        return pixels[0]

    def clean_images() -> tuple[list[Image], dict[str, np.ndarray]]:
        images, scene = clean_pixels()
        about = {"scene": scene, "fault": np.full(len(scene), "", "<U9"), "origin": np.arange(len(scene))}
        return [Image(image) for image in images], about

    def faulty_images() -> tuple[list[Image], dict[str, np.ndarray]]:
        return _planted(*clean_pixels(), seed)

    def of(name: str, make: Callable[[], tuple[list[Image], dict[str, np.ndarray]]]) -> Tiles:
        return _cached(cache / f"{name}.npz", make, encoders, archive, lambda: clean_pixels()[0])

    return of("clean", clean_images), of(f"planted-{seed}", faulty_images)


def load_reference(cache: Path, encoder: str) -> tuple[np.ndarray, np.ndarray]:
    """Scene text [M] and features [M, D] of the labelled reference."""
    path = cache / "reference.npz"
    arrays: dict[str, np.ndarray] = dict(np.load(path)) if path.exists() else {}
    if encoder not in arrays:
        tiles, arrays["scene"] = _reference_tiles()
        arrays[encoder] = _features(encoder, list(tiles), _tiles()[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    return arrays["scene"], arrays[encoder]


def _features(name: str, images: list[np.ndarray], clean: np.ndarray) -> np.ndarray:
    """Features [N, D] of the images; an encoder that learns does so from the `clean` tiles."""
    encode = load_encoder(name, "cpu")
    if hasattr(encode, "fit"):
        sample = np.random.default_rng(0).permutation(len(clean))[: encode.fit_images]
        encode.restore(encode.fit(list(clean[sample]), 0))
    return np.concatenate([encode(images[i : i + 32]) for i in range(0, len(images), 32)])


def _cached(
    path: Path,
    make: Callable[[], tuple[list[Image], dict[str, np.ndarray]]],
    encoders: tuple[str, ...],
    archive: Path,
    clean: Callable[[], np.ndarray],
) -> Tiles:
    arrays: dict[str, np.ndarray] = dict(np.load(path)) if path.exists() else {}
    missing = [name for name in encoders if f"features:{name}" not in arrays]
    if not arrays or missing:
        images, about = make()
        if not arrays:
            arrays = {**about, **_described(images, archive)}
        filled = [_without_nodata(image) for image in images]
        for name in missing:
            arrays[f"features:{name}"] = _features(name, filled, clean())
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
    columns = {name: a for name, a in arrays.items() if not name.startswith("features:")}
    return Tiles(**columns, features={name: arrays[f"features:{name}"] for name in encoders})


def _described(images: list[Image], archive: Path) -> dict[str, np.ndarray]:
    rows = score_batch(images, [IDENTITY] * len(images))
    filled = np.stack([_without_nodata(image) for image in images])
    valid = np.stack([np.ones(filled.shape[1:3], bool) if i.valid is None else i.valid for i in images])
    entropies = [
        np.nanmean(patch_entropy(filled, p, valid=valid).reshape(len(images), -1), axis=1) for p in PATCHES
    ]
    return {
        "hashes": np.array([content_hash(image) for image in images]),
        "deviation": filled.std(axis=(1, 2)).mean(axis=1).astype(np.float32),
        "statistics": np.stack([colour_texture(pixels) for pixels in filled]),
        "alexnet": alexnet.features(archive, filled),
        "entropies": np.stack(entropies, axis=1).astype(np.float32),
        "scores": np.array([[row[name] for name in SCORES] for row in rows], np.float32),
    }


def _without_nodata(image: Image) -> np.ndarray:
    return image.pixels if image.valid is None else image.pixels * image.valid[..., None]


def _joined(a: Tiles, b: Tiles) -> Tiles:
    columns = {f.name: [getattr(t, f.name) for t in (a, b)] for f in fields(Tiles) if f.name != "features"}
    return Tiles(
        **{name: np.concatenate(parts) for name, parts in columns.items()},
        features={name: np.concatenate([a.features[name], b.features[name]]) for name in a.features},
    )


# Tiles and their scenes ---------------------------------------------------------------------------------------


def _reference_tiles() -> tuple[np.ndarray, np.ndarray]:
    """At most 100 tiles of each scene [M, 64, 64, 3] and their scenes, half a tile away from the pool's.

    None of them is in the pool, though each shares a quarter of its ground with four tiles that are.
    """
    pixels, names = _tiles(start=TILE // 2)
    random = np.random.default_rng(0)
    chosen = [random.permutation(np.flatnonzero(names == name))[:100] for name in np.unique(names)]
    rows = np.sort(np.concatenate(chosen))
    return pixels[rows], names[rows]


def _tiles(start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 64, 64, 3] and scene text [N]: all tiles of Sentinel-2 and of Blue Marble from `start` on."""
    pixels, names = [], []
    for picture in map(open_picture, ("sentinel2", "bluemarble")):
        h, w = picture.pixels.shape[:2]
        corners = np.mgrid[start : h - TILE + 1 : TILE, start : w - TILE + 1 : TILE]
        ys, xs = corners.reshape(2, -1)
        pixels.append(
            np.stack([picture.pixels[y : y + TILE, x : x + TILE] for y, x in zip(ys, xs, strict=True)])
        )
        names.append(tile_scenes(picture, ys, xs, TILE))
    return np.concatenate(pixels), np.concatenate(names)


# Faults -------------------------------------------------------------------------------------------------------


def _planted(pixels: np.ndarray, scene: np.ndarray, seed: int) -> tuple[list[Image], dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    textured = np.flatnonzero(pixels.mean(axis=3).std(axis=(1, 2)) > TEXTURED)
    origin = random.permutation(textured)[: round(FAULT_SHARE * len(pixels))]
    fault = np.resize(FAULTS, len(origin))
    images = [_damaged(pixels[row], name, random) for row, name in zip(origin, fault, strict=True)]
    return images, {"scene": scene[origin], "fault": fault.astype("<U9"), "origin": origin}


def _damaged(tile: np.ndarray, fault: str, random: np.random.Generator) -> Image:
    values = tile.astype(np.float32)
    if fault == "noise":
        return Image(_clipped(values + random.normal(0, 60, tile.shape)))
    if fault == "nodata":
        angle, share = random.uniform(0, 2 * np.pi), random.uniform(0.55, 0.9)
        y, x = np.mgrid[:TILE, :TILE]
        along = x * np.cos(angle) + y * np.sin(angle)
        valid = along > np.quantile(along, share)
        return Image(tile * valid[..., None], valid)
    if fault == "blur":
        return Image(_clipped(ndimage.gaussian_filter(values, (sigma := random.choice([2, 4]), sigma, 0))))
    if fault == "jpeg":
        return Image(_jpeg(tile, 10))
    if fault == "stripes":
        lines = random.normal(0, 25, (TILE, 1, 1)) * (random.random((TILE, 1, 1)) < 0.5)
        return Image(_clipped(values + lines))
    if fault == "copy":
        return Image(tile.copy())
    kind = random.integers(3)
    near = values + 3, values + random.normal(0, 1, tile.shape), _jpeg(tile, 95)
    return Image(_clipped(near[kind]))


def _clipped(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _jpeg(tile: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Picture.fromarray(tile).save(file, "JPEG", quality=quality)
    return np.asarray(Picture.open(file))
