"""Image networks of the transformers library, from a folder or the Hugging Face hub: ``hf:PATH_OR_NAME``.

Images are prepared by our own few lines from the numbers in the model's preprocessor_config.json, because the
library's image processors may need torchvision.
"""

from __future__ import annotations

from typing import Any

import torch

from rsprune.encoders.preprocess import Preprocessing, side_lengths
from rsprune.encoders.torch_model import TorchModel, first_line
from rsprune.errors import ConfigError


def load(argument: str, *, device: str) -> TorchModel:
    """The network at a path or of that name on the hub.

    Only safetensors are read, and code that comes with a model is never run. Features are the network's pooled
    output; where its checkpoint has no weights for the pooling, or there is none, the mean of the tokens.

    Raises:
        ConfigError: The model cannot be loaded, or its checkpoint lacks weights.
    """
    from transformers import AutoModel

    name = f"hf:{argument}"
    preprocessing = _preprocessing(name, argument)
    try:
        network, info = AutoModel.from_pretrained(
            argument, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as e:  # OSError, ValueError, ImportError, errors of the hub
        raise ConfigError(
            f"cannot load {name}: {first_line(e)} (the model has to have its weights as .safetensors "
            "and to be known to the installed transformers)"
        ) from None
    missing = {key for key in info["missing_keys"] if "pooler" not in key.split(".")}
    if missing or info.get("mismatched_keys"):
        lacking = sorted(missing) or sorted(map(str, info["mismatched_keys"]))
        raise ConfigError(
            f"the checkpoint of {name} lacks {len(lacking)} weights, for example {lacking[0]}: "
            "give one of the whole network"
        )
    # transformers fills a pooling layer that the checkpoint does not have with random numbers.
    has_pooling = len(missing) == len(info["missing_keys"])

    def features(x: torch.Tensor) -> Any:
        if hasattr(network, "get_image_features"):  # images and text: only the image half is run
            found = network.get_image_features(pixel_values=x)
            return found if isinstance(found, torch.Tensor) else found.pooler_output
        found = network(pixel_values=x)
        output = getattr(found, "pooler_output", None) if has_pooling else None
        return found.last_hidden_state if output is None else output.flatten(1)

    return TorchModel(name, network, features, preprocessing, device=device)


def _preprocessing(name: str, argument: str) -> Preprocessing:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        stated, _ = ImageProcessingMixin.get_image_processor_dict(argument, trust_remote_code=False)
        size = stated.get("crop_size") if stated.get("do_center_crop") else None
        size = size or stated.get("size")
        if isinstance(size, dict):
            size = size.get("shortest_edge") or (size["height"], size["width"])
        rescale = 255 * stated.get("rescale_factor", 1 / 255) if stated.get("do_rescale", True) else 255
        normalise = stated.get("do_normalize", True)
        mean, std = (stated["image_mean"], stated["image_std"]) if normalise else ((0.0,) * 3, (1.0,) * 3)
        return Preprocessing(
            side_lengths(size or ()),
            tuple(float(m) / rescale for m in mean),
            tuple(float(s) / rescale for s in std),
            2 if stated.get("resample") is None else int(stated["resample"]),
        )
    except (OSError, KeyError, TypeError, ValueError) as e:
        raise ConfigError(
            f"cannot tell how {name} wants its images: {first_line(e)} "
            "(preprocessor_config.json has to state size, image_mean and image_std)"
        ) from None
