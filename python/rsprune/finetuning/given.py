"""Drawing from what a fine-tuned model is given: low-resolution images, or layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, interpolate, one_hot

from rsprune.config import SourceConfig
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.files import make_folder, write_array
from rsprune.locations import absolute
from rsprune.sources import ids, open_source
from rsprune.training.config import SampleConfig
from rsprune.training.pictures import Writer
from rsprune.training.pipeline import TilePipeline
from rsprune.training.sample import image_generator

# What a network is given ------------------------------------------------------------------------------------


def tensor_of(images: np.ndarray) -> torch.Tensor:
    """Images [N, H, W, C] uint8 or uint16 as [N, C, H, W] float32 in -1..1."""
    half = np.iinfo(images.dtype).max / 2
    return torch.from_numpy(images.astype(np.float32) / half - 1).permute(0, 3, 1, 2)


def lowered(image: torch.Tensor, scale: int, *, bits: int) -> torch.Tensor:
    """Images [N, C, H, W] in -1..1 with pixels `scale` times as large: means of squares, rounded to `bits`."""
    half = (2**bits - 1) / 2
    return ((avg_pool2d(image, scale) + 1) * half).round() / half - 1


def bicubic(low: torch.Tensor, scale: int) -> torch.Tensor:
    """Images [N, C, h, w] in -1..1 brought to `scale` times their size."""
    # Keys' kernel with a = -0.75, as OpenCV's; on means of squares it is nearer to the truth than Pillow's -0.5.
    return interpolate(low, scale_factor=scale, mode="bicubic", align_corners=False).clamp(-1, 1)


def layout(masks: torch.Tensor, classes: int) -> torch.Tensor:
    """Class numbers [N, H, W] as [N, classes, H, W] float32: 1 where a pixel is of the class, else -1."""
    return 2.0 * one_hot(masks.long(), classes).permute(0, 3, 1, 2) - 1


def prepared(task: Mapping[str, Any], images: np.ndarray) -> torch.Tensor:
    """What a network that was fine-tuned for `task` is given, of low-resolution images or layouts [N, h, w, C]."""
    if task["name"] == "semantic":
        return layout(torch.from_numpy(images[..., 0].astype(np.int64)), task["classes"])
    return bicubic(tensor_of(images), task["scale"])


# Drawing ----------------------------------------------------------------------------------------------------


def drawn(
    pipe: TilePipeline,
    given: torch.Tensor,
    *,
    bits: int,
    steps: int,
    seed: int,
    mean_of: int = 1,
    batch_size: int = 64,
) -> np.ndarray:
    """An image [N, H, W, C] uint8 or uint16 for each of `given` [N, G, H, W], or the mean of several.

    Image i has a seed of its own, so it is the same in any batch.
    """
    top = 2**bits - 1
    found = []
    for first in range(0, len(given), batch_size):
        part = given[first : first + batch_size]
        total = torch.zeros(())
        for draw in range(mean_of):
            generators = [image_generator((seed + draw) % 2**63, first + i) for i in range(len(part))]
            images = pipe(
                given=part, generator=generators, num_inference_steps=steps, output_type="pt"
            ).images
            total = total + images.float().cpu()
        pixels = (total / mean_of * top).round().permute(0, 2, 3, 1).numpy()
        found.append(pixels.astype(np.uint16 if bits == 16 else np.uint8))
    return np.concatenate(found)


def write_drawn(
    pipe: TilePipeline,
    task: Mapping[str, Any],
    path: str,
    settings: SampleConfig,
    out: Path,
    *,
    bits: int,
    count: int | None = None,
) -> tuple[int, Path]:
    """Draws an image for each that lies at `path`, under its name; returns their number, and the folder or file.

    Args:
        pipe: Of the model.
        task: What it was fine-tuned for.
        path: Low-resolution images or layouts: any source that is trained on.
        settings: Of the drawing.
        out: Folder to write to.
        bits: That the model was trained on, and so those of what it is given; `settings` may ask for others.
        count: Of the first images in the order of their ids; all if not given.

    Raises:
        ConfigError: There is nothing to draw from, or it is not of the model's size.
    """
    side = pipe.network.config.sample_size * pipe.config.pixel_unshuffle
    names, images = _read(path, task, side=side, bands=pipe.bands, bits=bits, count=count)
    writer = None if settings.format == "npy" else Writer(settings.format, pipe.bands, settings.bits or bits)
    given = prepared(task, images)
    make_folder(out)
    pixels = drawn(
        pipe,
        given,
        bits=settings.bits or bits,
        steps=settings.steps,
        seed=settings.seed,
        mean_of=settings.mean_of,
        batch_size=settings.batch_size,
    )
    if writer is None:
        write_array(out / "samples.npy", pixels)
        return len(pixels), out / "samples.npy"
    for name, image in zip(names, pixels, strict=True):
        target = out / f"{name}.{settings.format}"
        target.parent.mkdir(parents=True, exist_ok=True)
        writer.write(target, image)
    return len(pixels), out


def _read(
    path: str, task: Mapping[str, Any], *, side: int, bands: int, bits: int, count: int | None
) -> tuple[list[str], np.ndarray]:
    """Names without extension and pixels [N, h, w, C] of what the model is given."""
    semantic = task["name"] == "semantic"
    size = side if semantic else side // task["scale"]
    wanted = (size, size, 1 if semantic else bands)
    source = open_source(SourceConfig(path=absolute(path)))
    items = list(source.items())[:count]
    names = [stem(item.id) for item in items]
    twice = (
        sorted(name for name in set(names) if names.count(name) > 1) if len(set(names)) < len(names) else []
    )
    if twice:
        raise ConfigError(f"{path} has several images of the name {twice[0]!r}: give one of each name")
    images = []
    for item in items:
        try:
            image = source.read(item).pixels
        except UnreadableImage as error:
            raise ConfigError(f"image {item.id!r} {error}: take it out of {path}") from None
        if image.shape != wanted:
            raise ConfigError(
                f"image {item.id!r} is {_words(image.shape)} and the model is given {_words(wanted)}: "
                "cut or scale it first"
            )
        dtype = np.dtype(np.uint16 if bits == 16 and not semantic else np.uint8)
        if image.dtype != dtype and not (semantic and image.dtype.kind == "u"):
            raise ConfigError(
                f"image {item.id!r} has {image.dtype.name} pixels and the model takes {dtype.name}: convert it first"
            )
        if semantic:
            check_classes(item.id, image, task["classes"])
        images.append(image)
    return names, np.stack(images)


def check_classes(id: str, mask: np.ndarray, classes: int) -> None:
    """Raises `ConfigError` where a layout has a number that is no class."""
    highest = int(mask.max())
    if highest >= classes:
        raise ConfigError(
            f"the mask of {id!r} has class {highest} and there are {classes} classes, numbered from 0: "
            "renumber its pixels, or give more with --classes"
        )


def stem(id: str) -> str:
    """An image's id without the extension of its file; of a window with its place."""
    path, window = ids.parse(id)
    path = str(PurePosixPath(path).with_suffix("")) if PurePosixPath(path).name else path
    return path if window is None else "{}_{}_{}_{}_{}".format(path, *window)


def _words(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]} pixels in {shape[2]} band{'s' * (shape[2] > 1)}"
