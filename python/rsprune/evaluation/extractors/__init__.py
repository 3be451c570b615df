"""Extractors: the networks that measure, of other families than the encoders that select.

AlexNet and VGG16 come as LPIPS uses them; their weights are given once and cached. Encoders of
`rsprune.encoders` can measure as well, if they did not select.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rsprune import plugins
from rsprune.encoders import ENCODERS, Encoder, LearntEncoder, load_encoder
from rsprune.errors import ConfigError

PERCEPTUAL = ("alexnet", "vgg16")
EXTRACTORS = (*PERCEPTUAL, *(e for e in ENCODERS if e != "rcf"))
RESIZE = 128  # pixels; tiles of 64 would leave AlexNet 3 x 3 positions


def load_extractor(
    name: str, *, weights: Path | None = None, resize: int | None = None, device: str = "auto"
) -> Encoder:
    """The extractor of that name, ready to be called on images uint8 [H, W, C].

    Args:
        name: One of `EXTRACTORS`.
        weights: For alexnet and vgg16: the archive with their weights, once; they are cached then.
        resize: For alexnet and vgg16: images are resized to this side (pixels), 128 if not given.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        ConfigError: There is no such extractor, or its weights or a package that it needs are missing.
    """
    if name in PERCEPTUAL:
        if importlib.util.find_spec("torch") is None:
            raise ConfigError(f"the extractor {name} needs PyTorch: run `pip install 'rsprune[torch]'`")
        from rsprune.evaluation.extractors.perceptual import Perceptual

        return Perceptual(name, weights=weights, resize=resize or RESIZE, device=device)
    kind = name.partition(":")[0]
    if kind not in {e.partition(":")[0] for e in ENCODERS} | set(plugins.names(plugins.ENCODERS)):
        raise ConfigError(f"there is no extractor {name!r}: give one of {', '.join(EXTRACTORS)}")
    for option, value in (("--weights", weights), ("--resize", resize)):
        if value is not None:
            raise ConfigError(f"{option} is for alexnet and vgg16, not for {name}: leave it out")
    encoder = load_encoder(name, device)
    if isinstance(encoder, LearntEncoder):
        raise ConfigError(
            f"{name} is learnt from each pool anew, so it cannot compare sets: give another extractor"
        )
    return encoder


def input_side(extractor: Encoder) -> int | list[int] | None:
    """Pixels that the extractor resizes images to: a side, or height and width; None if it does not say."""
    preprocessing = getattr(extractor, "preprocessing", None)
    if preprocessing is not None:
        return list(preprocessing.size)
    return getattr(extractor, "size", None)
