"""Encoders: 8-bit images in, one feature vector per image out."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from rsprune import plugins
from rsprune.errors import ConfigError, RspruneError

ENCODERS = (
    "lite0", "rcf", "onnx:PATH", "hf:PATH_OR_NAME", "open_clip:ARCH:PRETRAINED_OR_PATH", "timm:NAME[:PATH]",
)  # fmt: skip
NEEDS = {  # extra, and what it brings that is imported
    "lite0": ("torch", ("torch",)),
    "onnx": ("onnx", ("onnxruntime",)),
    "hf": ("hf", ("torch", "transformers")),
    "open_clip": ("open-clip", ("torch", "open_clip")),
    "timm": ("timm", ("torch", "timm")),
}


class Encoder(Protocol):
    """What turns images into features.

    Attributes:
        name: as in ``--encoder``.
        weight_hash: SHA-256 of what the features depend on, "" for an encoder without weights.
        dim: features of an image.
        device: where it computes.

    An encoder may have ``check_bands(bands: Mapping[str, int])``, which is called with the band count of every
    source before the first image is decoded, and raises `ConfigError` that names the source it cannot take.
    """

    @property
    def name(self) -> str: ...

    @property
    def weight_hash(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def device(self) -> str: ...

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features [n, dim] float32 of n images, each uint8 [H, W, C] of any size.

        The features of an image must not depend on the images that it is given with.
        """
        ...


@runtime_checkable
class LearntEncoder(Protocol):
    """An `Encoder` that learns something from the pool, once, before it is called.

    Attributes:
        fit_images: images that it learns from, at most; a seeded sample of different contents.
    """

    fit_images: int

    def fit(self, images: Iterable[np.ndarray], seed: int) -> dict[str, np.ndarray]:
        """What it learns from `images`, as named arrays. Raises `ConfigError`."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Makes it ready with what `fit` returned, and sets `dim` and `weight_hash`."""
        ...


def load_encoder(name: str, device: str = "auto") -> Encoder:
    """The encoder of that name; one that learns from the pool has to be given its state before it is called.

    Args:
        name: One of `ENCODERS`, or ``NAME`` or ``NAME:ARGUMENT`` of one that an installed package adds.
        device: "cpu", "cuda", "cuda:1", or "auto", cuda where there is one; `Encoder.device` is the choice.

    Raises:
        ConfigError: If there is no such encoder or device, or a package that it needs is not installed.
        RspruneError: If what an installed package added is no encoder.
    """
    kind, _, argument = name.partition(":")
    known = {entry.partition(":")[0]: ":" in entry for entry in ENCODERS}
    if kind not in known:
        return _from_plugin(name, kind, argument, device)
    if known[kind] != bool(argument):
        usage = next(entry for entry in ENCODERS if entry.partition(":")[0] == kind)
        raise ConfigError(f"there is no encoder {name!r}: give --encoder {usage}")
    extra, modules = NEEDS.get(kind, ("", ()))
    for module in modules:
        if importlib.util.find_spec(module) is None:
            package = "PyTorch" if module == "torch" else module
            raise ConfigError(f"the encoder {name} needs {package}: run `pip install 'rsprune[{extra}]'`")
    return _build(kind, argument, device)


def _build(kind: str, argument: str, device: str) -> Encoder:
    if kind == "lite0":
        from rsprune.encoders.lite0 import Lite0

        return Lite0(device=device)
    if kind == "rcf":
        from rsprune.encoders.rcf import RandomConvolutions

        return RandomConvolutions()
    if kind == "onnx":
        from rsprune.encoders.onnx import OnnxModel

        return OnnxModel(argument, device=device)
    if kind == "hf":
        from rsprune.encoders.hf import load
    elif kind == "open_clip":
        from rsprune.encoders.open_clip import load
    else:
        from rsprune.encoders.timm import load
    return load(argument, device=device)


def _from_plugin(name: str, kind: str, argument: str, device: str) -> Encoder:
    factory = plugins.find(plugins.ENCODERS, kind)
    if factory is None:
        added = plugins.names(plugins.ENCODERS)
        raise ConfigError(
            f"there is no encoder {name!r}: give one of {', '.join((*ENCODERS, *added))}, "
            "or embeddings of your own with --embeddings FILE"
        )
    encoder: Encoder = factory(argument, device=device)
    wanted = ("name", "weight_hash", "device", *(() if isinstance(encoder, LearntEncoder) else ("dim",)))
    lacking = [attribute for attribute in wanted if not hasattr(encoder, attribute)]
    if lacking or not callable(encoder):
        raise RspruneError(
            f"encoder {kind} of an installed package "
            + (f"has no {lacking[0]}" if lacking else "cannot be called")
            + ": ask its author, or give another --encoder"
        )
    return encoder


def encoder_files(name: str) -> list[Path]:
    """Local files that the encoder of that name is read from, sorted; [] for one of a package or a hub."""
    kind, _, argument = name.partition(":")
    last = argument.rpartition(":")[2]
    if kind == "onnx":
        # Weights outside the file and our description of it are called as it is, and more.
        path = Path(argument)
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        return [path, *sorted(p for p in beside if p.name.startswith(path.name) and p != path)]
    if kind == "hf" and Path(argument).is_dir():
        return sorted(p for p in Path(argument).iterdir() if p.is_file())
    if kind in ("open_clip", "timm") and Path(last).is_file():
        return [Path(last)]
    return []


def check_bands(encoder: Encoder, bands: Mapping[str, int]) -> None:
    """Raises `ConfigError` where the encoder cannot take a source; `bands` is the count of each by name."""
    check = getattr(encoder, "check_bands", None)
    if check:
        check(bands)


def check_rgb(bands: Mapping[str, int]) -> None:
    """Raises `ConfigError` naming a source whose red, green and blue cannot be told."""
    for source, count in bands.items():
        try:
            rgb_bands(count)
        except ConfigError as e:
            raise ConfigError(f"source {source}: {e}") from None


def rgb_bands(c: int) -> tuple[int, int, int]:
    """0-based positions of red, green and blue among `c` bands.

    One band is grey, three or four are R, G, B (and near infrared), thirteen are Sentinel-2 L1C.

    Raises:
        ConfigError: For any other number of bands, because guessing would be wrong without notice.
    """
    known = {1: (0, 0, 0), 3: (0, 1, 2), 4: (0, 1, 2), 13: (3, 2, 1)}
    if c not in known:
        raise ConfigError(
            f"cannot tell which of {c} bands are red, green and blue: "
            "give --bands with three bands, for example --bands 4,3,2"
        )
    return known[c]


def checked_image(image: np.ndarray) -> np.ndarray:
    """The image. Raises `ValueError` where it is not uint8 [H, W, C]."""
    if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"images must be uint8 [H, W, C], got {image.dtype} {list(image.shape)}")
    return image
