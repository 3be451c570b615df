"""A PyTorch network of somebody else as an encoder of red, green and blue."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from rsprune.encoders import check_rgb
from rsprune.encoders.preprocess import Preprocessing, padded, pooled
from rsprune.engine import torch_lacks_cuda
from rsprune.errors import ConfigError


class TorchModel:
    """`features` maps float32 [n, 3, h, w] to what `pooled` accepts; `network` holds its weights."""

    group = 8  # images per forward pass

    def __init__(
        self,
        name: str,
        network: torch.nn.Module,
        features: Callable[[torch.Tensor], torch.Tensor],
        preprocessing: Preprocessing,
        *,
        device: str,
    ):
        self.name = name
        self.device = torch_device(device)
        self.network = network.eval().requires_grad_(False).float().to(self.device)
        self.features = features
        self.preprocessing = preprocessing
        self.dim = self._pass(np.zeros((self.group, 3, *preprocessing.size), np.float32)).shape[1]

    @cached_property
    def weight_hash(self) -> str:
        """SHA-256 of how images are prepared, and of names and values of all weights."""
        digest = hashlib.sha256(repr(self.preprocessing).encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(value.cpu().numpy()).data)
        return digest.hexdigest()

    def check_bands(self, bands: Mapping[str, int]) -> None:
        """Raises `ConfigError` naming a source whose red, green and blue cannot be told."""
        check_rgb(bands)

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features [n, dim] float32 of n images, each uint8 [H, W, C] of any size."""
        if not images:
            return np.empty((0, self.dim), np.float32)
        passes = []
        for start in range(0, len(images), self.group):
            x = np.stack([self.preprocessing(image) for image in images[start : start + self.group]])
            passes.append(self._pass(padded(x, self.group)))
        return np.concatenate(passes)[: len(images)]

    @torch.inference_mode()
    def _pass(self, x: np.ndarray) -> np.ndarray:
        with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
            return pooled(self.features(torch.from_numpy(x).to(self.device))).float().cpu().numpy()


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a .safetensors file or a PyTorch checkpoint, of which no code is run. Raises `ConfigError`."""
    import pickle

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{path} holds more than tensors, which could run code: save its weights as .safetensors"
        ) from None
    except Exception as e:  # both libraries raise whatever a broken file makes them raise
        raise ConfigError(f"cannot read weights from {path}: {first_line(e)}") from None
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ConfigError(f"{path} is not a file of weights: save the network's state_dict")
    return {name.removeprefix("module."): value for name, value in found.items()}


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def torch_device(device: str) -> str:
    """The device of that name; auto is cuda where there is one. Raises `ConfigError`."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"there is no device {device!r}: give auto, cpu, cuda or cuda:1")
    if chosen.type == "cuda" and (reason := torch_lacks_cuda(chosen.index or 0)):
        raise ConfigError(f"device {device} cannot be used because {reason}: give --device cpu")
    return str(chosen)
