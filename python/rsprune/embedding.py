"""The embedding space of a run: encoder features, standardised, then of unit length."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rsprune.errors import ConfigError
from rsprune.files import write_atomic


@dataclass(frozen=True)
class Transform:
    """From features to embeddings: minus `mean` [D], over `scale` [D], over the length; both float32.

    It is fitted once, on a sample, so that every embedding is written once and already transformed.
    """

    mean: np.ndarray
    scale: np.ndarray
    encoder: str = ""
    weight_hash: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        *,
        encoder: str = "",
        weight_hash: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Transform:
        """Mean and standard deviation of features [n, D]; rows with NaN or infinity are left out.

        A feature that is constant gets scale 1; without a single row the transform only sets lengths.
        """
        x = np.asarray(features, np.float64)
        x = x[np.isfinite(x).all(axis=1)]
        x = x if len(x) else np.zeros((1, x.shape[1]))
        mean, scale = x.mean(axis=0), x.std(axis=0)
        # The deviation of equal numbers may be a rounding error, which must not be blown up to 1.
        scale[scale <= 1e-6 * np.abs(mean)] = 1
        scale[scale < np.finfo(np.float32).tiny] = 1
        mean, scale = mean.astype(np.float32), scale.astype(np.float32)
        return cls(mean, scale, encoder, weight_hash, dict(metadata or {}))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Embeddings [n, D] float16 of features [n, D].

        Rows have unit length; one that equals the mean stays zero, one with NaN or infinity becomes NaN.

        Raises:
            ValueError: If the features have another dimension than those that the transform was fitted on.
        """
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"features must be [n, {len(self.mean)}], got {list(x.shape)}")
        broken = np.asarray(~np.isfinite(x).all(axis=1))
        x = (np.where(broken[:, None], 0, x) - self.mean) / self.scale
        length = np.sqrt(np.square(x).sum(axis=1, keepdims=True))
        x = (x / np.where(length > 0, length, 1)).astype(np.float16)
        x[broken] = np.nan
        return x

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file: a temporary name, synced, renamed."""
        from safetensors.numpy import save

        about = {"encoder": self.encoder, "weight_hash": self.weight_hash, "metadata": dict(self.metadata)}
        # One entry, because safetensors writes several in random order and equal runs must give equal bytes.
        data = save({"mean": self.mean, "scale": self.scale}, {"rsprune": json.dumps(about, sort_keys=True)})
        write_atomic(Path(path), lambda f: f.write(data))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Transform:
        """Read what `save` wrote.

        Raises:
            ConfigError: If the file is not a transform.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads(file.metadata()["rsprune"])
                mean, scale = file.get_tensor("mean"), file.get_tensor("scale")
                return cls(mean, scale, about["encoder"], about["weight_hash"], about["metadata"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is not a transform ({error}): run `rsprune embed` again") from None
