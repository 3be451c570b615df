"""The networks: diffusers' UNet2DModel and DiTTransformer2DModel, as presets that a JSON file can change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, ModelMixin, UNet2DModel

from rsprune.errors import ConfigError
from rsprune.training.config import TrainConfig

CLASSES = {"unet": UNet2DModel, "dit": DiTTransformer2DModel}
FOLDERS = {"unet": "unet", "dit": "transformer"}  # as diffusers' pipelines call them
# 2.8 M parameters, attention only in the middle; 0.99 GFLOP per image of 32 pixels with pixel-unshuffle 2. After the
# same time on one core its loss on held-out tiles was lower than with 48 channels first (one seed; docs/training.md).
UNET = {
    "block_out_channels": [64, 80, 112],
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "attention_head_dim": 16,
}
DIT = {"num_layers": 6, "num_attention_heads": 4, "attention_head_dim": 48, "patch_size": 4}
# What the data and the task decide, so that the config.json of any trained network can be given as --model-config.
DECIDED = ("sample_size", "in_channels", "out_channels", "num_class_embeds", "num_embeds_ada_norm")


def build(
    settings: TrainConfig, *, bands: int, resolution: int, conditions: int, given: int = 0
) -> ModelMixin:
    """A network with weights drawn from the seed; condition number `conditions` stands for none.

    Its input has `bands` and, behind them, `given` channels of an image that it is given.

    Raises:
        ConfigError: The JSON file cannot be read, or diffusers refuses what it says.
    """
    k = settings.pixel_unshuffle
    arguments: dict[str, Any] = {
        "sample_size": resolution // k,
        "in_channels": (bands + given) * k * k,
        "out_channels": bands * k * k,
        **(UNET if settings.model == "unet" else DIT),
        **_overrides(settings.model_config),
    }
    side = arguments["sample_size"]
    if settings.model == "dit":
        arguments["num_embeds_ada_norm"] = max(1, conditions)
        if side % arguments["patch_size"]:
            raise ConfigError(
                f"the transformer's patch_size {arguments['patch_size']} does not divide {side} pixels: "
                "give another --resolution or --model-config"
            )
    else:
        levels = len(arguments["block_out_channels"])
        arguments.setdefault("down_block_types", ["DownBlock2D"] * levels)
        arguments.setdefault("up_block_types", ["UpBlock2D"] * levels)
        if conditions:
            arguments["num_class_embeds"] = conditions + 1
        if side % 2 ** (levels - 1):
            raise ConfigError(
                f"the network halves images {levels - 1} times, and {side} pixels do not divide by "
                f"{2 ** (levels - 1)}: give another --resolution or --model-config"
            )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = CLASSES[settings.model](**arguments)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"the model cannot be built: {e}; correct --model-config") from None
    return without_own_dropout(model)


def without_own_dropout(model: ModelMixin) -> ModelMixin:
    """The model with its own label dropout off: it draws from a global generator; the sampler does it."""
    for block in getattr(model, "transformer_blocks", ()):
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    return model


def load(folder: Path) -> ModelMixin:
    """The trained network in a model folder. Raises `ConfigError` where there is none."""
    for kind, name in FOLDERS.items():
        if (folder / name / "config.json").is_file():
            try:
                model = CLASSES[kind].from_pretrained(folder / name, use_safetensors=True)
            except (OSError, ValueError, RuntimeError) as e:
                raise ConfigError(f"{folder / name} cannot be loaded: {e}") from None
            return without_own_dropout(model)
    raise ConfigError(f"{folder} holds no trained model: make one with 'rsprune train'")


def weights_of(folder: Path) -> Path:
    """File of the trained network's weights in a model folder that `load` takes."""
    name = next(name for name in FOLDERS.values() if (folder / name / "config.json").is_file())
    return min((folder / name).glob("*.safetensors"))


def given_channels(network: ModelMixin) -> int:
    """Channels of a trained network that are not noise but what it is given."""
    return network.config.in_channels - network.config.out_channels


def _overrides(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"cannot read --model-config {path}: {getattr(e, 'strerror', None) or e}; give a JSON file"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f'--model-config {path} must hold an object, such as {{"layers_per_block": 2}}')
    return {name: value for name, value in values.items() if name[:1] != "_" and name not in DECIDED}
