"""Encoders: 8-bit images in, one feature vector per image out."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from rsprune.errors import ConfigError

ENCODERS = ("lite0",)


class Encoder(Protocol):
    """What turns images into features; `weight_hash` is a SHA-256, "" for an encoder without weights."""

    name: str
    weight_hash: str
    dim: int
    device: str

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features [n, dim] float32 of n images, each uint8 [H, W, C] of any size."""
        ...


def load_encoder(name: str, device: str = "auto") -> Encoder:
    """The encoder of that name, ready to be called.

    Args:
        name: One of `ENCODERS`.
        device: "cpu", "cuda", "cuda:1", or "auto", cuda where there is one; `Encoder.device` is the choice.

    Raises:
        ConfigError: If there is no such encoder or device, or a package that it needs is not installed.
    """
    if name not in ENCODERS:
        raise ConfigError(
            f"there is no encoder {name!r}: give one of {', '.join(ENCODERS)}, "
            "or embeddings of your own with --embeddings FILE"
        )
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(f"the encoder {name} needs PyTorch: run `pip install 'rsprune[torch]'`")
    from rsprune.encoders.lite0 import Lite0

    return Lite0(device=device)


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
