"""Image halves of contrastive image-text networks of the open_clip library: ``open_clip:ARCH:PRETRAINED_OR_PATH``.

The library depends on torchvision; a version of that has to be installed that fits the installed torch.
"""

from __future__ import annotations

from pathlib import Path

from rsprune.encoders.preprocess import RESAMPLING, Preprocessing, side_lengths
from rsprune.encoders.torch_model import TorchModel, first_line
from rsprune.errors import ConfigError

SCHEMAS = ("hf-hub:", "local-dir:")  # of names that bring their weights


def load(argument: str, *, device: str) -> TorchModel:
    """The network ARCH with weights of that tag or file, or ``hf-hub:NAME`` or ``local-dir:PATH``.

    Raises:
        ConfigError: The model cannot be loaded, or no weights are named.
    """
    import open_clip

    name = f"open_clip:{argument}"
    arch, _, pretrained = (argument, "", "") if argument.startswith(SCHEMAS) else argument.partition(":")
    if not pretrained and not argument.startswith(SCHEMAS):
        raise ConfigError(
            f"{name} names no weights and would be random: give open_clip:{arch}:TAG or open_clip:{arch}:FILE"
        )
    if Path(pretrained).suffix and not Path(pretrained).is_file():
        raise ConfigError(f"there is no file {pretrained}: give open_clip:{arch}:FILE or a tag of open_clip")
    try:
        network = open_clip.create_model(
            arch, pretrained=pretrained or None, weights_only=True, require_pretrained=True
        )
    except Exception as e:  # unknown names, missing files, unsafe pickles: each its own kind of error
        raise ConfigError(f"cannot load {name}: {first_line(e)}") from None
    stated = network.visual.preprocess_cfg
    preprocessing = Preprocessing(
        side_lengths(stated["size"]),
        tuple(stated["mean"]),
        tuple(stated["std"]),
        RESAMPLING.get(stated.get("interpolation", "bicubic"), RESAMPLING["bicubic"]),
    )
    return TorchModel(name, network, network.encode_image, preprocessing, device=device)
