"""Patch entropy as a step of a scikit-learn pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from rsprune.ops import patch_entropy

_VALUES = 1 << 22  # converted at once: float64 takes eight times the room of 8-bit values, several times over


class PatchEntropy(TransformerMixin, BaseEstimator):
    """Entropy of every patch of every band, in bits, for images that are rows of a table.

    Args:
        image_shape: `(H, W)` or `(H, W, C)` of the image in a row; None takes a row as one line of pixels.
        patch: Side of a patch (pixels).
        scale: `(lo, hi)`: value v counts in bin `floor((v - lo) / (hi - lo) * 256)`, clipped to 0..255; None
            takes the smallest and the largest value of the data it is fitted on. `(0, 256)` suits 8-bit images.

    Attributes:
        scale_: The pair `(lo, hi)` in use.
        n_features_in_: Values in a row.
    """

    scale_: tuple[float, float]

    def __init__(
        self,
        image_shape: Sequence[int] | None = None,
        *,
        patch: int = 32,
        scale: tuple[float, float] | None = None,
    ) -> None:
        self.image_shape = image_shape
        self.patch = patch
        self.scale = scale

    def fit(self, X: Any, y: Any = None) -> PatchEntropy:  # X: [N, H * W * C]
        """Settles the scale.

        Raises:
            ValueError: A setting or the data cannot be used.
        """
        x = self._check_data(X, reset=True)
        if not isinstance(self.patch, Integral) or self.patch < 1:
            raise ValueError(f"patch must be a whole number of at least 1 pixel, got {self.patch!r}")
        self._shape(x.shape[1])
        if self.scale is None:
            self.scale_ = float(x.min()), float(x.max())
        elif np.shape(self.scale) == (2,) and self.scale[0] < self.scale[1]:
            self.scale_ = float(self.scale[0]), float(self.scale[1])
        else:
            raise ValueError(f"scale must be (lo, hi) with lo < hi, got {self.scale!r}")
        return self

    def transform(self, X: Any) -> np.ndarray:  # X: [N, H * W * C]
        """Entropy in bits, float32 `[N, patches]`: rows of patches, their columns, then bands."""
        check_is_fitted(self)
        x = self._check_data(X, reset=False)
        rows = max(1, _VALUES // x.shape[1])
        parts = [self._bits(x[first : first + rows]) for first in range(0, len(x), rows)]
        return np.concatenate(parts)

    def _bits(self, x: np.ndarray) -> np.ndarray:
        lo, hi = self.scale_
        # Values far outside the scale overflow, and are clipped.
        with np.errstate(over="ignore", invalid="ignore"):
            bins = (x.astype(np.float64) - lo) / ((hi - lo) or 1.0) * 256
        images = np.clip(np.floor(bins), 0, 255).astype(np.uint8).reshape(len(x), *self._shape(x.shape[1]))
        bits: np.ndarray = patch_entropy(images, self.patch).reshape(len(x), -1)
        return bits

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names [patches] such as ``entropy_0_1_2``: row and column of the patch, band."""
        check_is_fitted(self)
        _check_feature_names_in(self, input_features)
        height, width, *bands = self._shape(self.n_features_in_)
        patches = (-(-height // self.patch), -(-width // self.patch), *bands)
        return np.array(["_".join(map(str, ("entropy", *i))) for i in np.ndindex(*patches)], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _check_data(self, X: Any, *, reset: bool) -> np.ndarray:
        x: np.ndarray = validate_data(
            self, X, reset=reset, dtype=[np.float64, np.float32, np.uint8, np.uint16]
        )
        return x

    def _shape(self, n_features: int) -> tuple[int, ...]:
        if self.image_shape is None:
            return 1, n_features
        if np.shape(self.image_shape) not in ((2,), (3,)):
            raise ValueError(f"image_shape must be (H, W) or (H, W, C), got {self.image_shape!r}")
        shape = tuple(self.image_shape)
        if np.prod(shape) != n_features:
            raise ValueError(f"image_shape is {shape}, but a row of X has {n_features} values")
        return shape
