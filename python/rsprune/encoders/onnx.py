"""A network in an ONNX file, of any number of bands: ``onnx:PATH``.

How it wants its images stands in the model's metadata or, taking precedence, in ``PATH.toml``: ``mean`` and
``std`` per band in units of 0..1, ``size`` where the network leaves it open, ``output`` where it has several.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rsprune.encoders import check_rgb, encoder_files
from rsprune.encoders.packaged import sha256
from rsprune.encoders.preprocess import Preprocessing, padded, pooled, side_lengths
from rsprune.errors import ConfigError

KEYS = ("mean", "std", "size", "output")


class OnnxModel:
    """A network from float32 [N, C, h, w] to [N, D], [N, T, D] or [N, D, h, w], the last two averaged."""

    def __init__(self, path: str, *, device: str = "auto"):
        import onnxruntime

        self.name = f"onnx:{path}"
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(f"there is no file {path}: give --encoder onnx:PATH")
        self.device = _device(device, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # one thread per part, as everywhere
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=_providers(self.device))
        except Exception as e:  # onnxruntime has a class of its own for every reason
            raise ConfigError(
                f"{path} is not an ONNX model that can be run: {str(e).splitlines()[0]}"
            ) from None
        stated = self._stated()
        self._input, self.bands, self.group, size = self._shape(stated)
        self.preprocessing = Preprocessing(
            size, self._per_band(stated, "mean"), self._per_band(stated, "std")
        )
        outputs = [o.name for o in self._session.get_outputs()]
        self._output = stated.get("output", outputs[0])
        if self._output not in outputs:
            raise ConfigError(f"{path} has no output {self._output!r}: give one of {', '.join(outputs)}")
        probe = self._pass(np.zeros((self.group, self.bands, *size), np.float32))
        if probe.ndim != 2 or len(probe) != self.group:
            raise ConfigError(
                f"the output {self._output} of {path} is {list(probe.shape)} for {self.group} images: "
                "it must be [N, D], [N, T, D] or [N, D, h, w]"
            )
        self.dim = probe.shape[1]

    @cached_property
    def weight_hash(self) -> str:
        """SHA-256 of the file and those beside it that belong to it."""
        files = encoder_files(self.name)
        return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()

    def check_bands(self, bands: Mapping[str, int]) -> None:
        """Raises `ConfigError` naming a source with other bands than the network has."""
        if self.bands == 3:
            return check_rgb(bands)
        for source, count in bands.items():
            if count != self.bands:
                raise ConfigError(
                    f"source {source} has {count} bands, but {self.path} takes {self.bands}: "
                    "choose them with --bands"
                )
        return None

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features [n, dim] float32 of n images, each uint8 [H, W, C] of any size."""
        if not images:
            return np.empty((0, self.dim), np.float32)
        passes = []
        for start in range(0, len(images), self.group):
            x = np.stack([self.preprocessing(image) for image in images[start : start + self.group]])
            passes.append(self._pass(padded(x, self.group)))
        return np.concatenate(passes)[: len(images)]

    def _pass(self, x: np.ndarray) -> np.ndarray:
        output = pooled(self._session.run([self._output], {self._input: x})[0])
        return output.astype(np.float32, copy=False)

    def _stated(self) -> dict[str, Any]:
        metadata = self._session.get_modelmeta().custom_metadata_map
        try:
            stated = {key: _value(key, metadata[key]) for key in KEYS if key in metadata}
        except ValueError as e:
            raise ConfigError(f"the metadata of {self.path} cannot be used: {e}") from None
        beside = Path(f"{self.path}.toml")
        if beside.exists():
            stated |= _toml(beside)
        return stated

    def _shape(self, stated: Mapping[str, Any]) -> tuple[str, int, int, tuple[int, int]]:
        """Name, bands, images per pass, and height and width of the input."""
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        if (
            len(inputs) != 1
            or inputs[0].type != "tensor(float)"
            or len(shape) != 4
            or type(shape[1]) is not int
        ):
            found = "; ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise ConfigError(
                f"{self.path} must have one input, float32 [N, C, h, w] with a fixed C, it has {found}"
            )
        group, bands, *size = shape
        if not all(type(side) is int for side in size):
            if "size" not in stated:
                raise ConfigError(
                    f"{self.path} leaves the size of its images open: write size = 224, "
                    f"or what it was trained with, into {self.path}.toml"
                )
            size = stated["size"]
        return inputs[0].name, bands, group if type(group) is int else 8, side_lengths(size)

    def _per_band(self, stated: Mapping[str, Any], key: str) -> tuple[float, ...]:
        value = stated.get(key)
        if value is None:
            raise ConfigError(
                f"{self.path} does not say how its images are normalised: write mean = [...] and std = [...], "
                f"a number per band in units of 0..1, into {self.path}.toml"
            )
        if len(value) != self.bands or (key == "std" and min(value) <= 0):
            positive = "positive " if key == "std" else ""
            raise ConfigError(
                f"{key} of {self.path} must be {self.bands} {positive}numbers, it is {list(value)}"
            )
        return tuple(value)


def _value(key: str, text: str) -> Any:
    return text if key == "output" else _checked(key, json.loads(text))


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(path.read_text("utf-8"))
        unknown = set(values) - set(KEYS)
        if unknown:
            raise ValueError(f"there is no key {min(unknown)}, only {', '.join(KEYS)}")
        return {key: _checked(key, value) for key, value in values.items()}
    except (ValueError, OSError) as e:  # of TOML as well
        raise ConfigError(f"{path} cannot be used: {e}") from None


def _checked(key: str, value: Any) -> Any:
    if key == "output":
        usable = isinstance(value, str)
    elif key == "size":
        sides = value if isinstance(value, list) and len(value) == 2 else [value]
        usable = all(type(side) is int and side > 0 for side in sides)
    else:
        usable = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    if not usable:
        raise ValueError(f"{key} is {value!r}")
    return value


def _device(device: str, available: Sequence[str]) -> str:
    has_cuda = "CUDAExecutionProvider" in available
    if device == "auto":
        return "cuda" if has_cuda else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ConfigError(f"there is no device {device!r}: give auto, cpu, cuda or cuda:1")
    if kind == "cuda" and not has_cuda:
        raise ConfigError(
            f"device {device} cannot be used because the installed onnxruntime is without CUDA: "
            "give --device cpu, or install onnxruntime-gpu"
        )
    return device


def _providers(device: str) -> list[Any]:
    kind, _, index = device.partition(":")
    return (
        ["CPUExecutionProvider"]
        if kind == "cpu"
        else [("CUDAExecutionProvider", {"device_id": index or "0"})]
    )
