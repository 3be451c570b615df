"""Networks of the timm library without their last layer: ``timm:NAME`` or ``timm:NAME:PATH``.

The library depends on torchvision; a version of that has to be installed that fits the installed torch.
"""

from __future__ import annotations

from pathlib import Path

from rsprune.encoders.preprocess import RESAMPLING, Preprocessing
from rsprune.encoders.torch_model import TorchModel, first_line, load_weights
from rsprune.errors import ConfigError

SCHEMAS = ("hf-hub:", "hf_hub:", "local-dir:")  # of names that hold a colon themselves


def load(argument: str, *, device: str) -> TorchModel:
    """The network NAME with timm's own weights, or with those of a file, of which no code is run.

    Raises:
        ConfigError: The model cannot be loaded, or the file lacks weights.
    """
    import timm

    name = f"timm:{argument}"
    arch, _, path = (argument, "", "") if argument.startswith(SCHEMAS) else argument.partition(":")
    if path and not Path(path).is_file():
        raise ConfigError(
            f"there is no file {path}: give timm:{arch}:FILE, or timm:{arch} for timm's weights"
        )
    weights = load_weights(Path(path)) if path else None
    try:
        network = timm.create_model(arch, pretrained=not path, num_classes=0)
        stated = timm.data.resolve_model_data_config(network)
    except Exception as e:  # unknown names, no weights, no connection: each its own kind of error
        raise ConfigError(f"cannot load {name}: {first_line(e)}") from None
    if weights is not None:
        try:
            missing = network.load_state_dict(weights, strict=False).missing_keys
        except RuntimeError as e:  # sizes differ
            raise ConfigError(f"{path} does not fit {arch}: {first_line(e)}") from None
        if missing:
            raise ConfigError(f"{path} lacks {len(missing)} weights of {arch}, for example {missing[0]}")
    preprocessing = Preprocessing(
        tuple(stated["input_size"][1:]),
        tuple(stated["mean"]),
        tuple(stated["std"]),
        RESAMPLING.get(stated.get("interpolation", "bicubic"), RESAMPLING["bicubic"]),
    )
    return TorchModel(name, network, network, preprocessing, device=device)
